"""Lines of an audit log: which files it consists of, and each line checked by itself.

A line is ``X,"hash":"H"}``: X is the text of a JSON object without its closing brace, its last field is ``"prev"``, the
hash of the line before, and ``H = SHA-256(X)``. Nothing in such a file is trusted: sizes, names, numbers, encoding.
"""

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from llama_so8t.errors import So8tError

MAX_LINE = 16 << 20
"""Bytes of a line. A request of a million tokens with its text has about half of it."""

MAX_NAMED = 100
"""Missing files, models or unusable lines that are named: a hostile log may have millions."""

MAX_SEQ = 2**53
"""Integers up to here are exact in every JSON reader."""

ZERO_HASH = "0" * 64
"""``prev`` of the first line ever."""

_HASH = re.compile("[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_TAIL = re.compile(rb',"hash":"([0-9a-f]{64})"}')
_TAIL_SIZE = len(',"hash":""}') + 64


class AuditError(So8tError):
    """An audit log, its checkpoint or its keys are missing, malformed or not what they should be."""


@dataclass(frozen=True)
class Place:
    """A line of a file, counted from 1."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


@dataclass(frozen=True)
class Line:
    """A line as it stands in its file.

    ``problem`` says why it is no whole, unchanged line, else it is None. ``record`` is None where there is no JSON
    object with the fields of every line; it may be there although the line was changed. ``ended`` is false where the
    newline is missing, which is a problem too.
    """

    place: Place
    record: dict[str, Any] | None
    problem: str | None
    ended: bool = True

    @property
    def seq(self) -> int | None:
        """Number that the line gives itself."""
        return None if self.record is None else self.record["seq"]

    @property
    def hash(self) -> str | None:
        """Hash that the line gives itself."""
        return None if self.record is None else self.record["hash"]

    @property
    def whole(self) -> dict[str, Any] | None:
        """The record of a whole, unchanged line; None of any other."""
        return self.record if self.problem is None else None


def is_hash(value: Any) -> bool:
    """Whether a value is a SHA-256 in lower-case hex."""
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


class Log:
    """The files of a log, oldest first: FILE.1, FILE.2, ..., FILE.

    Raises:
        AuditError: there is none of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file() and not self._numbers():
            raise AuditError(f"{path}: found no such file, expected an audit log of llama-server --so8t-audit")

    @property
    def missing(self) -> list[Path]:
        """Files that there were, by the numbers of the others."""
        numbers = self._numbers()
        present = set(numbers)
        absent = (n for n in range(1, numbers[-1] if numbers else 0) if n not in present)
        names = [self._rotated(n) for n in itertools.islice(absent, MAX_NAMED)]
        return names if self.path.is_file() else [*names, self.path]

    def lines(self, progress: str | None = None) -> Iterator[Line]:
        """Every line, one in memory at a time.

        Args:
            progress: title of a progress bar, which is drawn if stderr is a terminal.

        Raises:
            OSError: a file cannot be read.
        """
        with ExitStack() as stack:
            # opened before the others are listed: a server that rotates it now moves it, and it is read last, and once
            current = stack.enter_context(self.path.open("rb")) if self.path.is_file() else None
            rotated = [self._rotated(n) for n in self._numbers()]
            total = sum(file.stat().st_size for file in rotated)
            total += os.fstat(current.fileno()).st_size if current else 0
            # no bar where stderr is no terminal (None), nor for what takes less than two seconds
            disable = None if progress else True
            bar = stack.enter_context(
                tqdm(total=total, unit="B", unit_scale=True, desc=progress, disable=disable, delay=2, leave=False)
            )
            for path in rotated:
                with path.open("rb") as file:
                    if not current or not os.path.sameopenfile(file.fileno(), current.fileno()):
                        yield from _lines(file, str(path), bar)
            if current:
                yield from _lines(current, str(self.path), bar)

    def records(
        self, unusable: Callable[[Line], None], progress: str | None = None
    ) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Places and records of the whole, unchanged lines.

        Args:
            unusable: called with every other line; what it raises ends the reading.
            progress: title of a progress bar, which is drawn if stderr is a terminal.

        Raises:
            OSError: a file cannot be read.
        """
        for line in self.lines(progress):
            if (record := line.whole) is not None:
                yield line.place, record
            else:
                unusable(line)

    def _numbers(self) -> list[int]:
        names = os.listdir(self.path.parent) if self.path.parent.is_dir() else ()
        pattern = re.compile(re.escape(self.path.name) + r"\.([1-9][0-9]{0,8})", re.ASCII)
        return sorted(int(found[1]) for name in names if (found := pattern.fullmatch(name)))

    def _rotated(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _lines(file: BinaryIO, name: str, bar: tqdm) -> Iterator[Line]:
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        place, size = Place(name, number), len(raw)
        if size > MAX_LINE and not raw.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                size += len(rest)
            yield Line(place, None, f"found a line of more than {MAX_LINE} bytes", rest.endswith(b"\n"))
            bar.update(size + len(rest))
            continue
        record, problem = parse(raw.removesuffix(b"\n"))
        ended = raw.endswith(b"\n")
        yield Line(place, record, problem or (None if ended else "its newline is missing"), ended)
        bar.update(size)


def parse(raw: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """Reads a line without its newline.

    Returns:
        The record, or None where it is no record; and what is wrong with it, or None.
    """
    try:
        record = _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"is not UTF-8 at byte {error.start}"
    except (ValueError, RecursionError) as error:
        return None, f"is no JSON: {str(error)[:200]}"
    if not isinstance(record, dict):
        return None, f"found a JSON {type(record).__name__}, expected an object"
    for field, expected, is_right in _FIELDS:
        if not is_right(record.get(field)):
            found = repr(record[field])[:80] if field in record else "nothing"
            return None, f"field {field!r}: found {found}, expected {expected}"
    text, stated = raw[:-_TAIL_SIZE], _TAIL.fullmatch(raw[-_TAIL_SIZE:])
    if stated is None:
        return record, 'does not end in ,"hash":"64 hex digits"}'
    if hashlib.sha256(text).hexdigest().encode() != stated[1]:
        return record, "its text is not the one that its hash was made of"
    return record, None


def _is_seq(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SEQ


_FIELDS = (
    ("seq", f"a whole number from 1 to {MAX_SEQ}", _is_seq),
    ("time", "a time such as 2026-11-24T05:05:05.123Z", lambda v: isinstance(v, str) and bool(_TIME.fullmatch(v))),
    ("event", "a text", lambda v: isinstance(v, str)),
    ("prev", "64 hex digits", is_hash),
    ("hash", "64 hex digits", is_hash),
)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"name {name[:80]!r} appears twice")
            seen.add(name)
    return record


def _no_constant(name: str) -> None:
    raise ValueError(f"found {name}, expected a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"found {text[:80]}, expected a finite number")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
