"""Programs run to their end: output, and what the system says they have used."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llama_so8t.errors import So8tError

# the peak of a process starts at the size of the one that started it: this one is small
_STARTER = """
import os, sys
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
code = os.waitstatus_to_exitcode(status)
os.write(int(sys.argv[1]), f"{usage.ru_utime + usage.ru_stime} {usage.ru_maxrss * 1024} {code}".encode())
"""


@dataclass(frozen=True)
class Finished:
    """Standard output, processor seconds, and the largest resident memory in bytes."""

    output: str
    cpu_seconds: float
    peak_bytes: int


def run(command: Sequence[object], environment: Mapping[str, str] | None = None) -> Finished:
    """Runs a program with nothing on its standard input.

    Raises:
        So8tError: it cannot be started, or its exit code is not 0; the end of its messages is in the error.
    """
    words = [str(word) for word in command]
    read, write = os.pipe()
    with os.fdopen(read) as usage, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as messages:
        starter = [sys.executable, "-I", "-S", "-c", _STARTER, str(write), *words]
        with subprocess.Popen(
            starter, stdin=subprocess.DEVNULL, stdout=out, stderr=messages, env=environment, pass_fds=(write,)
        ):
            os.close(write)
            fields = usage.read().split()
        for file in (out, messages):
            file.seek(0)
        output, said = (file.read().decode(errors="replace") for file in (out, messages))
    code = int(fields[2]) if fields else 1
    if code != 0:
        raise So8tError(f"{' '.join(words)}: exit code {code}: {(said or output).strip()[-500:]}")
    return Finished(output, float(fields[0]), int(fields[1]))
