"""The scripted model does what its script says, in the library and in the tools."""

import json
import subprocess

import numpy as np
import pytest
from scripted_model import CHATML, CONTEXT, INF, NAN, WORDS, Head, scripted_gguf

from llama_so8t.bindings import Session

SCRIPTS = {
    "start": ["one ", "two ", "bad ", "three"],
    "loop": ["tick ", "tock ", "tick "],
    "think": ["<think>", "hm ", "</think>", "so."],
    "\n": ["hello"],
    "json": ['{"a":', '"b"', "}"],
}
HEADS = {
    "safety": Head(
        ["safe", "unsafe"], ["allow", "refuse"], [0.5, 0.9], debounce=2, default={"safe": 0.995},
        tokens={"bad ": {"unsafe": 0.97}, "broken": INF, "undefined": NAN, "start": {"unsafe": 0.25}},
    ),
    "topic": Head(
        ["none", "war", "money"], ["allow", "escalate", "allow"], [0.5, 0.4, 0.5], scope="prompt", temperature=2.0,
        tokens={"two ": {"war": 0.5, "money": 0.2}, "undefined": {"war": 1.0}},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=[WORDS, CHATML], ids=["words", "chatml"])
def file(request, tmp_path_factory, pinned_tree):
    return scripted_gguf(tmp_path_factory.mktemp("scripted") / "model", SCRIPTS, HEADS, request.param)


@pytest.fixture
def session(file):
    with Session(file, n_ctx=CONTEXT) as session:
        yield session


def probabilities(session, name):
    head = HEADS[name]
    e = np.exp(session.head_logits(name).astype(np.float64) / head.temperature)
    return e / e.sum(-1, keepdims=True)


def text(result):
    """What llama-completion generated."""
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().removesuffix(" [end of text]")


def follow(session, prompt, n):
    """Ids of the n tokens after a prompt, greedily, and the probability of each."""
    tokens = session.tokenize(prompt)
    session.decode(tokens)
    position, found, certain = len(tokens), [], []
    for _ in range(n):
        logits = session.logits()[-1].astype(np.float64)
        found.append(int(logits.argmax()))
        certain.append(1.0 / np.exp(logits - logits.max()).sum())
        session.decode(found[-1:], position=position)
        position += 1
    return found, certain


@pytest.mark.parametrize("start", ["start", "think", "json"])
def test_a_chain_is_followed_and_then_ends(session, start):
    found, certain = follow(session, f"Any text: 12 {start}", len(SCRIPTS[start]) + 1)
    assert found == [session.tokenize(token)[0] for token in (*SCRIPTS[start], "<|im_end|>")]
    assert min(certain) == pytest.approx(1.0, abs=1e-9)  # so sampling follows it as well


def test_every_word_is_one_token(session):
    assert [len(session.tokenize(word)) for word in ("one ", "two ", "</think>", "<|im_start|>", '{"a":')] == [1] * 5
    assert len(session.tokenize("one two bad three")) == 4


def test_a_chain_that_returns_goes_round(session):
    tick, tock = session.tokenize("tick tock ")
    assert follow(session, "loop", 5)[0] == [tick, tock, tick, tock, tick]


def test_other_text_ends_the_answer(session):
    assert follow(session, "The quick brown fox", 1)[0] == session.tokenize("<|im_end|>")


def test_heads_say_what_the_tables_say(session):
    session.decode(session.tokenize("start") + session.tokenize("two bad other"))
    assert probabilities(session, "safety")[:3, 1] == pytest.approx([0.25, 0.005, 0.97], abs=1e-6)
    assert probabilities(session, "safety")[3:, 1] == pytest.approx(0.005, abs=1e-6)
    assert probabilities(session, "topic")[0] == pytest.approx([0.99, 0.005, 0.005], abs=1e-6)
    assert probabilities(session, "topic")[1] == pytest.approx([0.3, 0.5, 0.2], abs=1e-6)


def test_values_overflow_at_the_chosen_tokens_only(session):
    ids = session.tokenize("one broken") + session.tokenize("undefined") + session.tokenize("two ")
    session.decode(ids)
    safety = session.head_logits("safety")
    assert np.isfinite(safety).all(1).tolist() == [True, *[True] * (len(ids) - 4), False, False, True]
    assert np.isposinf(safety[-3, 0]) and np.isnan(safety[-2, 0])
    assert np.isfinite(session.head_logits("topic")).all() and np.isfinite(session.logits()).all()
    assert probabilities(session, "topic")[-2] == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)


def test_the_file_is_small(file):
    assert file.stat().st_size < 1_000_000


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_completion_prints_the_chain(runtime, file, tmp_path, temperature):
    out = tmp_path / "verdicts.jsonl"
    result = subprocess.run(
        [runtime / "llama-completion", "-m", file, "--temp", temperature, "-no-cnv", "-p", "start", "-n", "20",
         "--no-display-prompt", "--so8t-json", out],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert text(result) == "one two bad three"
    verdict = json.loads(out.read_text())
    assert verdict["prompt"]["heads"]["safety"]["probabilities"]["unsafe"] == pytest.approx(0.25, abs=1e-6)
    assert verdict["answer"]["heads"]["safety"]["peak"]["unsafe"] == pytest.approx(0.97, abs=1e-6)


def test_a_grammar_is_obeyed(runtime, file):
    result = subprocess.run(
        [runtime / "llama-completion", "-m", file, "--temp", "0", "-no-cnv", "-p", "json", "-n", "20",
         "--no-display-prompt", "--grammar", r'root ::= "{\"a\":" "\"b\"" "," [0-9]'],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert text(result) == '{"a":"b",0'


def test_chains_that_disagree_are_an_error(tmp_path):
    with pytest.raises(AssertionError, match="'b' is followed by"):
        scripted_gguf(tmp_path / "model", {"a": ["b", "c"], "d": ["b", "e"]}, HEADS)


def test_a_chat_ends_as_its_template_says(runtime, file, request):
    result = subprocess.run(
        [runtime / "llama-completion", "-m", file, "--temp", "0", "-cnv", "-st", "-p", "say: start", "-n", "20",
         "--no-display-prompt", "--jinja"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    expected = "hello" if "chatml" in request.node.callspec.id else "one two bad three"
    assert expected in text(result)
