"""Counts over an audit log, in constant memory."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from llama_so8t.audit.log import Place
from llama_so8t.audit.records import Content, Escalation, Lost, Open, Request, read_record
from llama_so8t.audit.text import printable

MAX_ROWS = 10_000
"""Different values that a table keeps; others are counted as `OTHER`."""

MAX_VALUE = 256
"""Characters of a value in a table."""

OTHER = "(other)"


class Table(Counter[tuple[str, ...]]):
    """Counts by one or more values."""

    def count(self, *values: str | None) -> None:
        """Counts one more of these values; a missing one is "-"."""
        key = tuple((value or "-")[:MAX_VALUE] for value in values)
        if key not in self and len(self) >= MAX_ROWS:
            key = (OTHER,) * len(key)
        self[key] += 1


@dataclass
class Statistics:
    """Counts of a log.

    ``requests`` by decision and what was enforced; ``labels`` the requests in which a head had a label, by part, head
    and label; ``triggers`` by part, head and label; ``escalations`` by status and reviewer; ``models`` and ``policies``
    the requests by sha256 (and mode); ``runs`` by model name, model sha256 and policy sha256. ``n_held`` counts
    requests that were held for a reviewer, ``n_cancelled`` those whose client did not wait, ``n_lost`` the records that
    were dropped while the log could not be written, which no table counts.
    """

    n_lines: int = 0
    first_time: str | None = None
    last_time: str | None = None
    n_held: int = 0
    n_cancelled: int = 0
    n_lost: int = 0
    runs: Table = field(default_factory=Table)
    requests: Table = field(default_factory=Table)
    labels: Table = field(default_factory=Table)
    triggers: Table = field(default_factory=Table)
    escalations: Table = field(default_factory=Table)
    models: Table = field(default_factory=Table)
    policies: Table = field(default_factory=Table)

    def add(self, content: Content) -> None:
        """Counts a line."""
        match content:
            case Open():
                self.runs.count(content.name, content.model, content.policy)
            case Request():
                self.requests.count(content.decision, content.enforced)
                for key in {(verdict.part, verdict.head, verdict.label) for verdict in content.verdicts}:
                    self.labels.count(*key)
                if content.triggered:
                    self.triggers.count(content.triggered.part, content.triggered.head, content.triggered.label)
                self.models.count(content.model)
                self.policies.count(content.policy, content.mode)
                self.n_held += content.escalation is not None
                self.n_cancelled += content.cancelled
            case Escalation():
                self.escalations.count(content.status, content.reviewer)
            case Lost():
                self.n_lost += content.lines

    def tables(self) -> dict[str, tuple[tuple[str, ...], Table]]:
        """Name -> names of the columns, and the counts."""
        return {
            "runs": (("name", "model", "policy"), self.runs),
            "requests": (("decision", "enforced"), self.requests),
            "labels": (("part", "head", "label"), self.labels),
            "triggers": (("part", "head", "label"), self.triggers),
            "escalations": (("status", "reviewer"), self.escalations),
            "models": (("sha256",), self.models),
            "policies": (("sha256", "mode"), self.policies),
        }

    def to_dict(self) -> dict[str, Any]:
        """The object of ``--json``."""
        return {
            "lines": self.n_lines,
            "first_time": self.first_time,
            "last_time": self.last_time,
            "held": self.n_held,
            "cancelled": self.n_cancelled,
            "lost": self.n_lost,
            **{
                name: [dict(zip(columns, key, strict=True)) | {"n": n} for key, n in sorted(table.items())]
                for name, (columns, table) in self.tables().items()
            },
        }


def statistics(records: Iterable[tuple[Place, dict[str, Any]]]) -> Statistics:
    """Counts the records of a log, of which one at a time is in memory.

    Raises:
        AuditError: a field is missing or of another type.
    """
    result = Statistics()
    for place, record in records:
        result.n_lines += 1
        result.first_time = result.first_time or record["time"]
        result.last_time = record["time"]
        result.add(read_record(place, record))
    return result


def render_statistics(result: Statistics) -> str:
    """The counts as tables, the largest first."""
    lines = [f"{result.n_lines} lines from {result.first_time or '-'} to {result.last_time or '-'}"]
    for name, (columns, table) in result.tables().items():
        if not table:
            continue
        rows = [columns, *(tuple(map(printable, key)) for key, _ in table.most_common())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
        counts = ["n", *(str(n) for _, n in table.most_common())]
        lines += ["", f"{name}:"]
        lines += [
            "  ".join((f"{n:>8}", *(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))).rstrip()
            for n, row in zip(counts, rows, strict=True)
        ]
    ends = (
        (result.n_held, "requests were held for a reviewer"),
        (result.n_cancelled, "requests were cancelled"),
        (result.n_lost, "more requests and decisions were lost: the log could not be written"),
    )
    told = [f"{n} {text}" for n, text in ends if n]
    lines += ["", *told] if told else []
    return "\n".join(lines)
