"""The rule of docs/conventions.md, "Verdicts", exists in C++, in `so8t trace` and in the page: one table holds for all.

`golden/verdict_rule.json`: a case has heads, and at each position of one part the probabilities of their labels (null:
values that are not finite). It expects

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
from scripted_model import NAN, Head

from llama_so8t.format import RULES, HeadSpec
from llama_so8t.tracing.rule import Span, acting, reached, triggers
from tests.native.guard_rules import Part, Policy, _read

CASES = json.loads((Path(__file__).parent / "golden/verdict_rule.json").read_text())["cases"]
RANK = ("allow", "escalate", "refuse")


@pytest.fixture(params=CASES, ids=[case["name"] for case in CASES])
def case(request):
    return request.param


def test_the_table_has_every_way_to_act():
    rows = [row for case in CASES for row in case["expected"]["positions"]]
    assert {(row["action"], row["label"] is None) for row in rows} == {
        ("allow", True), ("escalate", False), ("refuse", False), ("refuse", True),
    }  # fmt: skip
    assert {case["part"] for case in CASES} == {"prompt", "think", "answer"}
    assert {head.get("rule", "threshold") for case in CASES for head in case["heads"].values()} == set(RULES)
    assert {head["scope"] for case in CASES for head in case["heads"].values()} == {"both", "prompt", "answer"}


def test_the_oracle(case):
    heads = {}
    for name, head in case["heads"].items():
        rows = [row[name] for row in case["positions"]]
        tokens = {
            str(i): NAN if row is None else dict(zip(head["labels"], row, strict=True)) for i, row in enumerate(rows)
        }
        heads[name] = Head(**head, tokens=tokens)
    part, decision = Part(), None
    for i, expected in enumerate(case["expected"]["positions"]):
        found = _read(part, str(i), heads, Policy(), case["part"])
        label = None if found.label == "not finite" else found.label or None
        said = {"action": found.action, "head": found.head or None, "label": label}
        assert {key: expected[key] for key in said} == said, i
        if RANK.index(found.action) > RANK.index(decision["action"] if decision else "allow"):
            decision = {"position": i, **said}
    assert case["expected"]["decision"] == decision
    triggered = {name: reading.triggered for name, reading in part.heads.items()}
    assert triggered == {
        name: where and (where["position"], where["label"]) for name, where in case["expected"]["triggered"].items()
    }


def test_the_trace(case):
    """It shows each head by its own rule, so a head that an earlier one silences is left out."""
    spans = [Span(case["part"], 0, len(case["positions"]))]
    rows = case["expected"]["positions"]
    for name, given in case["heads"].items():
        head = HeadSpec.from_dict(name, {key: value for key, value in given.items() if key != "fitted"})
        is_fitted = given.get("fitted", True)
        nothing = [np.nan] * len(head.labels)
        probs = np.array([row[name] or nothing for row in case["positions"]])
        found = triggers(head, spans, probs, is_fitted)
        if name not in case["expected"]["triggered"] or not is_fitted:
            assert found == []
        elif all(name in row["reached"] for row in rows):
            above = [[head.labels[acting(head)[i]] for i in np.flatnonzero(row)] for row in reached(head, probs)]
            assert above == [row["reached"][name] or [] for row in rows]
            where = case["expected"]["triggered"][name]
            first = [
                i
                for i, row in enumerate(rows)
                if row["reached"][name] is None or where == {**(where or {}), "position": i}
            ]
            assert [(t.part, t.position) for t in found] == [(case["part"], i) for i in first[:1]]
            if first and rows[first[0]]["head"] == name:
                row = rows[first[0]]
                assert (found[0].action, found[0].label) == (row["action"], row["label"])
