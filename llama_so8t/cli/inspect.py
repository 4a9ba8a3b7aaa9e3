"""`so8t inspect`: rotations and heads of a GGUF file, a checkpoint or an adapter."""

import argparse
import json
from pathlib import Path

from llama_so8t.errors import CheckpointError
from llama_so8t.inspection import inspect, render

HELP = "show the rotations and heads of a GGUF file, a heads file, a checkpoint or an adapter"

KEYS = """
The object of --json:
  path, format             the input; "gguf", "checkpoint", "adapter" or "heads"
  architecture, base_architecture, format_version
  n_layer, hidden_size, n_head, n_head_kv, head_dim
                           of a heads file its base; null where it does not say
  base_sha256              hash of the tensors of the base, where a heads file says it, else null
  compensated              true if the weights undo the rotations; null where the file does not say
  tolerance, ok, problems  largest error allowed; whether all is well; one line per tensor that is not
  sites                    one object per layer and generator:
    layer                  null for the generator "out" before the heads
    site, generator, state state is "explicit", "folded" or "checkpoint"; n is the number of 8x8 blocks
    angle_mean, angle_max  planar rotation angles in radians, 0 to pi
    orthogonality_error, determinant_error
                           largest entry of |R^T R - I|; largest |det R - 1|
    generator_error        largest entry of |R - exp(A)|, stored rotations of a GGUF file only, else null
    triality_residual      sites qk, v and out, else null
    commutator_norm        largest Frobenius norm of [R_safe, R_cmd], site gate, else null
  heads                    one object per head: name, labels, actions, thresholds, representation,
                           temperature, debounce, scope, rule, form, activation, taps, tap_norm, link,
                           sliding_window, aggregation, prompt_aggregation,
                           weight_shape, weight_norm, has_bias, fitted (false: weights of zeros, which
                           do not act), and where set stem, prompt_token, ema_alpha, window,
                           prompt_thresholds, depends_on and provenance
A number that is not finite is null. The exit code is 1 if ok is false.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `so8t inspect`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = KEYS
    parser.add_argument("model", type=Path, metavar="FILE_OR_DIR", help="GGUF file, checkpoint or adapter directory")
    parser.add_argument("--base", metavar="PATH", help="base model of an adapter, instead of the one it names")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="draw rotations, errors and commutators")


def run(args: argparse.Namespace) -> int:
    """Prints the report.

    Raises:
        CheckpointError: the model cannot be read, or a loader would refuse it; the report is printed first.
    """
    report = inspect(args.model, args.base)
    print(json.dumps(report.to_dict(), indent=2) if args.json else render(report), flush=True)
    if args.plot is not None:
        from llama_so8t.inspection.plot import draw

        draw(report, args.plot)
    if report.problems:
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        raise CheckpointError(f"{args.model}: {report.problems[0]}{more}")
    return 0
