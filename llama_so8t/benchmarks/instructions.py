"""Instructions per generated token, counted by callgrind: the same on a busy machine as on an idle one."""

import os
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama_so8t.benchmarks import process
from llama_so8t.benchmarks.models import BASE, Arm, write_models
from llama_so8t.benchmarks.paired import paired_ratio
from llama_so8t.benchmarks.run import Row, RunOptions, machine
from llama_so8t.bindings.library import library_directory
from llama_so8t.errors import So8tError
from llama_so8t.tools import program

_FUNCTION = "llama_process"
"""What decodes a batch in llama.cpp: llama-bench calls it once per generated token, and once per prompt."""

_TESTS = {"instructions": (0, 4, 1), "instructions of prompt": (64, 0, 3)}
"""Test -> tokens of the prompt, of the generation, and repetitions of llama-bench."""
_TOTAL = re.compile(r"^(?:totals|summary): (\d+)", re.M)


def count_instructions(options: RunOptions, report: Callable[[str], None]) -> dict[str, Any]:
    """Runs llama-bench with every arm under callgrind, one thread, and counts inside `_FUNCTION` alone.

    Valgrind knows no AVX-512, and ggml compiles for the machine it is built on: there, ``SO8T_LIBRARY_PATH`` names
    a build without it (``make bench`` makes ``build/callgrind``).

    Args:
        options: shapes and types; the rest is not used.
        report: receives what is done next.

    Returns:
        ``machine``, ``options``, and ``rows``: the tests "instructions" per generated token and "instructions of
        prompt" per token of a prompt, medians over the evaluations after the first one, which builds the graph.

    Raises:
        So8tError: no valgrind, or it cannot execute the build.
    """
    options.check()
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise So8tError("--instructions: found no valgrind on the path; install it, or leave the option out")
    rows = []
    options.directory.mkdir(parents=True, exist_ok=True)
    for shape in options.shapes:
        for outtype in options.outtypes:
            with tempfile.TemporaryDirectory(prefix="instructions-", dir=options.directory) as directory:
                paths = write_models(Path(directory), shape, outtype, options.known_arms, options.shared_blocks)
                counts: dict[Arm, dict[str, float]] = {}
                for arm, path in paths.items():
                    report(f"{shape} {outtype}: instructions of {arm.name}")
                    counts[arm] = {test: _count(valgrind, path, Path(directory), test) for test in _TESTS}
                for test in _TESTS:
                    for arm, count in counts.items():
                        compared = paired_ratio([count[test]], [counts[BASE][test]])
                        rows.append(asdict(Row(shape, outtype, None, test, arm.name, count[test], compared)))
    return {"machine": machine(), "options": options.plain(), "rows": rows}


def _count(valgrind: str, model: Path, directory: Path, test: str) -> float:
    n_prompt, n_gen, repetitions = _TESTS[test]
    out = directory / "callgrind.out"
    command = [
        valgrind, "--tool=callgrind", f"--toggle-collect={_FUNCTION}", f"--dump-after={_FUNCTION}",
        f"--callgrind-out-file={out}", "--error-exitcode=3",
        program("llama-bench"), "-m", model, "-p", n_prompt, "-n", n_gen, "-r", repetitions, "-t", 1,
        "--no-warmup",
    ]  # fmt: skip
    # several threads of one library would count the waiting, too
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        process.run(command, environment)
    except So8tError as error:
        if "unhandled instruction" in str(error) or "exit code -4" in str(error) or "Illegal" in str(error):
            raise So8tError(
                f"valgrind cannot execute {library_directory()}: it is compiled for a processor that valgrind does "
                f"not know (AVX-512); build with -DGGML_NATIVE=OFF and name the folder with SO8T_LIBRARY_PATH"
            ) from None
        raise
    dumps = sorted(directory.glob("callgrind.out.*"), key=lambda path: int(path.suffix[1:]))
    totals = [_TOTAL.search(path.read_text()) for path in dumps]
    batches = [int(found[1]) for found in totals if found is not None]
    for path in (*dumps, out):
        path.unlink(missing_ok=True)
    n_expected = n_gen or repetitions
    if len(batches) < n_expected:
        raise So8tError(f"callgrind: found {len(batches)} dumps after {_FUNCTION}, expected {n_expected}")
    return float(statistics.median(batches[1:n_expected])) / max(1, n_prompt)
