"""The hash chain of an audit log as *runs*: lines that follow each other, ``seq`` by one and ``prev`` = hash before.

A log that nobody touched is one run from seq 1, whatever its length, so it is read in constant memory.
"""

from collections import deque
from dataclasses import dataclass, field, replace

from llama_so8t.audit.log import Line, Place

MAX_PARTS = 1000
"""Runs and broken lines of a log that is still worth reading on."""

_RECENT = 1024
"""Last lines of a run between which it can still be divided."""


@dataclass(frozen=True)
class Run:
    """Lines ``first`` to ``last`` (their ``seq``) that follow each other.

    ``prev`` is that of the first line, ``hash`` that of the last.
    """

    first: int
    last: int
    start: Place
    end: Place
    prev: str
    hash: str

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        if self.first == self.last:
            return f"{self.start} (seq {self.first})"
        return f"{self.start} to {self.end} (seq {self.first} to {self.last})"

    def precedes(self, other: "Run") -> bool:
        """Whether ``other`` is what comes next."""
        return other.first == self.last + 1 and other.prev == self.hash


@dataclass(frozen=True)
class Broken:
    """A line that cannot be read, or is not what its hash was made of; ``seq`` is what it says, if anything."""

    place: Place
    seq: int | None
    problem: str
    ended: bool


@dataclass
class Chain:
    """Runs and broken lines of a log, in the order of its files."""

    parts: list[Run | Broken] = field(default_factory=list)
    _recent: deque[Run] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def add(self, line: Line) -> None:
        """Takes the next line."""
        record, place = line.whole, line.place
        if record is None:
            self.parts.append(Broken(place, line.seq, line.problem or "has no record", line.ended))
            return
        one = Run(record["seq"], record["seq"], place, place, record["prev"], record["hash"])
        last = self.parts[-1] if self.parts else None
        if isinstance(last, Run) and last.precedes(one):
            self.parts[-1] = replace(last, last=one.last, end=place, hash=one.hash)
        else:
            if isinstance(last, Run):
                self._divide(last, one)
            self.parts.append(one)
            self._recent.clear()
        self._recent.append(one)

    def _divide(self, run: Run, one: Run) -> None:
        """Where ``one`` follows a line inside ``run``, what ``run`` has behind that line becomes a run of its own."""
        behind = run.last - one.first + 1
        if 0 < behind < len(self._recent) and self._recent[-behind - 1].precedes(one):
            inner, outer = self._recent[-behind - 1], self._recent[-behind]
            self.parts[-1:] = [
                replace(run, last=inner.last, end=inner.end, hash=inner.hash),
                replace(run, first=outer.first, start=outer.start, prev=outer.prev),
            ]
