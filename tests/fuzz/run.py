"""`make fuzz`: new files for every Python reader, until the time is over. The first defect ends the run with its input.

python tests/fuzz/run.py SECONDS [TARGET ...]
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

from hypothesis import HealthCheck, given, seed, settings  # noqa: E402
from targets import TARGETS, Target  # noqa: E402

BATCH = 100
"""Files between two looks at the clock."""


def fuzz(target: Target, seconds: float) -> int:
    """Feeds a reader for that long; returns the number of files.

    Raises:
        Exception: what escaped the reader; a note of it has the file, made as small as possible.
    """
    n_files, end = 0, time.monotonic() + seconds

    def check(data: bytes) -> None:
        nonlocal n_files
        n_files += 1
        target.check(data)

    start = time.time_ns()
    options = settings(max_examples=BATCH, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    while time.monotonic() < end:
        seed(start + n_files)(options(given(target.inputs())(check)))()
    return n_files


def main(arguments: Sequence[str]) -> int:
    seconds, names = float(arguments[0]), arguments[1:] or list(TARGETS)
    for name in names:
        start = time.monotonic()
        n_files = fuzz(TARGETS[name], seconds / len(names))
        print(f"{name}: {n_files} files, {n_files / (time.monotonic() - start):.0f} a second, no defect", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
