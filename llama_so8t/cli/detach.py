"""`so8t detach`: a copy of a model without its heads."""

import argparse
from pathlib import Path

HELP = "write a copy of a GGUF model without its heads, and the heads as a file of their own"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `so8t detach`."""
    parser.add_argument("model", type=Path, metavar="MODEL.gguf", help="a model with heads")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.gguf", help="the copy")
    parser.add_argument(
        "--heads", type=Path, metavar="FILE.heads.gguf", help="heads file to write, bound to the tensors of the copy"
    )


def run(args: argparse.Namespace) -> int:
    """Runs `so8t detach`."""
    # here, not above: `so8t --help` must not need the llama.cpp tree
    from llama_so8t.heads_file import detach

    names = detach(args.model, args.out, args.heads)
    print(f"wrote {args.out} without the heads {', '.join(names)}")
    return 0
