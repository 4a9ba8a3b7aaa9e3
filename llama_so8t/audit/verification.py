"""A whole audit log against its hash chain, an anchor and a model."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from llama_so8t.audit.anchor import Anchor, check_signature, read_anchor
from llama_so8t.audit.chain import MAX_PARTS, Chain, Run
from llama_so8t.audit.log import MAX_NAMED, AuditError, Line, Log, Place, is_hash
from llama_so8t.audit.records import Adapters, Event, Open, read_record
from llama_so8t.audit.tampering import Finding, tampering
from llama_so8t.audit.text import printable

NO_CHECKPOINT = "no checkpoint was given: lines cut off at the end, or a log written anew as a whole, cannot be seen"
NOT_SIGNED = "the checkpoint is not signed: whoever can change the log may have changed it too"
NOT_CHECKED = "the signature of the checkpoint was not checked: no public key was given"


@dataclass(frozen=True)
class End:
    """The first or the last whole line of a log."""

    place: Place
    seq: int
    time: str
    event: str
    hash: str


@dataclass
class AuditReport:
    """What `verify` found.

    ``models`` has the sha256 of every model of an "open" line, and the number of these lines; None is a line that names
    no sha256, "other" what comes after the first `MAX_NAMED`. ``notes`` are no findings: what cannot be seen, and what
    is worth knowing.
    """

    path: Path
    n_lines: int = 0
    first: End | None = None
    last: End | None = None
    models: dict[str | None, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """The object of ``--json``."""
        ends = {"first": self.first, "last": self.last}
        return {
            "path": str(self.path),
            "ok": self.ok,
            "lines": self.n_lines,
            **{name: end and {"seq": end.seq, "time": end.time, "hash": end.hash} for name, end in ends.items()},
            "models": [{"sha256": sha256, "runs": n} for sha256, n in self.models.items()],
            "findings": [
                {
                    "kind": finding.kind,
                    "file": finding.place and finding.place.file,
                    "line": finding.place and finding.place.number,
                    "seq": finding.seq,
                    "message": finding.message,
                }
                for finding in self.findings
            ],
            "notes": self.notes,
        }


def verify(
    path: Path,
    anchor: Path | None = None,
    public_key: Path | None = None,
    model_sha256: str | None = None,
    progress: str | None = None,
) -> AuditReport:
    """Reads a log with its rotated files as one chain.

    Args:
        path: the file that the server writes; FILE.1, FILE.2, ... are read before it.
        anchor: signed note of the last line that the log had at some time.
        public_key: PEM file of the Ed25519 key that the checkpoint must be signed with.
        model_sha256: tensor hash that every "open" line must have.
        progress: title of a progress bar, which is drawn if stderr is a terminal.

    Raises:
        OSError: a file cannot be read.
        AuditError: there is no log, or the anchor or the key cannot be read.
    """
    note = read_anchor(anchor) if anchor else None
    unsigned = check_signature(note, public_key) if note and public_key else None
    log = Log(path)
    report = AuditReport(path)
    reader = _Reader(report, note)
    stopped = reader.read(log, progress)
    report.findings = [
        *(Finding("missing", f"{file} is missing, but files before or after it are there") for file in log.missing),
        *tampering(reader.chain.parts, lambda seqs: _hashes(log, seqs, report.n_lines)),
        *stopped,
        *reader.lost,
        *reader.end_problems(),
        *(reader.note_problems(note) if note else ()),
        *(reader.model_problems(model_sha256) if model_sha256 else ()),
    ]
    if unsigned:
        report.findings.append(Finding("signature", f"{anchor}: {unsigned}"))
    report.notes += reader.notes(has_key=public_key is not None)
    return report


def verify_until(path: Path, note: Anchor, earlier: Anchor | None, progress: str | None = None) -> AuditReport:
    """`verify` of the lines up to an anchor, which the log must have, as an earlier one.

    What comes behind it is not read: the server may be writing it. Lost records are no finding here: they are written
    in the chain, and a signature says that the chain is whole.

    Raises:
        OSError: a file cannot be read.
        AuditError: there is no log.
    """
    log = Log(path)
    report = AuditReport(path)
    reader = _Reader(report, note, earlier, until=True)
    stopped = reader.read(log, progress)
    report.findings = [
        *tampering(reader.chain.parts, lambda seqs: _hashes(log, seqs, report.n_lines)),
        *stopped,
        *reader.note_problems(note),
        *(reader.note_problems(earlier) if earlier else ()),
    ]
    return report


def render(report: AuditReport) -> str:
    """The report as text; control characters of hostile names are escaped."""
    last = report.last
    upto = f", up to seq {last.seq} of {last.time}, hash {last.hash}" if last else ""
    lines = [f"{report.path}: {report.n_lines} lines{upto}"]
    lines += [f"{finding.kind}: {finding.message}" for finding in report.findings]
    lines += [f"note: {note}" for note in report.notes]
    n = len(report.findings)
    lines.append("ok" if report.ok else f"{n} finding{'s' * (n != 1)}")
    return "\n".join(printable(line) for line in lines)


class _Reader:
    """One pass over a log, in constant memory; ``until``: it ends at the line of ``note``."""

    def __init__(
        self, report: AuditReport, note: Anchor | None, earlier: Anchor | None = None, until: bool = False
    ) -> None:
        self.report, self.note, self.until = report, note, until
        self.chain = Chain()
        # for each anchor, by its text, the line with its hash, or else one with its seq
        self.at_note: dict[bytes, Line | None] = {each.text: None for each in (note, earlier) if each}
        self.wanted = [each for each in (note, earlier) if each]
        self.runs: dict[str | None, Line] = {}  # the first line for each of report.models
        self.dropped: list[str] = []
        self.lost: list[Finding] = []
        self.adapted: list[str] = []

    def read(self, log: Log, progress: str | None) -> list[Finding]:
        for line in log.lines(progress):
            self.chain.add(line)
            self.report.n_lines += 1
            if (record := line.whole) is not None:
                self._add(line, record)
                if self.until and self.note is not None and _is_at(line, self.note):
                    break
            if len(self.chain.parts) > MAX_PARTS:
                message = f"reading ended at {line.place}: the chain has more than {MAX_PARTS} parts, this is no log"
                return [Finding("stopped", message, line.place, line.seq)]
        return []

    def _add(self, line: Line, record: dict[str, Any]) -> None:
        report = self.report
        end = End(line.place, record["seq"], record["time"], record["event"], record["hash"])
        report.first, report.last = report.first or end, end
        for note in self.wanted:
            if line.seq == note.seq and (self.at_note[note.text] is None or end.hash == note.hash):
                self.at_note[note.text] = line
        if end.event in (Event.OPEN, Event.ADAPTERS) and len(self.adapted) < MAX_NAMED:
            self.adapted += _adapted(line, record)
        if end.event == Event.LOST and len(self.lost) < MAX_NAMED:
            self.lost.append(_lost(line, record.get("lines")))
        if end.event == Event.OPEN:
            model = record.get("model")
            sha256 = model.get("sha256") if isinstance(model, dict) else None
            key = sha256 if is_hash(sha256) else None
            if key not in report.models and len(report.models) >= MAX_NAMED:
                key = "other"
            report.models[key] = report.models.get(key, 0) + 1
            self.runs.setdefault(key, line)
            dropped = record.get("dropped_bytes")
            if dropped and isinstance(dropped, int) and len(self.dropped) < MAX_NAMED:
                self.dropped.append(
                    f"{line.place} (seq {line.seq}): the server cut away {dropped} bytes of an unfinished line "
                    f"before it went on"
                )

    def end_problems(self) -> Iterator[Finding]:
        last = self.report.last
        if self.report.n_lines == 0:
            yield Finding("removed", f"{self.report.path} has no lines, but every log that was opened has one")
        elif last and last.event == Event.ROTATE and self.report.path.is_file():
            message = f"{last.place} (seq {last.seq}) says that the log goes on in another file, but no line follows"
            yield Finding("missing", message, last.place, last.seq)

    def note_problems(self, note: Anchor) -> Iterator[Finding]:
        last, line = self._last_seq(), self.at_note[note.text]
        if line is None:
            what = (
                f"the log ends at seq {last}: {note.seq - last} or more lines were cut off at its end"
                if last < note.seq
                else "the log has no whole line of this seq"
            )
            yield Finding("removed", f"the checkpoint has seq {note.seq}, but {what}", seq=note.seq)
        elif not _is_at(line, note):
            message = (
                f"{line.place} (seq {note.seq}) has hash {line.hash}, but {note.hash} in the "
                f"checkpoint: this line or lines before it were written anew"
            )
            yield Finding("rewritten", message, line.place, note.seq)

    def model_problems(self, expected: str) -> Iterator[Finding]:
        if not self.runs:
            yield Finding("model", f"no line names a model, expected {expected}")
        for found, line in self.runs.items():
            if found != expected:
                n = self.report.models[found]
                more = f", as {n - 1} later run{'s' * (n != 2)}" if n > 1 else ""
                message = f"{line.place} (seq {line.seq}){more}: found model {found}, the file given is {expected}"
                yield Finding("model", message, line.place, line.seq)

    def notes(self, has_key: bool) -> Iterator[str]:
        note, last = self.note, self.report.last
        if note is None:
            yield NO_CHECKPOINT
        elif not note.signatures:
            yield NOT_SIGNED
        elif not has_key:
            yield NOT_CHECKED
        if note and note.name != self.report.path.name:
            yield f"the checkpoint was made for a log named {note.name}"
        if note and self._last_seq() > note.seq:
            yield f"lines after seq {note.seq} are newer than the checkpoint: if they are cut off, it cannot be seen"
        if last and last.event not in (Event.CLOSE, Event.ROTATE):
            yield (
                f'the last run has no "close" line (last is {last.place}): the server runs, or was killed, '
                f"or lines were cut off"
            )
        yield from self.dropped
        yield from self.adapted

    def _last_seq(self) -> int:
        return max((part.last for part in self.chain.parts if isinstance(part, Run)), default=0)


def _is_at(line: Line, note: Anchor) -> bool:
    return line.seq == note.seq and line.hash == note.hash


def _lost(line: Line, n: Any) -> Finding:
    message = (
        f"{line.place} (seq {line.seq}): the server could not write the log, and lost {n!r:.20} requests and decisions "
        f"before this line"
    )
    return Finding("lost", message, line.place, line.seq)


def _adapted(line: Line, record: dict[str, Any]) -> Iterator[str]:
    """A note for each heads file and adapter that the model has from this line on beside its own file."""
    try:
        content = read_record(line.place, record)
    except AuditError:
        return  # the chain is what is verified
    for file in content.heads_files if isinstance(content, Open) else ():
        yield (
            f"{line.place} (seq {line.seq}): the heads of the file {file.path[:200]} ({file.sha256[:64]}) judge from "
            f"here on"
        )
    for adapter in content.adapters if isinstance(content, Open | Adapters) else ():
        if adapter.scale != 0:
            yield (
                f"{line.place} (seq {line.seq}): the LoRA adapter {adapter.path[:200]} ({adapter.sha256[:64]}) "
                f"is part of the model from here on, scale {adapter.scale:g}"
            )


def _hashes(log: Log, seqs: set[int], n_lines: int) -> dict[int, dict[Place, str]]:
    """A second pass over the same lines: places and hashes of all whole ones that have these seqs."""
    found: dict[int, dict[Place, str]] = defaultdict(dict)
    for line in islice(log.lines(), n_lines):
        if (record := line.whole) is not None and record["seq"] in seqs:
            found[record["seq"]][line.place] = record["hash"]
    return found
