"""Heads that act by another rule than thresholds, that were never fitted, or that a model does not have."""

import pytest
from scripted_model import Head, scripted_gguf
from tiny_models import make_base

from llama_so8t import cli

from .guard_rules import REFUSAL, Policy, judge
from .guard_server import CHAT, COMPLETION, HEADS, SCRIPTS
from .test_guard_policy import error_line, start

RISK = Head(
    ["Safe", "Unsafe", "Controversial"], ["allow", "refuse", "escalate"], [0.5, 0.0, 0.5], rule="argmax", debounce=2,
    tokens={
        "few ": {"Unsafe": 0.4}, "more ": {"Unsafe": 0.36, "Safe": 0.33}, "rare ": {"Unsafe": 0.4},
        "grey ": {"Controversial": 0.4}, "even ": {"Safe": 0.4, "Unsafe": 0.4},
        "last ": {"Safe": 0.2, "Unsafe": 0.4, "Controversial": 0.4}, "both ": {"Safe": 0.4, "Unsafe": 0.4},
        "less ": {"Safe": 0.36, "Unsafe": 0.35}, "bomb": {"Unsafe": 0.34, "Safe": 0.33}, "grey": {"Controversial": 0.4},
    },
)  # fmt: skip
BY_ARGMAX = {"risk": RISK, "authority": HEADS["authority"]}
CHAINS = {
    "go": ["one ", "few ", "more ", "two "],
    "turns": ["rare ", "grey ", "even ", "last "],
    "calm": ["both ", "less "],
    "bomb": ["sure ", "thing"],
    "grey": ["fog"],
}


@pytest.fixture(scope="module")
def argmax_file(tmp_path_factory, pinned_tree):
    return scripted_gguf(tmp_path_factory.mktemp("argmax") / "model", CHAINS, BY_ARGMAX)


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETION], ids=["chat", "completion"])
@pytest.mark.parametrize("prompt", CHAINS)
@pytest.mark.parametrize("policy", [Policy(), Policy(mode="enforce", holdback=2), Policy(mode="enforce", debounce=1)])
def test_the_largest_label_acts_whatever_its_threshold(serve, argmax_file, endpoint, prompt, policy):
    server = serve(argmax_file, *policy.flags)
    expected = judge(prompt, CHAINS[prompt], BY_ARGMAX, policy)
    for answer in (endpoint.ask(server, prompt), endpoint.ask_stream(server, prompt)):
        expected.check(answer.so8t)
        assert answer.so8t["thresholds"] == {
            "risk": dict.fromkeys(RISK.labels), "authority": {"handle": 0.5, "escalate": 0.6},
        }  # fmt: skip


def test_the_cases_refuse_escalate_and_allow():
    decisions = {prompt: judge(prompt, CHAINS[prompt], BY_ARGMAX, Policy()).decision for prompt in CHAINS}
    assert decisions == {"go": "refuse", "turns": "allow", "calm": "allow", "bomb": "refuse", "grey": "escalate"}


def test_annotations_and_moderations_detect_by_the_rule(serve, argmax_file):
    server = serve(argmax_file)
    found = CHAT.ask(server, "go", so8t={"annotations": True}).raw["choices"][0]["content_filter_results"]
    assert {name: result["detected"] for name, result in found.items()} == {
        "risk/Unsafe": True, "risk/Controversial": False, "authority/escalate": False,
    }  # fmt: skip
    categories = {
        text: {name: value for name, value in result["categories"].items() if name.startswith(("risk/", "authority/"))}
        for text in ("bomb", "grey", "calm")
        for result in server.post("/v1/moderations", {"input": text})["results"]
    }
    assert categories == {
        "bomb": {"risk/Unsafe": True, "risk/Controversial": False, "authority/escalate": False},
        "grey": {"risk/Unsafe": False, "risk/Controversial": True, "authority/escalate": False},
        "calm": {"risk/Unsafe": False, "risk/Controversial": False, "authority/escalate": False},
    }


def test_the_rule_is_told(serve, argmax_file):
    server = serve(argmax_file)
    info = server.get("/so8t")
    for heads in (info["heads"], server.get("/props")["so8t"]["heads"]):
        assert (heads["risk"]["rule"], heads["authority"]["rule"]) == ("argmax", "threshold")
        assert heads["risk"]["thresholds"] == dict.fromkeys(RISK.labels) and heads["risk"]["fitted"] is True
    assert info["policy"]["heads"] == {
        "risk": {"debounce": 2}, "authority": {"debounce": 1, "thresholds": {"handle": 0.5, "escalate": 0.6}},
    }  # fmt: skip


def test_a_threshold_for_a_head_by_argmax_is_an_error_that_says_so(runtime, argmax_file, tmp_path):
    line = error_line(start(runtime, argmax_file, "--so8t-threshold", "risk/Unsafe=0.8"))
    assert "heads.risk.thresholds" in line and "rule argmax" in line
    policy = tmp_path / "policy.json"
    policy.write_text('{"heads": {"risk": {"debounce": 3, "thresholds": {"Safe": 0}}}}')
    assert "rule argmax" in error_line(start(runtime, argmax_file, "--so8t-policy-file", policy))
    policy.write_text('{"heads": {"risk": {"debounce": 3}, "authority": {"thresholds": {"escalate": 0.9}}}}')
    assert start(runtime, argmax_file, "--so8t-policy-file", policy).returncode == 0


# ---- never fitted ----

UNFITTED = "heads safety, authority have weights of zeros: they were never fitted and do not act"
UNFITTED_HEAD = Head(["unsafe", "safe"], ["refuse", "allow"], [0.5, 0.5], debounce=5, fitted=False)
TOOLS = ("llama-completion", "llama-cli", "llama-server")


@pytest.fixture(scope="module")
def from_init(tmp_path_factory, pinned_tree):
    """What the commands of the README make of a base, in their order."""
    directory = tmp_path_factory.mktemp("init")
    make_base(directory / "base", "llama")
    assert cli.main(["init", "--base", str(directory / "base"), "--out", str(directory / "model")]) == 0
    assert cli.main(["convert", str(directory / "model"), "--outtype", "f32"]) == 0
    return directory / "model" / "model-so8t-f32.gguf"


@pytest.mark.parametrize("tool", ["llama-completion", "llama-cli"])
def test_a_model_of_so8t_init_answers(runtime, from_init, tool):
    result = start(runtime, from_init, "--so8t-policy", "enforce", "-p", "What is the capital of France?", tool=tool)
    assert result.returncode == 0, result.stderr
    assert REFUSAL not in result.stdout
    assert "so8t prompt: safety safe 0.50, authority handle 0.50 -> allow" in result.stderr
    assert "so8t enforced" not in result.stderr
    warning = "warning: so8t: the policy is enforce, but the model has no head that was fitted, so nothing is enforced"
    assert result.stderr.count(warning) == 1


def test_a_server_says_that_heads_were_never_fitted(serve, from_init):
    server = serve(from_init, "--so8t-policy", "enforce")
    assert [head["fitted"] for head in server.get("/so8t")["heads"].values()] == [False, False]
    assert [head["fitted"] for head in server.get("/props")["so8t"]["heads"].values()] == [False, False]
    answer = CHAT.ask(server, "What is the capital of France?", max_tokens=4)
    assert (answer.so8t["decision"], answer.so8t["enforced"], answer.so8t["triggered"]) == ("allow", "none", None)
    result = server.post("/v1/moderations", {"input": "What is the capital of France?"})["results"][0]
    assert not result["flagged"] and set(result["categories"].values()) == {False}
    assert server.output().count(UNFITTED) == 1


@pytest.fixture(scope="module")
def half_file(tmp_path_factory, pinned_tree):
    """Safety was never fitted, authority was."""
    heads = {"safety": UNFITTED_HEAD, "authority": HEADS["authority"]}
    return scripted_gguf(tmp_path_factory.mktemp("half") / "model", SCRIPTS, heads)


def test_no_token_waits_for_a_head_that_was_never_fitted(serve, half_file):
    info = serve(half_file, "--so8t-policy", "enforce", "--so8t-holdback", "auto").get("/so8t")["policy"]
    assert info["holdback"] == HEADS["authority"].debounce and info["holdback"] < UNFITTED_HEAD.debounce


def test_fitted_heads_act_beside_one_that_was_never_fitted(serve, half_file, runtime):
    server = serve(half_file, "--so8t-policy", "enforce", "--so8t-require-heads")
    heads = {"safety": UNFITTED_HEAD, "authority": HEADS["authority"]}
    for prompt in ("go", "ask", "bomb"):
        judge(prompt, SCRIPTS[prompt], heads, Policy(mode="enforce")).check(CHAT.ask(server, prompt).so8t)
    assert server.output().count("head safety has weights of zeros: it was never fitted and does not act") == 1
    assert "nothing is enforced" not in server.output()
    said = start(runtime, half_file, tool="llama-cli").stderr
    assert said.count("warning: so8t: 1 of the 2 heads of the model were never fitted and do not act") == 1


# ---- no head that judges ----


@pytest.fixture(scope="module")
def without_heads(tmp_path_factory, pinned_tree):
    return scripted_gguf(tmp_path_factory.mktemp("bare") / "model", SCRIPTS, {})


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("kind", "words"), [("without_heads", "has no heads"), ("from_init", "has no head that was fitted")]
)
def test_required_heads_that_are_missing_are_an_error(runtime, request, tool, kind, words, monkeypatch):
    file = request.getfixturevalue(kind)
    for flags in (["--so8t-require-heads"], ["--so8t-require-heads", "--so8t-policy", "off"]):
        line = error_line(start(runtime, file, *flags, tool=tool))
        assert "--so8t-require-heads" in line and words in line
    monkeypatch.setenv("LLAMA_ARG_SO8T_REQUIRE_HEADS", "1")
    assert words in error_line(start(runtime, file, tool=tool))


@pytest.mark.parametrize("tool", ["llama-completion", "llama-cli"])
def test_enforce_without_heads_is_one_line(runtime, without_heads, guard_file, tool, tmp_path):
    warning = "warning: so8t: the policy is enforce, but the model has no heads, so nothing is enforced"
    policy = tmp_path / "policy.json"
    policy.write_text('{"mode": "enforce"}')
    for flags in (["--so8t-policy", "enforce"], ["--so8t-policy-file", policy]):
        result = start(runtime, without_heads, *flags, tool=tool)
        assert (result.returncode, result.stderr.count(warning)) == (0, 1), result.stderr
    for flags in ([], ["--so8t-policy-file", policy, "--so8t-policy", "monitor"]):
        assert "so8t" not in start(runtime, without_heads, *flags, tool=tool).stderr
    assert "warning: so8t" not in start(runtime, guard_file, "--so8t-policy", "enforce", tool=tool).stderr
    assert start(runtime, guard_file, "--so8t-require-heads", tool=tool).returncode == 0
