"""`so8t modelfile`: the Ollama Modelfile of a GGUF file."""

import argparse
import sys
from pathlib import Path

HELP = "write the Ollama Modelfile of a GGUF file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `so8t modelfile`."""
    parser.add_argument("gguf", type=Path, metavar="FILE.gguf", help="the model")
    parser.add_argument(
        "--outfile", type=Path, metavar="FILE", help="file to write (default: Modelfile beside the model)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--system", metavar="TEXT", help="system message (default: none)")
    parser.add_argument(
        "--license",
        type=Path,
        metavar="FILE",
        help="licence text (default: the LICENSE of the model directory that the model lies in)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs `so8t modelfile`."""
    # here, not above: `so8t --help` must not need the llama.cpp tree
    from llama_so8t.checkpoint.gguf_heads import unfitted_heads
    from llama_so8t.files.gguf_file import read_gguf
    from llama_so8t.format import unfitted_warning
    from llama_so8t.modelfile import write_modelfile

    outfile = write_modelfile(
        args.gguf, args.outfile, system=args.system, license_file=args.license, replace=args.force
    )
    print(f"wrote {outfile}")
    if unfitted := unfitted_heads(read_gguf(args.gguf)):
        print(unfitted_warning(unfitted), file=sys.stderr)
    return 0
