"""Endpoints of gateways that ask the guard about texts of another model: LiteLLM's generic guardrail, agentgateway's
webhook. Their bodies are those that these programs send (LiteLLM 1.110, agentgateway of November 2026)."""

import os

import pytest

from .guard_rules import ESCALATION, REFUSAL
from .guard_server import SMALL, Server

LITELLM = "/beta/litellm_basic_guardrail_api"
BOTH = ("--so8t-gateway", "litellm,agentgateway")


@pytest.fixture(scope="module")
def server(serve_here, guard_file):
    return serve_here(guard_file, *BOTH)


def message(role: str, content: object) -> dict:
    return {"role": role, "content": content}


def litellm(server: Server, input_type: str, texts: list | None, **fields) -> dict:
    """What LiteLLM sends: all fields are there, most of them null."""
    body = {
        "input_type": input_type, "litellm_call_id": "5a3c", "litellm_trace_id": None, "structured_messages": None,
        "images": None, "tools": None, "texts": texts, "request_data": {"user_api_key_alias": None},
        "request_headers": {"host": "localhost", "authorization": "[present]"}, "litellm_version": "1.110.2",
        "additional_provider_specific_params": {}, "tool_calls": None, "model": "gpt-4o",
    } | fields  # fmt: skip
    return server.post(LITELLM, body)


@pytest.mark.parametrize(
    ("input_type", "texts", "fields", "blocked"),
    [
        ("request", ["fine"], {}, None),
        ("request", ["bomb"], {}, REFUSAL),
        ("request", ["court"], {}, ESCALATION),
        ("request", ["fine", "bomb"], {}, REFUSAL),
        ("request", ["court", "bomb"], {}, REFUSAL),
        ("request", [], {}, None),
        ("request", None, {}, None),
        ("request", ["fine"], {"structured_messages": [message("user", "bomb")]}, REFUSAL),
        ("request", ["bomb"], {"structured_messages": [message("user", "fine")]}, REFUSAL),
        ("request", ["bomb", "fine"],
         {"structured_messages": [message("user", "bomb"), message("assistant", "ok"), message("user", "fine")]},
         REFUSAL),
        ("request", ["fine", "one bad ", "fine"],
         {"structured_messages": [message("user", "fine"), message("assistant", "one bad "), message("user", "fine")]},
         REFUSAL),
        ("request", ["fine"],
         {"structured_messages": [message("developer", "be kind"), message("user", [
             {"type": "text", "text": "fine"}, {"type": "image_url", "image_url": {"url": "data:,"}}])],
          "images": ["data:,"],
          "tools": [{"type": "function", "function": {"name": "f"}}, {"functionDeclarations": []}]},
         None),
        ("response", ["all is well"], {}, None),
        ("response", ["one two bad three"], {}, REFUSAL),
        ("response", ["may risk more"], {}, ESCALATION),
        ("response", ["all is well"], {"structured_messages": [message("user", "bomb")]}, None),
        ("response", ["all ", "bad "], {}, REFUSAL),
        ("response", [], {"tool_calls": [
            {"id": "1", "type": "function", "index": 0, "function": {"name": "f", "arguments": '{"a": "bad "}'}}]},
         REFUSAL),
    ],
)  # fmt: skip
def test_litellm_is_told_what_to_block(server, input_type, texts, fields, blocked):
    expected = {"action": "BLOCKED", "blocked_reason": blocked} if blocked else {"action": "NONE"}
    assert litellm(server, input_type, texts, **fields) == expected


PASS = {"action": {"reason": "so8t: allow"}}


def reject(text: str, reason: str) -> dict:
    """agentgateway tells actions by their fields: without body and status_code it would pass."""
    return {"action": {"body": text, "status_code": 403, "reason": f"so8t: {reason}"}}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([message("user", "fine")], PASS),
        ([message("user", "bomb")], reject(REFUSAL, "refuse: safety/unsafe")),
        ([message("user", "court")], reject(ESCALATION, "escalate: authority/escalate")),
        ([message("system", "be kind"), message("user", "bomb"), message("assistant", "ok"), message("user", "fine")],
         reject(REFUSAL, "refuse: safety/unsafe")),
        ([], PASS),
    ],
)  # fmt: skip
def test_agentgateway_is_told_of_a_request(server, messages, expected):
    assert server.post("/request", {"body": {"messages": messages}}) == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["all is well"], PASS),
        (["one two bad three"], reject(REFUSAL, "refuse: safety/unsafe")),
        (["all is well", "may risk more"], reject(ESCALATION, "escalate: authority/escalate")),
        ([""], PASS),
        ([None], PASS),
    ],
)
def test_agentgateway_is_told_of_a_response(server, answers, expected):
    choices = [{"message": message("assistant", answer)} for answer in answers]
    assert server.post("/response", {"body": {"choices": choices}}) == expected


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (LITELLM, {"texts": ["fine"]}, "input_type"),
        (LITELLM, {"input_type": "both", "texts": ["fine"]}, "expected"),
        (LITELLM, {"input_type": "request", "texts": "fine"}, "texts"),
        (LITELLM, {"input_type": "request", "texts": [1]}, "texts"),
        (LITELLM, {"input_type": "request", "texts": ["x"] * 257}, "256"),
        (LITELLM, {"input_type": "request", "structured_messages": ["x"]}, "role"),
        (LITELLM, {"input_type": "request", "structured_messages": [{"role": 1}]}, "role"),
        ("/request", {"messages": [message("user", "bomb")]}, "body"),
        ("/request", {"body": "bomb"}, "body"),
        ("/request", {"body": {"choices": []}}, "messages"),
        ("/response", {"body": {"choices": ["x"]}}, "choice"),
        ("/response", {"body": {"choices": [{"message": {"content": 1}}]}}, "choice"),
        ("/response", b"bomb", "no JSON"),
        ("/request", b"[" * 100_000, "too deep"),
    ],
)
def test_what_cannot_be_judged_is_an_error_which_blocks(server, path, body, words):
    reply = server.request("POST", path, body)
    assert reply.status == 400 and words in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("flags", "served"),
    [
        ((), []),
        (("--so8t-gateway", "litellm"), [LITELLM]),
        (("--so8t-gateway", "agentgateway"), ["/request", "/response"]),
    ],
)
def test_only_what_the_operator_has_switched_on_is_served(serve_here, guard_file, flags, served):
    server = serve_here(guard_file, *flags, key="secret")
    for path in (LITELLM, "/request", "/response"):
        assert (server.request("POST", path, {}).status == 400) == (path in served)
        assert server.request("POST", path, {}, {"Authorization": "Bearer other"}).status == 401
    headers = {"Authorization": "", "x-api-key": "secret"}  # as LiteLLM sends its api_key
    for path in served:
        assert server.request("POST", path, {}, headers).status == 400


def test_each_request_is_a_line_of_the_log_and_none_is_answered_without(runtime, guard_file, tmp_path):
    log = tmp_path / "logs" / "audit.jsonl"
    log.parent.mkdir()
    flags = (*SMALL, *BOTH, "--so8t-policy", "enforce", "--so8t-audit", log)
    with Server(runtime / "llama-server", "-m", guard_file, *flags) as server:
        history = [message("user", "bomb"), message("assistant", "ok"), message("user", "fine")]
        server.post("/request", {"body": {"messages": history}})
        line = server.get("/so8t/audit?tail=1")["lines"][0]
        assert (line["mode"], line["decision"], line["enforced"]) == ("judge", "refuse", "none")
        assert [text["role"] for text in line["messages"]] == ["user", "assistant", "user"]
        os.rename(log.parent, tmp_path / "elsewhere")
        for path, body in (
            ("/request", {"body": {"messages": history}}),
            (LITELLM, {"input_type": "request", "texts": ["x"]}),
        ):
            assert server.request("POST", path, body).status == 503
        os.rename(tmp_path / "elsewhere", log.parent)
