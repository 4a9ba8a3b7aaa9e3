"""`so8t bench`: measurements that take minutes, beside what they are compared with."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from llama_so8t.cli.values import count, counts, words

HELP = "measure this project against upstream and against the base"


KEYS = """
The object of --json:
  machine, options         processor and cores; what was asked for
  rows                     one object per model, test and arm:
    shape, outtype, threads, arm
    test                   "ppN" and "tgN": value is tokens per second, compared the ratio to the arm qwen3;
                           "peak": bytes resident, ratio; "load": seconds, difference in seconds;
                           "instructions", "instructions of prompt": per token, ratio
    value                  median of all measurements
    compared               median over the loadings; low, high: its 95 % bootstrap interval; n: loadings
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `so8t bench`."""
    kinds = parser.add_subparsers(dest="what", required=True, metavar="{run,profile,guard,convert}")

    _add_run(kinds)
    _add_profile(kinds)

    convert = kinds.add_parser("convert", help="the converter, against upstream's on a 4B float8 model")
    convert.add_argument(
        "--tokenizer", type=Path, required=True, metavar="DIR", help="directory with the tokenizer of a Qwen3 model"
    )
    convert.add_argument("--layers", type=int, default=36, help="layers of the model (default: 36)")
    convert.add_argument("--outtypes", type=words, default=("q8_0",), help="comma-separated types (default: q8_0)")
    convert.add_argument("--runs", type=int, default=1, help="conversions of each kind (default: 1)")

    guard = kinds.add_parser("guard", help="heads and guard of a model in llama-server, against the same without")
    guard.add_argument("model", type=Path, help="GGUF file with heads")
    guard.add_argument("--prompt", type=int, default=128, metavar="N", help="tokens of a prompt (default: 128)")
    guard.add_argument("-n", type=int, default=64, metavar="N", help="tokens of an answer (default: 64)")
    guard.add_argument("--runs", type=int, default=30, help="requests of each kind (default: 30)")
    guard.add_argument("--threads", type=int, default=2, help="of each server (default: 2)")
    guard.add_argument(
        "--policies", type=words, metavar="LIST",
        help="each needs the memory of a server of its own (default: off,monitor,enforce)",
    )  # fmt: skip

    for kind, size in ((convert, "14 GB"), (guard, "a copy of the model")):
        where = f"where {size} may be written (default: build/bench)"
        kind.add_argument("--directory", type=Path, default=Path("build/bench"), help=where)
        kind.add_argument("--json", action="store_true", help="print one JSON object at the end")


def _add_run(kinds: Any) -> None:
    parser = kinds.add_parser("run", help="speed, memory and load time of SO8T models against their base")
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, KEYS
    option = parser.add_argument
    option("--shapes", type=words, metavar="LIST", help="some of tiny, 135M, 0.6B, 4B (default: 135M,0.6B,4B)")
    option("--outtypes", type=words, metavar="LIST", help="types (default: q8_0,q4_k_m)")
    option("--threads", type=counts, metavar="LIST", help="numbers of threads (default: 1,2)")
    option("-r", "--repetitions", type=count, metavar="N", help="loadings and tests of each model (default: 3)")
    option("--prompt", type=count, metavar="N", help="tokens of a prompt (default: 512; of 0.6B 128, of 4B 16)")
    option("-n", type=count, metavar="N", help="tokens to generate (default: 128; of 0.6B 32, of 4B 4)")
    option("--shared-blocks", action="store_true", help="one rotation per site instead of one per block")
    option(
        "--arms",
        type=words,
        metavar="LIST",
        help="models, qwen3 with them (default: all but qwen3 + probe, the heads of SingProbe)",
    )
    option("--instructions", action="store_true", help="count instructions under valgrind (default: 135M at q8_0)")
    option("--directory", type=Path, metavar="DIR", help="where models may be for a while (default: build/bench)")
    option("--json", action="store_true", help="print one JSON object instead of the tables")


def _add_profile(kinds: Any) -> None:
    parser = kinds.add_parser("profile", help="where the time of a token goes, by part of the graph")
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("models", type=Path, nargs="*", default=[], metavar="MODEL", help="GGUF files, side by side")
    models.add_argument("--shape", help="instead: tiny, 135M, 0.6B or 4B with random weights, the base and with heads")
    parser.add_argument("--outtype", default="q8_0", help="type of --shape (default: q8_0)")
    where = "where the models of --shape may be for a while (default: build/bench)"
    parser.add_argument("--directory", type=Path, default=Path("build/bench"), metavar="DIR", help=where)
    parser.add_argument("--tokens", type=count, default=1, metavar="N", help="tokens at once (default: 1, generation)")
    parser.add_argument("--runs", type=count, default=30, metavar="N", help="evaluations (default: 30)")
    parser.add_argument("--threads", type=count, default=2, metavar="N", help="CPU threads (default: 2)")
    parser.add_argument("--sites", action="store_true", help="a line for each site instead of one for all rotations")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="draw a bar per model")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Runs `so8t bench`."""
    found = {"convert": _convert, "guard": _guard, "run": _run, "profile": _profile}[args.what](args)
    if args.json:
        print(json.dumps(found, indent=2))
    return 0


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from tqdm import tqdm

    from llama_so8t.benchmarks.instructions import count_instructions
    from llama_so8t.benchmarks.run import RunOptions, measure
    from llama_so8t.benchmarks.table import render

    given = {
        "shapes": args.shapes or (("135M",) if args.instructions else None),
        "outtypes": args.outtypes or (("q8_0",) if args.instructions else None),
        "threads": args.threads,
        "repetitions": args.repetitions,
        "n_prompt": args.prompt,
        "n_gen": args.n,
        "shared_blocks": args.shared_blocks,
        "arms": args.arms,
        "directory": args.directory,
    }
    options = RunOptions(**{name: value for name, value in given.items() if value is not None})
    options.check()
    n_steps = len(options.shapes) * len(options.outtypes) * len(options.arms) if args.instructions else options.n_steps
    with tqdm(total=n_steps, bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}]", file=sys.stderr) as bar:

        def report(what: str) -> None:
            bar.update(int(bool(bar.desc)))  # what was reported before is done
            bar.set_description_str(what)

        found = (count_instructions if args.instructions else measure)(options, report)
        bar.update(1)
    if not args.json:
        print(f"{found['machine']['processor']}, {found['machine']['cores']} cores\n\n{render(found['rows'])}")
    return found


def _profile(args: argparse.Namespace) -> dict[str, Any]:
    from llama_so8t.benchmarks.profile import profile, profile_shape, render

    how = (args.tokens, args.runs, args.threads, args.sites)
    found = profile_shape(args.directory, args.shape, args.outtype, *how) if args.shape else profile(args.models, *how)
    if args.plot is not None:
        from llama_so8t.benchmarks.profile_picture import draw

        draw(found, args.plot)
    if not args.json:
        print(render(found))
    return found


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _convert(args: argparse.Namespace) -> dict[str, Any]:
    from llama_so8t.benchmarks.convert import ConversionOptions, measure_conversions

    options = ConversionOptions(args.directory, args.tokenizer, args.layers, args.outtypes, args.runs)
    found = measure_conversions(options, _report)
    if not args.json:
        print(f"writing as many bytes alone: {found['write_seconds']:.1f} s")
        for name, ratio in found["ratios"].items():
            print(f"{name}: {ratio:.3f} of convert_hf_to_gguf's time")
    return found


def _guard(args: argparse.Namespace) -> dict[str, Any]:
    from llama_so8t.benchmarks.guard import BARE, POLICIES, GuardOptions, measure_guard

    policies = args.policies or POLICIES
    found = measure_guard(
        GuardOptions(args.model, args.directory, args.prompt, args.n, args.runs, args.threads, policies), _report
    )
    if not args.json:
        base = found["medians"][BARE]
        print(f"{BARE}: {base['first_ms']:.2f} ms to the first token, {base['token_ms']:.3f} ms per token")
        for arm, ratios in found["ratios"].items():
            first, token = (
                f"{ratio['median'] - 1:+.2%} ({ratio['low'] - 1:+.2%} to {ratio['high'] - 1:+.2%})"
                for ratio in (ratios["first_ms"], ratios["token_ms"])
            )
            print(f"{arm}: {first} to the first token, {token} per token")
    return found
