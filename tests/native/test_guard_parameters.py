"""No parameter of a request moves a verdict: the table of all of them (guard_parameters.py), sent to every endpoint."""

import numpy as np
import pytest

from .guard_parameters import (
    ELSEWHERE,
    MESSAGE_FIELDS,
    PARAMETERS,
    ROLES,
    ROUTES,
    read_from_source,
    routes_of_source,
)
from .guard_rules import REFUSAL, Policy
from .guard_server import CHAT, COMPLETION, INFILL, MESSAGES, RESPONSES, TEXT

GENERATING = {
    "/completion": COMPLETION, "/completions": COMPLETION, "/v1/completions": TEXT, "/chat/completions": CHAT,
    "/v1/chat/completions": CHAT, "/v1/responses": RESPONSES, "/responses": RESPONSES, "/v1/messages": MESSAGES,
    "/infill": INFILL,
}  # fmt: skip
"""Route -> its endpoint."""

PATHS = ("/completion", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/infill")
"""The routes of GENERATING without their other names."""

QUESTIONS = {"bomb": ("sure", "thing"), "go": ("bad ", "three", "four")}
"""Question -> what no answer to it may contain: refused at the prompt, and in the answer."""

REJECTED = {"lora", "chat_parser", "top_logprobs", "tools", "tool_choice", "n", "n_cmpl"}
"""Parameters some values of which an endpoint takes for an error; an error is no answer."""

OTHER_ANSWER = {
    "n_predict", "max_tokens", "max_completion_tokens", "max_output_tokens", "stop", "stop_sequences",
    "t_max_predict_ms", "json_schema", "response_format", "tools", "tool_choice", "reasoning_budget_message",
}  # fmt: skip
"""Parameters with which an answer ends before the token that triggers, or is another one."""


def test_every_parameter_that_the_server_reads_is_judged(pinned_tree):
    """A new one belongs into a table of guard_parameters.py."""
    found, listed = read_from_source(pinned_tree), {*PARAMETERS, *ELSEWHERE}
    assert found - listed == set()
    assert listed - found == {"so8t"}  # the patches pass it on as a whole
    assert not set(PARAMETERS) & set(ELSEWHERE)


def test_every_route_of_the_server_is_judged(pinned_tree):
    assert routes_of_source(pinned_tree) == set(ROUTES)
    assert {route for route, kind in ROUTES.items() if kind == "generates"} == set(GENERATING)


@pytest.fixture(scope="module")
def server(serve, guard_file):
    return serve(guard_file, *Policy(mode="enforce", holdback=None).flags, "--slots", "-np", 2)


def ask(server, path, body, words, *, streamed):
    """The reply as text, None for an error; what may not be delivered is nowhere in it."""
    reply = server.request("POST", path, body | {"stream": streamed})
    text = reply.body.decode()
    for word in words:
        assert word not in text, (path, body, text)
    if reply.status == 200:
        return text
    assert reply.status in (400, 500) and "error" in reply.json(), (path, body, text)
    return None


def assert_refused(text, body):
    """The verdict is a refusal, and so is what the client gets: the text, or the end of an answer that has a form."""
    if not body.get("response_fields"):
        assert '"decision":"refuse"' in text, (body, text)
    is_formed = '"enforced":"stop"' in text
    if "content" not in (body.get("response_fields") or ["content"]):
        return
    assert is_formed or REFUSAL in text, (body, text)
    forms = ("grammar", "json_schema", "response_format", "tools")
    assert is_formed <= any(body.get(key) is not None for key in forms), (body, text)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_no_parameter_moves_a_refusal(server, name, streamed):
    for path in PATHS:
        for question, words in QUESTIONS.items():
            for more in PARAMETERS[name]:
                body = GENERATING[path].body(question) | more
                text = ask(server, path, body, words, streamed=streamed)
                if text is None:
                    assert name in REJECTED, body
                elif question == "bomb" or name not in OTHER_ANSWER:
                    assert_refused(text, body)


@pytest.mark.parametrize("path", GENERATING)
def test_null_is_no_value(server, path):
    """A parameter that is null is as good as none, or an error."""
    for question, words in QUESTIONS.items():
        for name in PARAMETERS:
            body = GENERATING[path].body(question) | {name: None}
            text = ask(server, path, body, words, streamed=False)
            if text is not None:
                assert_refused(text, body)


@pytest.mark.parametrize("name", MESSAGE_FIELDS)
def test_no_field_of_a_message_moves_a_refusal(server, name):
    for more in MESSAGE_FIELDS[name]:
        for role in ("user", "tool"):
            body = {"messages": [{"role": role, "content": "bomb"} | more]}
            assert_refused(ask(server, "/v1/chat/completions", body, ("sure", "thing"), streamed=False), body)


@pytest.mark.parametrize("role", ROLES)
def test_no_role_moves_a_refusal(server, role):
    body = {"messages": [{"role": role, "content": "bomb"}, {"role": "assistant", "content": "here"}]}
    assert_refused(ask(server, "/v1/chat/completions", body, ("sure", "thing"), streamed=False), body)


# ---- a model whose verdicts depend on all of a prompt ----

N_SHARED, N_QUESTION = 8, 40


@pytest.fixture(scope="module")
def reader(serve, make_model, to_gguf):
    """A server with random heads, which reads the last token of each prompt."""
    file = to_gguf(make_model("llama", max_position_embeddings=512))
    flags = ("-np", 2, "-c", 1024, "--cache-ram", 0)  # what a slot has read is all that the next prompt can reuse
    return serve(file, "--so8t-policy", "monitor", "--so8t-raw-prompts", "last", *flags)


def verdict_behind_another(server, question, **more):
    """Probabilities at the end of ``question`` in a slot that has read it behind other tokens before."""
    other = np.random.default_rng(3).integers(3, 300, 30).tolist()
    server.post(
        "/completion", {"prompt": [*question[:N_SHARED], *other, *question[N_SHARED:]], "n_predict": 1, "id_slot": 0}
    )
    body = {"prompt": question, "n_predict": 1, "temperature": 0, "id_slot": 0} | more
    reply = server.request("POST", "/completion", body)
    if reply.status != 200:
        return None
    found = reply.json()
    heads = (found[0] if isinstance(found, list) else found)["so8t"]["prompt"]["heads"]
    return [p for head in heads.values() for p in head["probabilities"].values()]


@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - {"response_fields"}))
def test_no_parameter_moves_a_reading(reader, name):
    question = np.random.default_rng(2).integers(3, 300, N_SHARED + N_QUESTION).tolist()
    plain = verdict_behind_another(reader, question, cache_prompt=False)
    assert len(plain) >= 2
    for body in PARAMETERS[name]:
        found = verdict_behind_another(reader, question, **body)
        assert found == pytest.approx(plain, abs=1e-4) if found else name in REJECTED, body
