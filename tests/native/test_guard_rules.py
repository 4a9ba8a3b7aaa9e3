"""The rules of docs/guard.md, over HTTP: every answer of every endpoint is the one that `guard_rules` works out."""

import json

import pytest
from scripted_model import CHATML, NAN, THINK, Head, scripted_gguf

from .guard_rules import ESCALATION, REFUSAL, Expected, Policy, judge
from .guard_server import ENDPOINTS, HEADS, SCRIPTS

POLICIES = {
    "off": Policy(mode="off"),
    "monitor": Policy(mode="monitor"),
    "enforce": Policy(mode="enforce"),
    "monitor-holdback": Policy(mode="monitor", holdback=3),
    "holdback": Policy(mode="enforce", holdback=1),
    "debounce": Policy(mode="enforce", debounce=2),
    "debounce-holdback": Policy(mode="enforce", debounce=2, holdback=2),
    "holdback-below-debounce": Policy(mode="enforce", debounce=3, holdback=1),
    "auto": Policy(mode="enforce", debounce=2, holdback=None),
    "stop": Policy(mode="enforce", on_refuse="stop", holdback=1),
    "think-monitor": Policy(mode="enforce", think="monitor", holdback=1),
    "thresholds": Policy(
        mode="enforce", holdback=1,
        thresholds={("safety", "unsafe"): 0.955, ("safety", "disputed"): 0.5, ("authority", "escalate"): 0.72},
    ),
    "never": Policy(mode="enforce", holdback=1, thresholds={("safety", "unsafe"): 1.0, ("authority", "escalate"): 1.0}),
}  # fmt: skip

PROMPTS = {
    start: chain for start, chain in SCRIPTS.items() if not start.startswith(("<|", "\n", "tick", "cafe", "json"))
} | {"<think>\n": SCRIPTS["\n"]}

FINISH = {
    # allowed, refused, escalated
    "completion": ("eos", "eos", "eos"),
    "text": ("stop", "content_filter", "stop"),
    "chat": ("stop", "content_filter", "stop"),
    "responses": ("completed", "incomplete/content_filter", "completed"),
    "messages": ("end_turn", "refusal", "end_turn"),
}
RAW = ("completion", "text")
"""Endpoints that leave the tags of a think block in the text."""


def text_of(name: str, prompt: str, expected: Expected, *, streamed: bool) -> str:
    """All text that a client gets, in the order of its arrival."""
    tokens = expected.sent if streamed else expected.kept
    delivered = "".join(tokens)
    # what an endpoint makes of a refusal without a text of the policy
    text = expected.text or (REFUSAL if name == "responses" and expected.action == "refuse" else "")
    if name in RAW:
        is_open = expected.in_think and (delivered or prompt.startswith("<think>"))
        between = "\n</think>\n\n" if is_open else "\n\n" if delivered else ""
        return delivered + (between + text if text else "")
    thought, content = "", delivered
    if delivered.startswith("<think>"):  # a block that the prompt opened stays text: the template of the chat has none
        thought, tag, content = delivered.removeprefix("<think>").partition("</think>")
        assert bool(tag) != expected.in_think
    joined = "\n\n" if name == "chat" and content and text else ""
    return thought + content + joined + text


@pytest.fixture(params=POLICIES)
def policy(request):
    return POLICIES[request.param]


@pytest.fixture
def server(serve, guard_file, policy):
    return serve(guard_file, *policy.flags)


@pytest.mark.parametrize("name", ENDPOINTS)
@pytest.mark.parametrize("prompt", PROMPTS, ids=str.strip)
def test_an_answer_is_what_the_rules_say(server, policy, name, prompt):
    expected = judge(prompt, PROMPTS[prompt], HEADS, policy)
    endpoint = ENDPOINTS[name]
    for streamed in (False, True):
        answer = (endpoint.ask_stream if streamed else endpoint.ask)(server, prompt)
        assert answer.text == text_of(name, prompt, expected, streamed=streamed), streamed
        assert answer.finish == FINISH[name][("allow", "refuse", "escalate").index(expected.action)], streamed
        told = expected.action == "refuse" and name in ("chat", "responses")
        assert answer.refusal == (REFUSAL if told else None), streamed
        if policy.mode == "off":
            assert answer.so8t is None, streamed
        else:
            expected.check(answer.so8t)


@pytest.mark.parametrize("n_predict", [1, 2, 3, 4])
@pytest.mark.parametrize("prompt", ["go", "ask", "twice", "muse"])
def test_an_answer_cut_by_n_predict_follows_the_same_rules(server, policy, prompt, n_predict):
    expected = judge(prompt, PROMPTS[prompt], HEADS, policy, n_predict)
    for streamed in (False, True):
        ask = ENDPOINTS["completion"].ask_stream if streamed else ENDPOINTS["completion"].ask
        answer = ask(server, prompt, n_predict=n_predict)
        assert answer.text == text_of("completion", prompt, expected, streamed=streamed), streamed
        assert answer.finish == ("limit" if expected.action == "allow" else "eos"), streamed
        if policy.mode != "off":
            expected.check(answer.so8t)


@pytest.mark.parametrize("by_itself", [False, True], ids=["set", "auto"])
@pytest.mark.parametrize("debounce", [1, 2, 3])
def test_no_token_that_triggers_is_in_a_stream_whose_holdback_is_the_debounce(serve, guard_file, debounce, by_itself):
    policy = Policy(mode="enforce", debounce=debounce, holdback=None if by_itself else debounce)
    server = serve(guard_file, *policy.flags)
    for prompt, chain in PROMPTS.items():
        expected = judge(prompt, chain, HEADS, policy)
        if expected.action == "allow":
            continue
        part, position, _, _ = expected.triggered
        start = 0 if part == "prompt" else position + 1 - debounce
        if part != "prompt" and ("undefined " in chain or "broken " in chain):  # not finite: no debounce
            start = position
        if part == "answer" and expected.parts["think"].n_positions:
            start += expected.parts["think"].n_positions
        run = [token for token in (chain[start], *chain[start + 1 :]) if token not in THINK]
        for name, endpoint in ENDPOINTS.items():
            answer = endpoint.ask_stream(server, prompt)
            text = answer.text.replace(REFUSAL, "").replace(ESCALATION, "")
            assert not [token for token in run if token.strip() in text], (prompt, name, text)


@pytest.mark.parametrize("name", ENDPOINTS)
@pytest.mark.parametrize(("debounce", "text"), [(1, ""), (2, "one")])
def test_the_only_token_of_an_answer_is_dropped_where_it_could_have_triggered(serve, guard_file, name, debounce, text):
    server = serve(guard_file, *Policy(mode="enforce", debounce=debounce, holdback=None).flags)
    endpoint = ENDPOINTS[name]
    limit = "n_predict" if name == "completion" else "max_output_tokens" if name == "responses" else "max_tokens"
    for ask in (endpoint.ask, endpoint.ask_stream):
        answer = ask(server, "go", **{limit: 1})
        assert answer.text.strip() == text
        assert (answer.so8t["decision"], answer.so8t["enforced"]) == ("allow", "none")


def test_the_last_token_is_dropped_where_the_tokens_before_it_have_begun_a_run(serve, guard_file):
    server = serve(guard_file, *Policy(mode="enforce", debounce=2, holdback=None).flags)
    # "bad2 " is above the threshold and alone so far: "bad3 " could end its run, and "bad2 " could not end one itself
    for n_predict, text in ((4, "x bad1 y bad2 "), (5, "x bad1 y bad2 ")):
        for ask in (ENDPOINTS["completion"].ask, ENDPOINTS["completion"].ask_stream):
            assert ask(server, "twice", n_predict=n_predict).text == text


# ---- heads of other kinds ----

OTHER_HEADS = {
    "topic": Head(
        ["none", "war"], ["allow", "escalate"], [0.5, 0.4], scope="prompt", temperature=0.5,
        tokens={"go": {"war": 0.6}, "bad ": {"war": 0.9}},
    ),
    "style": Head(
        ["rude", "plain"], ["refuse", "allow"], [0.6, 0.5], scope="answer", debounce=2, temperature=3.0,
        default={"plain": 0.9}, tokens={word: {"rude": 0.7} for word in ("bad1 ", "bad2 ", "bad3 ", "evil ", "fine")},
    ),
    "safety": Head(
        ["safe", "odd", "unsafe"], ["allow", "allow", "refuse"], [0.5, 0.2, 0.8], debounce=1,
        tokens={"bad2 ": {"odd": 0.6}, "evil ": {"unsafe": 0.85}, "bomb": {"unsafe": 0.85}, "fall": NAN},
    ),
}  # fmt: skip
"""Of the prompt or the answer only, another order, temperatures, labels that inform."""


@pytest.fixture(scope="module")
def other_file(tmp_path_factory, pinned_tree):
    return scripted_gguf(tmp_path_factory.mktemp("other") / "model", SCRIPTS, OTHER_HEADS)


@pytest.mark.parametrize("holdback", [0, 1, 2, None])
@pytest.mark.parametrize("mode", ["monitor", "enforce"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=str.strip)
def test_heads_are_asked_in_their_order_and_scope(serve, other_file, mode, holdback, prompt):
    policy = Policy(mode=mode, holdback=holdback)
    server = serve(other_file, *policy.flags)
    expected = judge(prompt, PROMPTS[prompt], OTHER_HEADS, policy)
    for streamed in (False, True):
        ask = ENDPOINTS["completion"].ask_stream if streamed else ENDPOINTS["completion"].ask
        answer = ask(server, prompt)
        assert answer.text == text_of("completion", prompt, expected, streamed=streamed), streamed
        expected.check(answer.so8t)


@pytest.mark.parametrize(
    ("policy", "holdback"),
    [
        (Policy(mode="enforce", holdback=None), 2),  # of "style", the only head with a debounce that judges answers
        (Policy(mode="enforce", holdback=None, debounce=7), 7),
        (Policy(mode="enforce", holdback=0), 0),
        (Policy(mode="monitor", holdback=None), 0),
        (Policy(mode="off", holdback=None), 0),
    ],
)
def test_the_holdback_by_itself_is_what_the_heads_need(serve, other_file, policy, holdback):
    server = serve(other_file, *policy.flags)
    assert server.get("/so8t")["policy"]["holdback"] == holdback == policy.held_back(OTHER_HEADS)


def test_heads_that_never_act_on_answers_need_no_holdback(serve, tmp_path, pinned_tree):
    heads = {
        "topic": Head(["none", "war"], ["allow", "refuse"], [0.5, 0.4], scope="prompt", debounce=4),
        "style": Head(["rude", "plain"], ["allow", "allow"], [0.6, 0.5], debounce=5),
    }
    server = serve(scripted_gguf(tmp_path / "model", SCRIPTS, heads), "--so8t-policy", "enforce")
    assert server.get("/so8t")["policy"]["holdback"] == 0


# ---- a template whose think block is open ----

THINKING = CHATML.replace("assistant\n{%", "assistant\n<think>\n{%")


@pytest.fixture(scope="module")
def thinking_file(tmp_path_factory, pinned_tree):
    return scripted_gguf(tmp_path_factory.mktemp("thinking") / "model", SCRIPTS, HEADS, THINKING)


@pytest.mark.parametrize("name", ["chat", "responses", "messages"])
@pytest.mark.parametrize("think", ["monitor", "enforce"])
def test_thoughts_are_judged_apart(serve, thinking_file, name, think):
    policy = Policy(mode="enforce", think=think, holdback=1)
    server = serve(thinking_file, *policy.flags)
    expected = judge("<think>\n", SCRIPTS["\n"], HEADS, policy)
    assert expected.parts["think"].action == "refuse" and expected.parts["answer"].action == "allow"
    for streamed in (False, True):
        answer = (ENDPOINTS[name].ask_stream if streamed else ENDPOINTS[name].ask)(server, "any")
        expected.check(answer.so8t)
        if think == "monitor":
            assert (answer.text.lstrip("\n"), answer.refusal) == ("hm vile so it goes", None)
        else:  # nothing but thoughts came before, so the text is not set apart from the content
            assert answer.text.lstrip("\n") == ("hm " if streamed else "") + REFUSAL


# ---- what a request can ask for ----


@pytest.fixture(scope="module")
def enforce(serve, guard_file):
    return serve(guard_file, *POLICIES["holdback"].flags)


def shown(trace):
    return [(row["part"], row["position"], row["text"]) for row in trace]


@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_trace_has_every_token_and_comes_only_on_request(enforce, name):
    endpoint = ENDPOINTS[name]
    for ask in (endpoint.ask, endpoint.ask_stream):
        assert "trace" not in ask(enforce, "fine").so8t
        assert "trace" not in ask(enforce, "fine", so8t={"trace": False}).so8t
        trace = ask(enforce, "fine", so8t={"trace": True}).so8t["trace"]
        assert shown(trace) == [
            ("prompt", 0, "fine"), ("answer", 0, "all "), ("answer", 1, "is "), ("answer", 2, "well "),
            ("answer", 3, "here"),
        ]  # fmt: skip
        assert [row["heads"]["safety"]["safe"] for row in trace] == pytest.approx([0.99] * 5, abs=2e-6)
        assert all(type(row["id"]) is int for row in trace)


@pytest.mark.parametrize(
    ("policy", "streamed", "tokens"),
    [
        ("enforce", True, ["lift ", "hazard "]),  # sent before it was judged
        ("holdback", True, ["lift ", ""]),
        ("enforce", False, ["", ""]),  # the text stands in its place
        ("stop", False, ["", ""]),  # an escalation has its text all the same
        ("monitor", False, ["lift ", "hazard ", "peak ", "evil ", "fall"]),
    ],
)
def test_a_trace_has_no_text_that_was_not_delivered(serve, guard_file, policy, streamed, tokens):
    server = serve(guard_file, *POLICIES[policy].flags)
    ask = ENDPOINTS["completion"].ask_stream if streamed else ENDPOINTS["completion"].ask
    trace = ask(server, "climb", so8t={"trace": True}).so8t["trace"]
    assert shown(trace) == [("prompt", 0, "climb"), *(("answer", i, text) for i, text in enumerate(tokens))]
    assert [row["id"] is None for row in trace[1:]] == [not text for text in tokens]
    assert trace[2]["heads"]["authority"] == pytest.approx({"handle": 0.3, "escalate": 0.7}, abs=2e-6)


@pytest.mark.parametrize("name", ["text", "chat"])
def test_annotations_have_the_form_of_azure_and_only_on_request(enforce, name):
    endpoint = ENDPOINTS[name]
    assert "content_filter_results" not in str(endpoint.ask(enforce, "go").raw)
    assert "content_filter_results" not in str(endpoint.ask_stream(enforce, "go").raw)
    for ask in (endpoint.ask, endpoint.ask_stream):
        raw = ask(enforce, "go", so8t={"annotations": True}).raw
        last = raw if isinstance(raw, dict) else raw[-1]
        assert last["choices"][0]["content_filter_results"] == {
            "safety/disputed": {"detected": False, "filtered": False},
            "safety/unsafe": {"detected": True, "filtered": True},
            "authority/escalate": {"detected": False, "filtered": False},
        }
        (prompt,) = last["prompt_filter_results"]
        assert prompt["prompt_index"] == 0
        assert not any(result["detected"] or result["filtered"] for result in prompt["content_filter_results"].values())


@pytest.mark.parametrize("name", ENDPOINTS)
@pytest.mark.parametrize(
    "asked",
    [
        {"tracing": True}, {"trace": 1}, {"annotations": "yes"}, {"policy": "off"}, {"judge": True},
        {"judgement": "fine"}, [], "off", None,
    ],
)  # fmt: skip
def test_other_keys_of_a_request_are_an_error(enforce, name, asked):
    endpoint = ENDPOINTS[name]
    for streamed in (False, True):
        reply = enforce.request("POST", endpoint.path, endpoint.body("go") | {"so8t": asked, "stream": streamed})
        assert reply.status == 400
        assert reply.json()["error"]["message"].startswith("so8t: ")


def test_a_request_that_is_nested_deep_is_an_error_and_no_end(enforce):
    for deep in (b"[" * 100_000 + b"]" * 100_000, b'{"trace":' * 50_000 + b"1" + b"}" * 50_000):
        for name in ("completion", "chat", "responses", "messages"):
            body = json.dumps(ENDPOINTS[name].body("fine")).encode()[:-1] + b', "so8t": ' + deep + b"}"
            assert enforce.request("POST", ENDPOINTS[name].path, body).status == 400
    assert ENDPOINTS["chat"].ask(enforce, "fine").text == "all is well here"


def test_the_thresholds_and_the_debounce_in_force_are_told(serve, guard_file):
    policy = Policy(mode="enforce", debounce=2, thresholds={("safety", "unsafe"): 0.8, ("authority", "escalate"): 0.25})
    so8t = ENDPOINTS["completion"].ask(serve(guard_file, *policy.flags), "fine").so8t
    assert so8t["thresholds"] == {
        "safety": {"safe": 0.5, "disputed": 0.7, "unsafe": 0.8}, "authority": {"handle": 0.5, "escalate": 0.25},
    }  # fmt: skip
    assert so8t["debounce"] == {"safety": 2, "authority": 2}
    assert so8t["policy"]["mode"] == "enforce" and len(so8t["policy"]["sha256"]) == 64
