"""What rotations and heads cost: every form of a model against its base, in turns, in one process."""

import math
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_so8t.benchmarks import process
from llama_so8t.benchmarks.models import ARMS, BASE, SHAPES, WEIGHTS, Arm, write_models
from llama_so8t.benchmarks.paired import Interval, paired_difference, paired_ratio
from llama_so8t.bindings import Session
from llama_so8t.errors import So8tError
from llama_so8t.tools import program

MIN_ROUNDS = 3
_SLICES = 16
"""Parts of a test tg: shorter than what disturbs a machine, longer than a change of model."""

_PEAK_TOKENS = 16
_WARM_UP = 8

_SHARE = 0.8
"""Of the free memory that models may take at a time."""

_SIZES = ((2_000_000_000, (32, 16)), (300_000_000, (256, 128)), (0, (512, 128)))
"""Bytes of weights from which on prompt and generation have these tokens: so much fits into a quarter of an hour."""


@dataclass(frozen=True)
class RunOptions:
    """What `so8t bench run` was asked for.

    ``seconds`` of measurement for each test, at least `MIN_ROUNDS` rounds. ``n_prompt`` and ``n_gen`` None means
    512 and 128, less for large models: `_SIZES`.
    """

    shapes: tuple[str, ...] = ("135M", "0.6B", "4B")
    outtypes: tuple[str, ...] = ("q8_0", "q4_k_m")
    threads: tuple[int, ...] = (1, 2)
    seconds: float = 8.0
    n_prompt: int | None = None
    n_gen: int | None = None
    shared_blocks: bool = False
    directory: Path = Path("build/bench")

    @property
    def n_steps(self) -> int:
        """Calls of ``report`` in `measure`."""
        return len(self.shapes) * len(self.outtypes) * (3 + len(self.threads))

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self) | {"directory": str(self.directory)}

    def check(self) -> None:
        """Refuses what cannot be measured.

        Raises:
            So8tError: an unknown shape, an empty list, or no time.
        """
        for name in self.shapes:
            if name not in SHAPES:
                raise So8tError(f"shape: found {name!r}, expected one of {', '.join(SHAPES)}")
        for option in ("shapes", "outtypes", "threads"):
            if not getattr(self, option):
                raise So8tError(f"{option}: found none, expected one or more")
        if not 0 < self.seconds < math.inf:
            raise So8tError(f"seconds: found {self.seconds}, expected a number above 0")


@dataclass(frozen=True)
class Row:
    """One arm in one test, and how it compares with the base in the same rounds.

    test "ppN" and "tgN": tokens per second, and their ratio. "peak": bytes resident, and their ratio. "load":
    seconds until the first token could be evaluated, and the difference in seconds.
    """

    shape: str
    outtype: str
    threads: int | None
    test: str
    arm: str
    value: float
    compared: Interval


def measure(options: RunOptions, report: Callable[[str], None]) -> dict[str, Any]:
    """Writes the models of each shape and type, measures, and deletes them.

    Args:
        options: what to measure.
        report: receives what is done next, `RunOptions.n_steps` times.

    Returns:
        ``machine``, ``options`` and ``rows``, as JSON can hold them; rows are those of `Row`.

    Raises:
        So8tError: an option is out of its limits, a tool is missing, or llama.cpp fails.
    """
    options.check()
    rows: list[Row] = []
    options.directory.mkdir(parents=True, exist_ok=True)
    for shape in options.shapes:
        for outtype in options.outtypes:
            with tempfile.TemporaryDirectory(prefix=f"{shape}-{outtype}-", dir=options.directory) as directory:
                report(f"{shape} {outtype}: writing")
                paths = write_models(Path(directory), shape, outtype, ARMS, options.shared_blocks)
                sizes = _sizes(options, paths)
                report(f"{shape} {outtype}: memory")
                found = [("peak", None, _peaks(paths, options.threads[-1]))]
                report(f"{shape} {outtype}: load time")
                found += [("load", None, _loads(paths, options.seconds))]
                for number, group in enumerate(_groups(paths, sizes)):
                    found += _speeds(group, sizes, options, _same if number else report, f"{shape} {outtype}")
                rows += _rows(shape, outtype, found)
    return {
        "machine": machine(),
        "options": options.plain(),
        "rows": [asdict(row) for row in rows],
    }


def machine() -> dict[str, Any]:
    """Processor and number of cores of this process."""
    try:
        info = Path("/proc/cpuinfo").read_text()
        name = next(line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": name, "cores": cores}


_Values = dict[Arm, list[float]]


def _rows(shape: str, outtype: str, found: Iterable[tuple[str, int | None, _Values]]) -> Iterator[Row]:
    """One per test and arm; a base that was measured with several groups is shown as it was with the first."""
    seen = set()
    for test, threads, values in found:
        compare = paired_difference if test == "load" else paired_ratio
        for arm, numbers in values.items():
            if (test, threads, arm) not in seen:
                seen.add((test, threads, arm))
                compared = compare(numbers, values[BASE])
                yield Row(shape, outtype, threads, test, arm.name, statistics.median(numbers), compared)


def _sizes(options: RunOptions, paths: dict[Arm, Path]) -> tuple[int, int]:
    n_bytes = paths[BASE].with_name(WEIGHTS).stat().st_size
    n_prompt, n_gen = next(sizes for least, sizes in _SIZES if n_bytes >= least)
    return options.n_prompt or n_prompt, options.n_gen or n_gen


def _peaks(paths: dict[Arm, Path], threads: int) -> _Values:
    tests = ["-p", _PEAK_TOKENS, "-n", 1, "-r", 1, "-t", threads, "--no-warmup"]
    return {
        arm: [float(process.run([program("llama-bench"), "-m", path, *tests]).peak_bytes)]
        for arm, path in paths.items()
    }


def _loads(paths: dict[Arm, Path], seconds: float) -> _Values:
    def load(arm: Arm) -> float:
        start = time.perf_counter()
        with Session(paths[arm], n_ctx=512):
            return time.perf_counter() - start

    values: _Values = {arm: [] for arm in paths}
    for order in _rounds(paths, seconds):
        for arm in order:
            values[arm].append(load(arm))
    return values


def _rounds(paths: Iterable[Arm], seconds: float) -> Iterator[list[Arm]]:
    """The arms in random order, again and again until the time is up."""
    draw = random.Random(0)
    arms, stop, n_rounds = list(paths), time.monotonic() + seconds, 0
    while n_rounds < MIN_ROUNDS or time.monotonic() < stop:
        yield draw.sample(arms, len(arms))
        n_rounds += 1


def _groups(paths: dict[Arm, Path], sizes: tuple[int, int]) -> Iterator[dict[Arm, Path]]:
    """All arms at once, or the base with as many others as the memory holds."""
    before = _kilobytes("/proc/self/status", "RssAnon")
    with Session(paths[BASE], **_context(sizes)) as session:
        session.time([0])
        own = _kilobytes("/proc/self/status", "RssAnon") - before
    n_fit = int(_SHARE * _kilobytes("/proc/meminfo", "MemAvailable") / own) if own > 0 else len(paths)
    others = [arm for arm in paths if arm != BASE]
    step = max(1, n_fit - 1)
    for start in range(0, len(others), step):
        yield {arm: paths[arm] for arm in (BASE, *others[start : start + step])}


def _kilobytes(path: str, key: str) -> int:
    """A field of a file in /proc, 0 where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def _context(sizes: tuple[int, int]) -> dict[str, int]:
    n_prompt, n_gen = sizes
    return {"n_ctx": max(n_prompt, n_gen), "n_batch": n_prompt, "n_ubatch": n_prompt}


def _speeds(
    paths: dict[Arm, Path], sizes: tuple[int, int], options: RunOptions, report: Callable[[str], None], model: str
) -> Iterator[tuple[str, int, _Values]]:
    n_prompt, n_gen = sizes
    n_slice = max(1, n_gen // _SLICES)
    with ExitStack() as stack:
        sessions = {arm: stack.enter_context(Session(path, **_context(sizes))) for arm, path in paths.items()}
        for threads in options.threads:
            report(f"{model}: {threads} thread{'s' if threads > 1 else ''}")
            for session in sessions.values():
                session.set_threads(threads)
            yield f"pp{n_prompt}", threads, _in_turns(sessions, n_prompt, n_prompt, False, options.seconds)
            yield f"tg{n_gen}", threads, _in_turns(sessions, n_gen, n_slice, True, options.seconds)


def _same(what: str) -> None:
    """The step of the group before goes on."""


def _in_turns(sessions: dict[Arm, Session], n: int, n_slice: int, one_by_one: bool, seconds: float) -> _Values:
    """Tokens per second of each slice of ``n_slice`` tokens; after n tokens the context is empty again."""
    draw = random.Random(0)
    n_vocab = sessions[BASE].n_vocab
    for session in sessions.values():
        session.forget()
        session.time([draw.randrange(n_vocab) for _ in range(min(n, _WARM_UP))], one_by_one=one_by_one)
    values: _Values = {arm: [] for arm in sessions}
    n_past = n
    for order in _rounds(sessions, seconds):
        if n_past + n_slice > n:
            n_past = 0
        tokens = [draw.randrange(n_vocab) for _ in range(n_slice)]
        for arm in order:
            if n_past == 0:
                sessions[arm].forget()
            values[arm].append(n_slice / sessions[arm].time(tokens, one_by_one=one_by_one))
        n_past += n_slice
    return values
