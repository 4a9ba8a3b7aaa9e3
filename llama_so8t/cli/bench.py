"""`so8t bench`: measurements that take minutes, beside what they are compared with."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HELP = "measure this project against upstream"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `so8t bench`."""
    kinds = parser.add_subparsers(dest="what", required=True, metavar="{convert,guard}")

    convert = kinds.add_parser("convert", help="the converter, against upstream's on a 4B float8 model")
    convert.add_argument(
        "--tokenizer", type=Path, required=True, metavar="DIR", help="directory with the tokenizer of a Qwen3 model"
    )
    convert.add_argument("--layers", type=int, default=36, help="layers of the model (default: 36)")
    convert.add_argument("--outtypes", default="q8_0", help="comma-separated types (default: q8_0)")
    convert.add_argument("--runs", type=int, default=1, help="conversions of each kind (default: 1)")

    guard = kinds.add_parser("guard", help="heads and guard of a model in llama-server, against the same without")
    guard.add_argument("model", type=Path, help="GGUF file with heads")
    guard.add_argument("--prompt", type=int, default=128, metavar="N", help="tokens of a prompt (default: 128)")
    guard.add_argument("-n", type=int, default=64, metavar="N", help="tokens of an answer (default: 64)")
    guard.add_argument("--runs", type=int, default=30, help="requests of each kind (default: 30)")
    guard.add_argument("--threads", type=int, default=2, help="of each server (default: 2)")

    for kind, size in ((convert, "14 GB"), (guard, "a copy of the model")):
        where = f"where {size} may be written (default: build/bench)"
        kind.add_argument("--directory", type=Path, default=Path("build/bench"), help=where)
        kind.add_argument("--json", action="store_true", help="print one JSON object at the end")


def run(args: argparse.Namespace) -> int:
    """Runs `so8t bench`."""
    found = _convert(args) if args.what == "convert" else _guard(args)
    if args.json:
        print(json.dumps(found, indent=2))
    return 0


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _convert(args: argparse.Namespace) -> dict[str, Any]:
    from llama_so8t.benchmarks.convert import measure_conversions

    found = measure_conversions(
        args.directory, args.tokenizer, args.layers, args.outtypes.split(","), args.runs, _report
    )
    if not args.json:
        print(f"writing as many bytes alone: {found['write_seconds']:.1f} s")
        for name, ratio in found["ratios"].items():
            print(f"{name}: {ratio:.3f} of convert_hf_to_gguf's time")
    return found


def _guard(args: argparse.Namespace) -> dict[str, Any]:
    from llama_so8t.benchmarks.guard import measure_guard

    found = measure_guard(args.model, args.directory, args.prompt, args.n, args.runs, args.threads, _report)
    if not args.json:
        base = found["medians"]["no heads"]
        print(f"no heads: {base['first_ms']:.2f} ms to the first token, {base['token_ms']:.3f} ms per token")
        for arm, ratios in found["ratios"].items():
            first, token = (
                f"{ratio['median'] - 1:+.2%} ({ratio['low'] - 1:+.2%} to {ratio['high'] - 1:+.2%})"
                for ratio in (ratios["first_ms"], ratios["token_ms"])
            )
            print(f"{arm}: {first} to the first token, {token} per token")
    return found
