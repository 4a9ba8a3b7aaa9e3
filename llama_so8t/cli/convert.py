"""`so8t convert`: an SO8T checkpoint or adapter becomes a GGUF file."""

import argparse
from pathlib import Path

from llama_so8t.conversion.options import OUTTYPES, ROTATION_MODES, ConvertOptions

HELP = "convert an SO8T checkpoint or adapter to GGUF"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `so8t convert`."""
    parser.add_argument("model", type=Path, help="directory of an SO8T checkpoint or adapter")
    parser.add_argument(
        "--outfile", type=Path, metavar="FILE", help="file to write (default: MODEL/NAME-so8t-OUTTYPE.gguf)"
    )
    parser.add_argument(
        "--outtype", choices=OUTTYPES, default="q8_0", help="type of the weights (default: q8_0)"
    )
    parser.add_argument(
        "--rotations",
        choices=ROTATION_MODES,
        default="fold",
        help="absorb the rotations into the weights where that is exact, or leave them in the graph "
        "(default: fold)",
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="base model of an adapter, instead of the one it names"
    )
    parser.add_argument("--model-name", metavar="NAME", help="general.name of the file")
    parser.add_argument("--verbose", action="store_true", help="show the messages of llama.cpp's Python code")


def run(args: argparse.Namespace) -> int:
    """Runs `so8t convert`."""
    # here, not above: `so8t --help` must not need the llama.cpp tree
    from llama_so8t import upstream
    from llama_so8t.conversion.convert import convert

    upstream.set_verbose(args.verbose)
    outfile = convert(
        ConvertOptions(
            model=args.model,
            outfile=args.outfile,
            outtype=args.outtype,
            rotations=args.rotations,
            base=args.base,
            model_name=args.model_name,
        )
    )
    print(f"wrote {outfile} ({outfile.stat().st_size:,} bytes)")
    return 0
