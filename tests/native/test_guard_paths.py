"""No way round the guard: every path to a token ends in the same verdict, and nothing withheld is in any field."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from scripted_model import Head, scripted_gguf

from .guard_rules import ESCALATION, REFUSAL, Policy, judge
from .guard_server import CHAT, COMPLETION, ENDPOINTS, HEADS, INFILL, SCRIPTS, TEXT

POLICY = Policy(mode="enforce", holdback=1)
STOP = replace(POLICY, on_refuse="stop")
"""What a grammar makes of it: an answer that just ends."""
END = "<|im_end|>"
SECRETS = ("bad", "three", "four", "evil", "fall", "vile")
"""Words of answers that are never delivered under this policy."""


@pytest.fixture(scope="module")
def server(serve, guard_file):
    return serve(guard_file, *POLICY.flags)


@pytest.fixture(scope="module")
def secret_ids(server):
    return {server.post("/tokenize", {"content": word})["tokens"][0] for word in ("bad ", "three ", "four", "evil ")}


def leaks(value, ids, key=""):
    """Everything in an answer that tells a withheld token; what it says of the request is the client's own."""
    if isinstance(value, dict):
        mine = {k: v for k, v in value.items() if k != "generation_settings" and (k != "prompt" or isinstance(v, dict))}
        return [found for k, v in mine.items() for found in leaks(v, ids, k)]
    if isinstance(value, list):
        return [found for v in value for found in leaks(v, ids, key)]
    if isinstance(value, str):
        return [value for word in SECRETS if word in value]
    return [(key, value)] if key in ("tokens", "id") and value in ids else []


def check(server, endpoint, prompt, ids, *, policy=POLICY, chain=None, **options):
    """Asks twice, whole and streamed, and compares text, verdict and every field with the rules."""
    expected = judge(prompt, SCRIPTS[prompt] if chain is None else chain, HEADS, policy)
    sent = "".join(expected.sent)
    for streamed in (False, True):
        answer = (endpoint.ask_stream if streamed else endpoint.ask)(server, prompt, **options)
        delivered = sent if streamed else "".join(expected.kept)
        assert answer.text == delivered + ("\n\n" if delivered and expected.text else "") + expected.text, streamed
        expected.check(answer.so8t)
        assert leaks(answer.raw, ids) == [], streamed


# ---- what a client of a completion can ask for ----

OPTIONS = {
    "nothing": {},
    "n_predict": {"n_predict": 100},
    "n_predict without limit": {"n_predict": -1},
    "ignore_eos": {"ignore_eos": True},
    "eog forbidden": {"logit_bias": [[END, False]]},
    "eog unlikely": {"logit_bias": [[END, -1000.0]]},
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3},
    "no samplers": {"samplers": []},
    "one sampler": {"samplers": ["temperature"]},
    "samplers as letters": {"samplers": "kpt"},
    "mirostat": {"mirostat": 2, "mirostat_tau": 1.0},
    "min_keep": {"min_keep": 3},
    "no cache": {"cache_prompt": False},
    "slot": {"id_slot": 0},
    "backend sampling": {"backend_sampling": True},
    "backend sampling, greedy": {"backend_sampling": True, "temperature": 0},
    "tokens": {"return_tokens": True},
    "probabilities": {"n_probs": 5},
    "probabilities after sampling": {"n_probs": 5, "post_sampling_probs": True},
    "tokens and probabilities": {"n_probs": 3, "return_tokens": True, "ignore_eos": True},
    "timings": {"timings_per_token": True},
    "progress": {"return_progress": True},
    "stop strings": {"stop": ["no such text", "here is none"]},
    "a stop string that might begin": {"stop": ["one tw!", "o b!"]},
    "n_keep": {"n_keep": -1, "n_discard": 1},
    "n_indent": {"n_indent": 4, "t_max_predict_ms": 100000},
    "speculative": {"speculative.n_max": 8, "speculative.n_min": 1},
    "lora": {"lora": []},
    "trace": {"so8t": {"trace": True, "annotations": True}},
}


@pytest.mark.parametrize("prompt", ["go", "climb", "fine"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_no_option_of_a_request_goes_round_it(server, secret_ids, options, prompt):
    if prompt == "fine" and ("ignore_eos" in options or "logit_bias" in options):
        options = {k: v for k, v in options.items() if k not in ("ignore_eos", "logit_bias")}  # it would never end
    if "stop" in options and prompt == "go" and "o b!" in options["stop"]:
        expected = judge(prompt, SCRIPTS[prompt], HEADS, POLICY)
        for ask in (COMPLETION.ask, COMPLETION.ask_stream):  # what might begin a stop string waits for more
            answer = ask(server, prompt, **options)
            assert answer.text.removesuffix(REFUSAL).strip() in ("", "one", "one two")
            expected.check(answer.so8t)
            assert leaks(answer.raw, secret_ids) == []
        return
    check(server, COMPLETION, prompt, secret_ids, **options)


def test_the_end_of_a_stream_is_not_lost_in_a_stop_string(server, secret_ids):
    """ "here" might begin "heretic": it waits for the end of the answer, which has no verdict of its own."""
    check(server, COMPLETION, "fine", secret_ids, stop=["heretic"])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_stop_string_ends_an_answer_before_its_last_token_is_judged(server, secret_ids, n):
    word = SCRIPTS["go"][n - 1].strip()
    answer = COMPLETION.ask(server, "go", stop=[word])
    assert answer.text == ("".join(SCRIPTS["go"][: n - 1]) if n <= 3 else REFUSAL)
    assert answer.raw["stop_type"] == ("word" if n <= 3 else "eos")
    assert leaks({k: v for k, v in answer.raw.items() if k != "stopping_word"}, secret_ids) == []


def test_response_fields_pick_of_the_verdict_too(server):
    """The endpoints of OpenAI do not take them: their answers are whole."""
    for streamed in ({}, {"stream": True}):
        body = {"prompt": "go", "response_fields": ["stop_type", "so8t/decision"]} | streamed
        last = server.request("POST", "/completion", body).body.decode().strip().split("\n")[-1]
        assert json.loads(last.removeprefix("data: ")) == {"stop_type": "eos", "so8t/decision": "refuse"}
    answer = CHAT.ask(server, "go", response_fields=["content"])
    assert (answer.finish, answer.refusal, answer.so8t["decision"]) == ("content_filter", REFUSAL, "refuse")


def test_fields_that_are_asked_for_hold_nothing_withheld(server, secret_ids):
    fields = ["content", "tokens", "completion_probabilities", "stop_type", "timings", "generation_settings/n_predict"]
    reply = server.post("/completion", {"prompt": "go", "n_probs": 3, "return_tokens": True, "response_fields": fields})
    assert reply["content"] == REFUSAL and reply["tokens"] == [] and not reply.get("completion_probabilities")
    assert leaks(reply, secret_ids) == []
    for streamed in ({}, {"stream": True}):
        body = {"prompt": "go", "n_probs": 3, "return_tokens": True, "response_fields": fields} | streamed
        assert not any(word in server.request("POST", "/completion", body).body.decode() for word in SECRETS)


@pytest.mark.parametrize("holdback", [0, 1, 2])
def test_a_character_of_several_tokens_shifts_no_probability(serve, guard_file, holdback):
    """Tokens inside a character have no probabilities of their own: those of withheld tokens must not move up."""
    policy = replace(STOP, holdback=holdback)
    server = serve(guard_file, *policy.flags)
    evil = server.post("/tokenize", {"content": "+evil "})["tokens"]
    assert len(evil) == 1
    for ask in (COMPLETION.ask, COMPLETION.ask_stream):
        answer = ask(server, "cafe", n_probs=2, return_tokens=True)
        if ask == COMPLETION.ask or holdback:
            assert answer.text == "café"
            assert leaks(answer.raw, set(evil)) == []
        else:  # sent before it was judged
            assert answer.text == "café+evil "
    whole = COMPLETION.ask(server, "cafe", n_probs=2, return_tokens=True).raw
    assert [entry["token"] for entry in whole["completion_probabilities"]] == ["caf", "é"] or [
        entry["id"] for entry in whole["completion_probabilities"]
    ] == [whole["tokens"][0], whole["tokens"][2]]
    assert len(whole["tokens"]) == 3


@pytest.mark.parametrize("name", ["text", "chat"])
def test_logprobs_hold_nothing_withheld(server, secret_ids, name):
    asked = {"logprobs": 3} if name == "text" else {"logprobs": True, "top_logprobs": 3}
    check(server, ENDPOINTS[name], "go", secret_ids, **asked)
    fine = ENDPOINTS[name].ask(server, "fine", **asked).raw
    assert len(fine["choices"][0]["logprobs"]["content"]) == 5  # and the end


def test_the_verbose_object_holds_nothing_withheld(serve, guard_file, secret_ids):
    loud = serve(guard_file, *POLICY.flags, "-lv", "10")
    for endpoint in (TEXT, CHAT):
        assert "__verbose" in str(endpoint.ask(loud, "fine").raw)
        check(loud, endpoint, "go", secret_ids, n_probs=3, return_tokens=True)


# ---- prompts ----


def test_a_cached_prompt_is_judged_again(server, secret_ids):
    for _ in range(2):
        check(server, COMPLETION, "bomb", secret_ids, cache_prompt=True)
        check(server, COMPLETION, "go", secret_ids, cache_prompt=True)
    cached = COMPLETION.ask(server, "go", cache_prompt=True, id_slot=0)
    again = COMPLETION.ask(server, "go", cache_prompt=True, id_slot=0)
    assert again.so8t == cached.so8t and again.text == cached.text


@pytest.mark.parametrize("given", [1, 2, 3])
def test_an_answer_that_goes_on_after_its_own_beginning_is_judged_there(server, secret_ids, given):
    """A client that sends back what it has got, to go on, gets no further."""
    chain = SCRIPTS["go"]
    expected = judge(chain[given - 1], chain[given:], HEADS, POLICY)
    for body, path in (
        ({"prompt": "go" + "".join(chain[:given])}, "/completion"),
        ({"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "".join(chain[:given])}]},
         "/v1/chat/completions"),
    ):  # fmt: skip
        reply = server.post(path, body | {"cache_prompt": True, "id_slot": 0})
        expected.check(reply["so8t"])
        assert expected.action == "refuse" and REFUSAL in str(reply)
        assert leaks({k: v for k, v in reply.items() if k != "choices"}, secret_ids) == []


def test_a_saved_slot_keeps_no_way_round(serve, guard_file, secret_ids, tmp_path_factory):
    path = tmp_path_factory.mktemp("slots")
    server = serve(guard_file, *POLICY.flags, "--slot-save-path", f"{path}/", "-np", 2)
    check(server, COMPLETION, "go", secret_ids, id_slot=0)
    server.post("/slots/0?action=save", {"filename": "slot.bin"})
    server.post("/slots/1?action=restore", {"filename": "slot.bin"})
    check(server, COMPLETION, "go", secret_ids, id_slot=1, cache_prompt=True)
    check(server, COMPLETION, "bomb", secret_ids, id_slot=1, cache_prompt=True)


def test_infill_is_judged(server, secret_ids):
    expected = judge("<|fim_middle|>", SCRIPTS["<|fim_middle|>"], HEADS, POLICY)
    assert expected.decision == "refuse"
    for streamed in (False, True):
        answer = (INFILL.ask_stream if streamed else INFILL.ask)(
            server, "what comes after", n_probs=3, return_tokens=True
        )
        assert answer.text == ("fill \n\n" if streamed else "") + REFUSAL
        expected.check(answer.so8t)
        assert leaks(answer.raw, secret_ids) == []


def test_several_prompts_of_a_request_have_their_own_verdicts(server, secret_ids):
    prompts = ["fine", "go", "bomb", "ask", "both", "go"]
    for reply, prompt in zip(server.post("/completion", {"prompt": prompts}), prompts, strict=True):
        expected = judge(prompt, SCRIPTS[prompt], HEADS, POLICY)
        expected.check(reply["so8t"])
        assert reply["content"] == "".join(expected.kept) + expected.text
        assert leaks(reply, secret_ids) == []
    events = [
        event for event in server.stream("/completion", {"prompt": prompts}).events if event
    ]  # a null at each start
    for index, prompt in enumerate(prompts):
        own = [event for event in events if event["index"] == index]
        judge(prompt, SCRIPTS[prompt], HEADS, POLICY).check(own[-1]["so8t"])
        assert leaks(own, secret_ids) == []


@pytest.mark.parametrize("name", ["text", "chat"])
@pytest.mark.parametrize("prompt", ["go", "ask", "fine"])
def test_every_choice_is_judged(server, secret_ids, name, prompt):
    endpoint = ENDPOINTS[name]
    expected = judge(prompt, SCRIPTS[prompt], HEADS, POLICY)
    reply = endpoint.ask(server, prompt, n=3).raw
    assert len(reply["choices"]) == 3
    expected.check(reply["so8t"])
    for choice in reply["choices"]:
        if choice["index"] > 0:
            expected.check(choice["so8t"])
        text = choice["text"] if name == "text" else choice["message"]["content"]
        assert text == "".join(expected.kept) + expected.text
        assert choice["finish_reason"] == ("content_filter" if expected.action == "refuse" else "stop")
    assert leaks(reply, secret_ids) == []
    events = [event for event in server.stream(endpoint.path, endpoint.body(prompt) | {"n": 3}).events if event]
    verdicts = [event["so8t"] for event in events if "so8t" in event]
    assert len(verdicts) == 3
    for verdict in verdicts:
        expected.check(verdict)
    assert leaks(events, secret_ids) == []


# ---- answers of a form ----

GRAMMARS = {
    "grammar": {"grammar": r'root ::= "{\"a\":" "\"" [a-z0-9]* "\"" "}"'},
    "schema": {"json_schema": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}},
    "object": {"json_schema": {}},
}


@pytest.mark.parametrize("form", GRAMMARS.values(), ids=GRAMMARS)
def test_an_answer_with_a_form_is_ended_and_not_followed_by_text(server, secret_ids, form):
    check(server, COMPLETION, "json", secret_ids, policy=STOP, **form)
    assert COMPLETION.ask(server, "json", **form).so8t["enforced"] == "stop"


FORMATS = [
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"schema": GRAMMARS["schema"]["json_schema"]}},
]


@pytest.mark.parametrize("form", FORMATS, ids=["object", "schema"])
def test_a_chat_with_a_form_ends_with_a_refusal_beside_it(server, secret_ids, form):
    expected = judge("json", SCRIPTS["json"], HEADS, STOP)
    assert expected.sent == ['{"a":', '"b']
    whole = CHAT.ask(server, "json", response_format=form)
    assert whole.raw["choices"][0]["message"]["content"] is None  # half an object would be parsed
    streamed = CHAT.ask_stream(server, "json", response_format=form)
    assert streamed.text == '{"a":"b'
    for answer in (whole, streamed):
        assert (answer.finish, answer.refusal) == ("content_filter", REFUSAL)
        expected.check(answer.so8t)


def test_a_form_that_is_escalated_ends_too(server):
    form = {"grammar": 'root ::= "may " "risk " "more " "end"'}
    for ask, text in ((CHAT.ask, ""), (CHAT.ask_stream, "may ")):
        answer = ask(server, "ask", **form)
        assert (answer.text, answer.finish, answer.refusal) == (text, "content_filter", ESCALATION)
        assert (answer.so8t["decision"], answer.so8t["enforced"]) == ("escalate", "stop")


# ---- tool calls ----

TOOLS = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = ["<tool_call>", '\n{"name": "run", "arg', 'uments": {"cmd": "', "kaboom", '"}}\n', "</tool_call>"]
TOOL_HEADS = {
    "safety": Head(["safe", "unsafe"], ["allow", "refuse"], [0.5, 0.9], tokens={"kaboom": {"unsafe": 0.97}}),
    "authority": Head(["handle", "ask"], ["allow", "escalate"], [0.5, 0.6], tokens={"</tool_call>": {"ask": 0.9}}),
}
SCHEMA = {"type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"]}
WITH_TOOLS = {
    "chat": {"tools": [{"type": "function", "function": {"name": "run", "parameters": SCHEMA}}]},
    "responses": {"tools": [{"type": "function", "name": "run", "parameters": SCHEMA}]},
    "messages": {"tools": [{"name": "run", "input_schema": SCHEMA}]},
}
CALLED = ('"tool_calls"', '"function_call"', '"tool_use"')


@pytest.fixture(scope="module")
def tool_file(tmp_path_factory, pinned_tree):
    return scripted_gguf(tmp_path_factory.mktemp("tools") / "model", {"\n": CALL}, TOOL_HEADS, TOOLS)


def raw_answer(server, name, streamed):
    endpoint = ENDPOINTS[name]
    body = endpoint.body("any") | WITH_TOOLS[name]
    return server.stream(endpoint.path, body).events if streamed else server.post(endpoint.path, body)


@pytest.mark.parametrize("policy", [POLICY, STOP], ids=["message", "stop"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_tool_call_of_a_refused_answer_is_dropped(serve, tool_file, name, streamed, policy):
    """In a stream its beginning was sent: it stays unfinished, and no event says that it is done."""
    allowed = json.dumps(raw_answer(serve(tool_file, "--so8t-policy", "monitor"), name, streamed))
    assert "kaboom" in allowed and any(word in allowed for word in CALLED)
    raw = raw_answer(serve(tool_file, *policy.flags), name, streamed)
    assert "kaboom" not in json.dumps(raw)
    assert REFUSAL in json.dumps(raw)
    if not streamed:
        assert not any(word in json.dumps(raw) for word in CALLED)
    elif name == "responses":
        assert not any(word in json.dumps(raw[-1]) for word in CALLED)
        assert not any(event["type"].endswith("done") and "function_call" in json.dumps(event) for event in raw)
    end = json.dumps(raw[-3:] if streamed else raw)
    assert {"chat": '"content_filter"', "responses": '"incomplete"', "messages": '"refusal"'}[name] in end


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_tool_call_that_nobody_decides_is_dropped(serve, tool_file, name):
    """The call is complete when the token after it is due, and goes out with the end of the answer at the earliest."""
    server = serve(tool_file, *POLICY.flags, "--so8t-threshold", "safety/unsafe=1")
    raw = raw_answer(server, name, False)
    assert "kaboom" not in json.dumps(raw) and ESCALATION in json.dumps(raw)
    assert not any(word in json.dumps(raw) for word in CALLED)


# ---- tokens that come otherwise ----


@pytest.fixture(scope="module")
def speculative(serve, guard_file):
    return serve(guard_file, *POLICY.flags, "-md", guard_file, "--spec-type", "draft-simple", "--spec-draft-n-max", 4)


@pytest.mark.parametrize(
    "prompt", ["fine", "go", "ask", "climb", "both", "twice", "nan", "inf", "muse", "late", "bomb"]
)
def test_drafted_tokens_are_judged_one_by_one(speculative, secret_ids, prompt):
    """A draft may have run past the token that triggers: fewer tokens are sent then, never more."""
    expected = judge(prompt, SCRIPTS[prompt], HEADS, POLICY)
    for streamed in (False, True):
        answer = (COMPLETION.ask_stream if streamed else COMPLETION.ask)(speculative, prompt, temperature=0)
        expected.check(answer.so8t)
        last = answer.raw[-1] if streamed else answer.raw
        is_generated = expected.triggered is None or expected.triggered[0] != "prompt"
        assert (last["timings"].get("draft_n", 0) > 0) == is_generated
        delivered = answer.text.removesuffix(expected.text).removesuffix("\n</think>\n\n").strip()
        assert "".join(expected.sent if streamed else expected.kept).startswith(delivered)
        assert leaks(answer.raw, secret_ids) == []


def test_drafts_are_really_made(speculative):
    timings = COMPLETION.ask(speculative, "tick", n_predict=64, temperature=0).raw["timings"]
    assert timings["draft_n_accepted"] > 20


@pytest.mark.parametrize("prompt", ["fine", "go", "ask", "climb", "nan", "bomb"])
def test_tokens_sampled_in_the_graph_are_judged(serve, guard_file, secret_ids, prompt):
    server = serve(guard_file, *POLICY.flags, "--backend-sampling")
    check(server, COMPLETION, prompt, secret_ids)
    check(server, CHAT, prompt, secret_ids, temperature=0.7, seed=1)


def test_slots_that_run_together_keep_their_verdicts(serve, guard_file):
    server = serve(guard_file, *POLICY.flags, "-np", 8, "-kvu")
    prompts = [p for p in SCRIPTS if not p.startswith(("<|", "\n", "tick", "cafe"))] * 15
    expected = {p: judge(p, SCRIPTS[p], HEADS, POLICY) for p in prompts}
    endpoints = list(ENDPOINTS.values())

    def ask(job):
        index, prompt = job
        endpoint = endpoints[index % len(endpoints)]
        return (endpoint.ask_stream if index % 2 else endpoint.ask)(server, prompt).so8t

    with ThreadPoolExecutor(16) as pool:
        verdicts = list(pool.map(ask, enumerate(prompts)))
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        expected[prompt].check(verdict)


# ---- the command line ----


def run(runtime, tool, file, *arguments, stdin=None):
    result = subprocess.run(
        [runtime / tool, "-m", file, "-t", "1", "-c", "512", "--temp", "0", "--no-warmup", *map(str, arguments)],
        capture_output=True, text=True, errors="replace", input=stdin, timeout=120,
        **({} if stdin is not None else {"stdin": subprocess.DEVNULL}),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result


def verdicts(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("prompt", ["fine", "go", "ask", "muse", "bomb"])
@pytest.mark.parametrize(
    "policy", [POLICY, replace(POLICY, holdback=0), STOP, Policy()], ids=["enforce", "sent", "stop", "monitor"]
)
def test_llama_completion_obeys(runtime, guard_file, tmp_path, prompt, policy):
    expected = judge(prompt, SCRIPTS[prompt], HEADS, policy)
    file = tmp_path / "verdicts.jsonl"
    result = run(
        runtime, "llama-completion", guard_file, "-no-cnv", "-p", prompt, "-n", 30, "--no-display-prompt",
        *policy.flags, "--so8t-json", file,
    )  # fmt: skip
    printed = result.stdout.replace(" [end of text]\n", "").rstrip("\n")
    sent = "".join(expected.sent)
    assert printed == (sent + "\n\n" if sent and expected.text else sent) + expected.text
    (verdict,) = verdicts(file)
    expected.check(verdict)
    assert (f"so8t enforced: {verdict['enforced']}" in result.stderr) == (expected.action != "allow")


@pytest.mark.parametrize("tool", ["llama-completion", "llama-cli"])
def test_every_turn_of_a_conversation_is_judged(runtime, guard_file, tmp_path, tool):
    file = tmp_path / "verdicts.jsonl"
    turns = ["fine", "go", "ask", "bomb", "fine"]
    result = run(
        runtime, tool, guard_file, *(["-cnv"] if tool == "llama-completion" else []), "--jinja", *POLICY.flags,
        "--so8t-json", file, stdin="".join(f"{turn}\n" for turn in turns) + ("/exit\n" if tool == "llama-cli" else ""),
    )  # fmt: skip
    found = verdicts(file)
    assert len(found) == len(turns)
    for turn, verdict in zip(turns, found, strict=True):
        judge(turn, SCRIPTS[turn], HEADS, POLICY).check(verdict)
    output = result.stdout
    assert not [word for word in ("bad", "three", "four", "risk", "more") if word in output]
    assert output.count(REFUSAL) == 2 and output.count(ESCALATION) == 1 and output.count("all is well here") == 2


@pytest.mark.parametrize("tool", ["llama-completion", "llama-cli"])
def test_a_single_turn_is_judged(runtime, guard_file, tmp_path, tool):
    file = tmp_path / "verdicts.jsonl"
    chat = ["-cnv"] if tool == "llama-completion" else []
    result = run(
        runtime, tool, guard_file, *chat, "--jinja", "-st", "-n", 30, "-p", "go", *POLICY.flags, "--so8t-json", file
    )
    (verdict,) = verdicts(file)
    judge("go", SCRIPTS["go"], HEADS, POLICY).check(verdict)
    assert REFUSAL in result.stdout and "bad" not in result.stdout and "one two" in result.stdout
