"""Probabilities, risk and triggers, by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hand_made import SAFETY, two

from llama_so8t.format import LINKS, HeadSpec
from llama_so8t.tracing.rule import Span, judged, probabilities, reached, risk, triggers

SPANS = (Span("prompt", 0, 3), Span("think", 3, 5), Span("answer", 5, 10))
THREE = HeadSpec("topic", ("none", "war", "fraud"), ("allow", "escalate", "refuse"), (0.0, 0.4, 0.5))


def test_softmax_at_a_temperature():
    values = np.log(np.array([[0.2, 0.8], [0.5, 0.5]])) * 3 + 7
    assert probabilities(replace(SAFETY, temperature=3.0), values) == pytest.approx(
        np.array([[0.2, 0.8], [0.5, 0.5]]), abs=1e-12
    )


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_not_finite_spoils_its_row_only(bad):
    for link in LINKS:
        found = probabilities(replace(SAFETY, link=link), np.array([[bad, 0.0], [1e30, -1e30]], dtype=np.float32))
        assert np.isnan(found[0]).all() and found[1].tolist() == [1.0, 0.0]


def test_with_sigmoid_several_labels_hold_and_each_acts_at_its_threshold():
    head = HeadSpec("risks", ("a", "b", "c"), ("refuse", "escalate", "refuse"), (0.5, 0.7, 0.5), link="sigmoid")
    values = np.log(np.array([[0.25, 3.0, 1.0], [1 / 3, 2.0, 0.9]])) * 2
    found = probabilities(replace(head, temperature=2.0), values)
    assert found == pytest.approx(np.array([[0.2, 0.75, 0.5], [0.25, 2 / 3, 9 / 19]]), abs=1e-12)
    assert reached(head, found).tolist() == [[False, True, True], [False, False, False]]
    (trigger,) = triggers(head, [Span("answer", 0, 2)], found)
    assert (trigger.token, trigger.action, trigger.label) == (0, "refuse", "c")


def test_risk_is_of_the_labels_that_act():
    assert risk(THREE, np.array([[0.9, 0.04, 0.06]])).tolist() == [0.06]
    never = replace(THREE, actions=("allow",) * 3)
    assert risk(never, np.array([[0.9, 0.04, 0.06], [np.nan] * 3])).tolist() == pytest.approx([0, np.nan], nan_ok=True)


def test_the_threshold_itself_is_reached():
    assert reached(SAFETY, two([0.9, 0.8999]))[:, 0].tolist() == [True, False]


def test_a_guard_reads_the_end_of_the_prompt_and_every_later_token_in_scope():
    reads = {scope: judged(replace(SAFETY, scope=scope), SPANS, 10) for scope in ("both", "prompt", "answer")}
    assert np.flatnonzero(reads["both"]).tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert np.flatnonzero(reads["prompt"]).tolist() == [2]
    assert np.flatnonzero(reads["answer"]).tolist() == [3, 4, 5, 6, 7, 8, 9]


def found(head, probs):
    return [(t.part, t.token, t.position, t.action, t.label) for t in triggers(head, SPANS, probs)]


def test_debounce_counts_in_each_part_anew_and_not_in_the_prompt():
    unsafe = [1, 0, 1, 0, 1, 1, 0, 1, 1, 1]
    assert found(SAFETY, two(unsafe)) == [("prompt", 2, 2, "refuse", "unsafe"), ("answer", 8, 3, "refuse", "unsafe")]


def test_scope_and_thresholds_are_kept():
    assert found(replace(SAFETY, scope="prompt"), two([1, 1, 0.8, *[1] * 7])) == []
    assert [t[0] for t in found(replace(SAFETY, scope="answer"), two([1] * 10))] == ["think", "answer"]


def test_the_strongest_action_is_named():
    probs = np.tile([0.0, 0.5, 0.5], (10, 1))
    assert found(THREE, probs)[0] == ("prompt", 2, 2, "refuse", "fraud")


def test_values_that_are_not_finite_refuse_at_once():
    probs = two([0.0] * 10)
    probs[6] = np.nan
    assert found(SAFETY, probs) == [("answer", 6, 1, "refuse", None)]


RISK = HeadSpec("risk", ("Safe", "Unsafe", "Controversial"), ("allow", "refuse", "escalate"), (0.5,) * 3, rule="argmax")


@pytest.mark.parametrize("n_labels", [2, 3, 8])
def test_argmax_is_the_label_that_the_original_formula_takes(rng, n_labels):
    """Its authors take ``argmax(softmax(logits))``: the largest, of equal ones the first, whatever the temperature."""
    actions = ("allow", "refuse", "escalate", "allow", "refuse", "refuse", "escalate", "allow")[:n_labels]
    spread = rng.normal(0, 3, (5000, n_labels)).astype(np.float32)
    equal = rng.integers(-2, 3, (5000, n_labels)).astype(np.float32)
    for values in (spread, equal):
        values[rng.random(len(values)) < 0.05, rng.integers(n_labels)] = np.nan
    assert (np.sort(equal)[:, -1] == np.sort(equal)[:, -2]).mean() > 0.1
    values = np.concatenate([spread, equal])
    head = HeadSpec("head", tuple("abcdefgh"[:n_labels]), actions, tuple(rng.random(n_labels)), rule="argmax")
    expected = [
        ("refuse", None) if np.isnan(row).any() else (actions[row.argmax()], head.labels[row.argmax()])
        for row in values
    ]
    spans = [Span("answer", i, i + 1) for i in range(len(values))]
    for temperature in (0.5, 1.0, 3.0):
        found = triggers(
            replace(head, temperature=temperature), spans, probabilities(replace(head, temperature=temperature), values)
        )
        assert {t.token: (t.action, t.label) for t in found} == {
            i: said for i, said in enumerate(expected) if said[0] != "allow"
        }


def test_argmax_acts_without_a_majority_and_needs_its_run():
    risky = [0.3, 0.4, 0.3]
    assert found(RISK, np.tile(risky, (10, 1))) == [
        ("prompt", 2, 2, "refuse", "Unsafe"), ("think", 3, 0, "refuse", "Unsafe"), ("answer", 5, 0, "refuse", "Unsafe")
    ]  # fmt: skip
    in_turns = np.array([risky if i % 2 else [0.3, 0.3, 0.4] for i in range(10)])
    assert [t[0] for t in found(replace(RISK, debounce=2), in_turns)] == ["prompt"]
