"""Every answer, event and error is what the API of its endpoint promises: typed clients refuse one that lacks a field.

Refused, held and harmless answers, of one choice and of several, whole and streamed, are held against the typed models
of OpenAI's and Anthropic's SDKs (`api_types`).
"""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from scripted_model import scripted_gguf

from . import api_types
from .guard_rules import REFUSAL, Policy
from .guard_server import CHAT, ENDPOINTS, HEADS, RESPONSES, SMALL, TEXT, Server
from .test_guard_paths import CALL, TOOLS, WITH_TOOLS

POLICY = Policy(mode="enforce", holdback=1)
NAMES = list(api_types.WHOLE)
PROMPTS = ["fine", "go", "ask", "bomb", "muse", "late", "nan", "cafe"]


@pytest.fixture(scope="module")
def server(serve, guard_file):
    return serve(guard_file, *POLICY.flags)


POLICIES = {
    "message": POLICY.flags, "stop": Policy(mode="enforce", on_refuse="stop").flags, "off": ["--so8t-policy", "off"],
}  # fmt: skip


@pytest.mark.parametrize("flags", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_has_every_field(serve, guard_file, name, flags):
    server, endpoint = serve(guard_file, *flags), ENDPOINTS[name]
    for prompt in PROMPTS:
        api_types.WHOLE[name](server.post(endpoint.path, endpoint.body(prompt)))
        api_types.STREAM[name](server.stream(endpoint.path, endpoint.body(prompt)).events)


@pytest.mark.parametrize("place", ["content", "refusal", "both"])
@pytest.mark.parametrize("name", ["chat", "responses"])
def test_the_text_of_a_refusal_stands_where_the_operator_says(serve, guard_file, name, place):
    server, endpoint = serve(guard_file, *POLICY.flags, "--so8t-refusal-in", place), ENDPOINTS[name]
    whole = endpoint.ask(server, "go").raw
    streamed = endpoint.ask_stream(server, "go").raw
    api_types.WHOLE[name](whole)
    api_types.STREAM[name](streamed)
    if name == "chat":
        message = whole["choices"][0]["message"]
        deltas = [event["choices"][0]["delta"] for event in streamed]
        assert message["content"] == (None if place == "refusal" else REFUSAL)
        assert message["refusal"] == (None if place == "content" else REFUSAL)
        assert [delta["refusal"] for delta in deltas if "refusal" in delta] == ([] if place == "content" else [REFUSAL])
        assert (REFUSAL in "".join(delta.get("content") or "" for delta in deltas)) == (place != "refusal")
        assert whole["choices"][0]["finish_reason"] == streamed[-1]["choices"][0]["finish_reason"] == "content_filter"
    else:  # its clients know refusals
        for response in (whole, streamed[-1]["response"]):
            part = response["output"][-1]["content"][0]
            assert part["type"] == ("output_text" if place == "content" else "refusal")
            assert REFUSAL in part.values() and response["incomplete_details"] == {"reason": "content_filter"}


@pytest.mark.parametrize("endpoint", [CHAT, TEXT], ids=["chat", "text"])
@pytest.mark.parametrize("prompt", ["fine", "go", "ask", "bomb"])
def test_several_choices_have_one_usage(server, endpoint, prompt):
    name = "chat" if endpoint is CHAT else "text"
    one = server.post(endpoint.path, endpoint.body(prompt))["usage"]
    body = endpoint.body(prompt) | {"n": 3}
    whole = server.post(endpoint.path, body)
    api_types.WHOLE[name](whole)
    expected = (3 * one["completion_tokens"], one["prompt_tokens"])
    assert (whole["usage"]["completion_tokens"], whole["usage"]["prompt_tokens"]) == expected
    for options in ({}, {"stream_options": {"include_usage": True}}):
        events = server.stream(endpoint.path, body | options).events
        api_types.STREAM[name](events)
        if options or endpoint is TEXT:  # llama.cpp tells it in text completions without being asked
            usage = events[-1]["usage"]
            assert (usage["completion_tokens"], usage["prompt_tokens"]) == expected
            assert usage["total_tokens"] == sum(expected)
        if options:
            assert events[-1]["choices"] == [] and events[-1]["so8t"]


def test_each_prompt_is_in_the_usage_once(server):
    prompts = ["fine", "all is fine"]
    ones = [server.post("/v1/completions", {"prompt": prompt})["usage"] for prompt in prompts]
    body = {"prompt": prompts, "n": 2}
    streamed = server.stream("/v1/completions", body | {"stream_options": {"include_usage": True}}).events
    for usage in (server.post("/v1/completions", body)["usage"], streamed[-1]["usage"]):
        assert usage["prompt_tokens"] == sum(one["prompt_tokens"] for one in ones)
        assert usage["completion_tokens"] == 2 * sum(one["completion_tokens"] for one in ones)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", NAMES)
def test_the_usage_of_one_choice_comes_at_the_end(server, name, streamed):
    endpoint = ENDPOINTS[name]
    body = endpoint.body("go") | {"stream_options": {"include_usage": True}}
    if streamed:
        events = server.stream(endpoint.path, body).events
        api_types.STREAM[name](events)
        assert "so8t" in events[-1] and not any("so8t" in event for event in events[:-1])
    else:
        api_types.WHOLE[name](server.post(endpoint.path, body))


@pytest.mark.parametrize("name", ["chat", "text"])
@pytest.mark.parametrize("prompt", ["fine", "go"])
def test_probabilities_of_tokens_have_the_form_of_the_api(server, name, prompt):
    endpoint = ENDPOINTS[name]
    body = endpoint.body(prompt) | ({"logprobs": True, "top_logprobs": 2} if name == "chat" else {"logprobs": 2})
    whole, events = server.post(endpoint.path, body), server.stream(endpoint.path, body).events
    api_types.WHOLE[name](whole)
    api_types.STREAM[name](events)
    if name == "text" and prompt == "fine":
        text, logprobs = whole["choices"][0]["text"], whole["choices"][0]["logprobs"]
        offsets = logprobs["text_offset"]
        for offset, token in zip(offsets, logprobs["tokens"], strict=True):
            assert text[offset:].startswith(token)
        streamed = [event["choices"][0]["logprobs"] for event in events if event["choices"][0]["logprobs"]]
        assert [offset for item in streamed for offset in item["text_offset"]] == offsets


def test_a_refused_object_is_null(server):
    form = {"response_format": {"type": "json_object"}}
    whole = server.post(CHAT.path, CHAT.body("json") | form)
    api_types.chat(whole)
    message = whole["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, REFUSAL)
    events = server.stream(CHAT.path, CHAT.body("json") | form).events
    api_types.chat_stream(events)
    (delta,) = [event["choices"][0]["delta"] for event in events if "refusal" in event["choices"][0]["delta"]]
    assert delta == {"refusal": REFUSAL}


@pytest.fixture(scope="module")
def tool_server(serve, tmp_path_factory, pinned_tree):
    return serve(scripted_gguf(tmp_path_factory.mktemp("tools") / "model", {"\n": CALL}, HEADS, TOOLS), *POLICY.flags)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_tool_call_has_every_field(tool_server, name):
    endpoint = ENDPOINTS[name]
    body = endpoint.body("any") | WITH_TOOLS[name]
    whole, events = tool_server.post(endpoint.path, body), tool_server.stream(endpoint.path, body).events
    api_types.WHOLE[name](whole)
    api_types.STREAM[name](events)
    if name == "responses":
        (tool,) = whole["tools"]
        assert (tool["name"], tool["parameters"]) == ("run", WITH_TOOLS[name]["tools"][0]["parameters"])
        (done,) = [event for event in events if event["type"] == "response.function_call_arguments.done"]
        assert json.loads(done["arguments"]) == {"cmd": "kaboom"} and done["name"] == "run"


def test_a_response_repeats_what_was_asked(server):
    asked = {"instructions": "Be brief.", "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 32, "user": "u",
             "metadata": {"a": "b"}, "parallel_tool_calls": False, "tool_choice": "auto"}  # fmt: skip
    for reply in (server.post(RESPONSES.path, RESPONSES.body("fine") | asked),
                  server.stream(RESPONSES.path, RESPONSES.body("fine") | asked).events[0]["response"]):  # fmt: skip
        assert {key: reply[key] for key in asked} == asked
    odd = {"metadata": None, "user": 7, "tools": None, "text": None, "reasoning": None}
    api_types.response(
        server.post(RESPONSES.path, RESPONSES.body("fine") | {"metadata": None, "user": 7, "text": None})
    )
    del odd


def test_an_answer_that_is_cut_is_incomplete(server):
    body = RESPONSES.body("tick") | {"max_output_tokens": 4}
    whole, events = server.post(RESPONSES.path, body), server.stream(RESPONSES.path, body).events
    api_types.response(whole)
    api_types.response_stream(events)
    for reply in (whole, events[-1]["response"]):
        assert (reply["status"], reply["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_a_stop_sequence_is_named(server):
    body = ENDPOINTS["messages"].body("fine") | {"stop_sequences": ["well"]}
    whole, events = server.post("/v1/messages", body), server.stream("/v1/messages", body).events
    api_types.message(whole)
    api_types.message_stream(events)
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", "well")
    assert events[-2]["delta"]["stop_sequence"] == "well"


# ---- held answers ----


@pytest.fixture(scope="module")
def holding(serve, guard_file):
    return serve(guard_file, *POLICY.flags, "--so8t-escalation-wait", 60)


@pytest.mark.parametrize("action", ["allow", "deny"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", NAMES)
def test_a_held_answer_has_every_field(holding, name, streamed, action):
    endpoint = ENDPOINTS[name]
    with ThreadPoolExecutor(1) as pool:
        ask = holding.stream if streamed else holding.post
        waiting = pool.submit(ask, endpoint.path, endpoint.body("ask"))
        while not (held := [e for e in holding.get("/so8t/escalations")["escalations"] if e["status"] == "pending"]):
            time.sleep(0.05)
        holding.post(f"/so8t/escalations/{held[0]['id']}", {"action": action, "reviewer": "Ada"})
        if streamed:
            api_types.STREAM[name](waiting.result().events)
        else:
            api_types.WHOLE[name](waiting.result())


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_nobody_decides_has_every_field(serve, guard_file, name):
    server, endpoint = serve(guard_file, *POLICY.flags, "--so8t-escalation-wait", 1), ENDPOINTS[name]
    api_types.WHOLE[name](server.post(endpoint.path, endpoint.body("ask")))
    api_types.STREAM[name](server.stream(endpoint.path, endpoint.body("ask")).events)


# ---- other answers ----


def test_results_of_moderations_are_those_of_the_api(server):
    api_types.moderation(server.post("/v1/moderations", {"input": ["fine", "bomb", "mix ", "broken ", "undefined "]}))


def test_models_and_counts_are_those_of_the_api(server):
    for model in server.get("/v1/models")["data"]:
        api_types.valid("openai.types.Model", model)
    count = server.post("/v1/messages/count_tokens", ENDPOINTS["messages"].body("fine"))
    api_types.valid("anthropic.types.MessageTokensCount", count)


# ---- errors ----

KEY = "a key of the tests"
LONG = json.dumps({"messages": [{"role": "user", "content": "tick " * 4000}], "input": "tick " * 4000,
                   "prompt": "tick " * 4000, "max_tokens": 4}).encode()  # fmt: skip
ODD = b'{"messages": [{"role": "user", "content": "a"}], "input": {}, "prompt": "a", "so8t": 1}'
BAD: dict[str, tuple[bytes, dict[str, str]]] = {
    "no JSON": (b"{", {}), "nothing": (b"{}", {}), "no key": (b"{}", {"Authorization": ""}), "odd": (ODD, {}),
    "too long": (LONG, {}),
}  # fmt: skip
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/moderations",
         "/v1/messages/count_tokens", "/v1/embeddings", "/v1/models/none", "/v1/none"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("body", "headers"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_an_error_has_the_form_of_its_api(serve, guard_file, path, body, headers, streamed):
    server = serve(guard_file, *POLICY.flags, key=KEY)
    if streamed and body.endswith(b"}") and len(body) > 2:
        body = body[:-1] + b', "stream": true}'
    reply = server.request("POST", path, body, headers)
    if reply.status == 200:
        assert path.endswith("/count_tokens"), "which reads any length and no so8t"
        return
    check = api_types.anthropic_error if path.startswith("/v1/messages") else api_types.openai_error
    check(reply.json())
    error = reply.json()["error"]
    if headers:
        assert reply.status == 401 and error["type"] == "authentication_error"
        assert error.get("code", "invalid_api_key") == "invalid_api_key"


def test_a_prompt_that_is_too_long_has_the_code_that_clients_look_for(server):
    reply = server.request("POST", CHAT.path, CHAT.body("tick " * 4000))
    assert (reply.status, reply.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_errors_of_llama_cpp_stay_as_they_are(server):
    reply = server.request("POST", "/completion", b"{}")
    assert reply.status == 400 and reply.json()["error"]["code"] == 400


# ---- through the router ----


@pytest.fixture(scope="module")
def router(runtime, guard_file, tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    shutil.copyfile(guard_file, directory / "first.gguf")
    with Server(runtime / "llama-server", "--models-dir", directory, *SMALL, *POLICY.flags, key=KEY) as server:
        yield server


@pytest.mark.parametrize("name", NAMES)
def test_the_router_changes_no_answer(router, name):
    endpoint = ENDPOINTS[name]
    for prompt in ("fine", "go"):
        body = endpoint.body(prompt) | {"model": "first"}
        api_types.WHOLE[name](router.post(endpoint.path, body))
        api_types.STREAM[name](router.stream(endpoint.path, body).events)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/moderations"])
def test_an_error_of_the_router_or_of_a_model_has_the_form_of_its_api(router, path):
    check = api_types.anthropic_error if path == "/v1/messages" else api_types.openai_error
    for body in ({"model": "none"}, {}, {"model": "first", "messages": 1, "input": {}}):
        reply = router.request("POST", path, body)
        assert reply.status >= 400 or path == "/v1/messages"
        if reply.status >= 400:
            check(reply.json())


# ---- what comes back ----


def given_back(name, reply, question):
    """The reply to a conversation that goes on behind an answer, as the SDKs of the API give answers back."""
    turns = [{"role": "user", "content": "bomb"}, {"role": "user", "content": question}]
    if name == "chat":
        return {"messages": [turns[0], reply["choices"][0]["message"], turns[1]]}
    if name == "responses":
        return {"input": [turns[0], *reply["output"], turns[1]]}
    return {"messages": [turns[0], {"role": "assistant", "content": reply["content"]}, turns[1]], "max_tokens": 64}


@pytest.mark.parametrize("place", ["content", "refusal", "both"])
@pytest.mark.parametrize("name", ["chat", "responses", "messages"])
def test_a_conversation_goes_on_behind_a_refusal(serve, guard_file, name, place):
    """Its text is recognized as the guard's own, in whatever field it comes back: the turn before it is only noted."""
    server, endpoint = serve(guard_file, *POLICY.flags, "--so8t-refusal-in", place), ENDPOINTS[name]
    refused = server.post(endpoint.path, endpoint.body("bomb"))
    assert refused["so8t"]["decision"] == "refuse"
    reply = server.post(endpoint.path, given_back(name, refused, "fine"))
    api_types.WHOLE[name](reply)
    assert reply["so8t"]["decision"] == "allow" and "all is well here" in json.dumps(reply)
    assert reply["so8t"]["turns"] and all(turn["noted"] for turn in reply["so8t"]["turns"])
    again = server.post(endpoint.path, given_back(name, refused, "bomb"))
    assert again["so8t"]["decision"] == "refuse"


def test_a_part_that_is_a_refusal_is_text(server):
    part = {"role": "assistant", "content": [{"type": "refusal", "refusal": REFUSAL}]}
    body = {"messages": [{"role": "user", "content": "bomb"}, part, {"role": "user", "content": "fine"}]}
    assert server.post(CHAT.path, body)["choices"][0]["message"]["content"] == "all is well here"
    for odd in ({"type": "refusal"}, {"type": "refusal", "refusal": 7}, {"type": 7, "refusal": "a"}, 7):
        assert server.request("POST", CHAT.path, {"messages": [part | {"content": [odd]}]}).status in (400, 500)
    evil = {"role": "assistant", "content": None, "refusal": "evil "}  # given text, which is judged
    reply = server.post(CHAT.path, {"messages": [{"role": "user", "content": "fine"}, evil, body["messages"][2]]})
    assert reply["so8t"]["triggered"]["reading"] == "given"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_responses_have_one_choice(server, streamed):
    reply = server.request("POST", RESPONSES.path, RESPONSES.body("fine") | {"n": 2, "stream": streamed})
    assert reply.status == 400 and '"n" is 2' in reply.json()["error"]["message"]
    api_types.openai_error(reply.json())


@pytest.mark.parametrize("path", [*PATHS, "/completion", "/tokenize", "/apply-template"])
def test_a_body_that_is_nested_too_deep_is_an_error_and_no_end(server, path):
    """llama.cpp copies it, which would overflow the stack of the thread."""
    deep = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
    body = b'{"prompt": "a", "input": "a", "content": "a", "max_tokens": 1, "messages": [], "metadata": ' + deep + b"}"
    reply = server.request("POST", path, body)
    assert reply.status in (400, 404)
    assert reply.status == 404 or "nested too deep" in json.dumps(reply.json())
    assert CHAT.ask(server, "fine").text == "all is well here"
    nested = {"type": "object", "properties": {}}
    for _ in range(100):
        nested = {"type": "object", "properties": {"a": nested}}
    tools = [{"type": "function", "name": "run", "parameters": nested}]
    assert server.request("POST", RESPONSES.path, RESPONSES.body("fine") | {"metadata": tools}).status == 200
