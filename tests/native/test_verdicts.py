"""Verdicts in the tools: what llama-completion and llama-server report is what the heads say."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from llama_so8t.bindings import Session
from llama_so8t.bindings.session import F32

from .guard_server import Server

PROMPT = "The head decides, the gate enforces."
N_PREDICT = 24
GREEDY = ("--temp", "0", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "-t", "2", "-c", "512")


@pytest.fixture(scope="module")
def file(make_model, to_gguf):
    model = make_model("llama", hidden_size=72, num_attention_heads=9, num_key_value_heads=3, head_dim=64, seed=4)
    return to_gguf(model)


def softmax(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def expected(file):
    """Greedy continuation and head probabilities by position, from the session alone."""
    with Session(file, type_k=F32, type_v=F32, flash_attn=False) as session:
        tokens = session.tokenize(PROMPT)
        session.decode(tokens)
        probabilities = {h.name: [softmax(session.head_logits(h.name))[-1]] for h in session.heads}
        token, position = int(session.logits()[-1].argmax()), len(tokens)
        for _ in range(N_PREDICT - 1):
            session.decode([token], position=position)
            for name, rows in probabilities.items():
                rows.append(softmax(session.head_logits(name))[0])
            token, position = int(session.logits()[0].argmax()), position + 1
    return {name: np.array(rows) for name, rows in probabilities.items()}


def check(verdict, expected):
    """The prompt verdict is row 0, the answer the rows after it; labels, peaks and actions follow."""
    labels = {"safety": ("safe", "unsafe"), "authority": ("handle", "escalate")}
    actions = {"safety": "refuse", "authority": "escalate"}
    rank = ["allow", "escalate", "refuse"]
    order = []
    for part, rows in (("prompt", slice(0, 1)), ("answer", slice(1, None))):
        found = verdict[part]
        action = "allow"
        for name in ("safety", "authority"):
            p = expected[name][rows]
            if part == "prompt" and action == "refuse":
                assert name not in found["heads"]  # authority is asked only where safety allows
                continue
            head = found["heads"][name]
            if part == "prompt" or name == "safety":
                assert list(head["probabilities"].values()) == pytest.approx(p[-1], abs=2e-4)
                assert head["label"] == labels[name][int(p[-1].argmax())]
            if part == "answer" and name == "safety":
                assert list(head["peak"].values()) == pytest.approx(p.max(0), abs=2e-4)
                above = np.flatnonzero(p[:, 1] >= 0.5)
                triggered = {"position": int(above[0]), "label": "unsafe"} if len(above) else None
                assert head["triggered"] == triggered
            if (p[:, 1] >= 0.5).any():
                action = max(action, actions[name], key=rank.index)
        if part == "prompt" or expected["safety"][1:, 1].max() >= 0.5:
            assert found["action"] == action
        order.append(found["action"])
    assert verdict["answer"]["n_positions"] == N_PREDICT - 1
    assert verdict["decision"] == max(order, key=rank.index)


def test_completion_writes_the_verdicts_of_the_heads(runtime, file, expected, tmp_path):
    out = tmp_path / "verdicts.jsonl"
    result = subprocess.run(
        [runtime / "llama-completion", "-m", file, *GREEDY, "-no-cnv", "-p", PROMPT, "-n", str(N_PREDICT),
         "--ignore-eos", "--so8t-json", out],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = out.read_text().splitlines()
    assert len(lines) == 1
    check(json.loads(lines[0]), expected)
    assert "so8t prompt: safety " in result.stderr and "so8t answer: safety " in result.stderr


def test_a_verdict_file_that_cannot_be_written_is_an_error_before_the_model_loads(runtime, file, tmp_path):
    result = subprocess.run(
        [runtime / "llama-completion", "-m", file, "-p", "a", "--so8t-json", tmp_path / "no" / "such" / "file"],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    assert "cannot write" in result.stderr


def completion(**fields):
    body = {"prompt": PROMPT, "n_predict": N_PREDICT, "temperature": 0, "ignore_eos": True, "cache_prompt": True}
    return body | fields


@pytest.fixture(scope="module")
def server(runtime, file):
    with Server(runtime / "llama-server", "-m", file, *GREEDY, "-np", 4, "-kvu") as running:
        yield running


def test_server_reports_the_verdicts_in_the_final_answer(server, expected):
    check(server.post("/completion", completion())["so8t"], expected)


def test_server_reports_them_again_when_the_prompt_is_cached(server, expected):
    for _ in range(2):
        check(server.post("/completion", completion())["so8t"], expected)


def test_server_reports_them_in_the_last_chunk_of_a_stream_only(server, expected):
    chunks = server.stream("/completion", completion()).events
    assert [i for i, chunk in enumerate(chunks) if "so8t" in chunk] == [len(chunks) - 1]
    check(chunks[-1]["so8t"], expected)


def test_chat_and_text_endpoints_carry_the_verdicts(server):
    message = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    assert server.post("/v1/chat/completions", message)["so8t"]["decision"] in ("allow", "escalate", "refuse")
    last = server.stream("/v1/chat/completions", message).events[-1]
    assert last["so8t"]["decision"] in ("allow", "escalate", "refuse")
    assert "so8t" in server.post("/v1/completions", {"prompt": "hello", "max_tokens": 4})


def test_parallel_slots_have_their_own_verdicts(server):
    prompts = [f"{i} The quick brown fox jumps over the lazy dog." for i in range(8)]
    alone = [server.post("/completion", completion(prompt=p, cache_prompt=False))["so8t"] for p in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda p: server.post("/completion", completion(prompt=p))["so8t"], prompts))
    for one, other in zip(alone, together, strict=True):
        assert one["decision"] == other["decision"]
        for name, head in one["prompt"]["heads"].items():
            assert list(head["probabilities"].values()) == pytest.approx(
                list(other["prompt"]["heads"][name]["probabilities"].values()), abs=1e-3
            )


def test_speculative_decoding_gives_the_same_text_and_verdicts(runtime, file, server, expected):
    plain = server.post("/completion", completion())
    draft = ("-md", file, "--spec-type", "draft-simple", "--spec-draft-n-max", 4)
    with Server(runtime / "llama-server", "-m", file, *GREEDY, *draft) as speculative:
        answer = speculative.post("/completion", completion())
    assert answer["timings"]["draft_n"] > 0 and answer["timings"]["draft_n_accepted"] > 0
    assert answer["content"] == plain["content"]
    check(answer["so8t"], expected)
