"""Errors that end llama-server at its start, with settings in the environment, as Ollama and containers give them.

Ollama shows its users only those lines of the log that have certain words.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from gguf_files import copy_gguf
from scripted_model import Head, scripted_gguf

from .guard_server import SMALL

SHOWN = re.compile(r"error:|Error:|error loading model")
"""Words of a line that Ollama 0.33 shows (its llm/status.go); files that cannot be loaded have llama.cpp's own."""

WRONG = {
    "LLAMA_ARG_SO8T_POLICY": "strict",
    "LLAMA_ARG_SO8T_THINK": "off",
    "LLAMA_ARG_SO8T_ON_REFUSE": "apologize",
    "LLAMA_ARG_SO8T_REFUSAL": "x" * 5000,
    "LLAMA_ARG_SO8T_ESCALATION": "x" * 5000,
    "LLAMA_ARG_SO8T_DEBOUNCE": "0",
    "LLAMA_ARG_SO8T_HOLDBACK": "two",
    "LLAMA_ARG_SO8T_ESCALATION_WAIT": "-1",
    "LLAMA_ARG_SO8T_ESCALATION_GRACE": "soon",
    "LLAMA_ARG_SO8T_ESCALATION_PING": "-1",
    "LLAMA_ARG_SO8T_SERVER_ID": "a.b",
    "LLAMA_ARG_SO8T_REVIEWERS": "missing",
    "LLAMA_ARG_SO8T_WEBHOOK": "http://localhost:1",
    "LLAMA_ARG_SO8T_WEBHOOK_KEY": "missing",
    "LLAMA_ARG_SO8T_REFUSAL_IN": "header",
    "LLAMA_ARG_SO8T_TURNS": "some",
    "LLAMA_ARG_SO8T_REFUSED_TURNS": "forget",
    "LLAMA_ARG_SO8T_RAW_PROMPTS": "first",
    "LLAMA_ARG_SO8T_SYSTEM_TEXTS": "never",
    "LLAMA_ARG_SO8T_REQUEST_LORA": "maybe",
    "LLAMA_ARG_SO8T_THRESHOLD": "safety/unsafe",
    "LLAMA_ARG_SO8T_POLICY_FILE": "missing.json",
    "LLAMA_ARG_SO8T_REQUIRE_HEADS": "yes",
    "LLAMA_ARG_SO8T_HEADS": "missing.gguf",
    "LLAMA_ARG_SO8T_AUDIT": "{modle}.jsonl",
    "LLAMA_ARG_SO8T_AUDIT_TEXT": "yes",
    "LLAMA_ARG_SO8T_AUDIT_KEY": "{pid}.key",
    "LLAMA_ARG_SO8T_AUDIT_MAX_SIZE": "1X",
    "LLAMA_ARG_SO8T_AUDIT_CHECKPOINT": "{pid}/note",
    "LLAMA_ARG_SO8T_AUDIT_ON_ERROR": "ignore",
    "LLAMA_ARG_SO8T_GATEWAY": "litellm,kong",
    "LLAMA_ARG_SO8T_OTLP": "localhost:4318",
}
"""Variable -> a value that it cannot have."""
FLAGS = ("LLAMA_ARG_SO8T_REQUIRE_HEADS", "LLAMA_ARG_SO8T_AUDIT_TEXT")
"""Flags without a value: llama.cpp itself reads what config.ini says of them, and knows no wrong value."""


def start(runtime: Path, directory: Path, file: Path | None, flags=(), **variables: str) -> subprocess.CompletedProcess:
    """llama-server as Ollama starts it: flags of Ollama, settings of ours in the environment."""
    model = ("--model", file) if file else ()
    return subprocess.run(
        [runtime / "llama-server", *model, *SMALL, "--port", "0", "--no-webui", "--log-verbosity", "4",
         "--no-log-prefix", "--no-log-timestamps", *map(str, flags)],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=60, cwd=directory,
        env=os.environ | variables,
    )  # fmt: skip


def shown(result: subprocess.CompletedProcess) -> str:
    """The lines of an error that Ollama shows."""
    assert result.returncode == 1, result.stderr
    lines = [line for line in (result.stdout + result.stderr).splitlines() if SHOWN.search(line)]
    assert lines, result.stderr
    return "\n".join(lines)


def test_each_variable_of_the_help_is_in_the_table(runtime):
    text = subprocess.run([runtime / "llama-server", "--help"], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"\(env:\s+(LLAMA_ARG_SO8T_\w+)\)", text)) == set(WRONG)


@pytest.mark.parametrize("variable", WRONG)
def test_a_wrong_value_of_a_variable_is_shown(runtime, guard_file, tmp_path, variable):
    lines = shown(start(runtime, tmp_path, guard_file, **{variable: WRONG[variable]}))
    assert "error:" in lines and (variable in lines or WRONG[variable] in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variable", [name for name in WRONG if name not in FLAGS])
def test_a_wrong_value_of_the_users_configuration_is_shown(runtime, guard_file, tmp_path, variable):
    """config.ini is the third way that llama.cpp takes options; its keys are the flags."""
    (tmp_path / "llama.cpp").mkdir()
    flag = variable.removeprefix("LLAMA_ARG_").lower().replace("_", "-")
    (tmp_path / "llama.cpp" / "config.ini").write_text(f"{flag} = {WRONG[variable]}\n")
    assert "error:" in shown(start(runtime, tmp_path, guard_file, XDG_CONFIG_HOME=str(tmp_path)))


def test_a_wrong_flag_is_shown(runtime, guard_file, tmp_path):
    for flags in (["--so8t-policy", "strict"], ["--so8t-policy"], ["--so8t-audit", "a{b}.jsonl"], ["--so8t-no-such"]):
        assert flags[0] in shown(start(runtime, tmp_path, guard_file, flags))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"POLICY_FILE": "policy.json"}, '"saftey"'),
        ({"THRESHOLD": "saftey/unsafe=0.5"}, '"saftey"'),
        ({"AUDIT": "missing/audit.jsonl"}, "missing/audit.jsonl"),
        ({"AUDIT": "."}, "Is a directory"),
        ({"AUDIT": "link.jsonl"}, "symbolic link"),
        ({"AUDIT": "damaged.jsonl"}, "last line"),
        ({"AUDIT": "log.jsonl", "AUDIT_KEY": "damaged.jsonl"}, "64 hex digits"),
        ({"AUDIT": "log.jsonl", "AUDIT_KEY": "log.jsonl"}, "three names"),
        ({"AUDIT": "log.jsonl", "AUDIT_CHECKPOINT": "damaged.jsonl"}, "checkpoint"),
        ({"AUDIT": "{model}.jsonl", "AUDIT_CHECKPOINT": "note"}, "put {model} into its name"),
        ({"AUDIT": "audit-{model}"}, "expected an ending behind it, as in 'audit-{model}.jsonl'"),
    ],
)
def test_what_does_not_fit_the_model_or_the_disk_is_shown(runtime, guard_file, tmp_path, settings, words):
    (tmp_path / "policy.json").write_text('{"heads": {"saftey": {"debounce": 1}}}')
    (tmp_path / "damaged.jsonl").write_text("hello\n")
    (tmp_path / "link.jsonl").symlink_to("elsewhere.jsonl")
    variables = {f"LLAMA_ARG_SO8T_{name}": value for name, value in settings.items()}
    lines = shown(start(runtime, tmp_path, guard_file, **variables))
    assert "error:" in lines and words in lines


def test_heads_that_are_required_are_shown(runtime, tmp_path):
    head = Head(["safe", "unsafe"], ["allow", "refuse"], [0.5, 0.9], fitted=False)
    file = scripted_gguf(tmp_path / "model", {"go": ["one "]}, {"safety": head})
    lines = shown(start(runtime, tmp_path, file, LLAMA_ARG_SO8T_REQUIRE_HEADS="1"))
    assert "error: --so8t-require-heads: the model has no head that was fitted" in lines


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"so8t.head.safety.temperature": -1.0}, "so8t.head.safety.temperature"),
        ({"so8t.head.safety.debounce": 0}, "so8t.head.safety.debounce"),
        ({"so8t.format_version": 99}, "so8t.format_version"),
        ({"so8t.heads": ["safety", "missing"]}, "missing"),
    ],
)
def test_a_spoiled_head_is_shown(runtime, guard_file, tmp_path, keys, words):
    file = copy_gguf(guard_file, tmp_path / "model.gguf", keys=keys)
    assert words in shown(start(runtime, tmp_path, file))


@pytest.mark.parametrize("content", [b"", b"hello", None], ids=["empty", "no GGUF", "missing"])
def test_a_file_that_cannot_be_read_is_shown(runtime, tmp_path, content):
    file = tmp_path / "model.gguf"
    if content is not None:
        file.write_bytes(content)
    assert str(file) in (result := start(runtime, tmp_path, file)).stderr and shown(result)
