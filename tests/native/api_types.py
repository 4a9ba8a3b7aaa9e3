"""Answers, events and errors of the server held against the typed models of OpenAI's and Anthropic's SDKs.

Strictly: each field that a model requires is there and has its type. The models leave out what may be null, so `ALWAYS`
names the fields that these APIs always send. Beside the fields, the events of a stream come in the order of the API.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from required import package

Object = dict[str, Any]

ALWAYS = {
    "choice": ("finish_reason", "index", "logprobs"),
    "message": ("role", "content", "refusal"),
    "logprobs": ("content", "refusal"),
    "text choice": ("finish_reason", "index", "logprobs", "text"),
    "response": ("id", "object", "created_at", "status", "background", "completed_at", "error", "incomplete_details",
                 "instructions", "max_output_tokens", "model", "output", "parallel_tool_calls", "previous_response_id",
                 "reasoning", "service_tier", "store", "temperature", "text", "tool_choice", "tools", "top_logprobs",
                 "top_p", "truncation", "metadata"),
    "claude": ("id", "type", "role", "model", "content", "container", "stop_reason", "stop_sequence", "stop_details",
               "usage"),
    "claude usage": ("cache_creation", "cache_creation_input_tokens", "cache_read_input_tokens", "input_tokens",
                     "output_tokens", "server_tool_use", "service_tier"),
    "claude delta": ("container", "stop_reason", "stop_sequence", "stop_details"),
    "error": ("message", "type", "param", "code"),
}  # fmt: skip


@cache
def _adapter(name: str) -> Any:
    """Of a type by its place, as in ``openai.types.chat.ChatCompletion``."""
    module, _, attribute = name.rpartition(".")
    return package("pydantic").TypeAdapter(getattr(package(module), attribute))


def valid(name: str, value: object) -> None:
    """``value`` is one of the type of an SDK, in the strict mode of pydantic."""
    _adapter(name).validate_json(json.dumps(value), strict=True)


def has(name: str, value: Object) -> None:
    missing = [key for key in ALWAYS[name] if key not in value]
    assert not missing, f"{name} lacks {missing}: {value}"


# ---- chat and text completions ----


def chat(answer: Object) -> None:
    valid("openai.types.chat.ChatCompletion", answer)
    for choice in answer["choices"]:
        has("choice", choice)
        has("message", choice["message"])
        if choice["logprobs"] is not None:
            has("logprobs", choice["logprobs"])
        refused = choice["finish_reason"] == "content_filter"
        assert refused or choice["message"]["refusal"] is None
        assert choice["message"]["content"] is not None or refused or choice["message"].get("tool_calls")


def text(answer: Object) -> None:
    valid("openai.types.Completion", answer)
    for choice in answer["choices"]:
        has("text choice", choice)
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def chat_stream(events: Sequence[Object]) -> None:
    for event in events:
        valid("openai.types.chat.ChatCompletionChunk", event)
    _choices(events)
    first: dict[int, Object] = {}
    for event in events:
        for choice in event["choices"]:
            first.setdefault(choice["index"], choice["delta"])
    assert all(delta["role"] == "assistant" for delta in first.values()), "the role comes first"


def text_stream(events: Sequence[Object]) -> None:
    for event in events:
        # the model of a whole answer, whose choices have ended
        choices = [choice | {"finish_reason": choice["finish_reason"] or "stop"} for choice in event["choices"]]
        valid("openai.types.Completion", event | {"choices": choices})
    _choices(events)


def _choices(events: Sequence[Object]) -> None:
    """Each choice ends once, and its usage comes once, behind all of them."""
    assert len({(event["id"], event["model"], event["object"]) for event in events}) == 1
    ended: Counter[int] = Counter()
    for event in events:
        for choice in event["choices"]:
            assert choice["index"] not in ended, "nothing comes behind the end of a choice"
            ended.update([choice["index"]] if choice["finish_reason"] else [])
    assert sorted(ended) == list(range(len(ended))) and set(ended.values()) == {1}
    usages = [event["usage"] for event in events if "usage" in event]
    assert all(usage is None for usage in usages[:-1])
    assert not usages or (usages[-1] is not None and events[-1]["usage"] is usages[-1])
    empty = [event for event in events if not event["choices"]]
    assert all(event is events[-1] for event in empty)


# ---- responses ----


def response(answer: Object) -> None:
    valid("openai.types.responses.Response", answer)
    has("response", answer)
    assert answer["usage"]["total_tokens"] == answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"]
    assert (answer["status"] == "completed") == (answer["completed_at"] is not None)
    if answer["status"] == "completed":
        assert answer["incomplete_details"] is None
    if answer["status"] == "incomplete":
        assert answer["incomplete_details"]["reason"] in ("content_filter", "max_output_tokens")
        assert not answer["output"] or answer["output"][-1]["status"] == "incomplete"


PARTS = {"output_text": "text", "refusal": "refusal"}


def response_stream(events: Sequence[Object]) -> None:
    for number, event in enumerate(events):
        valid("openai.types.responses.ResponseStreamEvent", event)
        assert event["sequence_number"] == number
        if "response" in event:
            has("response", event["response"])
    types = [event["type"] for event in events]
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[-1] in ("response.completed", "response.incomplete")
    last = events[-1]["response"]
    assert types[-1] == f"response.{last['status']}"
    response(last)
    assert "usage" not in events[0]["response"]
    same = ("id", "created_at", "model", "tools")
    assert all(event["response"][key] == last[key] for event in events if "response" in event for key in same)
    _items(events, last)


def _items(events: Sequence[Object], last: Object) -> None:
    """Items are added in the order of their index, each is done once, and its pieces make up the whole."""
    added: dict[str, int] = {}
    done: dict[str, Object] = {}
    pieces: Counter[str] = Counter()
    texts: dict[str, str] = {}
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(added)
            added[event["item"]["id"]] = event["output_index"]
        elif kind == "output_item.done":
            done[event["item"]["id"]] = event["item"]
        if "item_id" in event:
            assert event["output_index"] == added[event["item_id"]] and event["item_id"] not in done
        if kind.endswith((".delta", "arguments.delta")):
            texts[event["item_id"]] = texts.get(event["item_id"], "") + event["delta"]
        if kind in ("output_text.done", "refusal.done", "reasoning_text.done", "function_call_arguments.done"):
            whole = event.get("text", event.get("refusal", event.get("arguments")))
            assert texts[event["item_id"]] == whole
            pieces[event["item_id"]] += 1
    assert set(pieces) == set(done) and set(pieces.values()) <= {1}
    for item in last["output"]:
        assert done[item["id"]] == item


# ---- messages ----


def message(answer: Object) -> None:
    valid("anthropic.types.Message", answer)
    has("claude", answer)
    has("claude usage", answer["usage"])
    _stopped(answer)


def _stopped(answer: Object) -> None:
    assert (answer["stop_reason"] == "refusal") == (answer["stop_details"] is not None)
    assert (answer["stop_reason"] == "stop_sequence") == (answer["stop_sequence"] is not None)


def message_stream(events: Sequence[Object]) -> None:
    for event in events:
        valid("anthropic.types.RawMessageStreamEvent", event)
    first, *middle, delta, stop = events
    assert (first["type"], delta["type"], stop["type"]) == ("message_start", "message_delta", "message_stop")
    has("claude", first["message"])
    has("claude usage", first["message"]["usage"])
    has("claude usage", delta["usage"])
    has("claude delta", delta["delta"])
    _stopped(delta["delta"])
    open_block: int | None = None
    n_blocks = 0
    for event in middle:
        if event["type"] == "content_block_start":
            assert open_block is None and event["index"] == n_blocks, "one block at a time"
            open_block, n_blocks = event["index"], n_blocks + 1
        else:
            assert event["index"] == open_block
            open_block = None if event["type"] == "content_block_stop" else open_block
    assert open_block is None


# ---- others ----


def moderation(answer: Object) -> None:
    valid("openai.types.ModerationCreateResponse", answer)


def openai_error(body: Object) -> None:
    assert set(body) == {"error"}
    has("error", body["error"])
    valid("openai.types.shared.ErrorObject", body["error"])


def anthropic_error(body: Object) -> None:
    valid("anthropic.types.shared.ErrorResponse", body)
    assert set(body) == {"type", "error", "request_id"}


WHOLE: dict[str, Callable[[Object], None]] = {
    "chat": chat, "text": text, "responses": response, "messages": message,
}  # fmt: skip
STREAM: dict[str, Callable[[Sequence[Object]], None]] = {
    "chat": chat_stream, "text": text_stream, "responses": response_stream, "messages": message_stream,
}  # fmt: skip
