"""`convert_so8t_to_gguf.py` against `convert_hf_to_gguf.py` on a float8 checkpoint of Qwen3-4B's shape."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_so8t import upstream
from llama_so8t.benchmarks import process
from llama_so8t.benchmarks.synthetic import write_base, write_so8t
from llama_so8t.errors import So8tError
from llama_so8t.machine import n_cores

_OURS, _THEIRS = "so8t convert", "convert_hf_to_gguf"


@dataclass(frozen=True)
class Measurement:
    """One conversion: wall time until the data is on the disk, processor time, peak resident memory."""

    name: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class ConversionOptions:
    """What `so8t bench convert` was asked for.

    ``directory``: where about 14 GB may be written. ``tokenizer``: directory with the tokenizer files of a Qwen3
    model. ``layers``: of the model; 36 is Qwen3-4B. ``outtypes``: types to convert to. ``runs``: conversions of each
    kind; the medians count.
    """

    directory: Path
    tokenizer: Path
    layers: int = 36
    outtypes: tuple[str, ...] = ("q8_0",)
    runs: int = 1


def measure_conversions(options: ConversionOptions, report: Callable[[str], None]) -> dict[str, Any]:
    """Makes the checkpoints where they are missing, converts in turns, and compares.

    Args:
        options: models, types and number of conversions.
        report: receives one line after each conversion.

    Returns:
        Cores, measurements, seconds to write as many bytes, and per outtype the ratio of the times (ours / upstream).

    Raises:
        So8tError: there is no llama.cpp tree, or a converter fails.
    """
    theirs = upstream.source() / "convert_hf_to_gguf.py"
    if not theirs.is_file():
        raise So8tError(f"{theirs}: no such file; the comparison needs a llama.cpp tree: run `make source`")
    base, models = _models(options, report)
    outfile = options.directory / "out.gguf"
    found: list[Measurement] = []
    for outtype in options.outtypes:
        words = ["--outtype", outtype, "--outfile"]
        jobs = {f"{_THEIRS} {outtype}": [str(theirs), str(base), *words]}
        for label, model in models.items():
            jobs[f"{_OURS} {outtype}{label}"] = ["-m", "llama_so8t", "convert", str(model), *words]
        for _ in range(options.runs):
            for name, arguments in jobs.items():
                found.append(_measure(name, arguments, outfile))
                report(_line(found[-1]))
    return {
        "layers": options.layers,
        "cores": n_cores(),
        "measurements": [asdict(m) for m in found],
        "write_seconds": _write_time(outfile, found[-1].file_bytes),
        "ratios": _ratios(found, options.outtypes),
    }


def _models(options: ConversionOptions, report: Callable[[str], None]) -> tuple[Path, dict[str, Path]]:
    """The base, and the SO8T models by what is added to the name of their conversion."""
    base = options.directory / f"base-{options.layers}"
    if not (base / "config.json").is_file():
        report("writing the checkpoint")
        write_base(base, options.tokenizer, options.layers)
    models = {
        "": options.directory / f"so8t-{options.layers}",
        ", rotated": options.directory / f"so8t-rotated-{options.layers}",
    }
    for label, model in models.items():
        if not (model / "config.json").is_file():
            write_so8t(base, model, scale=0.3 if label else 0.0)
    return base, models


def _line(done: Measurement) -> str:
    return (
        f"{done.name}: {done.seconds:.1f} s, {done.cpu_seconds:.1f} s of processors, "
        f"{done.peak_bytes / 1e9:.2f} GB resident, {done.file_bytes / 1e9:.2f} GB written"
    )


def _ratios(found: Sequence[Measurement], outtypes: Sequence[str]) -> dict[str, float]:
    """Name of a conversion of ours -> its median time as a share of upstream's to the same type."""
    medians = {m.name: statistics.median(n.seconds for n in found if n.name == m.name) for m in found}
    return {
        name: medians[name] / medians[f"{_THEIRS} {outtype}"]
        for name in sorted(medians)
        for outtype in outtypes
        if name.partition(",")[0] == f"{_OURS} {outtype}"
    }


def _measure(name: str, arguments: list[str], outfile: Path) -> Measurement:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "LLAMA_CPP_SOURCE": str(upstream.source())}
    os.sync()
    start = time.perf_counter()
    finished = process.run([sys.executable, *arguments, outfile], environment)
    with outfile.open("rb") as file:
        os.fsync(file.fileno())  # ours has done so already
    seconds = time.perf_counter() - start
    size = outfile.stat().st_size
    outfile.unlink()
    return Measurement(name, seconds, finished.cpu_seconds, finished.peak_bytes, size)


def _write_time(path: Path, size: int) -> float:
    """Seconds to write and sync as many bytes from memory: what the disk alone costs."""
    block = os.urandom(1 << 24)
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size >> 24):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds
