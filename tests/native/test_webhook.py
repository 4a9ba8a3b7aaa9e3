"""The webhook of held answers: what it sends and signs, and receivers that are slow, dead, or not to be trusted."""

import base64
import hashlib
import hmac
import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llama_so8t.server_process import free_port

from .guard_rules import Policy
from .guard_server import SCRIPTS, SMALL, Server
from .test_guard_escalations import ask, decide, pending
from .test_held_clients import client, wait_for

POLICY = Policy(mode="enforce", holdback=1)
HOLD = (*POLICY.flags, "--so8t-escalation-wait", 600, "--so8t-escalation-grace", 0, "--metrics")
SECRET = bytes(range(24, 56))
KEY = "whsec_" + base64.b64encode(SECRET).decode()
WHOLE = "".join(SCRIPTS["ask"])


class Receiver(ThreadingHTTPServer):
    """Keeps what it is told. ``statuses`` are those of its first replies, then it says 204; ``delay``: before each."""

    daemon_threads = True

    def __init__(self, statuses=(), delay=0.0, location=None, port=0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.statuses, self.delay, self.location = list(statuses), delay, location
        self.requests = []
        self.arrived = threading.Condition()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def wait(self, n):
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= n, timeout=60), self.requests
            return list(self.requests)

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        receiver = self.server
        with receiver.arrived:
            status = receiver.statuses.pop(0) if receiver.statuses else 204
            receiver.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            receiver.arrived.notify_all()
        time.sleep(receiver.delay)
        self.send_response(status)
        if receiver.location:
            self.send_header("Location", receiver.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("key") / "hook.key"
    file.write_text(KEY + "\n")
    return file


@pytest.fixture
def serve_with(runtime, guard_file, key_file):
    """A server with this webhook."""

    def start(url, *flags):
        options = (*SMALL, *HOLD, "--so8t-webhook", url, "--so8t-webhook-key", key_file, *flags)
        return Server(runtime / "llama-server", "-m", guard_file, *options)

    return start


def events(requests):
    return [json.loads(body) for _, _, body in requests]


def metric(server, name):
    text = server.request("GET", "/metrics").body.decode()
    return {line.split()[0].removeprefix(f"llamacpp:{name}"): int(line.split()[1])
            for line in text.splitlines() if line.startswith(f"llamacpp:{name}")}  # fmt: skip


def wait_for_metric(server, name, expected):
    for _ in range(600):
        if (found := metric(server, name)) == expected:
            return
        time.sleep(0.05)
    raise AssertionError(f"expected {expected}, found {found}")


def test_the_receiver_is_told_of_each_hold_and_decision(serve_with, pool):
    with Receiver() as receiver, serve_with(f"{receiver.url}/hook/a?b=c", "--so8t-server-id", "web-1") as server:
        waiting = pool.submit(ask, "chat", server, False)
        (entry,) = pending(server)
        assert entry["id"].startswith("esc-web-1.")
        decide(server, entry, "allow", comment="fine")
        assert waiting.result(timeout=30).text == WHOLE
        with client(server, "chat", False):
            (left,) = pending(server)
        requests = receiver.wait(4)
        held, decided, held_again, cancelled = events(requests)
        assert held["type"] == held_again["type"] == "escalation.held"
        assert decided["type"] == cancelled["type"] == "escalation.decided"
        assert held["data"] | {"model": None} == {
            "id": entry["id"], "status": "pending", "created": entry["created"], "deadline": entry["deadline"],
            "triggered": entry["triggered"], "reviewer": None, "comment": None, "model": None,
        }  # fmt: skip
        assert decided["data"] == held["data"] | {"status": "allowed", "reviewer": "Ada", "comment": "fine"}
        assert (cancelled["data"]["id"], cancelled["data"]["status"]) == (left["id"], "cancelled")
        assert not any(text in json.dumps(events(requests)) for text in ("risk", '"ask"', "may "))
        assert {path for path, _, _ in requests} == {"/hook/a?b=c"}
        wait_for_metric(server, "so8t_webhook_events_total", {'{outcome="sent"}': 4, '{outcome="dropped"}': 0})


def test_events_are_signed_as_standard_webhooks_has_it(serve_with, pool):
    with Receiver() as receiver, serve_with(receiver.url) as server:
        with client(server, "chat", False):
            pending(server)
        for _, headers, body in receiver.wait(2):
            assert headers["content-type"] == "application/json"
            assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
            signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
            digest = hmac.digest(SECRET, signed, hashlib.sha256)
            assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
            assert time.strptime(json.loads(body)["timestamp"], "%Y-%m-%dT%H:%M:%SZ")
        assert len({headers["webhook-id"] for _, headers, _ in receiver.requests}) == 2


def test_an_event_is_sent_again_until_it_is_taken(serve_with, pool):
    with Receiver(statuses=[500, 429, 204, 204]) as receiver, serve_with(receiver.url) as server:
        waiting = pool.submit(ask, "chat", server, False)
        (entry,) = pending(server)
        first = receiver.wait(3)[:3]
        assert {(path, body) for path, _, body in first} == {("/", first[0][2])}
        assert len({headers["webhook-id"] for _, headers, _ in first}) == 1
        decide(server, entry, "deny")
        waiting.result(timeout=30)
        assert [event["type"] for event in events(receiver.wait(4))] == ["escalation.held"] * 3 + ["escalation.decided"]


def test_a_redirect_leads_nowhere(serve_with):
    statuses = [307] * 9
    with Receiver() as other, Receiver(statuses, location=other.url) as receiver, serve_with(receiver.url) as server:
        with client(server, "chat", False):
            pending(server)
        wait_for_metric(server, "so8t_webhook_events_total", {'{outcome="sent"}': 0, '{outcome="dropped"}': 2})
        assert len(receiver.requests) == 2 and other.requests == []


@pytest.mark.parametrize("how", ["dead", "slow"])
def test_no_answer_waits_for_the_receiver(serve_with, pool, how):
    """Not even 40 of them, and not the end of the server."""
    with Receiver(delay=60) as slow:
        url = f"http://127.0.0.1:{free_port()}" if how == "dead" else slow.url
        with serve_with(url, "-np", 2) as server:
            for i in range(5):
                waiting = [pool.submit(ask, "chat", server, False, seed=8 * i + j) for j in range(8)]
                for entry in pending(server, 8):
                    decide(server, entry, "allow")
                assert [answer.result(timeout=60).text for answer in waiting] == [WHOLE] * 8
            assert metric(server, "so8t_webhook_events_total")['{outcome="sent"}'] == 0
            server.process.terminate()
            assert server.process.wait(timeout=60) == 0
            assert "--so8t-webhook: 80 items were not delivered" in server.output()


def test_what_waits_is_tried_once_more_as_the_server_ends(serve_with):
    port = free_port()
    with serve_with(f"http://127.0.0.1:{port}") as server:
        with client(server, "chat", False):
            (entry,) = pending(server)
        wait_for(server, entry, status="cancelled")
        with Receiver(port=port) as receiver:
            server.process.terminate()
            assert server.process.wait(timeout=30) == 0
            assert [event["type"] for event in events(receiver.wait(2))] == ["escalation.held", "escalation.decided"]


def test_a_request_cannot_choose_the_receiver(serve_with, pool):
    with Receiver() as other, Receiver() as receiver, serve_with(receiver.url) as server:
        hostile = {"webhook": other.url, "so8t_webhook": other.url, "user": other.url}
        waiting = pool.submit(ask, "chat", server, False, **hostile)
        decide(server, pending(server)[0], "allow", other.url)
        waiting.result(timeout=30)
        receiver.wait(2)
        assert other.requests == []


@pytest.mark.parametrize(
    ("url", "key", "words"),
    [("ftp://host/", KEY, "ftp"), ("http://", KEY, "URL"), ("host:80", KEY, "scheme"), ("https://host/", KEY, "HTTPS"),
     ("http://host/", None, "whsec_"), ("http://host/", "whsec_", "whsec_"), ("http://host/", "secret", "whsec_"),
     ("http://host/", "whsec_" + base64.b64encode(bytes(23)).decode(), "24 to 64"),
     ("http://host/", "whsec_" + base64.b64encode(bytes(65)).decode(), "24 to 64"),
     ("http://host/", "whsec_****", "whsec_")],
)  # fmt: skip
def test_a_setting_that_cannot_work_ends_the_server(runtime, guard_file, tmp_path, url, key, words):
    file = tmp_path / "key"
    if key is not None:
        file.write_text(key)
    flags = (*SMALL, *HOLD, "--so8t-webhook", url, "--so8t-webhook-key", file, "--port", "0")
    command = [runtime / "llama-server", "-m", guard_file, *flags]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "error: so8t" in line]
    assert done.returncode == 1 and len(lines) == 1 and words in lines[0]
    assert KEY not in done.stdout + done.stderr


@pytest.mark.parametrize("value", ["a.b", "a/b", "", "x" * 65, "\u00e9", "a b"])
def test_an_id_of_a_server_fits_into_a_path(runtime, guard_file, value):
    command = [runtime / "llama-server", "-m", guard_file, "--so8t-server-id", value]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "expected 1 to 64 letters" in done.stdout + done.stderr


def test_the_id_of_a_server_is_the_same_after_a_restart(runtime, guard_file, pool):
    names = []
    for _ in range(2):
        with Server(runtime / "llama-server", "-m", guard_file, *SMALL, *HOLD) as server:
            with client(server, "chat", False):
                names.append((server.port, pending(server)[0]["id"].partition(".")[0]))
    assert all(len(name) == len("esc-01234567") for _, name in names)
    assert (names[0][0] == names[1][0]) == (names[0][1] == names[1][1])
