"""ggml-rpc-server for the tests, and a line to it that can be cut."""

import re
import select
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

SECONDS = 60


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RpcServer:
    """ggml-rpc-server on a free port of the loopback interface. It tells what it does, so that a test sees its work."""

    def __init__(self, program: Path) -> None:
        port = free_port()
        self.endpoint = f"127.0.0.1:{port}"
        self._output = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [program, "--host", "127.0.0.1", "--port", str(port), "--threads", "1"],
            stdout=self._output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={"GGML_RPC_DEBUG": "1"},
        )  # fmt: skip
        for _ in range(10 * SECONDS):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except ConnectionRefusedError:
                assert self.process.poll() is None, f"ggml-rpc-server ended at start:\n{self.output()}"
            time.sleep(0.1)
        raise AssertionError("ggml-rpc-server did not become ready")

    def output(self) -> str:
        """What the server has printed."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def work(self) -> "Work":
        """What it has done so far."""
        return Work(self.output())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "RpcServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._output.close()


class Work:
    """Graphs that a server computed, and bytes of tensor data that it was sent."""

    def __init__(self, output: str) -> None:
        self.n_graphs = len(re.findall(r"^\[graph_(?:re)?compute\]", output, re.M))
        self.n_bytes = sum(map(int, re.findall(r"^\[set_tensor\].* size: (\d+)", output, re.M)))


class Line:
    """A connection to a server that can be cut: at once, or after that many bytes to the server."""

    def __init__(self, target: str, n_bytes: int | None = None) -> None:
        self._target = target
        self._n_bytes = n_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.n_sent = 0
        self._cut = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut_after(self, n_bytes: int) -> None:
        """Cuts once that many more bytes have gone to the server."""
        self._n_bytes = self.n_sent + n_bytes

    def cut(self) -> None:
        self._cut.set()
        self._thread.join()

    def _run(self) -> None:
        with self._listener:
            while not self._cut.is_set():
                if select.select([self._listener], [], [], 0.05)[0]:
                    client, _ = self._listener.accept()
                    host, port = self._target.split(":")
                    with client, socket.create_connection((host, int(port))) as server:
                        self._carry(client, server)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        while not self._cut.is_set():
            for source in select.select([client, server], [], [], 0.05)[0]:
                data = source.recv(1 << 16)
                if not data:
                    return
                if source is server:
                    client.sendall(data)
                    continue
                server.sendall(data)
                self.n_sent += len(data)
                if self._n_bytes is not None and self.n_sent > self._n_bytes:
                    self._cut.set()

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
