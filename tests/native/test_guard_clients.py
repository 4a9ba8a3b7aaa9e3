"""The SDKs of OpenAI and Anthropic, as their users call them: they make of a refusal what docs/clients.md says."""

import json

import pytest
from required import package

from .guard_rules import REFUSAL, Policy
from .guard_server import HOST

POLICY = Policy(mode="enforce", holdback=1)
PLACES = ["content", "refusal", "both"]
KEY = "a key of the tests"


@pytest.fixture(scope="module", params=PLACES)
def served(request, serve, guard_file):
    """(place of the text, server)"""
    return request.param, serve(guard_file, *POLICY.flags, "--so8t-refusal-in", request.param, key=KEY)


@pytest.fixture
def openai(served):
    return package("openai").OpenAI(base_url=f"http://{HOST}:{served[1].port}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def anthropic(served):
    return package("anthropic").Anthropic(base_url=f"http://{HOST}:{served[1].port}", api_key=KEY, max_retries=0)


def ask(prompt):
    return {"model": "any", "messages": [{"role": "user", "content": prompt}]}


def test_chat(served, openai):
    place, _ = served
    choice = openai.chat.completions.create(**ask("go")).choices[0]
    assert choice.finish_reason == "content_filter"
    assert choice.message.content == (None if place == "refusal" else REFUSAL)
    assert choice.message.refusal == (None if place == "content" else REFUSAL)
    assert openai.chat.completions.create(**ask("fine")).choices[0].message.content == "all is well here"


def test_chat_streamed(served, openai):
    place, _ = served
    content, refusal, finish = "", "", None
    for chunk in openai.chat.completions.create(**ask("go"), stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            refusal += choice.delta.refusal or ""
            finish = choice.finish_reason or finish
    assert chunk.usage.completion_tokens > 0 and not chunk.choices
    assert content == ("one two " if place == "refusal" else f"one two \n\n{REFUSAL}")
    assert (refusal, finish) == ("" if place == "content" else REFUSAL, "content_filter")


def test_helpers_raise_an_error_of_the_sdk(openai):
    error = package("openai").ContentFilterFinishReasonError
    with pytest.raises(error), openai.chat.completions.stream(**ask("go")) as stream:
        stream.get_final_completion()
    with openai.chat.completions.stream(**ask("fine"), n=2, stream_options={"include_usage": True}) as stream:
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["all is well here"] * 2
    assert final.usage.completion_tokens == 10


def test_responses(served, openai):
    place, _ = served
    response = openai.responses.create(model="any", input="go")
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "content_filter")
    assert response.output_text == (REFUSAL if place == "content" else "")
    (part,) = response.output[-1].content
    assert REFUSAL in (getattr(part, "refusal", None), getattr(part, "text", None))
    assert openai.responses.create(model="any", input="fine").output_text == "all is well here"


def test_responses_streamed(openai):
    """The accumulator of the SDK finds each item and part by its index."""
    with openai.responses.stream(model="any", input="fine") as stream:
        events = list(stream)
        assert stream.get_final_response().output_text == "all is well here"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "all is well here"
    with openai.responses.stream(model="any", input="go") as stream:
        last = list(stream)[-1]
    assert last.type == "response.incomplete" and last.response.incomplete_details.reason == "content_filter"


def test_completions_and_moderations(openai):
    choice = openai.completions.create(model="any", prompt="go").choices[0]
    assert (choice.text, choice.finish_reason) == (REFUSAL, "content_filter")
    results = openai.moderations.create(input=["fine", "bomb"]).results
    assert [result.flagged for result in results] == [False, True]
    assert results[1].categories.hate is False and results[1].to_dict()["categories"]["safety/unsafe"] is True


def test_messages(anthropic):
    message = anthropic.messages.create(**ask("go"), max_tokens=64)
    assert [block.text for block in message.content] == [REFUSAL]
    assert (message.stop_reason, message.stop_details.explanation) == ("refusal", REFUSAL)
    with anthropic.messages.stream(**ask("go"), max_tokens=64) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == f"one two {REFUSAL}" and [block.text for block in final.content] == ["one two ", REFUSAL]
    assert final.stop_reason == "refusal" and final.stop_details.explanation == REFUSAL
    assert anthropic.messages.count_tokens(**ask("fine")).input_tokens == 1


def test_errors_are_those_of_the_sdks(openai, anthropic):
    with pytest.raises(package("openai").AuthenticationError) as wrong_key:
        openai.with_options(api_key="another").chat.completions.create(**ask("fine"))
    assert wrong_key.value.code == "invalid_api_key" and "Invalid API Key" in wrong_key.value.message
    with pytest.raises(package("openai").BadRequestError) as too_long:
        openai.chat.completions.create(**ask("tick " * 4000))
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(package("anthropic").AuthenticationError) as wrong_key:
        anthropic.with_options(api_key="another").messages.create(**ask("fine"), max_tokens=8)
    assert wrong_key.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(package("anthropic").BadRequestError) as too_long:
        anthropic.messages.create(**ask("tick " * 4000), max_tokens=8)
    assert json.dumps(too_long.value.body).startswith('{"type": "error"')
