"""`so8t bench`: measurements that take minutes, beside what they are compared with."""

import argparse
import json
import sys
from pathlib import Path

HELP = "measure this project against upstream"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `so8t bench`."""
    parser.add_argument("what", choices=("convert",), help="the converter, against upstream's on a 4B float8 model")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="DIR", help="directory with the tokenizer of a Qwen3 model"
    )
    parser.add_argument(
        "--directory", type=Path, default=Path("build/bench"), help="where 14 GB may be written (default: build/bench)"
    )
    parser.add_argument("--layers", type=int, default=36, help="layers of the model (default: 36)")
    parser.add_argument("--outtypes", default="q8_0", help="comma-separated types (default: q8_0)")
    parser.add_argument("--runs", type=int, default=1, help="conversions of each kind (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def run(args: argparse.Namespace) -> int:
    """Runs `so8t bench`."""
    from llama_so8t.benchmarks.convert import measure_conversions

    found = measure_conversions(
        args.directory,
        args.tokenizer,
        args.layers,
        args.outtypes.split(","),
        args.runs,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"writing as many bytes alone: {found['write_seconds']:.1f} s")
    for name, ratio in found["ratios"].items():
        print(f"{name}: {ratio:.3f} of convert_hf_to_gguf's time")
    return 0
