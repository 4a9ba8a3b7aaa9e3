"""Writes docs/commands.md: every subcommand and option of `so8t`, from its own parsers. `make docs` runs it."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from llama_so8t.cli import build_parser

PAGE = Path(__file__).with_name("commands.md")

HEAD = """# Commands

This page lists every subcommand and option of `so8t`. `make docs` writes it from the program.
`so8t COMMAND --help` prints the same, and the fields of JSON outputs.
"""


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of all its subcommands, in the order of declaration."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from commands(subparser)


def render() -> str:
    """The page."""
    return "\n".join([HEAD, *(_section(parser) for parser in commands(build_parser()))])


def _section(parser: argparse.ArgumentParser) -> str:
    rows = [_row(parser, action) for action in parser._actions if _is_listed(action)]
    table = ["", "| argument | meaning |", "|---|---|", *rows] if rows else []
    text = [f"## {parser.prog}", "", _sentence(parser.description or ""), *table, ""]
    return "\n".join(text)


def _is_listed(action: argparse.Action) -> bool:
    return not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else "|".join(map(str, action.choices or ()))
    value = value or ("" if action.nargs == 0 else action.dest.upper())
    names = ", ".join(action.option_strings)
    shown = f"{names} {value}" if names and value else names or value
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return f"| `{_cell(shown)}` | {_cell(text)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


if __name__ == "__main__":
    PAGE.write_text(render())
