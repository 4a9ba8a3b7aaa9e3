"""The policy from a file and from flags: what is read, what wins, and what is refused before anything is served."""

import json
import subprocess

import pytest

from .guard_rules import ESCALATION, REFUSAL
from .guard_server import CHAT, SMALL

COMPLETE = {
    "mode": "enforce", "think": "monitor", "on_refuse": "stop", "refusal": "No.", "refusal_in": "refusal",
    "escalation": "Ask a person.", "holdback": 2, "escalation_wait": 120, "debounce": 2,
    "turns": "alone", "system_texts": "context", "refused_turns": "act", "raw_prompts": "last", "request_lora": "allow",
    "heads": {"safety": {"debounce": 3, "thresholds": {"unsafe": 0.8, "disputed": 1}}, "authority": {}},
}  # fmt: skip


@pytest.fixture
def policy_file(tmp_path):
    """Writes a file: ``policy_file(object)``, or bytes as they are."""

    def write(content):
        path = tmp_path / "policy.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


def start(runtime, file, *flags, tool="llama-completion"):
    more = {
        "llama-completion": ["-no-cnv", "-p", "fine", "-n", "1"],
        "llama-cli": ["-st", "-p", "fine", "-n", "1"],
        "llama-server": ["--port", "0"],
    }[tool]
    return subprocess.run(
        [runtime / tool, "-m", file, *SMALL, *more, *map(str, flags)],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip


def error_line(result):
    """The line of the error, which is the end of the tool: Ollama shows lines with this word."""
    assert result.returncode == 1, result.stderr
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert lines, result.stderr
    return "\n".join(lines)


def test_a_file_holds_all_settings(serve, guard_file, policy_file):
    policy = serve(guard_file, "--so8t-policy-file", policy_file(COMPLETE)).get("/so8t")["policy"]
    digest = policy.pop("sha256")
    assert len(digest) == 64 and int(digest, 16) >= 0
    assert policy == {k: v for k, v in COMPLETE.items() if k not in ("debounce", "heads")} | {
        "heads": {
            "safety": {"debounce": 3, "thresholds": {"safe": 0.5, "disputed": 1, "unsafe": 0.8}},
            "authority": {"debounce": 2, "thresholds": {"handle": 0.5, "escalate": 0.6}},
        }
    }


def test_an_empty_file_changes_nothing(serve, guard_file, policy_file):
    bare = serve(guard_file).get("/so8t")["policy"]
    assert serve(guard_file, "--so8t-policy-file", policy_file({})).get("/so8t")["policy"] == bare
    assert (bare["mode"], bare["think"], bare["on_refuse"], bare["holdback"]) == ("monitor", "monitor", "message", 0)
    assert (bare["refusal"], bare["escalation"], bare["escalation_wait"]) == (REFUSAL, ESCALATION, 0)


def test_flags_win_whatever_their_order(serve, guard_file, policy_file):
    file = policy_file(COMPLETE)
    flags = ["--so8t-policy", "enforce", "--so8t-refusal", "Never.", "--so8t-holdback", 0, "--so8t-debounce", 5,
             "--so8t-threshold", "safety/unsafe=0.25,authority/escalate=1e-1",
             "--so8t-threshold", "safety/safe=0"]  # fmt: skip
    first = serve(guard_file, "--so8t-policy-file", file, *flags).get("/so8t")["policy"]
    last = serve(guard_file, *flags, "--so8t-policy-file", file).get("/so8t")["policy"]
    assert first == last
    assert (first["refusal"], first["holdback"], first["escalation"]) == ("Never.", 0, "Ask a person.")
    assert first["heads"]["safety"] == {"debounce": 5, "thresholds": {"safe": 0, "disputed": 1, "unsafe": 0.25}}
    assert first["heads"]["authority"] == {"debounce": 5, "thresholds": {"handle": 0.5, "escalate": 0.1}}


def test_a_holdback_of_auto_is_the_default_and_told_as_a_number(serve, guard_file, policy_file):
    enforce = ("--so8t-policy", "enforce", "--so8t-debounce", 3)
    bare = serve(guard_file, *enforce).get("/so8t")["policy"]
    assert bare["holdback"] == 3
    for flags in (["--so8t-holdback", "auto"], ["--so8t-holdback", 3], ["--so8t-policy-file", policy_file({})]):
        assert serve(guard_file, *enforce, *flags).get("/so8t")["policy"] == bare
    file = policy_file({"holdback": "auto", "mode": "enforce", "debounce": 2})
    assert serve(guard_file, "--so8t-policy-file", file).get("/so8t")["policy"]["holdback"] == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--so8t-holdback", "2", "--so8t-debounce", "8"], "can have sent 6 of the 8 tokens of a run that triggers"),
        (["--so8t-holdback", "0"], "can have sent 1 of the 1 tokens of a run that triggers"),
        (["--so8t-holdback", "8", "--so8t-debounce", "8"], None),
        (["--so8t-debounce", "8"], None),
        (["--so8t-holdback", "0", "--so8t-policy", "monitor"], None),
    ],
)
@pytest.mark.parametrize("tool", ["llama-completion", "llama-server"])
def test_a_holdback_that_is_too_small_is_told_once_at_start(runtime, serve, guard_file, tool, flags, told):
    flags = ["--so8t-policy", "enforce", *flags]
    if tool == "llama-server":
        output = serve(guard_file, *flags).output()
    else:
        result = start(runtime, guard_file, *flags)
        assert result.returncode == 0, result.stderr
        output = result.stderr
    assert output.count("so8t: a stream can have sent") == (told is not None)
    assert told is None or told in output


def test_the_hash_is_that_of_the_settings_and_nothing_else(serve, guard_file, policy_file):
    by_file = serve(guard_file, "--so8t-policy-file", policy_file({"mode": "enforce", "holdback": 1})).get("/so8t")
    by_flag = serve(guard_file, "--so8t-policy", "enforce", "--so8t-holdback", 1).get("/so8t")
    other = serve(guard_file, "--so8t-policy", "enforce", "--so8t-holdback", 2).get("/so8t")
    assert by_file["policy"]["sha256"] == by_flag["policy"]["sha256"] != other["policy"]["sha256"]
    assert CHAT.ask(serve(guard_file, "--so8t-policy", "enforce", "--so8t-holdback", 2), "fine").so8t["policy"] == {
        "mode": "enforce", "sha256": other["policy"]["sha256"],
    }  # fmt: skip


def test_texts_are_taken_as_they_are(serve, guard_file, policy_file):
    text = 'Nein.\n"\u65e5\u672c\u8a9e" \U0001f6d1 \\ {{x}} <|im_end|>'
    server = serve(guard_file, "--so8t-policy-file", policy_file({"mode": "enforce", "refusal": text}))
    assert CHAT.ask(server, "bomb").refusal == text and CHAT.ask_stream(server, "bomb").text == text


def test_a_file_of_a_server_hides_no_refusal_from_the_command_line(runtime, guard_file, policy_file):
    """llama-cli shows the content of an answer, wherever a server tells a refusal."""
    file = policy_file({"mode": "enforce", "refusal_in": "refusal", "refusal": "No."})
    result = start(runtime, guard_file, "--so8t-policy-file", file, "-p", "bomb", tool="llama-cli")
    assert result.returncode == 0 and "No." in result.stdout


MALFORMED = {
    "no JSON": (b"mode: enforce", "is no JSON"),
    "half of it": (b'{"mode": "enforce"', "is no JSON"),
    "nothing": (b"", "is no JSON"),
    "invalid UTF-8": (b'{"refusal": "\xff\xfe"}', "UTF-8"),
    "a list": (b"[]", "expected an object"),
    "null": (b"null", "expected an object"),
    "an unknown key": ({"polcy": "enforce"}, "polcy"),
    "an unknown mode": ({"mode": "strict"}, "off"),
    "a mode that is no text": ({"mode": True}, "enforce"),
    "a think of off": ({"think": "off"}, "think"),
    "an unknown on_refuse": ({"on_refuse": "apologize"}, "on_refuse"),
    "an unknown refusal_in": ({"refusal_in": "header"}, "refusal_in"),
    "an empty refusal": ({"refusal": ""}, "refusal"),
    "a long refusal": ({"refusal": "x" * 4097}, "4096"),
    "a refusal that is a number": ({"refusal": 1}, "refusal"),
    "a negative holdback": ({"holdback": -1}, "holdback"),
    "a fraction of holdback": ({"holdback": 1.5}, "holdback"),
    "a text as holdback": ({"holdback": "2"}, 'holdback: found "2", expected a whole number from 0 to 1000 or "auto"'),
    "a huge holdback": ({"holdback": 10**30}, "holdback"),
    "a large holdback": ({"holdback": 1001}, "holdback"),
    "a holdback past 64 bits": (b'{"holdback": 18446744073709551615}', "holdback"),
    "a debounce of 0": ({"debounce": 0}, "debounce"),
    "a negative wait": ({"escalation_wait": -5}, "escalation_wait"),
    "a long wait": ({"escalation_wait": 86401}, "escalation_wait"),
    "heads as a list": ({"heads": ["safety"]}, "heads"),
    "an unknown head": ({"heads": {"saftey": {"debounce": 1}}}, '"safety", "authority"'),
    "an unknown label": ({"heads": {"safety": {"thresholds": {"unsave": 0.5}}}}, '"safe", "disputed", "unsafe"'),
    "an unknown key of a head": ({"heads": {"safety": {"threshold": {"unsafe": 0.5}}}}, "threshold"),
    "a head that is a number": ({"heads": {"safety": 0.5}}, "heads.safety"),
    "thresholds as a number": ({"heads": {"safety": {"thresholds": 0.5}}}, "thresholds"),
    "a threshold above 1": ({"heads": {"safety": {"thresholds": {"unsafe": 1.01}}}}, "from 0 to 1"),
    "a negative threshold": ({"heads": {"safety": {"thresholds": {"unsafe": -0.1}}}}, "from 0 to 1"),
    "a threshold that is a text": ({"heads": {"safety": {"thresholds": {"unsafe": "0.5"}}}}, "from 0 to 1"),
    "a threshold that is null": ({"heads": {"safety": {"thresholds": {"unsafe": None}}}}, "from 0 to 1"),
    "a threshold that is NaN": (b'{"heads": {"safety": {"thresholds": {"unsafe": NaN}}}}', "is no JSON"),
    "a threshold past doubles": (b'{"heads": {"safety": {"thresholds": {"unsafe": 1e999}}}}', "policy.json"),
    "a debounce of a head that is text": ({"heads": {"safety": {"debounce": "1"}}}, "debounce"),
    "deep nesting": (b'{"heads": ' + b'{"a":' * 100_000, "policy.json"),
    "deep nesting, closed": (b'{"mode": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, "too deep"),
    "a huge file": (b'{"mode": "enforce"}' + b" " * (1 << 20), "1 MiB"),
    "one byte of NUL": (b"\0", "is no JSON"),
}


@pytest.mark.parametrize(("content", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_ends_the_tool(runtime, guard_file, policy_file, content, words):
    line = error_line(start(runtime, guard_file, "--so8t-policy-file", policy_file(content)))
    assert words in line and "so8t policy" in line
    assert len(line) < 2000


@pytest.mark.parametrize("tool", ["llama-completion", "llama-server", "llama-cli"])
def test_every_tool_refuses_it(runtime, guard_file, policy_file, tmp_path, tool):
    bad = policy_file({"heads": {"no": {}}})
    assert '"no"' in error_line(start(runtime, guard_file, "--so8t-policy-file", bad, tool=tool))
    missing = tmp_path / "missing.json"
    assert str(missing) in error_line(start(runtime, guard_file, "--so8t-policy-file", missing, tool=tool))
    directory = error_line(start(runtime, guard_file, "--so8t-policy-file", tmp_path, tool=tool))
    assert str(tmp_path) in directory


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--so8t-policy", "strict"], "off"),
        (["--so8t-policy", ""], "off"),
        (["--so8t-think", "off"], "think"),
        (["--so8t-on-refuse", "text"], "on_refuse"),
        (["--so8t-holdback", "-1"], "holdback"),
        (["--so8t-holdback", "two"], "so8t-holdback"),
        (["--so8t-debounce", "0"], "debounce"),
        (["--so8t-refusal", ""], "refusal"),
        (["--so8t-escalation", "x" * 5000], "4096"),
        (["--so8t-threshold", "safety/unsafe"], "HEAD/LABEL=VALUE"),
        (["--so8t-threshold", "unsafe=0.5"], "HEAD/LABEL=VALUE"),
        (["--so8t-threshold", "safety/unsafe=high"], "HEAD/LABEL=VALUE"),
        (["--so8t-threshold", "safety/unsafe=0.5x"], "HEAD/LABEL=VALUE"),
        (["--so8t-threshold", "safety/unsafe="], "HEAD/LABEL=VALUE"),
        (["--so8t-threshold", "=safety/unsafe"], "HEAD/LABEL=VALUE"),
        (["--so8t-threshold", ""], "HEAD/LABEL=VALUE"),
        (["--so8t-threshold", "safety/unsafe=0.5,"], "HEAD/LABEL=VALUE"),
        (["--so8t-threshold", "safety/unsafe=0.5,,safety/safe=1"], "HEAD/LABEL=VALUE"),
        (["--so8t-threshold", "safety/unsafe=1.5"], "from 0 to 1"),
        (["--so8t-threshold", "safety/unsafe=nan"], "from 0 to 1"),
        (["--so8t-threshold", "safety/unsafe=-inf"], "from 0 to 1"),
        (["--so8t-threshold", "safety/unsave=0.5"], '"unsafe"'),
        (["--so8t-threshold", "saftey/unsafe=0.5"], '"safety"'),
    ],
)
def test_a_malformed_flag_ends_the_tool(runtime, guard_file, flags, words):
    assert words in error_line(start(runtime, guard_file, *flags))


def test_a_head_that_is_never_asked_is_in_no_verdict(serve, guard_file, policy_file):
    """Thresholds of 1 and labels nobody reaches: nothing triggers, everything is reported."""
    heads = {"safety": {"thresholds": {"unsafe": 1, "disputed": 1}}, "authority": {"thresholds": {"escalate": 1}}}
    server = serve(guard_file, "--so8t-policy-file", policy_file({"mode": "enforce", "heads": heads}))
    answer = CHAT.ask(server, "go")
    assert answer.text == "one two bad three four" and answer.so8t["decision"] == "allow"
    assert answer.so8t["answer"]["heads"]["safety"]["peak"]["unsafe"] == pytest.approx(0.97, abs=2e-6)


def test_a_threshold_of_zero_refuses_everything(serve, guard_file):
    server = serve(guard_file, "--so8t-policy", "enforce", "--so8t-threshold", "safety/unsafe=0")
    assert CHAT.ask(server, "fine").text == REFUSAL


def test_a_threshold_is_reached_by_the_very_probability(serve, guard_file):
    """At or above it: 0.9 of the file against "unsafe" of 0.9 and a little less."""
    for threshold, refused in ((0.95, True), (0.9999, False)):
        server = serve(guard_file, "--so8t-policy", "enforce", "--so8t-threshold", f"safety/unsafe={threshold}")
        assert (CHAT.ask(server, "both").finish == "content_filter") == refused
