"""`so8t heads`: fit the safety and authority heads of a model, or measure them on held-out data."""

import argparse
import json
from pathlib import Path

HELP = "fit the safety and authority heads on labelled data, or measure them"

KEYS = """
The data are read from Python packages, which the command names if they are missing. Hidden states are kept in
~/.cache/llama_so8t/features (under $XDG_CACHE_HOME or $SO8T_CACHE_DIR where set); no text is kept.

The object of --json, and of heads_report.json:
  format, backbone         1; a hash of all that the hidden states depend on
  model                    base_architecture, n_layer, hidden_size; of adapters base_model, base_model_sha256 and
                           compensated; generators: kind -> not_zero, of
  packages                 data package -> version
  heads                    head -> its entry in so8t_heads of the configuration
  tasks                    one object per head and position (prompt or answer):
    head, position
    fit, held_out          examples by set and label (1 acts): n, and the groups that are never divided
    rates                  position, set, label, n, rate: the part of held-out examples on which the head acts
    auroc                  acting and benign set ("all" is every one), n of each, and the area under the ROC
                           curve of head, first_word, function_words (with the length) and all_words
  fit                      `so8t heads fit` only: made_by, seed, max_false_positives, and for every head strength
                           (C of the regression), debounce and validation: folds, decided_by, caught, auroc,
                           rates, all of these out of fold
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `so8t heads fit` and `so8t heads evaluate`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = KEYS
    commands = parser.add_subparsers(dest="heads_command", required=True, metavar="fit|evaluate")
    fit = commands.add_parser("fit", help="fit the heads and write them with thresholds and a report")
    evaluate = commands.add_parser("evaluate", help="measure the heads that a model has on held-out data")
    for command in (fit, evaluate):
        command.add_argument("model", type=Path, metavar="CHECKPOINT_OR_ADAPTER", help="SO8T model directory")
        command.add_argument("--base", metavar="PATH", help="base model of an adapter, instead of the one it names")
        command.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    fit.add_argument("--seed", type=int, default=0, help="seed of the validation folds (default: 0)")
    fit.add_argument(
        "--max-false-positives",
        type=float,
        default=0.05,
        metavar="RATE",
        help="largest part of every set of benign validation examples that may act (default: 0.05)",
    )
    fit.add_argument("--made-by", metavar="COMMAND", help="command that made the model, for its README")
    fit.add_argument("--out", type=Path, metavar="DIR", help="write a copy instead of changing the model")


def run(args: argparse.Namespace) -> int:
    """Runs `so8t heads fit` or `so8t heads evaluate`."""
    # here, not above: `so8t --help` must need neither torch nor scikit-learn
    from llama_so8t.heads.command import FitOptions, evaluate, fit
    from llama_so8t.heads.report import render

    if args.heads_command == "fit":
        report = fit(
            FitOptions(
                model=args.model,
                base=args.base,
                seed=args.seed,
                max_false_positives=args.max_false_positives,
                out=args.out,
                made_by=args.made_by,
            ),
            _progress,
        )
    else:
        report = evaluate(args.model, args.base, _progress)
    print(json.dumps(report, indent=2) if args.json else render(report))
    if args.heads_command == "fit":
        _progress(f"wrote {args.out or args.model}")
    return 0


def _progress(line: str) -> None:
    import sys

    print(line, file=sys.stderr, flush=True)
