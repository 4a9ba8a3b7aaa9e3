"""`so8t import-probe`: a SingProbe directory as a heads file."""

import argparse
from pathlib import Path

HELP = "write the heads of a SingProbe directory as a heads file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `so8t import-probe`."""
    parser.add_argument(
        "probe", type=Path, metavar="DIR", help="directory with config.json and one safetensors file of SingProbe"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="MODEL",
        help="model that the probe reads, a GGUF file or a directory: the heads file is bound to its architecture, "
        "layers and, of a GGUF file, tensors (default: to its width alone)",
    )
    parser.add_argument(
        "--action",
        action="append",
        default=[],
        metavar="LABEL=ACTION",
        help="what a label asks for, allow, escalate or refuse; give it once for each label (default: refuse for the "
        "risks of the prompt and for an unsafe answer, allow for the others)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.heads.gguf", help="heads file to write")


def run(args: argparse.Namespace) -> int:
    """Runs `so8t import-probe`."""
    # here, not above: `so8t --help` must not need the llama.cpp tree
    from llama_so8t.checkpoint.singprobe import open_probe
    from llama_so8t.errors import ConfigError, ConversionError
    from llama_so8t.heads_file import Base, write_heads_file

    actions = {}
    for text in args.action:
        label, found, action = text.rpartition("=")
        if not found or label in actions:
            raise ConfigError(f"--action {text}: expected LABEL=ACTION, once for each label")
        actions[label] = action
    probe = open_probe(args.probe, actions)
    base = Base(probe.hidden_size) if args.base is None else Base.of(args.base)
    if base.hidden_size != probe.hidden_size:
        raise ConversionError(
            f"{args.probe}: the probe reads a base of the width {probe.hidden_size}, {args.base} has {base.hidden_size}"
        )
    write_heads_file(args.out, base, probe.heads, probe.tensors)
    print(f"wrote {args.out} with the heads {', '.join(head.name for head in probe.heads)}")
    return 0
