"""Heads that read the text of the user's turn: the same question has the same verdict wherever it comes from."""

import json
import subprocess

import numpy as np
import pytest
from scripted_model import CHATML, NAN, WORDS, Head, scripted_gguf
from verdict_schema import errors

from .guard_server import CHAT, COMPLETION, MESSAGES, RESPONSES, SMALL, TEXT

TOKENS = {f"w{i}. ": {"unsafe": p} for i, p in enumerate((0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.99))}
NAMES = list(TOKENS)
LABELS = ["safe", "unsafe"]
WAYS = ("mean", "ema", "max", "window8", "window16")
HEAD = Head(
    LABELS, ["allow", "refuse"], [0.5, 0.9], tokens=TOKENS | {"nan. ": NAN}, default={"unsafe": 0.02}, ema_alpha=0.25,
    prompt_aggregation=WAYS, prompt_thresholds=[0.5, 0.7, 0.5, 0.85, 0.5, 0.999, 0.5, 0.9, 0.5, 0.8],
)  # fmt: skip
THRESHOLDS = dict(zip(WAYS, HEAD.prompt_thresholds[1::2], strict=True))
HEADS = {"text": HEAD, "end": Head(LABELS, ["allow", "escalate"], [0.5, 0.9], default={"unsafe": 0.01})}
SCRIPTS = {"\n": ["hello ", "there"]}
POLICY = ("--so8t-policy", "enforce")


def mixed(seed, n):
    return [NAMES[i] for i in np.random.default_rng(seed).integers(0, len(NAMES), n)]


QUESTIONS = {
    "calm": NAMES[:3],
    "one word": [NAMES[7]],
    "loud": NAMES[5:] * 2,
    "a loud end": NAMES[:2] * 8 + NAMES[6:] * 2,
    "a loud middle": NAMES[:3] * 6 + NAMES[5:8] * 4 + NAMES[:3] * 6,
    "mixed": mixed(3, 20),
    "long": mixed(4, 70),
    "spread": [NAMES[4]] * 40,
}


def ways(head, words):
    """Way -> probability of unsafe over these words, from docs/format.md with one sum for each window."""
    rows = np.array([head.values(head.tokens[word]) for word in words])
    n = len(rows)

    def windows(size):
        size = min(size, n)
        return max(head.link_of(rows[i : i + size].mean(0))[1] for i in range(n - size + 1))

    alpha = head.ema_alpha
    weights = [(1 - alpha) ** (n - 1 - t) * (alpha if t else 1.0) for t in range(n)]
    return {
        "mean": head.link_of(rows.mean(0))[1],
        "ema": head.link_of(np.average(rows, axis=0, weights=weights))[1],
        "max": windows(1),
        "window8": windows(8),
        "window16": windows(16),
    }


def expected(words):
    """Action, way and probability that the verdict shows."""
    found = ways(HEAD, words)
    way = max(WAYS, key=lambda name: found[name] - THRESHOLDS[name])
    return ("refuse" if found[way] >= THRESHOLDS[way] else "allow"), way, found[way]


@pytest.fixture(scope="module")
def file(tmp_path_factory, pinned_tree):
    return scripted_gguf(tmp_path_factory.mktemp("texts") / "model", SCRIPTS, HEADS, CHATML)


@pytest.fixture(scope="module")
def server(serve, file):
    return serve(file, *POLICY)


def check(verdict, words):
    action, way, p = expected(words)
    head = verdict["prompt"]["heads"]["text"]
    assert head["aggregation"] == way
    assert head["probabilities"]["unsafe"] == pytest.approx(p, abs=1e-4)
    assert verdict["prompt"]["action"] == action
    assert errors(verdict) == []


def rendered(server, messages):
    return server.post("/apply-template", {"messages": messages})["prompt"]


def user(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize("words", QUESTIONS.values(), ids=QUESTIONS)
def test_every_endpoint_reads_the_text_of_the_turn(server, words):
    text = "".join(words)
    prompt = rendered(server, [user(text)])
    asked = {"chat": (CHAT, text), "responses": (RESPONSES, text), "messages": (MESSAGES, text),
             "completion": (COMPLETION, prompt), "text": (TEXT, prompt)}  # fmt: skip
    verdicts = {}
    for name, (endpoint, given) in asked.items():
        for ask in (endpoint.ask, endpoint.ask_stream):
            verdict = ask(server, given).so8t
            check(verdict, words)
            verdicts[name] = {key: verdict[key] for key in ("decision", "prompt", "triggered", "enforced")}
    assert all(verdict == verdicts["chat"] for verdict in verdicts.values())
    judged = server.post("/so8t/judge", {"messages": [user(text)]})["so8t"]
    assert judged["prompt"] == verdicts["chat"]["prompt"]
    flagged = server.post("/v1/moderations", {"input": text})["results"][0]
    assert flagged["flagged"] == (verdicts["chat"]["decision"] != "allow")
    assert flagged["category_scores"]["text/unsafe"] == judged["prompt"]["heads"]["text"]["probabilities"]["unsafe"]


def test_the_questions_are_decided_by_different_ways():
    assert {expected(words)[0] for words in QUESTIONS.values()} == {"allow", "refuse"}
    assert len({expected(words)[1] for words in QUESTIONS.values()}) >= 3


HISTORIES = {
    "a greeting": [user("w0. w1. "), {"role": "assistant", "content": "hello there"}],
    "a system text": [{"role": "system", "content": "w0. w0. w0. w0. "}],
    "a long history": [user("w0. " * 30), {"role": "assistant", "content": "there"}] * 3,
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("words", QUESTIONS.values(), ids=QUESTIONS)
def test_no_history_moves_a_verdict(server, words, history):
    """And neither does the cache: the second time nothing of the prompt is evaluated but its last token."""
    messages = [*history, user("".join(words))]
    for _ in range(2):
        check(server.post("/v1/chat/completions", {"messages": messages})["so8t"], words)
    check(COMPLETION.ask(server, rendered(server, messages)).so8t, words)
    ending = [*messages, {"role": "assistant", "content": "there"}, user("w0. ")]
    verdict = server.post("/v1/chat/completions", {"messages": ending})["so8t"]
    assert verdict["decision"] == expected(words)[0]
    for turn in verdict.get("turns", []):
        assert turn["heads"]["text"]["probabilities"]["unsafe"] == pytest.approx(expected(words)[2], abs=1e-4)


def test_slots_beside_each_other(serve, file):
    """Each reads its own sequence."""
    from concurrent.futures import ThreadPoolExecutor

    server = serve(file, *POLICY, "-np", 4, "-c", 2048)
    with ThreadPoolExecutor(8) as pool:
        asked = [words for _ in range(4) for words in QUESTIONS.values()]
        for words, answer in zip(asked, pool.map(lambda w: CHAT.ask(server, "".join(w)), asked), strict=True):
            check(answer.so8t, words)


def test_a_prompt_without_turns_is_read_in_windows_of_32(serve, server, tmp_path_factory, pinned_tree):
    words = [*QUESTIONS["calm"] * 20, *[NAMES[7]] * 16, *QUESTIONS["calm"] * 5]
    spans = [words[i : i + 32] for i in range(0, len(words), 32)]
    spans[-1] = words[-32:]
    shown = max((expected(span) for span in spans), key=lambda found: found[2] - THRESHOLDS[found[1]])
    verdict = COMPLETION.ask(server, "".join(words)).so8t
    assert verdict["decision"] == shown[0] == "refuse"
    assert verdict["prompt"]["heads"]["text"]["probabilities"]["unsafe"] == pytest.approx(shown[2], abs=1e-4)
    # a template that ends turns without a token: nobody can tell where they end
    file = scripted_gguf(tmp_path_factory.mktemp("words") / "model", SCRIPTS, HEADS, WORDS)
    other = serve(file, *POLICY)
    found = [CHAT.ask(other, "".join(words)).so8t["prompt"], COMPLETION.ask(other, "".join(words)).so8t["prompt"]]
    assert found[0] == found[1] and found[0]["action"] == "refuse"


def test_a_value_that_is_not_finite_refuses(server):
    verdict = CHAT.ask(server, "w0. w1. nan. w0. ").so8t
    assert verdict["triggered"]["label"] == "not finite" and verdict["decision"] == "refuse"


def test_thresholds_of_the_policy_are_for_every_way(serve, file):
    server = serve(file, *POLICY, "--so8t-threshold", "text/unsafe=0.3")
    verdict = CHAT.ask(server, "".join(QUESTIONS["calm"])).so8t
    assert verdict["prompt_thresholds"]["text"] == {way: {"safe": 0.5, "unsafe": 0.3} for way in WAYS}
    found = ways(HEAD, QUESTIONS["calm"])
    assert verdict["decision"] == ("refuse" if max(found.values()) >= 0.3 else "allow") == "refuse"
    assert verdict["aggregation"]["text"] == {"ema_alpha": 0.25, "prompt": list(WAYS)}


@pytest.mark.parametrize("name", ["calm", "loud", "mixed"])
def test_llama_cli_reads_the_same(runtime, file, server, name, tmp_path):
    out = tmp_path / "verdicts.jsonl"
    text = "".join(QUESTIONS[name])
    subprocess.run(
        [runtime / "llama-cli", "-m", file, *SMALL, *POLICY, "-st", "-p", text, "-n", "2", "--so8t-json", out],
        check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    found = json.loads(out.read_text().splitlines()[-1])
    assert found["prompt"] == CHAT.ask(server, text).so8t["prompt"]


def test_llama_completion_reads_windows(runtime, file, server, tmp_path):
    out = tmp_path / "verdicts.jsonl"
    words = [*QUESTIONS["calm"] * 20, *[NAMES[7]] * 16, *QUESTIONS["calm"] * 5]
    subprocess.run(
        [runtime / "llama-completion", "-m", file, *SMALL, *POLICY, "-no-cnv", "-p", "".join(words), "-n", "2",
         "--so8t-json", out],
        check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    found = json.loads(out.read_text().splitlines()[-1])
    assert found["prompt"] == COMPLETION.ask(server, "".join(words)).so8t["prompt"]
