"""`python -m llama_so8t` is the `so8t` command."""

import sys

from llama_so8t.cli import main

sys.exit(main())
