"""`convert_so8t_to_gguf.py` against `convert_hf_to_gguf.py` on a float8 checkpoint of Qwen3-4B's shape."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_so8t import upstream
from llama_so8t.benchmarks import process
from llama_so8t.benchmarks.synthetic import write_base, write_so8t
from llama_so8t.errors import So8tError


@dataclass(frozen=True)
class Measurement:
    """One conversion: wall time until the data is on the disk, processor time, peak resident memory."""

    name: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    file_bytes: int


def measure_conversions(
    directory: Path,
    tokenizer: Path,
    layers: int,
    outtypes: list[str],
    runs: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Makes the checkpoints in ``directory`` where they are missing, converts in turns, and compares.

    Args:
        directory: where about 14 GB may be written.
        tokenizer: directory with the tokenizer files of a Qwen3 model.
        layers: of the model; 36 is Qwen3-4B.
        outtypes: types to convert to.
        runs: conversions of each kind; the medians count.
        report: receives one line after each conversion.

    Returns:
        Weights, measurements, and per outtype the ratio of the times (ours / upstream).

    Raises:
        So8tError: a converter fails.
    """
    base = directory / f"base-{layers}"
    models = {"": directory / f"so8t-{layers}", ", rotated": directory / f"so8t-rotated-{layers}"}
    if not (base / "config.json").is_file():
        report("writing the checkpoint")
        write_base(base, tokenizer, layers)
    for label, model in models.items():
        if not (model / "config.json").is_file():
            write_so8t(base, model, scale=0.3 if label else 0.0)
    theirs = upstream.source() / "convert_hf_to_gguf.py"
    if not theirs.is_file():
        raise So8tError(f"{theirs}: no such file; the comparison needs a llama.cpp tree: run `make source`")
    found: list[Measurement] = []
    for outtype in outtypes:
        options = ["--outtype", outtype, "--outfile"]
        jobs = {f"convert_hf_to_gguf {outtype}": [str(theirs), str(base), *options]}
        for label, model in models.items():
            jobs[f"so8t convert {outtype}{label}"] = ["-m", "llama_so8t", "convert", str(model), *options]
        for _ in range(runs):
            for name, arguments in jobs.items():
                found.append(_measure(name, arguments, directory / "out.gguf"))
                last = found[-1]
                report(
                    f"{name}: {last.seconds:.1f} s, {last.cpu_seconds:.1f} s of processors, "
                    f"{last.peak_bytes / 1e9:.2f} GB resident, {last.file_bytes / 1e9:.2f} GB written"
                )
    medians = {name: statistics.median(m.seconds for m in found if m.name == name) for name in {m.name for m in found}}
    return {
        "layers": layers,
        "cores": len(os.sched_getaffinity(0)),
        "measurements": [asdict(m) for m in found],
        "write_seconds": _write_time(directory / "out.gguf", found[-1].file_bytes),
        "ratios": {
            name: medians[name] / medians[f"convert_hf_to_gguf {name.split()[2].rstrip(',')}"]
            for name in sorted(medians)
            if name.startswith("so8t")
        },
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
