"""OpenTelemetry events: what a collector gets, parsed by OpenTelemetry's own messages, and what is lost without one."""

import http.server
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from required import package

from llama_so8t.errors import RuntimeLibraryError

from .guard_server import CHAT, SMALL, Server

SECRETS = ("bomb", "fine", "one ", "court", "Ada", "is fine")
"""Texts and names of people that no event may have."""


class Collector(http.server.ThreadingHTTPServer):
    """A receiver of OTLP over HTTP on a free port; ``answer(n)`` is the status of the n-th request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: Callable[[int], int] = lambda n: 200
        self.reply = b"{}"
        self.gate = threading.Event()
        self.gate.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def records(self, n: int) -> list[dict[str, Any]]:
        """Attributes of the first n records, with the name of the event, as soon as there are so many."""
        for _ in range(600):
            found = [record for _, _, body in list(self.requests) for record in parsed(body)]
            if len(found) >= n:
                return found
            time.sleep(0.05)
        raise AssertionError(f"there are not {n} records: {self.requests}")


class _Receive(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.gate.wait()
        status = self.server.answer(len(self.server.requests))
        self.server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(status)
        self.send_header("Content-Length", str(len(self.server.reply)))
        self.end_headers()
        self.wfile.write(self.server.reply)

    def log_message(self, *_: object) -> None:
        pass


def message(body: bytes) -> Any:
    """The body as OpenTelemetry's own message; unknown fields are an error."""
    from google.protobuf import json_format

    service = package("opentelemetry.proto.collector.logs.v1.logs_service_pb2")
    return json_format.Parse(body, service.ExportLogsServiceRequest())


def parsed(body: bytes) -> list[dict[str, Any]]:
    found = []
    for resource in message(body).resource_logs:
        for scope in resource.scope_logs:
            assert scope.scope.name == "so8t"
            for record in scope.log_records:
                values = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in record.attributes}
                assert len(values) == len(record.attributes), "a key stands twice"
                assert abs(record.time_unix_nano / 1e9 - time.time()) < 600
                assert not record.HasField("body")
                found.append(values | {"event": record.event_name, "severity": record.severity_number})
    return found


@pytest.fixture
def collector():
    package("opentelemetry.proto.collector.logs.v1.logs_service_pb2")
    with Collector() as collector:
        yield collector
        collector.gate.set()
        collector.shutdown()


@pytest.fixture
def start(runtime, guard_file):
    """A server of its own: ``start(*flags, **variables)``."""
    servers = []

    def run(*flags: object, **variables: str) -> Server:
        old = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            servers.append(Server(runtime / "llama-server", "-m", guard_file, *SMALL, "--metrics", *flags))
        finally:
            for name, value in old.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        return servers[-1]

    yield run
    for server in servers:
        if server.is_alive:
            server.stop()


def counted(server: Server) -> dict[str, int]:
    """Events by outcome."""
    lines = server.request("GET", "/metrics").body.decode().splitlines()
    prefix = 'llamacpp:so8t_otlp_events_total{outcome="'
    found = (line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix))
    return {outcome: int(n) for outcome, n in found}


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def test_each_verdict_is_an_event_without_a_text(start, collector, tmp_path):
    flags = ("--so8t-otlp", collector.url, "--so8t-policy", "enforce", "--so8t-audit", tmp_path / "log.jsonl")
    server = start(*flags, "--alias", "so8t-tiny")
    answers = [CHAT.ask(server, prompt) for prompt in ("fine", "go", "bomb")]
    server.post("/v1/moderations", {"input": "court"})
    records = collector.records(4)
    assert {record["event"] for record in records} == {"gen_ai.security.finding"}
    assert [record["so8t.decision"] for record in records] == ["allow", "refuse", "refuse", "escalate"]
    assert [record["gen_ai.security.verdict.type"] for record in records] == ["allow", "deny", "deny", "escalate"]
    assert [record["gen_ai.security.action.type"] for record in records] == ["allow", "block", "block", "allow"]
    targets = [record["gen_ai.security.target.type"] for record in records]
    assert targets == ["llm_output", "llm_output", "llm_input", "llm_input"]
    assert [record["severity"] for record in records] == [9, 13, 13, 13]
    assert [record["so8t.judged"] for record in records] == [False, False, False, True]
    policy = server.get("/so8t")["policy"]["sha256"]
    for record, answer in zip(records, answers, strict=False):
        assert record["gen_ai.response.id"] == answer.raw["id"] and record["gen_ai.response.model"] == "so8t-tiny"
        assert record["gen_ai.security.policy.id"] == policy and record["so8t.policy.mode"] == "enforce"
        audit = answer.so8t["audit"]
        assert (record["so8t.audit.seq"], record["so8t.audit.hash"]) == (audit["seq"], audit["hash"])
        for head, verdict in answer.so8t["prompt"]["heads"].items():
            assert record[f"so8t.prompt.{head}.label"] == verdict["label"]
            for label, probability in verdict["probabilities"].items():
                assert record[f"so8t.prompt.{head}.probability.{label}"] == probability
    assert records[1]["gen_ai.security.risk.finding"] == "safety/unsafe"
    assert records[1]["gen_ai.security.risk.score"] == pytest.approx(0.97, abs=1e-5)
    assert "gen_ai.security.risk.finding" not in records[0]
    everything = b"".join(body for _, _, body in collector.requests).decode()
    assert not [text for text in SECRETS if text in everything]
    assert {path for path, _, _ in collector.requests} == {"/v1/logs"}
    assert {headers["content-type"] for _, headers, _ in collector.requests} == {"application/json"}


def test_held_answers_have_an_event_when_they_are_decided(start, collector):
    server = start("--so8t-otlp", f"{collector.url}/", "--so8t-policy", "enforce", "--so8t-escalation-wait", 600)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(CHAT.ask, server, "ask")
        wait_for(lambda: len(server.get("/so8t/escalations")["escalations"]) == 1)
        (entry,) = server.get("/so8t/escalations")["escalations"]
        decision = {"action": "deny", "reviewer": "Ada", "comment": "is fine"}
        server.post(f"/so8t/escalations/{entry['id']}", decision)
        assert waiting.result(timeout=30).so8t["enforced"] == "denied"
    held, decided = collector.records(2)
    assert held["gen_ai.security.action.type"] == "hold" and held["so8t.enforced"] == "held"
    assert decided["event"] == "so8t.escalation" and decided["so8t.escalation.status"] == "denied"
    assert held["so8t.escalation.id"] == decided["so8t.escalation.id"] == entry["id"]
    everything = b"".join(body for _, _, body in collector.requests).decode()
    assert not [text for text in SECRETS if text in everything]


def test_values_that_are_not_finite_are_left_out(start, collector):
    server = start("--so8t-otlp", collector.url, "--so8t-policy", "enforce")
    CHAT.ask(server, "nan")
    (record,) = collector.records(1)
    assert record["so8t.decision"] == "refuse" and record["so8t.answer.safety.label"] == "not finite"
    assert not any(key.startswith("so8t.answer.safety.probability") for key in record)


def test_the_endpoint_is_that_of_the_option_alone(start, collector):
    server = start("--so8t-otlp", "http://127.0.0.1:9", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    CHAT.ask(server, "fine")
    assert collector.requests == []
    server = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    CHAT.ask(server, "fine")
    assert counted(server) == {}


def test_headers_and_resource_are_those_of_the_variables(start, collector):
    server = start(
        "--so8t-otlp", collector.url, OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20x=y, X-Tenant=a",
        OTEL_SERVICE_NAME="guarded", OTEL_RESOURCE_ATTRIBUTES="service.name=other,deployment.environment.name=a%2Cb",
    )  # fmt: skip
    CHAT.ask(server, "fine")
    collector.records(1)
    _, headers, body = collector.requests[0]
    assert (headers["authorization"], headers["x-tenant"]) == ("Bearer x=y", "a")
    attributes = message(body).resource_logs[0].resource.attributes
    assert {a.key: a.value.string_value for a in attributes} == {
        "service.name": "guarded", "deployment.environment.name": "a,b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "variables", "words"),
    [
        ("localhost:4318", {}, "no scheme"),
        ("ftp://localhost", {}, "scheme"),
        ("http://", {}, "URL"),
        ("http://localhost:x", {}, "localhost:x"),
        ("http://localhost", {"OTEL_EXPORTER_OTLP_HEADERS": "secret"}, "KEY=VALUE"),
        ("http://localhost", {"OTEL_EXPORTER_OTLP_HEADERS": "a=%2"}, "two hex digits"),
        ("http://localhost", {"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"}, "milliseconds"),
    ],
)
def test_a_wrong_setting_ends_the_start(start, url, variables, words):
    with pytest.raises(RuntimeLibraryError, match="ended at start") as found:
        start("--so8t-otlp", url, **variables)
    (line,) = [line for line in str(found.value).splitlines() if "error:" in line]
    assert words in line and "secret" not in line


def test_what_a_collector_refuses_is_counted_and_what_it_cannot_take_now_is_sent_again(start, collector):
    collector.answer = lambda n: (503, 200, 400, 200)[n]
    server = start("--so8t-otlp", collector.url)
    CHAT.ask(server, "fine")
    wait_for(lambda: counted(server) == {"sent": 1, "dropped": 0})
    assert collector.requests[0][2] == collector.requests[1][2]
    CHAT.ask(server, "fine")
    wait_for(lambda: counted(server) == {"sent": 1, "dropped": 1})
    collector.reply = json.dumps({"partialSuccess": {"rejectedLogRecords": "1"}}).encode()
    CHAT.ask(server, "fine")
    wait_for(lambda: counted(server) == {"sent": 1, "dropped": 2})
    assert server.output().count("nothing can be delivered") == 2


def test_a_collector_that_hangs_keeps_nobody_waiting_and_fills_no_memory(start, collector):
    collector.gate.clear()
    server = start("--so8t-otlp", collector.url, OTEL_EXPORTER_OTLP_TIMEOUT="60000")
    texts = ["fine"] * 256
    for _ in range(12):  # 3072 verdicts, with 512 on their way, and room for 2048
        server.post("/v1/moderations", {"input": texts})
    assert counted(server)["sent"] == 0 and counted(server)["dropped"] >= 512
    assert CHAT.ask(server, "fine").finish == "stop"
    collector.gate.set()
    wait_for(lambda: sum(counted(server).values()) == 3073)
    assert len(collector.records(counted(server)["sent"])) == counted(server)["sent"]


def test_what_is_left_is_sent_at_the_end(start, collector):
    server = start("--so8t-otlp", collector.url)
    CHAT.ask(server, "fine")
    server.stop()
    assert len(collector.records(1)) == 1
