"""The `so8t` command: one module per subcommand, each with `HELP`, `add_arguments` and `run`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from llama_so8t import __version__
from llama_so8t.errors import So8tError

COMMANDS = (
    "init",
    "convert",
    "inspect",
    "trace",
    "heads",
    "attach",
    "detach",
    "import-probe",
    "audit",
    "diagnose",
    "modelfile",
    "bench",
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `so8t` with every subcommand."""
    parser = argparse.ArgumentParser(prog="so8t", description="SO8T models: make, convert, inspect.")
    parser.add_argument("--version", action="version", version=f"so8t {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"llama_so8t.cli.{name.replace('-', '_')}")
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `so8t`.

    Returns:
        0, or 1 after one line on stderr that says what is wrong with the input.
    """
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except (So8tError, OSError) as error:
        print(f"so8t {args.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"so8t {args.command}: interrupted", file=sys.stderr)
        return 130
