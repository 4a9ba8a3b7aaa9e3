"""What rotations and heads cost: every form of a model against its base, in turns, in one process."""

import operator
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_so8t.benchmarks import process
from llama_so8t.benchmarks.models import ARMS, BASE, KNOWN_ARMS, SHAPES, WEIGHTS, Arm, write_models
from llama_so8t.benchmarks.paired import Interval, median_interval
from llama_so8t.bindings import Session
from llama_so8t.bindings.session import SessionSizes
from llama_so8t.errors import So8tError
from llama_so8t.machine import n_cores, processor
from llama_so8t.tools import program

_PEAK_TOKENS = 16

_SHARE = 0.8
"""Of the free memory that models may take at a time."""

_SIZES = ((2_000_000_000, (16, 4)), (300_000_000, (128, 32)), (0, (512, 128)))
"""Smallest size of the weights in bytes, and the tokens of prompt and generation: a test takes about a second."""

_N_SLICES = {"pp": 4, "tg": 16}
_LEAST_SLICE = {"pp": 16, "tg": 1}
"""Each test is cut into this many slices, of at least so many tokens, and the models alternate slice by slice: other
load on the machine then hits all of them."""


@dataclass(frozen=True)
class RunOptions:
    """What `so8t bench run` was asked for.

    In each of ``repetitions`` every model is loaded and goes through every test once. ``n_prompt`` and ``n_gen``
    None means 512 and 128, less for large models: `_SIZES`.
    """

    shapes: tuple[str, ...] = ("135M", "0.6B", "4B")
    outtypes: tuple[str, ...] = ("q8_0", "q4_k_m")
    threads: tuple[int, ...] = (1, 2)
    repetitions: int = 3
    n_prompt: int | None = None
    n_gen: int | None = None
    shared_blocks: bool = False
    directory: Path = Path("build/bench")
    arms: tuple[str, ...] = tuple(arm.name for arm in ARMS)

    @property
    def known_arms(self) -> tuple[Arm, ...]:
        """The base, and what is measured against it."""
        return tuple(arm for name, arm in KNOWN_ARMS.items() if name in self.arms)

    @property
    def n_steps(self) -> int:
        """Calls of ``report`` in `measure`."""
        return len(self.shapes) * len(self.outtypes) * (2 + self.repetitions)

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self) | {"directory": str(self.directory)}

    def check(self) -> None:
        """Refuses what cannot be measured.

        Raises:
            So8tError: an unknown shape or arm, no base, or an empty list.
        """
        for name in self.shapes:
            if name not in SHAPES:
                raise So8tError(f"shape: found {name!r}, expected one of {', '.join(SHAPES)}")
        for name in self.arms:
            if name not in KNOWN_ARMS:
                raise So8tError(f"arms: found {name!r}, expected some of {', '.join(KNOWN_ARMS)}")
        if BASE.name not in self.arms:
            raise So8tError(f"arms: found {', '.join(self.arms)}, expected {BASE.name} among them")
        for option in ("shapes", "outtypes", "threads"):
            if not getattr(self, option):
                raise So8tError(f"{option}: found none, expected one or more")


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
                paths = write_models(Path(directory), shape, outtype, options.known_arms, options.shared_blocks)
                sizes = _sizes(options, paths)
                groups = list(_groups(paths, sizes))
                report(f"{shape} {outtype}: memory")
                found = _Found()
                found.add("peak", None, _peaks(paths, options.threads[-1]))
                for repetition in range(options.repetitions):
                    report(f"{shape} {outtype}: {repetition + 1} of {options.repetitions}")
                    draw = random.Random(repetition)
                    found.add("load", None, _loads(paths, draw))
                    for group in groups:
                        _load_and_test(group, sizes, options.threads, draw, found)
                rows += found.rows(shape, outtype)
    return {
        "machine": machine(),
        "options": options.plain(),
        "rows": [asdict(row) for row in rows],
    }


def machine() -> dict[str, Any]:
    """Processor and number of cores of this process."""
    return {"processor": processor(), "cores": n_cores()}


_Values = dict[Arm, list[float]]


class _Found:
    """Measurements of each test, and how they compare with the base of the same loading."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, int | None], _Values] = defaultdict(lambda: defaultdict(list))
        self._compared: dict[tuple[str, int | None], _Values] = defaultdict(lambda: defaultdict(list))

    def add(self, test: str, threads: int | None, values: _Values) -> None:
        """One loading: measurements of each arm, and of the base beside each."""
        compare = operator.sub if test == "load" else operator.truediv
        for arm, numbers in values.items():
            self._values[test, threads][arm] += numbers
            self._compared[test, threads][arm].append(statistics.median(map(compare, numbers, values[BASE])))

    def rows(self, shape: str, outtype: str) -> Iterator[Row]:
        """One per test and arm, in the order of `KNOWN_ARMS`; the interval is that over the loadings."""
        for (test, threads), values in self._values.items():
            for arm, numbers in sorted(values.items(), key=lambda item: list(KNOWN_ARMS.values()).index(item[0])):
                compared = median_interval(self._compared[test, threads][arm])
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


def _loads(paths: Mapping[Arm, Path], draw: random.Random) -> _Values:
    """Seconds until the first token could be evaluated, one model in memory at a time."""
    values = {}
    for arm in draw.sample(list(paths), len(paths)):
        start = time.perf_counter()
        with Session(paths[arm], n_ctx=512):
            values[arm] = [time.perf_counter() - start]
    return values


def _groups(paths: Mapping[Arm, Path], sizes: tuple[int, int]) -> Iterator[dict[Arm, Path]]:
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


def _context(sizes: tuple[int, int]) -> SessionSizes:
    n_batch = _slice("pp", sizes[0])
    return {"n_ctx": max(sizes), "n_batch": n_batch, "n_ubatch": n_batch}


def _slice(test: str, n: int) -> int:
    return min(n, max(_LEAST_SLICE[test], n // _N_SLICES[test]))


def _load_and_test(
    paths: Mapping[Arm, Path], sizes: tuple[int, int], threads: Iterable[int], draw: random.Random, found: _Found
) -> None:
    """Loads the arms anew and measures them in turns, in random order each time.

    A model keeps the memory pages that it got when it was loaded. These alone can make one model 4 % faster than
    another for as long as both are loaded, so one loading counts as one measurement.
    """
    n_prompt, n_gen = sizes
    with ExitStack() as stack:
        sessions = {
            arm: stack.enter_context(Session(paths[arm], **_context(sizes)))
            for arm in draw.sample(list(paths), len(paths))
        }
        n_vocab = sessions[BASE].n_vocab
        prompt, generated = ([draw.randrange(n_vocab) for _ in range(n)] for n in sizes)
        for session in sessions.values():
            # brings weights and buffers into memory
            session.set_threads(max(threads))
            session.time(prompt[: _slice("pp", n_prompt)])
        for n_threads in threads:
            for session in sessions.values():
                session.set_threads(n_threads)
            found.add(f"pp{n_prompt}", n_threads, _speeds(sessions, prompt, _slice("pp", n_prompt), False, draw))
            found.add(f"tg{n_gen}", n_threads, _speeds(sessions, generated, _slice("tg", n_gen), True, draw))


def _speeds(
    sessions: Mapping[Arm, Session], tokens: Sequence[int], n_slice: int, one_by_one: bool, draw: random.Random
) -> _Values:
    """Tokens per second in each slice."""
    for session in sessions.values():
        session.forget()
        session.time(tokens[:1])  # the threads start
        session.forget()
    values: _Values = {arm: [] for arm in sessions}
    for start in range(0, len(tokens), n_slice):
        part = tokens[start : start + n_slice]
        for arm in draw.sample(list(sessions), len(sessions)):
            values[arm].append(len(part) / sessions[arm].time(part, one_by_one=one_by_one))
    return values
