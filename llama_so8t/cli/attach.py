"""`so8t attach`: heads files into a copy of a model."""

import argparse
from pathlib import Path

HELP = "put the heads of heads files into a copy of a GGUF model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `so8t attach`."""
    parser.add_argument("model", type=Path, metavar="MODEL.gguf", help="a model that they were fitted on")
    parser.add_argument("heads", type=Path, nargs="+", metavar="FILE.heads.gguf", help="heads files")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.gguf", help="the copy")


def run(args: argparse.Namespace) -> int:
    """Runs `so8t attach`."""
    # here, not above: `so8t --help` must not need the llama.cpp tree
    from llama_so8t.heads_file import attach

    names = attach(args.model, args.heads, args.out)
    print(f"wrote {args.out} with the heads {', '.join(names)}")
    return 0
