"""A connection lives on after a stream, as its header promises: a client that does not retry loses its next request."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from llama_so8t.server_process import HOST

from .guard_rules import Policy
from .guard_server import ENDPOINTS, SECONDS

N_PAIRS = 200
N_CLIENTS = 4
POLICY = Policy(mode="enforce")


@pytest.fixture(scope="module")
def server(serve, guard_file):
    return serve(guard_file, *POLICY.flags)


class KeptConnection:
    """Requests on one connection, until a reply says that it closes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open()

    def _open(self) -> None:
        self._connection = http.client.HTTPConnection(HOST, self._port, timeout=SECONDS)
        self._connection.connect()
        self._connection.auto_open = 0  # a connection that was closed is an error, and not opened again
        self.n_requests = 0

    def post(self, path: str, body: dict) -> bytes:
        self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = self._connection.getresponse()
        data = reply.read()
        assert reply.status == 200, data
        self.n_requests += 1
        if reply.will_close:
            assert reply.getheader("Connection") == "close"
            self.close()
            self._open()
        return data

    def close(self) -> None:
        self._connection.close()


def stream_then_request(port: int, n_pairs: int) -> None:
    connection = KeptConnection(port)
    names = list(ENDPOINTS)
    for i in range(n_pairs):
        endpoint = ENDPOINTS[names[i % len(names)]]
        prompt = ("fine", "go", "ask")[i % 3]
        connection.post(endpoint.path, endpoint.body(prompt) | {"stream": True})
        connection.post(endpoint.path, endpoint.body(prompt))
    connection.close()


def soak(port: int, n_pairs: int) -> None:
    """``n_pairs`` streams, each followed by a request on the same connection, on four connections at once."""
    with ThreadPoolExecutor(N_CLIENTS) as pool:
        for job in [pool.submit(stream_then_request, port, n_pairs // N_CLIENTS) for _ in range(N_CLIENTS)]:
            job.result()


@pytest.mark.parametrize("prompt", ["fine", "go", "ask"])
@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_connection_lives_on_after_a_stream(server, name, prompt):
    endpoint, connection = ENDPOINTS[name], KeptConnection(server.port)
    for _ in range(3):
        connection.post(endpoint.path, endpoint.body(prompt) | {"stream": True})
        connection.post(endpoint.path, endpoint.body(prompt))
    assert connection.n_requests == 6
    connection.close()


def test_no_request_behind_a_stream_is_lost(server):
    soak(server.port, N_PAIRS)


def test_a_client_that_leaves_in_the_middle_of_a_stream_stops_nothing(server):
    for _ in range(20):
        connection = http.client.HTTPConnection(HOST, server.port, timeout=SECONDS)
        body = ENDPOINTS["chat"].body("tick") | {"stream": True, "max_tokens": 2000}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        connection.getresponse().read(100)
        connection.close()
    assert ENDPOINTS["chat"].ask(server, "fine").text == "all is well here"
