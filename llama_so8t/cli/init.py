"""`so8t init`: an SO8T checkpoint or adapter from a base model."""

import argparse
import sys
from pathlib import Path

HELP = "make an SO8T checkpoint or adapter from a base model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `so8t init`."""
    parser.add_argument(
        "--base",
        required=True,
        metavar="MODEL",
        help="base model: a Hugging Face directory, a GGUF file, or package:NAME/FILE",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--rotations",
        choices=("zero", "random"),
        default="zero",
        help="start values of the generators (default: zero, which is exactly the base)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of random generators (default: 0)")
    parser.add_argument(
        "--scale",
        type=float,
        default=0.1,
        help="standard deviation of random generators in radians (default: 0.1)",
    )
    parser.add_argument("--heads", choices=("zero",), default="zero", help="start values of the heads (default: zero)")
    parser.add_argument(
        "--compensate",
        action="store_true",
        help="counter-rotate the weights, so that the model still computes what the base does",
    )
    parser.add_argument("--adapter", action="store_true", help="write only generators and heads, beside the base")
    parser.add_argument(
        "--shared-blocks",
        action="store_true",
        help="one rotation for all blocks of a hidden vector instead of one per block",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing model directory")
    parser.add_argument("--verbose", action="store_true", help="show the messages of llama.cpp's Python code")


def run(args: argparse.Namespace) -> int:
    """Runs `so8t init`."""
    # here, not above: `so8t --help` must not need the llama.cpp tree
    from llama_so8t import upstream
    from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
    from llama_so8t.format import unfitted_warning

    upstream.set_verbose(args.verbose)
    done = initialize(
        InitializeOptions(
            base=args.base,
            out=args.out,
            rotations=args.rotations,
            seed=args.seed,
            scale=args.scale,
            compensate=args.compensate,
            adapter=args.adapter,
            shared_blocks=args.shared_blocks,
            force=args.force,
        )
    )
    for note in done.notes:
        print(f"note: {note}")
    print(unfitted_warning(done.unfitted_heads), file=sys.stderr)
    print(f"wrote {'adapter' if args.adapter else 'checkpoint'} {done.out}")
    return 0
