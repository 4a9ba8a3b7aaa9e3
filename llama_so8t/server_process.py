"""A program that listens on a free port of this machine, from its start until it is closed."""

import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from llama_so8t.errors import RuntimeLibraryError

HOST = "127.0.0.1"

_POLL_SECONDS = 0.1
_STOP_SECONDS = 30
_SHOWN_LINES = 20

T = TypeVar("T")
S = TypeVar("S", bound="ServerProcess")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A program started with ``--host`` and ``--port`` and waited for until `is_ready`; a context manager.

    Its output is kept. `LlamaServer` is one that is asked over HTTP.
    """

    patience: float = 300
    """Seconds that it is waited for."""

    def __init__(self, program: Path, *arguments: object, environment: Mapping[str, str] | None = None) -> None:
        """Starts the program.

        Args:
            program: what to start.
            arguments: after host and port.
            environment: of the program; None: that of this process.

        Raises:
            RuntimeLibraryError: it ended before it was ready, or was not ready after `patience`.
        """
        self.name = program.name
        self.port = free_port()
        self._output = tempfile.NamedTemporaryFile()
        self.process = subprocess.Popen(
            [program, "--host", HOST, "--port", str(self.port), *map(str, arguments)],
            stdout=self._output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        try:
            self.wait_for(self.is_ready)
        except BaseException:
            self.stop()
            raise

    def is_ready(self) -> bool:
        """Whether it accepts connections."""
        try:
            socket.create_connection((HOST, self.port)).close()
        except OSError:
            return False
        return True

    def wait_for(self, condition: Callable[[], T]) -> T:
        """Asks ``condition`` every 100 ms, and returns its first answer that is true.

        Raises:
            RuntimeLibraryError: the program ended, or the time is over.
        """
        deadline = time.monotonic() + self.patience
        while not (answer := condition()):
            code = self.process.poll()
            if code is not None:
                raise RuntimeLibraryError(f"{self.name}: ended at start with code {code}:\n{self._end()}")
            if time.monotonic() > deadline:
                raise RuntimeLibraryError(f"{self.name}: not ready after {self.patience:g} s:\n{self._end()}")
            time.sleep(_POLL_SECONDS)
        return answer

    def output(self) -> str:
        """What the program has printed so far."""
        # opened anew: the program writes at the position of the first
        return Path(self._output.name).read_bytes().decode(errors="replace")

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """Ends the program: asks it, and kills it after 30 s. Its output is gone then."""
        self.process.terminate()
        try:
            self.process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._output.close()

    def _end(self) -> str:
        return "\n".join(self.output().splitlines()[-_SHOWN_LINES:])

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()


class LlamaServer(ServerProcess):
    """llama-server, which is ready when its model is loaded."""

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False  # not listening yet, or 503 while it loads
