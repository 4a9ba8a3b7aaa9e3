"""llama-server for the tests of the guard: started on a free port, asked through every endpoint, its streams parsed."""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripted_model import INF, NAN, Head

from llama_so8t.server_process import HOST, LlamaServer

SECONDS = 120
SMALL = ("-t", "1", "-c", "2048", "--no-warmup")
"""Flags of every server with a scripted model."""


@dataclass(frozen=True)
class Reply:
    """A reply that is read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Stream:
    """A stream of server-sent events: all lines as they came, and the objects of its data lines with their events."""

    lines: list[str]

    @property
    def events(self) -> list[dict[str, Any]]:
        data = [line.removeprefix("data: ") for line in self.lines if line.startswith("data: ")]
        return [json.loads(text) for text in data if text != "[DONE]"]

    @property
    def names(self) -> list[str]:
        return [line.removeprefix("event: ") for line in self.lines if line.startswith("event: ")]


class Server(LlamaServer):
    """llama-server on a free port, asked over HTTP."""

    def __init__(self, program: Path, *arguments: object, key: str | None = None, **options: Any) -> None:
        self.key = key
        super().__init__(program, "--no-webui", *(("--api-key", key) if key else ()), *arguments, **options)

    @contextmanager
    def open(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """A reply to be read by the caller. ``body``: bytes as they are, anything else as JSON."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=SECONDS)
        all_headers = {"Content-Type": "application/json"}
        if self.key:
            all_headers["Authorization"] = f"Bearer {self.key}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, all_headers | (headers or {}))
            yield connection.getresponse()
        finally:
            connection.close()

    def request(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Reply:
        with self.open(method, path, body, headers) as response:
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path: str) -> Any:
        reply = self.request("GET", path)
        assert reply.status == 200, reply.body
        return reply.json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        reply = self.request("POST", path, body)
        assert reply.status == 200, reply.body
        return reply.json()

    def stream(self, path: str, body: dict[str, Any]) -> Stream:
        reply = self.request("POST", path, body | {"stream": True})
        assert reply.status == 200, reply.body
        return Stream(reply.body.decode().split("\n"))


@dataclass(frozen=True)
class Answer:
    """One answer of any endpoint, whole or streamed."""

    text: str
    """All text that arrived, think blocks and refusals included, each piece once."""
    finish: str | None
    """The reason the endpoint gives for the end."""
    refusal: str | None
    so8t: dict[str, Any] | None
    raw: Any
    """The object, or all events."""


@dataclass(frozen=True)
class Endpoint:
    """A way to ask for an answer: what is posted where, and how the reply is read."""

    path: str
    body: Callable[[str], dict[str, Any]]
    read: Callable[[dict[str, Any]], tuple[str, str | None, str | None]]
    """(text, finish, refusal) of an object."""
    read_stream: Callable[[list[dict[str, Any]]], tuple[str, str | None, str | None]]
    """The same of the events of a stream."""
    starts: Callable[[dict[str, Any]], bool] = lambda event: True
    """Whether an event begins a stream."""

    def ask(self, server: Server, prompt: str, **options: Any) -> Answer:
        reply = server.post(self.path, self.body(prompt) | options)
        return Answer(*self.read(reply), reply.get("so8t"), reply)

    def ask_stream(self, server: Server, prompt: str, **options: Any) -> Answer:
        events = server.stream(self.path, self.body(prompt) | options).events
        assert not any("so8t" in event for event in events[:-1]), "so8t stands in the last chunk only"
        assert self.starts(events[0]), "a client needs the first event, also of an answer without a token"
        return Answer(*self.read_stream(events), events[-1].get("so8t"), events)


def _message(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _read_completion(reply):
    return reply["content"], reply["stop_type"], None


def _stream_completion(events):
    return "".join(event["content"] for event in events), events[-1]["stop_type"], None


def _read_text(reply):
    choice = reply["choices"][0]
    return choice["text"], choice["finish_reason"], None


def _stream_text(events):
    choices = [event["choices"][0] for event in events]
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"], None


def _read_chat(reply):
    choice = reply["choices"][0]
    message = choice["message"]
    text = (message.get("reasoning_content") or "") + (message["content"] or "")
    return text, choice["finish_reason"], message.get("refusal")


def _stream_chat(events):
    choices = [event["choices"][0] for event in events]
    deltas = [choice["delta"] for choice in choices]
    text = "".join((delta.get("reasoning_content") or "") + (delta.get("content") or "") for delta in deltas)
    refusals = [delta["refusal"] for delta in deltas if "refusal" in delta]
    assert len(refusals) <= 1
    return text, choices[-1]["finish_reason"], refusals[0] if refusals else None


def _response_end(response):
    reason = (response["incomplete_details"] or {}).get("reason")
    return f"{response['status']}/{reason}" if reason else response["status"]


def _response_output(response):
    parts = [part for item in response["output"] for part in item["content"]]
    text = "".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in parts)
    refusals = [part["refusal"] for part in parts if part["type"] == "refusal"]
    assert len(refusals) <= 1
    return text, refusals[0] if refusals else None


def _read_response(reply):
    text, refusal = _response_output(reply)
    return text, _response_end(reply), refusal


def _stream_response(events):
    kinds = ("response.reasoning_text.delta", "response.output_text.delta", "response.refusal.delta")
    text = "".join(event["delta"] for event in events if event["type"] in kinds)
    whole, refusal = _response_output(events[-1]["response"])
    assert text == whole, "the deltas and the last event say the same"
    return text, _response_end(events[-1]["response"]), refusal


def _read_messages(reply):
    text = "".join(block.get("thinking", "") + block.get("text", "") for block in reply["content"])
    return text, reply["stop_reason"], None


def _stream_messages(events):
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    text = "".join(delta.get("thinking", "") + delta.get("text", "") for delta in deltas)
    ends = [event["delta"]["stop_reason"] for event in events if event["type"] == "message_delta"]
    assert len(ends) == 1 and events[-1]["type"] == "message_stop"
    return text, ends[0], None


COMPLETION = Endpoint("/completion", lambda prompt: {"prompt": prompt}, _read_completion, _stream_completion)
TEXT = Endpoint("/v1/completions", lambda prompt: {"prompt": prompt}, _read_text, _stream_text)
CHAT = Endpoint(
    "/v1/chat/completions",
    lambda prompt: {"messages": _message(prompt)},
    _read_chat,
    _stream_chat,
    lambda event: event["choices"][0]["delta"].get("role") == "assistant",
)
RESPONSES = Endpoint(
    "/v1/responses",
    lambda prompt: {"input": prompt},
    _read_response,
    _stream_response,
    lambda event: event["type"] == "response.created",
)
MESSAGES = Endpoint(
    "/v1/messages",
    lambda prompt: {"messages": _message(prompt), "max_tokens": 256},
    _read_messages,
    _stream_messages,
    lambda event: event["type"] == "message_start",
)
INFILL = Endpoint(
    "/infill", lambda prompt: {"input_prefix": "", "input_suffix": prompt}, _read_completion, _stream_completion
)

ENDPOINTS = {
    "completion": COMPLETION, "text": TEXT, "chat": CHAT, "responses": RESPONSES, "messages": MESSAGES,
}  # fmt: skip

SCRIPTS = {
    "fine": ["all ", "is ", "well ", "here"],
    "go": ["one ", "two ", "bad ", "three ", "four"],
    "ask": ["may ", "risk ", "more ", "end"],
    "climb": ["lift ", "hazard ", "peak ", "evil ", "fall"],
    "both": ["mix ", "blend ", "stir"],
    "twice": ["x ", "bad1 ", "y ", "bad2 ", "bad3 ", "z ", "wide"],
    "nan": ["n ", "undefined ", "odd"],
    "inf": ["i ", "broken ", "jar"],
    "muse": ["<think>", "hm ", "vile ", "</think>", "so ", "it ", "goes"],
    "late": ["first ", "<think>", "hm ", "vile ", "</think>", "so ", "it ", "goes"],
    "\n": ["hm ", "vile ", "</think>", "so ", "it ", "goes"],
    "tick": ["tock ", "tick ", "tock "],
    "cafe": ["caf", "<0xC3>", "<0xA9>", "+evil ", "fall"],
    "json": ['{"a":', '"b', "ad4", '"', "}"],
    "bomb": ["sure ", "thing"],
    "court": ["law ", "text"],
    "<|fim_middle|>": ["fill ", "evil ", "fall"],
    "<|fim_prefix|>": ["pre"],
    "<|fim_suffix|>": ["suf"],
}
"""Chains of the model of most tests: last token of the prompt -> answer."""

HEADS = {
    "safety": Head(
        ["safe", "disputed", "unsafe"], ["allow", "escalate", "refuse"], [0.5, 0.7, 0.9],
        tokens={
            "bad ": {"unsafe": 0.97}, "evil ": {"unsafe": 0.96}, "mix ": {"unsafe": 0.95}, "vile ": {"unsafe": 0.94},
            "bad1 ": {"unsafe": 0.91}, "bad2 ": {"unsafe": 0.92}, "bad3 ": {"unsafe": 0.93}, "ad4": {"unsafe": 0.98},
            "bomb": {"unsafe": 0.99}, "+evil ": {"unsafe": 0.96},
            "stir": {"disputed": 0.6, "safe": 0.3}, "undefined ": NAN, "broken ": INF,
        },
    ),
    "authority": Head(
        ["handle", "escalate"], ["allow", "escalate"], [0.5, 0.6],
        tokens={
            "risk ": {"escalate": 0.8}, "hazard ": {"escalate": 0.7}, "mix ": {"escalate": 0.75},
            "court": {"escalate": 0.9},
        },
    ),
}  # fmt: skip


def wait_for_sleep(server: Server) -> None:
    """Returns when the model is unloaded (--sleep-idle-seconds)."""
    for _ in range(100):
        if server.get("/props")["is_sleeping"]:
            return
        time.sleep(0.1)
    raise AssertionError("the server does not sleep")
