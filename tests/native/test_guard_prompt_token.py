"""Heads with a prompt_token read the prompt where the last such token stands, in every tool and whatever is cached."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from guard_models import RISKS
from scripted_model import CONTEXT, Head, scripted_gguf

from llama_so8t.checkpoint import qwen3guard

from .guard_server import CHAT, COMPLETION, ENDPOINTS, SMALL, Server
from .test_qwen3guard_heads import make_guard, original, softmax

SCRIPTS = {"go": ["one ", "two"], "stay": ["three ", "bad ", "four"]}
HEADS = {
    "query": Head(
        ["safe", "unsafe"], ["allow", "refuse"], [0.5, 0.9], scope="prompt", prompt_token="mark ",
        tokens={"mark ": {"unsafe": 0.6}, "go": {"unsafe": 0.2}, "stay": {"unsafe": 0.3}},
    ),
    "kind": Head(
        ["none", "odd"], ["allow", "allow"], [0.5, 0.5], scope="prompt", prompt_token="note ",
        tokens={"note ": {"odd": 0.8}, "mark ": {"odd": 0.7}, "go": {"odd": 0.1}, "stay": {"odd": 0.4}},
    ),
    "last": Head(
        ["a", "b"], ["allow", "allow"], [0.5, 0.5], scope="prompt",
        tokens={"mark ": {"b": 0.75}, "note ": {"b": 0.65}, "go": {"b": 0.15}, "stay": {"b": 0.25}},
    ),
    "reply": Head(
        ["safe", "unsafe"], ["allow", "refuse"], [0.5, 0.9], scope="answer", prompt_token="mark ",
        tokens={"bad ": {"unsafe": 0.55}},
    ),
}  # fmt: skip
WORDS = "lorem ipsum dolor sit amet "
PROMPTS = {
    "both": (f"mark {WORDS}note {WORDS}go", "mark ", "note "),
    "the other order": (f"note {WORDS}mark go", "mark ", "note "),
    "one of them": (f"{WORDS}mark {WORDS}stay", "mark ", "stay"),
    "several of one": (f"mark {WORDS}mark {WORDS}mark {WORDS}go", "mark ", "go"),
    "none": (f"{WORDS}stay", "stay", "stay"),
    "at the end": (f"note {WORDS}mark ", "mark ", "note "),
    "first of all": ("mark go", "mark ", "go"),
    "longer than a batch": (f"{WORDS * 30}note {WORDS * 9}mark {WORDS * 9}go", "mark ", "note "),
}
"""Prompt, and the tokens that the heads query and kind read."""


def expected(case):
    """Probabilities of the prompt, by head and label."""
    prompt, query, kind = PROMPTS[case]
    read = {"query": query, "kind": kind, "last": next(t for t in ("go", "stay", "mark ") if prompt.endswith(t))}
    return {
        name: dict(zip(HEADS[name].labels, HEADS[name].probabilities(HEADS[name].tokens[token]), strict=True))
        for name, token in read.items()
    }


def check(verdict, case):
    found = {name: head["probabilities"] for name, head in verdict["prompt"]["heads"].items()}
    assert found == {name: pytest.approx(values, abs=2e-6) for name, values in expected(case).items()}
    assert (verdict["answer"]["n_positions"] > 0) == (case != "at the end")


@pytest.fixture(scope="module")
def file(tmp_path_factory, pinned_tree):
    return scripted_gguf(tmp_path_factory.mktemp("prompt-token") / "model", SCRIPTS, HEADS)


ITSELF = "the model"
FLAGS = {
    "plain": (),
    "small batches": ("-b", "16", "-ub", "8"),
    "very small batches": ("-b", "4", "-ub", "2", "-np", "1"),
    "cache reuse": ("--cache-reuse", "1"),
    "slots": ("-np", "4", "-kvu"),
    "drafts": ("--spec-type", "ngram-simple"),
    "a draft model": ("-md", ITSELF, "--spec-type", "draft-simple", "--spec-draft-n-max", "4"),
}


@pytest.fixture(scope="module", params=FLAGS.values(), ids=FLAGS)
def server(request, runtime, file):
    flags = [file if flag is ITSELF else flag for flag in request.param]
    with Server(runtime / "llama-server", "-m", file, *SMALL, "--so8t-policy", "monitor", *flags) as server:
        yield server


@pytest.mark.parametrize("case", PROMPTS)
def test_the_prompt_is_read_at_its_token(server, case):
    prompt = PROMPTS[case][0]
    for endpoint in (COMPLETION, CHAT):
        check(endpoint.ask(server, prompt).so8t, case)
        check(endpoint.ask_stream(server, prompt).so8t, case)


def test_a_cached_prompt_is_read_at_its_token_again(server):
    """What stands before the token is kept, the token itself is evaluated."""
    prompt = PROMPTS["both"][0]
    n_before = len(server.post("/tokenize", {"content": f"mark {WORDS}"})["tokens"])
    first = COMPLETION.ask(server, prompt, id_slot=0, cache_prompt=True)
    again = COMPLETION.ask(server, prompt, id_slot=0, cache_prompt=True)
    check(first.so8t, "both")
    check(again.so8t, "both")
    assert again.raw["timings"]["cache_n"] == 0  # "mark " is the first token
    other = f"{WORDS}mark {WORDS}stay"
    counts = [COMPLETION.ask(server, other, id_slot=0).raw["timings"]["cache_n"] for _ in range(2)]
    assert counts[1] == n_before - 1
    for case in ("none", "several of one", "none", "both", "the other order", "one of them", "first of all"):
        check(COMPLETION.ask(server, PROMPTS[case][0], id_slot=0).so8t, case)


def test_without_such_heads_the_whole_prompt_is_kept(serve, guard_file):
    server = serve(guard_file, "--so8t-policy", "monitor")
    prompt = f"{WORDS}fine"
    COMPLETION.ask(server, prompt, id_slot=0)
    n = len(server.post("/tokenize", {"content": prompt})["tokens"])
    assert COMPLETION.ask(server, prompt, id_slot=0).raw["timings"]["cache_n"] == n - 1


def test_a_policy_that_is_off_reads_nothing(serve_here, file):
    server = serve_here(file, "--so8t-policy", "off")
    for _ in range(2):
        answer = COMPLETION.ask(server, "mark go", id_slot=0)
        assert answer.so8t is None and answer.text == "one two"
    assert answer.raw["timings"]["cache_n"] == 1


def test_every_choice_has_the_verdict_of_the_prompt(serve_here, file):
    server = serve_here(file, "--so8t-policy", "monitor", "-np", "4", "-kvu")
    for case in ("both", "one of them", "none"):
        for name in ("text", "chat"):
            reply = ENDPOINTS[name].ask(server, PROMPTS[case][0], n=3).raw
            verdicts = [reply["so8t"], *(choice["so8t"] for choice in reply["choices"] if choice["index"] > 0)]
            assert len(verdicts) == 3
            for verdict in verdicts:
                check(verdict, case)


def test_slots_do_not_mix(serve_here, file):
    server = serve_here(file, "--so8t-policy", "monitor", "-np", "4", "-kvu")
    cases = list(PROMPTS) * 6
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda case: COMPLETION.ask(server, PROMPTS[case][0]), cases))
    for answer, case in zip(answers, cases, strict=True):
        check(answer.so8t, case)


@pytest.mark.parametrize("options", [{"backend_sampling": True}, {"n_probs": 3}, {"temperature": 0}], ids=str)
def test_options_of_a_request_change_nothing(serve_here, file, options):
    server = serve_here(file, "--so8t-policy", "monitor")
    for case in PROMPTS:
        check(COMPLETION.ask(server, PROMPTS[case][0], **options).so8t, case)


def test_a_verdict_at_the_prompt_token_is_enforced(serve_here, file):
    flags = ("--so8t-policy", "enforce", "--so8t-threshold", "query/unsafe=0.5")
    server = serve_here(file, *flags)
    refused = COMPLETION.ask(server, "mark go")
    assert refused.so8t["triggered"]["head"] == "query" and refused.so8t["enforced"] == "message"
    assert "one" not in refused.text
    allowed = COMPLETION.ask(server, "go")
    assert (allowed.so8t["decision"], allowed.text) == ("allow", "one two")


def test_a_text_that_is_only_judged_is_read_there(serve_here, file):
    messages = [{"role": "user", "content": "mark go"}, {"role": "assistant", "content": "one two"}]
    check(serve_here(file, "--so8t-policy", "off").post("/so8t/judge", {"messages": messages})["so8t"], "first of all")
    server = serve_here(file, "--so8t-policy", "off", "--so8t-threshold", "query/unsafe=0.5")
    results = server.post("/v1/moderations", {"input": ["mark go", "go"]})["results"]
    assert [result["flagged"] for result in results] == [True, False]


@pytest.mark.parametrize("flags", [(), ("-b", "16", "-ub", "8")], ids=["plain", "small batches"])
@pytest.mark.parametrize("case", PROMPTS)
def test_llama_completion_reads_the_prompt_token(runtime, file, tmp_path, case, flags):
    out = tmp_path / "verdicts.jsonl"
    command = [runtime / "llama-completion", "-m", file, "-p", PROMPTS[case][0], "-no-cnv", "-n", "16"]
    command += ["-c", CONTEXT, "--no-warmup", "-t", "1", "--so8t-json", out, *flags]
    subprocess.run([*map(str, command)], check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
    (line,) = out.read_text().splitlines()
    check(json.loads(line), case)


# ---- Qwen3Guard-Stream, where all positions differ ----

END_OF_TURN = 7


@pytest.fixture(scope="module")
def qwen3guard_model(tmp_path_factory):
    return make_guard(tmp_path_factory.mktemp("qwen3guard") / "tiny-guard", 24, "float32")


@pytest.fixture(scope="module")
def qwen3guard_server(qwen3guard_model, to_gguf, serve_here):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen3guard, "_end_of_turn", lambda path: END_OF_TURN)
        file = to_gguf(qwen3guard_model)
    return serve_here(file, "--so8t-policy", "monitor", "-c", "256", "-ctk", "f32", "-ctv", "f32", "-fa", "off")


@pytest.mark.parametrize("ends", [(5, 20), (20,), (31,), (32,), ()], ids=str)
def test_qwen3guard_reads_the_end_of_the_last_turn(qwen3guard_model, qwen3guard_server, ends):
    tokens = np.random.default_rng(len(ends)).integers(10, 300, 33)
    tokens[list(ends)] = END_OF_TURN
    values = original(qwen3guard_model, tokens.tolist())
    row = ends[-1] if ends else 32
    for _ in range(2):  # the second time from the cache
        reply = COMPLETION.ask(qwen3guard_server, tokens.tolist(), n_predict=2, id_slot=0)
        risk = RISKS[values["query_risk"][row].argmax()]
        heads = reply.so8t["prompt"]["heads"]
        assert list(heads) == ["query_risk"] + ["query_category"] * (risk != "Safe")
        for name, head in heads.items():
            found = head["probabilities"]
            np.testing.assert_allclose(list(found.values()), softmax(values[name][row]), atol=2e-5)
            # the verdict of the original: its largest label
            assert head["label"] == list(found)[values[name][row].argmax()]
        assert reply.so8t["prompt"]["action"] == qwen3guard.RISK_ACTIONS[risk]
