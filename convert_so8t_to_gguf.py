#!/usr/bin/env python3
"""Converts an SO8T checkpoint or adapter to GGUF, as `so8t convert` does."""

import sys

from llama_so8t.cli import main

sys.exit(main(["convert", *sys.argv[1:]]))
