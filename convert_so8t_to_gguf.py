#!/usr/bin/env python3
"""Converts an SO8T checkpoint or adapter to GGUF: `python convert_so8t_to_gguf.py model/`, as `so8t convert`."""

import sys

from llama_so8t.cli import main

sys.exit(main(["convert", *sys.argv[1:]]))
