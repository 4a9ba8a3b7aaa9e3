"""The rule of docs/conventions.md, "Verdicts", exists in C++, in `so8t trace` and in the page: one table holds for all.

`golden/verdict_rule.json`: a case has heads, and at each position of one part the probabilities of their labels (null:
values that are not finite). Where it has logits, too, these are the probabilities after aggregation. It expects

- positions: of every head that is asked the acting labels that reach their thresholds, or by the rule argmax are the
  largest (null: not finite), and the strongest action with the head and the label that asked for it (null: not finite);
- decision: the first position with the strongest action of all;
- triggered: where the first label of a head triggered, null for none; heads that are out of scope are left out.

The independent oracle of the tests over HTTP agrees with the table. C++ is checked by ctest (`so8t-rules`), the page by
`ui/test_ui.py`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import scipy.special
from scripted_model import NAN, Head

from llama_so8t.format import AGGREGATIONS, RULES, HeadSpec
from llama_so8t.tracing.rule import Span, acting, reached, triggers
from llama_so8t.tracing.trace import _judged
from tests.native.guard_rules import Part, Policy, Reading, _read

CASES = json.loads((Path(__file__).parent / "golden/verdict_rule.json").read_text())["cases"]
RANK = ("allow", "escalate", "refuse")
SCOPE = {"prompt": "prompt", "think": "answer", "answer": "answer"}


@pytest.fixture(params=CASES, ids=[case["name"] for case in CASES])
def case(request):
    return request.param


def test_the_table_has_every_way_to_act():
    rows = [row for case in CASES for row in case["expected"]["positions"]]
    assert {(row["action"], row["label"] is None) for row in rows} == {
        ("allow", True), ("escalate", False), ("refuse", False), ("refuse", True),
    }  # fmt: skip
    assert {case["part"] for case in CASES} == {"prompt", "think", "answer"}
    assert {head.get("aggregation", "run") for case in CASES for head in case["heads"].values()} == set(AGGREGATIONS)
    assert {head.get("rule", "threshold") for case in CASES for head in case["heads"].values()} == set(RULES)
    assert {head["scope"] for case in CASES for head in case["heads"].values()} == {"both", "prompt", "answer"}


def rows_of(case, name):
    """Values of a head, ``(n, labels)``, NaN where they are not finite: its logits, or what its link makes of these."""
    n = len(case["heads"][name]["labels"])
    rows = [row[name] or [np.nan] * n for row in case.get("logits", case["positions"])]
    return np.array(rows, dtype=float)


def test_aggregated_probabilities_are_those_of_other_programs(case):
    """scipy's filter of first order, numpy's cumulative sum, and the maximum of what came before."""
    for name, head in case["heads"].items():
        if "logits" not in case:
            continue
        link = scipy.special.expit if head.get("link") == "sigmoid" else lambda x: scipy.special.softmax(x, axis=-1)
        rows, temperature = rows_of(case, name), head.get("temperature", 1.0)
        for piece in np.split(np.arange(len(rows)), np.flatnonzero(np.isnan(rows).any(-1))):
            piece = [i for i in piece if not np.isnan(rows[i]).any()]
            if not piece:
                continue
            x = rows[piece]
            if head.get("aggregation") == "ema":
                alpha = head["ema_alpha"]
                x, _ = scipy.signal.lfilter([alpha], [1, alpha - 1], x, axis=0, zi=(1 - alpha) * x[:1])
            elif head.get("aggregation") == "mean":
                x = np.cumsum(x, axis=0) / np.arange(1, len(x) + 1)[:, None]
            p = link(x / temperature)
            if head.get("aggregation") == "max":
                p = [p[: i + 1].max(0) for i in range(len(p))]
            assert np.allclose(p, [case["positions"][i][name] for i in piece], atol=1e-6)


def head_of(name, given, case):
    """The head as a script of tokens 0, 1, ... would have it."""
    tokens = {}
    for i, row in enumerate(rows_of(case, name)):
        if "logits" in case:
            p = np.exp(row / given.get("temperature", 1.0))
            row = p / (1 + p if given.get("link") == "sigmoid" else p.sum())
        tokens[str(i)] = NAN if np.isnan(row).any() else dict(zip(given["labels"], map(float, row), strict=True))
    return Head(**given, tokens=tokens)


def test_the_oracle(case):
    heads = {name: head_of(name, head, case) for name, head in case["heads"].items()}
    part, decision = Part(), None
    for i, expected in enumerate(case["expected"]["positions"]):
        found = _read(part, str(i), heads, Policy(), case["part"])
        label = None if found.label == "not finite" else found.label or None
        said = {"action": found.action, "head": found.head or None, "label": label}
        assert {key: expected[key] for key in said} == said, i
        for name in expected["reached"]:
            known = case["positions"][i][name] or [None] * len(heads[name].labels)
            if heads[name].fitted:
                assert list(part.heads[name].probabilities.values()) == pytest.approx(known, abs=2e-6)
        if RANK.index(found.action) > RANK.index(decision["action"] if decision else "allow"):
            decision = {"position": i, **said}
    assert case["expected"]["decision"] == decision
    in_scope = [name for name, head in heads.items() if head.scope in ("both", SCOPE[case["part"]])]
    triggered = {name: part.heads.get(name, Reading()).triggered for name in in_scope}
    assert triggered == {
        name: where and (where["position"], where["label"]) for name, where in case["expected"]["triggered"].items()
    }


def test_the_trace(case):
    """It shows each head by its own rule, so a head that an earlier one silences is left out."""
    spans = (Span(case["part"], 0, len(case["positions"])),)
    rows = case["expected"]["positions"]
    heads = {
        name: HeadSpec.from_dict(name, {key: value for key, value in given.items() if key != "fitted"})
        for name, given in case["heads"].items()
    }
    unfitted = frozenset(name for name, given in case["heads"].items() if not given.get("fitted", True))
    if "logits" in case:
        probs, asked = _judged(tuple(heads.values()), {name: rows_of(case, name) for name in heads}, spans, unfitted)
    else:  # the link of such logits gives the probabilities of the case
        values = {name: values_of(heads[name], rows_of(case, name)) for name in heads}
        probs, asked = _judged(tuple(heads.values()), values, spans, unfitted)
    for name, head in heads.items():
        everywhere = asked.get(name, np.ones(len(rows), dtype=bool))
        known = [row[name] or [np.nan] * len(head.labels) for row in case["positions"]]
        assert np.allclose(probs[name][everywhere], np.array(known)[everywhere], atol=2e-6, equal_nan=True)
        if "logits" not in case:
            probs[name] = np.where(everywhere[:, None], known, np.nan)  # as they are: some are just at a threshold
        found = triggers(head, spans, probs[name], name not in unfitted, asked.get(name))
        if name not in case["expected"]["triggered"] or name in unfitted:
            assert found == []
        elif all((name in row["reached"]) == everywhere[i] for i, row in enumerate(rows)):
            above = [[head.labels[acting(head)[i]] for i in np.flatnonzero(row)] for row in reached(head, probs[name])]
            assert above == [row["reached"].get(name) or [] for row in rows]
            where = case["expected"]["triggered"][name]
            first = [
                i
                for i, row in enumerate(rows)
                if row["reached"].get(name, []) is None or where == {**(where or {}), "position": i}
            ]
            assert [(t.part, t.position) for t in found] == [(case["part"], i) for i in first[:1]]
            if first and rows[first[0]]["head"] == name:
                row = rows[first[0]]
                assert (found[0].action, found[0].label) == (row["action"], row["label"])


def values_of(head, probs):
    """Logits of these probabilities; those of 0 and 1 are far away."""
    p = np.clip(probs, 1e-30, 1 - 1e-16)
    return head.temperature * (np.log(p / (1 - p)) if head.link == "sigmoid" else np.log(p))
