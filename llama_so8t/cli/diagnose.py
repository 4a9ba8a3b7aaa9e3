"""`so8t diagnose`: what a file or directory is that says SO8T, and whether it can be used."""

import argparse
import json
from pathlib import Path

from llama_so8t.diagnosis import diagnose, render

HELP = "tell what a file or directory is that says SO8T, and whether it can be used"

KEYS = """
The object of --json:
  path, kind, meaning      the input and what it is
  layout, name             id and name of the published layout (docs/layouts.md), null where there is none
  verdict, reason          "accept", "refuse" or "needs-origin", and why
  site, side               where the rotation acts; "xR" (rows) or "Rx" (columns) in the code it comes from
  usable, problems         false and the reasons if this project cannot use it as it is
  notes                    worth knowing
  gates                    one object per gate whose formula is known: tensor, layer, blocks,
                           orthogonality_error (largest entry of |R^T R - I|), determinant_error (|det R - 1|)
A number that is not finite is null. The exit code is 0 if it was recognised and is usable, else 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `so8t diagnose`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = KEYS
    parser.add_argument("path", type=Path, metavar="PATH", help="file or model directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Prints the diagnosis.

    Returns:
        0 if the path was recognised and is usable, else 1.
    """
    diagnosis = diagnose(args.path)
    print(json.dumps(diagnosis.to_dict(), indent=2) if args.json else render(diagnosis), flush=True)
    return 0 if diagnosis.usable else 1
