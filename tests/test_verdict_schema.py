"""Verdicts on the pages have the form of docs/verdict.schema.json; tests/native holds those of a server against it."""

import copy
import json

import pytest
from pages import pages
from verdict_schema import errors, validator

from llama_so8t.format import ACTIONS


def shown() -> list[dict]:
    blocks = [block for page in pages() for block in page.blocks if block.language == "json"]
    return [json.loads(block.text) for block in blocks if '"decision"' in block.text]


def test_the_verdicts_of_the_pages_have_the_form_of_the_schema():
    assert len(shown()) >= 3  # README in both languages, the page of the guard
    assert [error for verdict in shown() for error in errors(verdict)] == []


def test_the_actions_are_those_of_the_format():
    assert validator().schema["$defs"]["action"]["enum"] == list(ACTIONS)


def without(key):
    return lambda verdict: verdict.pop(key)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (without("decision"), "$"),
        (without("thresholds"), "$"),
        (lambda verdict: verdict.update(enforced="held"), "$.enforced"),
        (lambda verdict: verdict.update(colour="red"), "$"),
        (lambda verdict: verdict["policy"].update(sha256="763f..."), "$.policy.sha256"),
        (lambda verdict: verdict["answer"].pop("n_positions"), "$.answer"),
        (lambda verdict: verdict["answer"]["heads"]["safety"].pop("peak"), "$.answer.heads.safety"),
        (lambda verdict: verdict["prompt"]["heads"]["safety"]["probabilities"].update(safe=1.5),
         "$.prompt.heads.safety.probabilities.safe"),
    ],
)  # fmt: skip
def test_a_verdict_of_another_form_is_found(change, where):
    verdict = copy.deepcopy(shown()[0])
    change(verdict)
    assert [error.split(": ")[0] for error in errors(verdict)] == [where]
