"""Programs run to their end: output, and what the system says they have used."""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llama_so8t.errors import So8tError


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
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=messages, env=environment
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        messages.seek(0)
        output, said = (file.read().decode(errors="replace") for file in (out, messages))
    if process.returncode:
        raise So8tError(f"{' '.join(words)}: exit code {process.returncode}: {(said or output).strip()[-500:]}")
    return Finished(output, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
