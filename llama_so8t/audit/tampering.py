"""What was done to a log whose chain is broken: the simplest story that its runs tell.

The heaviest rising sequence of runs (see `_heaviest`) is taken for the log; every other run is astray. One
can argue about the kind of a finding, not about there being one: a chain without findings is one run from seq 1 on,
because every broken line, every run astray, every gap and every false link between two runs gives a finding.
"""

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import itemgetter

from llama_so8t.audit.chain import Broken, Run
from llama_so8t.audit.log import ZERO_HASH, Place

Copies = Callable[[set[int]], Mapping[int, Mapping[Place, str]]]
"""From seqs to the places and hashes of all lines that have them."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where, and at which seq, as far as that is known."""

    kind: str
    message: str
    place: Place | None = None
    seq: int | None = None


def tampering(parts: Sequence[Run | Broken], copies: Copies) -> list[Finding]:
    """What is wrong with a chain, in the order of the log; empty only for one run from seq 1.

    Args:
        parts: of `Chain`.
        copies: asked where a seq stands twice, to tell a copy of a line from another line.
    """
    story = _Story(parts)
    found = [*story.astray_runs(copies), *(pair for gap in range(len(story.gaps)) for pair in story.gap(gap))]
    return [finding for _, finding in sorted(found, key=lambda pair: pair[0])]


class _Story:
    """Findings come with the index of the part that they are about."""

    def __init__(self, parts: Sequence[Run | Broken]) -> None:
        self.parts = parts
        self.runs = {i: part for i, part in enumerate(parts) if isinstance(part, Run)}
        self.exchanged = _exchanged(parts)
        self.backbone = _heaviest({i: run for i, run in self.runs.items() if i not in self.exchanged})
        self.astray = sorted(set(self.runs) - set(self.backbone))
        self.gaps = list(pairwise([None, *self.backbone, None]))

    def astray_runs(self, copies: Copies) -> Iterator[tuple[int, Finding]]:
        """Runs that stand where they do not belong, or belong nowhere."""
        home = {i: self._home(self.runs[i]) for i in self.astray}
        place = {i: bisect(self.backbone, i) for i in self.astray}
        seconds = {self.runs[i].last for i in self.astray if home[i] is None}
        known = copies(seconds) if seconds else {}
        told = set()
        for i in self.astray:
            run = self.runs[i]
            if i in told:
                continue
            other = self.exchanged.get(i)
            if other is None and home[i] is None:
                yield i, _second(run, known.get(run.last, {}))
                continue
            if other is None:
                other = next((j for j in self.astray if j > i and home[j] == place[i] and home[i] == place[j]), None)
            if other is not None:
                told.add(other)
                message = f"{run} and {self.runs[other]} stand in each other's place"
                yield min(i, other), Finding("swapped", message, run.start, run.first)
            else:
                yield i, Finding("moved", f"{run} should follow seq {run.first - 1}", run.start, run.first)

    def gap(self, number: int) -> Iterator[tuple[int, Finding]]:
        """What stands between two neighbours of the backbone, what is missing there, and whether they are linked."""
        left, right = self.gaps[number]
        first, last = self._seqs(number)
        start = 0 if left is None else left + 1
        broken = [(i, part) for i, part in enumerate(self.parts[start:right], start) if isinstance(part, Broken)]
        # after the last run there is no telling what is missing
        holes = _Holes(first, first + len(broken) - 1 if last is None else last)
        for i in self.astray:
            holes.remove(self.runs[i].first, self.runs[i].last)
        seqs = [part.seq if part.seq is not None and holes.remove(part.seq, part.seq) else None for _, part in broken]
        for (i, part), stated in zip(broken, seqs, strict=True):
            yield i, _broken(part, stated or holes.take())
        if right is None or last is None:
            return
        after, before = self.runs[right], None if left is None else self.runs[left]
        for a, b in holes.ranges:
            lines = f"the line of seq {a} is" if a == b else f"the lines of seq {a} to {b} are"
            where = f"between {before.end} and {after.start}" if before else f"before {after.start}"
            yield right, Finding("removed", f"{lines} missing {where}", after.start, a)
        if first > last and before and not before.precedes(after):
            message = (
                f"{after.start} (seq {after.first}) was not written after {before.end} (seq {before.last}): one of "
                f"them was changed and its hash made anew, or lines from elsewhere begin here"
            )
            yield right, Finding("changed", message, before.end, before.last)
        if first > last and not before and after.prev != ZERO_HASH:
            message = (
                f"{after.start} (seq 1) is not the first line of a log, whose prev is 64 zeros: it was changed and its "
                f"hash made anew, or lines before it were removed and the others numbered anew"
            )
            yield right, Finding("changed", message, after.start, 1)

    def _seqs(self, gap: int) -> tuple[int, int | None]:
        """First and last seq that belong in a gap; the one after the last run has no end."""
        left, right = self.gaps[gap]
        return 1 if left is None else self.runs[left].last + 1, None if right is None else self.runs[right].first - 1

    def _home(self, run: Run) -> int | None:
        """The gap in which a run belongs; None where its lines stand in the backbone already."""
        gap = bisect(self.backbone, run.first, key=lambda i: self.runs[i].first)
        first, last = self._seqs(gap)
        return gap if first <= run.first and (last is None or run.last <= last) else None


class _Holes:
    """Seqs, as disjoint ranges from the lowest."""

    def __init__(self, first: int, last: int) -> None:
        self.ranges = [(first, last)] if first <= last else []

    def remove(self, first: int, last: int) -> bool:
        """Takes a range out; says whether any of it was there."""
        parts = (part for a, b in self.ranges for part in ((a, min(b, first - 1)), (max(a, last + 1), b)))
        rest = [(a, b) for a, b in parts if a <= b]
        changed = rest != self.ranges
        self.ranges = rest
        return changed

    def take(self) -> int | None:
        """Takes the lowest one out."""
        lowest = self.ranges[0][0] if self.ranges else None
        if lowest is not None:
            self.remove(lowest, lowest)
        return lowest


def _broken(part: Broken, seq: int | None) -> Finding:
    if not part.ended:
        where = "" if seq is None else f" (seq {seq})"
        return Finding("cut", f"{part.place}{where} was cut off or is half written: {part.problem}", part.place, seq)
    if seq is None:
        return Finding("inserted", f"{part.place} was inserted: {part.problem}", part.place)
    return Finding("changed", f"{part.place} (seq {seq}) was changed: {part.problem}", part.place, seq)


def _second(run: Run, copies: Mapping[Place, str]) -> Finding:
    equal = next((place for place, digest in copies.items() if digest == run.hash and place != run.end), None)
    if equal:
        return Finding("duplicated", f"{run} stands at {equal} too", run.start, run.first)
    return Finding("inserted", f"{run} was inserted: another line has its seq", run.start, run.first)


def _exchanged(parts: Sequence[Run | Broken]) -> dict[int, int]:
    """Pairs of single lines, each at the place in the log that the seq of the other one says."""
    lines_before = accumulate((len(part) if isinstance(part, Run) else 1 for part in parts), initial=0)
    single = {
        (part.first, n + 1): i
        for i, (part, n) in enumerate(zip(parts, lines_before, strict=False))
        if isinstance(part, Run) and len(part) == 1 and part.first != n + 1
    }
    return {i: single[place, seq] for (seq, place), i in single.items() if (place, seq) in single}


def _heaviest(runs: Mapping[int, Run]) -> list[int]:
    """Indices of runs, rising without overlap in seq, that have the most lines; of equal ones the most linked."""
    best: dict[int, tuple[tuple[int, int], int | None]] = {}
    for i, run in runs.items():
        weights: list[tuple[tuple[int, int], int | None]] = [
            ((best[j][0][0], best[j][0][1] + runs[j].precedes(run)), j) for j in best if runs[j].last < run.first
        ]
        (lines, links), previous = max(weights, default=((0, 0), None), key=itemgetter(0))
        best[i] = (lines + len(run), links), previous
    chosen = []
    at = max(best, key=lambda i: best[i][0], default=None)
    while at is not None:
        chosen.append(at)
        at = best[at][1]
    return chosen[::-1]
