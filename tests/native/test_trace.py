"""`so8t trace` on the scripted model, whose answers and probabilities are known."""

import argparse
import json
import subprocess

import pytest
from scripted_model import CHATML, NAN, Head, scripted_gguf

from llama_so8t.cli import trace as command
from llama_so8t.errors import CheckpointError, ConfigError, So8tError
from llama_so8t.tracing.trace import TraceOptions, trace

SCRIPTS = {
    "start": ["<think>", "bad ", "hm ", "</think>", "fine ", "awful ", "worse ", "end"],
    "\n": ["hello ", "there"],
    "loop": ["tick ", "tock ", "tick "],
}
HEADS = {
    "safety": Head(
        ["safe", "unsafe"], ["allow", "refuse"], [0.5, 0.9], debounce=2, default={"safe": 0.995},
        tokens={"bad ": {"unsafe": 0.97}, "awful ": {"unsafe": 0.91}, "worse ": {"unsafe": 0.92},
                "start": {"unsafe": 0.95}, "broken": NAN},
    ),
    "topic": Head(
        ["none", "war", "money"], ["allow", "escalate", "allow"], [0.5, 0.4, 0.5], scope="answer", temperature=2.0,
        tokens={"fine ": {"war": 0.5, "money": 0.2}},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory, pinned_tree):
    return scripted_gguf(tmp_path_factory.mktemp("trace") / "model", SCRIPTS, HEADS, CHATML)


def run(*arguments):
    """The subcommand, without the other ones."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def traced(tmp_path, *arguments):
    assert run(*arguments, "--out", tmp_path / "t.json") == 0
    return json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))


def test_every_position_has_the_probabilities_of_its_token(file, tmp_path, capfd):
    found = traced(tmp_path, file, "--prompt", "Well, bad start", "-n", "20")
    entries = found["trace"]
    generated = [entry["text"] for entry in entries if entry["part"] != "prompt"]
    assert generated == SCRIPTS["start"]  # the end-of-turn token is no part of it
    prompt = [entry for entry in entries if entry["part"] == "prompt"]
    assert "".join(entry["text"] for entry in prompt) == "Well, bad start"
    for entry in entries:
        for name, head in HEADS.items():
            expected = head.probabilities(head.tokens.get(entry["text"], head.default))
            assert list(entry["heads"][name].values()) == pytest.approx(expected, abs=1e-6)
    assert [(e["part"], e["position"]) for e in entries[len(prompt) :]] == [
        ("think", 0), ("think", 1), ("think", 2), ("think", 3),
        ("answer", 0), ("answer", 1), ("answer", 2), ("answer", 3),
    ]  # fmt: skip
    assert [(t["head"], t["part"], t["position"], t["label"]) for t in found["triggers"]] == [
        ("safety", "prompt", len(prompt) - 1, "unsafe"),
        ("safety", "answer", 2, "unsafe"),
        ("topic", "answer", 0, "war"),
    ]
    out, err = capfd.readouterr()
    assert "safety: refuse: prompt at its end, unsafe 0.950; refuse: answer at token 2, unsafe 0.920" in out
    assert "trace:" not in err  # no bar for a short text


def test_the_tools_report_the_same(runtime, file, tmp_path):
    out = tmp_path / "verdicts.jsonl"
    subprocess.run(
        [runtime / "llama-completion", "-m", file, "--temp", "0", "-no-cnv", "-p", "go fine ", "-n", "8",
         "--so8t-json", out],
        capture_output=True, check=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    verdict = json.loads(out.read_text())
    found = traced(tmp_path, file, "--prompt", "go fine ", "-n", "8")
    answer = [entry for entry in found["trace"] if entry["part"] == "answer"]
    assert verdict["answer"]["n_positions"] == len(answer)
    for name, head in verdict["answer"]["heads"].items():
        peaks = {label: max(e["heads"][name][label] for e in answer) for label in HEADS[name].labels}
        assert head["peak"] == pytest.approx(peaks, abs=1e-6)
    (trigger,) = [t for t in found["triggers"] if t["head"] == "safety" and t["part"] == "answer"]
    assert verdict["answer"]["heads"]["safety"]["triggered"] == {key: trigger[key] for key in ("position", "label")}


def test_a_long_text_in_chunks_with_a_bar(file, tmp_path, capfd):
    (tmp_path / "prompt.txt").write_text("fine bad " * 700, encoding="utf-8")
    found = traced(tmp_path, file, "--prompt-file", tmp_path / "prompt.txt", "-n", "0")["trace"]
    assert [entry["text"] for entry in found] == ["fine ", "bad "] * 700
    assert [entry["position"] for entry in found] == list(range(1400))
    unsafe = [entry["heads"]["safety"]["unsafe"] for entry in found]
    assert unsafe == pytest.approx([0.005, 0.97] * 700, abs=1e-6)
    assert "trace:" in capfd.readouterr().err


def test_messages_go_through_the_chat_template(file, tmp_path):
    messages = [{"role": "user", "content": "say <b> 日本"}]
    found = traced(tmp_path, file, "--messages", json.dumps(messages))["trace"]
    texts = {part: "".join(e["text"] for e in found if e["part"] == part) for part in ("prompt", "answer")}
    assert texts["prompt"] == "<|im_start|>user\nsay <b> 日本<|im_end|>\n<|im_start|>assistant\n"
    assert texts["answer"] == "hello there"


def test_a_given_answer_is_read_and_not_generated(file, tmp_path):
    found = traced(tmp_path, file, "--prompt", "start", "--answer", "awful broken end")
    answer = [entry for entry in found["trace"] if entry["part"] == "answer"]
    assert [entry["text"] for entry in answer][:2] == ["awful ", "broken"]
    assert answer[1]["heads"]["safety"] == {"safe": None, "unsafe": None}
    assert found["triggers"][1] == {
        "part": "answer", "position": 1, "head": "safety", "label": None, "action": "refuse", "probability": None,
    }  # fmt: skip
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "awful worse "}]
    found = traced(tmp_path, file, "--messages", json.dumps(chat))
    assert [entry["text"] for entry in found["trace"] if entry["part"] == "answer"] == ["awful ", "worse "]


@pytest.mark.parametrize("suffix", ["html", "png"])
def test_the_page_or_the_picture_is_the_only_file_written(file, tmp_path, suffix):
    out = tmp_path / f"t.{suffix}"
    assert run(file, "--prompt", "start", "-n", "9", "--out", out) == 0
    assert out.read_bytes()[:8] == {"html": b"<!doctyp", "png": b"\x89PNG\r\n\x1a\n"}[suffix]
    assert list(tmp_path.iterdir()) == [out]


def test_a_text_longer_than_the_context_is_refused_with_both_numbers(file, tmp_path):
    with pytest.raises(ConfigError, match=r"prompt has 3000 tokens.* context of 2048"):
        trace(TraceOptions(file, prompt="bad " * 3000, n_predict=0))
    with pytest.raises(ConfigError, match=r"prompt has 2000 tokens and -n asks for 49 more.* context of 2048"):
        trace(TraceOptions(file, prompt="bad " * 2000, n_predict=49))
    with pytest.raises(ConfigError, match="prompt has 2000 tokens and the answer 60"):
        trace(TraceOptions(file, prompt="bad " * 2000, answer="bad " * 60))
    found = trace(TraceOptions(file, prompt="bad " * 2000 + "loop", n_predict=47, progress=False))
    assert len(found.tokens) == 2048


def test_a_model_without_heads_is_refused(tmp_path, pinned_tree):
    file = scripted_gguf(tmp_path / "model", SCRIPTS, {})
    with pytest.raises(CheckpointError, match="found no heads"):
        trace(TraceOptions(file, prompt="start"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", ""], "no tokens"),
        (["--prompt", "a\0b"], "NUL character at 1"),
        (["--prompt", "a\udc80"], "not Unicode at character 1"),
        (["--messages", "{"], "no JSON"),
        (["--messages", "[]"], "expected a list"),
        (["--messages", '[{"role": "user", "content": 7}]'], "expected a list"),
        (["--prompt-file", "latin1.txt"], "not UTF-8 at 2"),
        (["--prompt-file", "absent.txt"], "No such file"),
    ],
)
def test_texts_that_cannot_be_traced(file, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises((So8tError, OSError), match=words):
        run(file, *arguments, "--out", "t.html")
    assert [path.name for path in tmp_path.iterdir()] == ["latin1.txt"]


@pytest.mark.parametrize(("name", "words"), [("absent.gguf", "no such file"), (".", "is a directory")])
def test_models_that_cannot_be_traced(tmp_path, name, words):
    with pytest.raises(CheckpointError, match=words):
        run(tmp_path / name, "--prompt", "x", "--out", tmp_path / "t.html")


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(So8tError):
        run(tmp_path / "x.gguf", "--prompt", "x", "--out", tmp_path / "t.html")
