"""`so8t audit`: check, read, count, export, search and sign the audit logs of llama-server."""

import argparse
import json
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_so8t.audit import AuditError, Log, render, verify
from llama_so8t.audit.log import MAX_NAMED, Line, Place
from llama_so8t.audit.pattern import MODEL, logs, of_model
from llama_so8t.audit.records import Event, read_record
from llama_so8t.audit.search import EDITED, find, read_key
from llama_so8t.audit.statistics import render_statistics, statistics
from llama_so8t.audit.text import describe, printable
from llama_so8t.cli.values import count
from llama_so8t.errors import ConfigError

HELP = "check, read, count, export, search and sign the audit logs of llama-server; add reviewers"

KEYS = """
FILE is the log that the server writes; the rotated files FILE.1, FILE.2, ... beside it are read before it.
FILE may be the pattern that several servers were started with, as in 'audit-{model}.jsonl': each log is read by itself.
The files of --checkpoint and --out then have {model} in their names, too. With --json each log is an object.
Exit code 0: all is well (find: found). 1: something is wrong, and said (find: not found).

The object of `verify --json`:
  path, ok, lines          the log; whether there are no findings; number of lines
  first, last              seq, time and hash of the first and the last whole line, or null
  models                   sha256 of every model that a run was opened with (null: none named), and the number of runs
  findings                 one object each: kind, file, line, seq (null where unknown), message; the kind is
                           changed, removed, inserted, duplicated, swapped, moved, cut, missing (a file), lost (records
                           that the server could not write), rewritten (not what the checkpoint says), signature, model
                           or stopped
  notes                    what cannot be seen, and what is worth knowing

The object of `stats --json`: lines, first_time, last_time, held (requests held for a reviewer), cancelled (requests
whose client went away before the answer was complete), lost (records that the server could not write) and lists of
rows with a count n: runs, requests, labels (requests in which a head had a label), triggers, escalations, models,
policies.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommands of `so8t audit`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = KEYS
    commands = parser.add_subparsers(dest="audit_command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, description=text)
        subparser.add_argument(
            "log", type=Path, nargs="+", metavar="FILE", help="audit log of llama-server; each of several by itself"
        )
        return subparser

    verify_parser = command("verify", "check the hash chain, and name every line that was changed, removed or inserted")
    verify_parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="checkpoint that the server wrote")
    verify_parser.add_argument("--public-key", type=Path, metavar="PEM", help="Ed25519 key that signed the checkpoint")
    verify_parser.add_argument("--model", type=Path, metavar="GGUF", help="model file that every run must have used")
    show_parser = command("show", "print lines so that people can read them")
    show_parser.add_argument("--seq", type=_range, metavar="A:B", help="lines with seq A to B; A, A: and :B work too")
    show_parser.add_argument("--decision", metavar="ACTION", help="requests decided so: allow, escalate or refuse")
    show_parser.add_argument(
        "--event", metavar="NAME", help=f"lines of this event: {', '.join(event.value for event in Event)}"
    )
    show_parser.add_argument("--tail", type=count, metavar="N", help="the last N of these lines")
    stats_parser = command("stats", "count decisions, labels, escalations, models and policies")
    export_parser = command(
        "export",
        "write a SQLite database with tables runs, heads_files, adapters, requests, messages, verdicts, escalations "
        "and lost",
    )
    export_parser.add_argument("--sqlite", type=Path, required=True, metavar="OUT.db", help="file to write")
    find_parser = command(
        "find", "find the lines in which a text is a message, the prompt, the answer, or the text of a reviewer"
    )
    find_parser.add_argument("--key", type=Path, metavar="KEY", help="audit key of the server (default: FILE.key)")
    find_parser.add_argument(
        "--text",
        type=Path,
        required=True,
        metavar="TEXTFILE",
        help="a whole message, as it was typed, or a whole prompt or answer",
    )
    sign_parser = command("sign", "sign the newest checkpoint, if the log goes on from the one that was signed before")
    sign_parser.add_argument("--checkpoint", type=Path, required=True, metavar="NOTE", help="checkpoint of the server")
    sign_parser.add_argument("--key", type=Path, required=True, metavar="PEM", help="Ed25519 private key")
    sign_parser.add_argument("--out", type=Path, required=True, metavar="SIGNED", help="signed checkpoint to write")
    sign_parser.add_argument(
        "--every", type=count, metavar="SECONDS", help="sign again and again, until stopped or something is wrong"
    )
    text = (
        "make a key for a reviewer, append its hash and the name to a file of --so8t-reviewers, and print the key once"
    )
    reviewer_parser = commands.add_parser("add-reviewer", help=text, description=text)
    reviewer_parser.add_argument(
        "reviewers", type=Path, metavar="FILE", help="file of --so8t-reviewers; made if missing"
    )
    reviewer_parser.add_argument("--name", required=True, metavar="NAME", help="name of the reviewer, as in the log")
    for subparser in (verify_parser, show_parser, stats_parser):
        subparser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Runs a subcommand of `so8t audit`.

    Returns:
        0 if all is well, else 1; `find`: 0 if the text was found.

    Raises:
        OSError: a file cannot be read or written.
        AuditError: a log, an anchor or a key is not what it should be.
        ConfigError: options that do not go together.
    """
    if args.audit_command == "add-reviewer":
        return _add_reviewer(args)
    command = {"verify": _verify, "show": _show, "stats": _stats, "export": _export, "find": _find, "sign": _sign}
    while True:
        code = max([command[args.audit_command](each) for each in _each_log(args)])
        if args.audit_command != "sign" or code or not args.every:
            return code
        time.sleep(args.every)


def _each_log(args: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """The arguments for each log, which is named on stderr where there may be several."""
    of_one = [name for name in ("checkpoint", "out", "sqlite") if getattr(args, name, None)]
    if of_one and (len(args.log) > 1 or (MODEL in str(args.log[0]) and "sqlite" in of_one)):
        raise ConfigError(f"--{of_one[0]} belongs to one log, found several: name one FILE")
    for pattern in args.log:
        if MODEL not in str(pattern):
            if len(args.log) > 1:
                print(printable(f"{pattern}:"), file=sys.stderr)
            yield argparse.Namespace(**vars(args) | {"log": pattern})
            continue
        for name, log in logs(pattern).items():
            print(printable(f"{log}: model {name}"), file=sys.stderr)
            files = {key: of_model(getattr(args, key), pattern, log) for key in of_one}
            if args.audit_command == "find" and args.key and MODEL in str(args.key):
                files["key"] = of_model(args.key, pattern, log)
            yield argparse.Namespace(**vars(args) | files | {"log": log})


def _verify(args: argparse.Namespace) -> int:
    if args.public_key and not args.checkpoint:
        raise ConfigError("--public-key needs --checkpoint: it is the checkpoint that is signed")
    sha256 = None
    if args.model:
        from llama_so8t.files.tensor_hash import model_sha256

        sha256 = model_sha256(args.model, "model")
    report = verify(args.log, args.checkpoint, args.public_key, sha256, "verify")
    print(json.dumps(report.to_dict(), indent=2) if args.json else render(report), flush=True)
    return 0 if report.ok else 1


def _show(args: argparse.Namespace) -> int:
    first, last = args.seq or (None, None)
    unusable = _Unusable()
    chosen = (
        (place, record)
        for place, record in _records(args, unusable)
        if (first is None or first <= record["seq"])
        and (last is None or record["seq"] <= last)
        and args.decision in (None, record.get("decision"))
        and args.event in (None, record["event"])
    )
    for place, record in deque(chosen, args.tail) if args.tail else chosen:
        print(json.dumps(record) if args.json else describe(record, read_record(place, record)))
    return unusable.report()


def _stats(args: argparse.Namespace) -> int:
    unusable = _Unusable()
    result = statistics(_records(args, unusable))
    print(json.dumps(result.to_dict(), indent=2) if args.json else render_statistics(result))
    return unusable.report()


def _export(args: argparse.Namespace) -> int:
    # here and below, not above: `so8t --help` must not need numpy
    from llama_so8t.audit.sqlite_export import export

    rows = export(_records(args, _refuse), args.sqlite)
    print(f"wrote {args.sqlite} ({', '.join(f'{n} {table}' for table, n in rows.items())})")
    return 0


def _find(args: argparse.Namespace) -> int:
    key = read_key(args.key or args.log.with_name(f"{args.log.name}.key"))
    text = args.text.read_bytes()
    # editors end a file with a newline that the text never had
    texts = {text, text.removesuffix(b"\n")}
    unusable = _Unusable()
    n = 0
    for place, record, part in find(_records(args, unusable), key, texts):
        n += 1
        whose = f"request {record['request']}" if part != EDITED else f"escalation {record['escalation']}"
        print(f"{place}: seq {record['seq']}, {record['time']}, {part} of {printable(whose)}")
    if n == 0:
        print("not found", file=sys.stderr)
    return unusable.report() or int(n == 0)


def _add_reviewer(args: argparse.Namespace) -> int:
    from llama_so8t.audit.reviewers import add_reviewer

    print(add_reviewer(args.reviewers, args.name))
    return 0


def _sign(args: argparse.Namespace) -> int:
    from llama_so8t.audit.keys import read_private_key
    from llama_so8t.audit.signing import sign

    signing = sign(args.log, args.checkpoint, read_private_key(args.key), args.out, "verify")
    for finding in signing.findings:
        print(printable(f"{finding.kind}: {finding.message}"), file=sys.stderr)
    if signing.findings:
        print(printable(f"{args.out}: not written, the log is not to be trusted"), file=sys.stderr)
        return 1
    note = signing.anchor
    what = "signed" if signing.is_new else "was signed before"
    print(printable(f"{args.out}: {what}: seq {note.seq}, hash {note.hash}, {signing.n_lines} lines"), flush=True)
    return 0


def _records(args: argparse.Namespace, unusable: Callable[[Line], None]) -> Iterator[tuple[Place, dict[str, Any]]]:
    log = Log(args.log)
    for file in log.missing:
        print(f"note: {file} is missing", file=sys.stderr)
    return log.records(unusable, args.audit_command)


def _refuse(line: Line) -> None:
    raise AuditError(f"{line.place}: {line.problem}; nothing was written, see what so8t audit verify says")


class _Unusable:
    """Lines that are left out, and named at the end."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def __call__(self, line: Line) -> None:
        self.lines.append(line)
        if len(self.lines) > MAX_NAMED:
            raise AuditError(f"{line.place}: more than {MAX_NAMED} lines cannot be used, the last: {line.problem}")

    def report(self) -> int:
        """Names them on stderr; returns the exit code."""
        for line in self.lines:
            print(f"{line.place}: left out: {line.problem}", file=sys.stderr)
        return int(bool(self.lines))


def _range(text: str) -> tuple[int | None, int | None]:
    found = re.fullmatch(r"(\d{0,15})(:?)(\d{0,15})", text, re.ASCII)
    if not found or not (found[1] or found[3]):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected A:B, A:, :B or A")
    first = int(found[1]) if found[1] else None
    return first, (int(found[3]) if found[3] else None) if found[2] else first
