"""`so8t trace`: head probabilities over the tokens of a prompt and its answer, as a page, a picture or JSON."""

import argparse
import sys
from pathlib import Path

from llama_so8t.cli.values import count_or_zero
from llama_so8t.errors import ConfigError
from llama_so8t.machine import n_cores

HELP = "show the head probabilities at every token of a text, as a page, a picture or JSON"

KEYS = """
The object of --out FILE.json:
  model                    architecture, name, path
  heads                    name -> labels, actions, rule ("threshold", or "argmax": the largest acts), thresholds (null
                           where the rule has none), fitted (false: its weights are zeros, so it does not act),
                           debounce, temperature, scope, representation,
                           form, taps, tap_norm, link, sliding_window, aggregation, ema_alpha, window,
                           prompt_aggregation, prompt_thresholds (one per way and label, or null), depends_on
  triggers                 where a head acts first in a part: part, position, head, label, action, probability
  trace                    one object per token: part ("prompt", "think" or "answer"), position in the part, id,
                           text, and heads: name -> label -> probability after this token; behind the prompt
                           after aggregation; a head that is not asked there is left out
A probability that is not finite is null; such a head refuses.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `so8t trace`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = KEYS
    parser.add_argument("model", type=Path, metavar="FILE", help="GGUF file with heads")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt as the model reads it, without a chat template")
    prompt.add_argument("--prompt-file", type=Path, metavar="FILE", help="the same, from a UTF-8 file")
    prompt.add_argument(
        "--messages",
        metavar="JSON",
        help="chat messages for the model's chat template; a last one of the assistant is the answer",
    )
    answer = parser.add_mutually_exclusive_group()
    answer.add_argument("--answer", metavar="TEXT", help="read this answer instead of generating one")
    answer.add_argument(
        "-n", type=count_or_zero, default=64, metavar="N", help="generate at most N tokens, greedily (default: 64)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="FILE.html, FILE.png or FILE.json")
    parser.add_argument("--threads", type=count_or_zero, metavar="N", help="cores to use (default: all)")
    parser.add_argument("-ngl", type=count_or_zero, default=0, metavar="N", help="layers on the GPU (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Runs `so8t trace`."""
    # here, not above: `so8t --help` must not need the llama.cpp tree
    from llama_so8t.format import unfitted_warning
    from llama_so8t.tracing.chat import read_messages
    from llama_so8t.tracing.output import check_out, write
    from llama_so8t.tracing.palette import trigger_text, visible
    from llama_so8t.tracing.rule import PROMPT
    from llama_so8t.tracing.trace import TraceOptions, trace

    check_out(args.out)
    found = trace(
        TraceOptions(
            model=args.model,
            prompt=_read(args.prompt_file) if args.prompt_file else args.prompt,
            messages=read_messages(args.messages) if args.messages is not None else None,
            answer=args.answer,
            n_predict=args.n,
            n_threads=args.threads or n_cores(),
            n_gpu_layers=args.ngl,
        )
    )
    write(found, args.out)
    if found.unfitted:
        print(unfitted_warning(sorted(found.unfitted)), file=sys.stderr)
    for head in found.heads:
        acts = "; ".join(trigger_text(trigger) for trigger in found.triggers[head.name])
        print(f"{head.name}: {visible(acts) or 'allow'}")
    n_prompt = sum(span.stop - span.start for span in found.spans if span.part == PROMPT)
    print(f"wrote {args.out} ({n_prompt} tokens of prompt, {len(found.tokens) - n_prompt} of answer)")
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: found bytes that are not UTF-8 at {error.start}, expected a text") from None
