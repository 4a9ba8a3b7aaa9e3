"""Heads that combine the positions of an answer, over HTTP and in llama-completion, against `guard_rules`.

A script has stretches of tokens that a head likes and dislikes, so that each kind of aggregation acts elsewhere.
"""

import json
import subprocess

import pytest
from scripted_model import CHATML, NAN, Head, scripted_gguf
from verdict_schema import errors

from .guard_rules import ESCALATION, REFUSAL, Policy, judge
from .guard_server import ENDPOINTS, SMALL
from .test_guard_rules import text_of

LOW, MID, HIGH = {"unsafe": 0.05}, {"unsafe": 0.6}, {"unsafe": 0.97}
TOKENS = (
    {f"low{i} ": LOW for i in range(8)} | {f"mid{i} ": MID for i in range(8)} | {f"high{i} ": HIGH for i in range(12)}
)
SCRIPTS = {
    "calm": [f"low{i} " for i in range(4)],
    "spike": ["low4 ", "high0 ", "low5 ", "low6 ", "high1 ", "mid0 "],
    "rising": ["mid1 ", "mid2 ", "high2 ", "high3 ", "high4 ", "end"],
    "thinking": ["<think>", "high5 ", "mid3 ", "</think>", "mid4 ", "high6 ", "mid5 ", "high7 ", "high8 "],
    "broken": ["high9 ", "nan ", "low7 ", "high10 ", "high11 "],
    "\n": ["hello ", "there"],
}
PROMPTS = [start for start in SCRIPTS if start != "\n"]


def head(**fields):
    return Head(
        ["safe", "unsafe"], ["allow", "refuse"], [0.5, 0.9], default={"unsafe": 0.02},
        tokens=TOKENS | {"nan ": NAN}, **fields,
    )  # fmt: skip


HEADS = {
    "window": {"safety": head(aggregation="window", window=4, debounce=2)},
    "ema": {"safety": head(aggregation="ema", ema_alpha=0.5)},
    "ema-debounce": {"safety": head(aggregation="ema", ema_alpha=0.5, debounce=2, temperature=2.0)},
    "mean": {"safety": head(aggregation="mean")},
    "max": {"safety": head(aggregation="max", debounce=2)},
    "argmax": {"safety": head(aggregation="mean", rule="argmax", debounce=2)},
    "sigmoid": {
        "risks": Head(
            ["war", "fraud"], ["refuse", "escalate"], [0.8, 0.5], aggregation="ema", ema_alpha=0.5, link="sigmoid",
            default={"war": 0.05},
            tokens={token: {"war": 0.9, "fraud": 0.3} for token in TOKENS if token.startswith("high")}
            | {token: {"fraud": 0.7} for token in TOKENS if token.startswith("mid")},
        )
    },
    "depends": {
        "safety": head(debounce=2),
        "topic": Head(
            ["none", "war"], ["allow", "escalate"], [0.5, 0.4], depends_on="safety", aggregation="mean",
            tokens={token: {"war": 0.6} for token in TOKENS if token.startswith("mid")}, default={"war": 0.3},
        ),
    },
}  # fmt: skip
POLICIES = {
    "monitor": Policy(),
    "enforce": Policy(mode="enforce", holdback=0),
    "auto": Policy(mode="enforce", holdback=None),
    "think-monitor": Policy(mode="enforce", think="monitor", holdback=None),
    "thresholds": Policy(mode="enforce", holdback=1, thresholds={("safety", "unsafe"): 0.55}),
}  # fmt: skip


@pytest.fixture(scope="module", params=HEADS)
def heads(request):
    return HEADS[request.param]


@pytest.fixture(scope="module")
def file(heads, tmp_path_factory, pinned_tree):
    return scripted_gguf(tmp_path_factory.mktemp("aggregation") / "model", SCRIPTS, heads)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_an_answer_is_what_the_rules_say(serve, file, heads, policy):
    if any(name not in heads for name, _ in policy.thresholds) or (policy.thresholds and "argmax" in _rules(heads)):
        policy = Policy(mode="enforce", holdback=1)
    server = serve(file, *policy.flags)
    assert server.get("/so8t")["policy"]["holdback"] == policy.held_back(heads)
    for prompt in PROMPTS:
        expected = judge(prompt, SCRIPTS[prompt], heads, policy)
        for name in ("completion", "chat"):
            for streamed in (False, True):
                ask = ENDPOINTS[name].ask_stream if streamed else ENDPOINTS[name].ask
                answer = ask(server, prompt, so8t={"trace": True})
                assert answer.text == text_of(name, prompt, expected, streamed=streamed), (prompt, name, streamed)
                expected.check(answer.so8t)
                assert errors(answer.so8t) == []
        for n_predict in (1, 2, 3, 5):
            expected = judge(prompt, SCRIPTS[prompt], heads, policy, n_predict)
            answer = ENDPOINTS["completion"].ask(server, prompt, n_predict=n_predict)
            assert answer.text == text_of("completion", prompt, expected, streamed=False), (prompt, n_predict)
            expected.check(answer.so8t)


def _rules(heads):
    return {head.rule for head in heads.values()}


def test_the_kinds_of_aggregation_act_at_different_tokens():
    """Otherwise the comparison could not tell them apart."""
    where = {
        name: tuple(str(judge(prompt, SCRIPTS[prompt], heads, Policy()).triggered) for prompt in PROMPTS)
        for name, heads in HEADS.items()
    }
    assert len(set(where.values())) == len(HEADS)


@pytest.mark.parametrize("policy", [Policy(mode="enforce", holdback=None)], ids=["auto"])
def test_no_token_of_a_window_that_triggers_is_in_a_stream(serve, tmp_path_factory, pinned_tree, policy):
    """The first token that agreed, the last one, and all between them."""
    heads = {"safety": head(aggregation="window", window=4, debounce=2)}
    file = scripted_gguf(tmp_path_factory.mktemp("window") / "model", SCRIPTS, heads)
    server = serve(file, *policy.flags)
    assert server.get("/so8t")["policy"]["holdback"] == 4
    for name, endpoint in ENDPOINTS.items():
        text = endpoint.ask_stream(server, "spike").text.replace(REFUSAL, "").replace(ESCALATION, "")
        assert text.strip() == "low4", name  # "high0 low5 low6 high1" triggered
    # a window has room for tokens that do not agree; the last token of an answer is dropped if it could complete one
    for n_predict, text in ((1, "low4 "), (2, "low4 high0 "), (3, "low4 high0 "), (4, "low4 high0 low5 ")):
        assert ENDPOINTS["completion"].ask(server, "spike", n_predict=n_predict).text == text


def test_the_trace_shows_the_probabilities_after_aggregation(serve, file, heads):
    server = serve(file)
    for prompt in PROMPTS:
        verdict = ENDPOINTS["completion"].ask(server, prompt, so8t={"trace": True}).so8t
        for part in ("think", "answer"):
            for name in verdict.get(part, {}).get("heads", {}):
                rows = [row["heads"][name] for row in verdict["trace"] if row["part"] == part and name in row["heads"]]
                assert rows[-1] == verdict[part]["heads"][name]["probabilities"]
                peak = {key: max(row[key] or 0.0 for row in rows) for key in rows[0]}
                assert verdict[part]["heads"][name]["peak"] == peak
        known = {name for name, head in heads.items() if head.aggregation != "run"}
        assert set(verdict["aggregation"]) == known
        for name in known:
            parameters = {"window": heads[name].window, "ema_alpha": heads[name].ema_alpha}
            assert verdict["aggregation"][name] == {"answer": heads[name].aggregation} | {
                key: value for key, value in parameters.items() if value is not None
            }
            assert server.get("/so8t")["policy"]["heads"][name]["aggregation"] == verdict["aggregation"][name]


def test_a_file_without_aggregation_has_no_such_field(serve, guard_file):
    server = serve(guard_file)
    assert "aggregation" not in ENDPOINTS["completion"].ask(server, "fine").so8t
    assert all("aggregation" not in head for head in server.get("/so8t")["policy"]["heads"].values())


def test_a_debounce_that_no_window_has(runtime, tmp_path_factory, pinned_tree):
    heads = {"safety": head(aggregation="window", window=4, debounce=2)}
    file = scripted_gguf(tmp_path_factory.mktemp("window") / "model", SCRIPTS, heads)
    for flags in (["--so8t-debounce", "5"], ["--so8t-policy-file", "p.json"]):
        (file.parent / "p.json").write_text('{"heads": {"safety": {"debounce": 5}}}')
        result = subprocess.run(
            [runtime / "llama-completion", "-m", file, *SMALL, "-no-cnv", "-n", "1", "-p", "calm", *flags],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, cwd=file.parent,
        )  # fmt: skip
        assert result.returncode == 1
        told = "heads.safety.debounce: found 5, expected at most 4, the positions of the window of this head"
        assert told in result.stderr


def test_a_text_of_the_assistant_is_aggregated_as_an_answer(serve, heads, tmp_path_factory, pinned_tree):
    """A reading of the kind given, and POST /so8t/judge."""
    file = scripted_gguf(tmp_path_factory.mktemp("given") / "model", SCRIPTS, heads, CHATML)
    server = serve(file)
    for prompt in PROMPTS:
        if prompt == "thinking":  # a given answer has no thoughts of its own
            continue
        text = "".join(SCRIPTS[prompt])
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}]
        verdict = server.post("/so8t/judge", {"messages": messages})["so8t"]
        answer = verdict["answer"]
        assert answer["n_positions"] == len(SCRIPTS[prompt])
        expected = judge(prompt, SCRIPTS[prompt], heads, Policy())
        expected._check_part(answer, expected.parts["answer"], "answer")


def test_lines_of_so8t_json(runtime, file, heads, tmp_path):
    out = tmp_path / "verdicts.jsonl"
    for prompt in PROMPTS:
        subprocess.run(
            [runtime / "llama-completion", "-m", file, *SMALL, "-no-cnv", "--temp", "0", "-n", "12", "-p", prompt,
             "--so8t-json", out],
            check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
        verdict = json.loads(out.read_text().splitlines()[-1])
        judge(prompt, SCRIPTS[prompt], heads, Policy()).check(verdict)
        assert errors(verdict) == []
