"""ggml-rpc-server for the tests, and a line to it that can be cut."""

import re
import select
import socket
import threading
from pathlib import Path

from llama_so8t.server_process import HOST, ServerProcess


class RpcServer(ServerProcess):
    """ggml-rpc-server on a free port. It tells what it does, so that a test sees its work."""

    def __init__(self, program: Path) -> None:
        super().__init__(program, "--threads", 1, environment={"GGML_RPC_DEBUG": "1"})
        self.endpoint = f"{HOST}:{self.port}"

    def work(self) -> "Work":
        """What it has done so far."""
        return Work(self.output())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.kill()
        super().stop()


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
        self._listener = socket.create_server((HOST, 0))
        self.endpoint = f"{HOST}:{self._listener.getsockname()[1]}"
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
