"""Eight slots and 300 mixed requests at once: every answer, verdict and audit line is the one of the request alone."""

import hashlib
import hmac
import http.client
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from llama_so8t.audit import Log, verify
from llama_so8t.server_process import HOST

from .guard_rules import REFUSAL
from .guard_server import CHAT, COMPLETION, ENDPOINTS, MESSAGES, SMALL, TEXT, Answer, Endpoint, Server

N = 300
CLIENTS = 16
WORDS = ("fine", "go", "ask", "climb", "both", "twice", "nan", "inf", "muse", "late", "json", "bomb", "court")
# greedy: where a grammar forbids the token of the script, several others are left
FORMS: tuple[dict[str, Any], ...] = (
    {"temperature": 0, "grammar": "root ::= [a-z0-9 ]*"},
    {"temperature": 0, "grammar": 'root ::= "all " "is " [a-z ]*'},
)


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


CONVERSATIONS: tuple[Callable[[str], list[dict[str, str]]], ...] = (
    lambda text: [said("system", "here fine"), said("user", text)],
    lambda text: [said("user", "fine"), said("assistant", "here"), said("user", text)],
    lambda text: [said("user", "bomb"), said("assistant", REFUSAL), said("user", text)],
    lambda text: [said("user", text), said("assistant", "well here"), said("user", "fine")],
    lambda text: [said("user", "fine"), said("assistant", f"{text} bad three"), said("user", "go fine")],
    lambda text: [said("user", text), said("assistant", "here")],
    lambda text: [said("system", f"here {text}"), said("user", "fine")],
)
"""Histories and endings around a text, some of which are judged otherwise than by the end of the prompt."""


def conversation(endpoint: Endpoint, form: Callable[[str], list[dict[str, str]]]) -> Endpoint:
    more = {"max_tokens": 256} if endpoint is MESSAGES else {}
    return replace(endpoint, body=lambda text: {"messages": form(text)} | more)


@dataclass(frozen=True)
class Request:
    """One of the mixed requests; no two have the same prompt. ``gives_up``: the client goes after the first event."""

    text: str
    endpoint: Endpoint
    stream: bool
    gives_up: bool
    options: dict[str, Any] = field(default_factory=dict)

    def digests(self, key: bytes) -> tuple[str, ...]:
        """Of the texts that its client sends, as a line of the log has them."""
        body = self.endpoint.body(self.text)
        texts = [message["content"] for message in body.get("messages", [said("user", self.text)])]
        return tuple(hmac.new(key, text.encode(), hashlib.sha256).hexdigest() for text in texts)

    def ask(self, server: Server) -> Answer | None:
        if self.gives_up:
            with server.open("POST", self.endpoint.path, self.endpoint.body(self.text) | self.options) as response:
                response.readline()
            return None
        return (self.endpoint.ask_stream if self.stream else self.endpoint.ask)(server, self.text, **self.options)


def mixed(seed: int, n: int) -> list[Request]:
    rng = random.Random(seed)
    found = []
    for i in range(n):
        if i % 10 == 9:
            options = {"stream": True, "n_predict": 100000}
            found.append(Request(f"{seed} {i} tick", rng.choice([COMPLETION, TEXT]), True, True, options))
            continue
        endpoint = rng.choice(list(ENDPOINTS.values()))
        options = rng.choice([{}, {}, {"n_predict": 3}, {"temperature": 0}, *FORMS])
        if endpoint not in (COMPLETION, TEXT, CHAT):
            options = {}
        if endpoint in (CHAT, MESSAGES) and rng.random() < 0.7:
            endpoint, options = conversation(endpoint, rng.choice(CONVERSATIONS)), {}
        found.append(Request(f"{seed} {i} {rng.choice(WORDS)}", endpoint, rng.random() < 0.5, False, options))
    return found


def hang_up(server: Server, request: Request) -> None:
    """Sends a request and goes away at once, while its texts are read or before."""
    connection = http.client.HTTPConnection(HOST, server.port)
    body = json.dumps(request.endpoint.body(request.text) | request.options)
    connection.request("POST", request.endpoint.path, body, {"Content-Type": "application/json"})
    connection.close()


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def start(runtime, guard_file, log) -> Callable[..., Server]:
    def run(*flags: object) -> Server:
        return Server(
            runtime / "llama-server", "-m", guard_file, *SMALL, "-c", 8 * 512, "-np", 8, "--so8t-policy", "enforce",
            "--so8t-holdback", 2, "--so8t-audit", log, "--so8t-audit-max-size", "20K",
            "--so8t-audit-checkpoint", log.with_name("note"), *flags,
        )  # fmt: skip

    return run


def comparable(answer: Answer) -> tuple:
    """All of an answer but what names the one request."""
    return answer.text, answer.finish, answer.refusal, {k: v for k, v in answer.so8t.items() if k != "audit"}


def records(log: Path) -> dict[int, dict[str, Any]]:
    def damaged(line) -> None:
        raise AssertionError(f"{line.place}: {line.problem}")

    return {record["seq"]: record for _, record in Log(log).records(damaged) if record["event"] == "request"}


def digests_of(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(message["hmac"] for message in record["messages"])


def check_line(record: dict[str, Any], request: Request, answer: Answer, key: bytes) -> None:
    assert answer.so8t["audit"]["hash"] == record["hash"]
    assert digests_of(record) == request.digests(key)
    for name in ("decision", "enforced", "triggered"):
        assert record[name] == answer.so8t[name]


def test_eight_slots_and_300_mixed_requests(start, log):
    requests = mixed(1, N)
    lost = [request for request in mixed(5, N) if not request.gives_up][: N // 5]
    with start() as server:
        alone = [request.ask(server) for request in requests]
        n_before = server.get("/so8t")["audit"]["seq"]
        order = list(range(N))
        random.Random(2).shuffle(order)
        with ThreadPoolExecutor(CLIENTS) as pool:
            futures = {}
            for i in order:
                futures[i] = pool.submit(requests[i].ask, server)
                if i % 5 == 0:
                    pool.submit(hang_up, server, lost[i // 5])
            together = [futures[i].result() for i in range(N)]
    decided = [answer.so8t["decision"] for answer in together if answer]
    assert min(decided.count(decision) for decision in ("allow", "escalate", "refuse")) >= 10
    for request, one, other in zip(requests, alone, together, strict=True):
        assert (one is None) == (other is None) == request.gives_up
        assert one is None or comparable(one) == comparable(other), request

    report = verify(log, log.with_name("note"))
    assert report.ok and report.last.event == "close", report.findings
    key = bytes.fromhex(Path(f"{log}.key").read_text())
    found = records(log)
    of_lost = Counter(request.digests(key) for request in lost)
    assert Counter(digests_of(record) for record in found.values() if digests_of(record) in of_lost) <= of_lost
    found = {seq: record for seq, record in found.items() if digests_of(record) not in of_lost}
    assert len(found) == 2 * N
    seqs = [answer.so8t["audit"]["seq"] for answer in (*alone, *together) if answer]
    assert len(set(seqs)) == len(seqs)
    for request, answer in (*zip(requests, alone, strict=True), *zip(requests, together, strict=True)):
        if answer:
            check_line(found[answer.so8t["audit"]["seq"]], request, answer, key)
    given_up = [record for seq, record in found.items() if seq not in set(seqs)]
    assert len(given_up) == 2 * N // 10 and all(record["cancelled"] for record in given_up)
    assert sum(record["seq"] > n_before for record in found.values()) >= N - 1
    readings = {turn["reading"] for answer in together if answer for turn in answer.so8t.get("turns", [])}
    assert readings == {"context", "alone", "given"}


@pytest.mark.parametrize("n_answers", [20, 60])
def test_a_kill_in_the_middle_loses_no_line_of_an_answer(start, log, n_answers):
    """Whatever a client has read to its end is in the log, and the chain is whole up to there."""
    requests = [request for request in mixed(3, N) if not request.gives_up]
    answered: list[tuple[Request, Answer]] = []
    enough = threading.Event()
    server = start()

    def ask(request: Request) -> None:
        try:
            answered.append((request, request.ask(server)))
        except (OSError, http.client.HTTPException, json.JSONDecodeError, AssertionError, LookupError):
            assert enough.is_set(), request  # the server is gone
        if len(answered) >= n_answers:
            enough.set()
            server.process.kill()

    with ThreadPoolExecutor(CLIENTS) as pool:
        for future in [pool.submit(ask, request) for request in requests]:
            future.result()
    server.stop()
    findings = verify(log, log.with_name("note")).findings
    # missing: in the middle of a rotation
    assert [finding.kind for finding in findings] in ([], ["cut"], ["missing"]), findings

    start().stop()
    assert verify(log, log.with_name("note")).findings == []
    found = records(log)
    key = bytes.fromhex(Path(f"{log}.key").read_text())
    assert len(answered) >= n_answers
    for request, answer in answered:
        check_line(found[answer.so8t["audit"]["seq"]], request, answer, key)
    # lines of answers that were on their way when the server was killed
    assert len(answered) <= len(found) <= len(answered) + CLIENTS
