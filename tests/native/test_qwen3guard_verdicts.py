"""Verdicts on Qwen3Guard-Stream are those of its own streaming loop, written once more, at every token and at the end.

The loop moderates the turn of the user at its end, then each token of the answer. It tells the risk, and beside a
risk that is not Safe the category. Its evaluation calls an answer Unsafe from the second of two tokens in a row that
are, and otherwise Controversial from the second of two that are.
"""

from typing import NamedTuple

import numpy as np
import pytest
from guard_models import CATEGORIES, RISKS

from llama_so8t.checkpoint import qwen3guard

from .guard_server import COMPLETION
from .test_qwen3guard_heads import make_guard, original

END_OF_TURN = 7
N_CASES = 24


class Told(NamedTuple):
    """What the loop says at one position."""

    risk: str
    category: str | None


def loop(values, end, answer):
    """What the loop says of the prompt and of the rows ``answer``, from the logits of the original at every token."""

    def told(path, categories, row):
        risk = RISKS[int(np.argmax(values[f"{path}_risk"][row]))]
        category = categories[int(np.argmax(values[f"{path}_category"][row]))]
        return Told(risk, None if risk == "Safe" else category)

    prompt = told("query", [*CATEGORIES, "Jailbreak"], end)
    return prompt, [told("response", CATEGORIES, row) for row in answer]


def decided(risks):
    """(risk, position) of an answer; a position is None where it is Safe."""
    for risk in ("Unsafe", "Controversial"):
        for position in range(1, len(risks)):
            if risks[position - 1] == risks[position] == risk:
                return risk, position
    return "Safe", None


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return make_guard(tmp_path_factory.mktemp("qwen3guard") / "tiny-guard", 24, "float32")


@pytest.fixture(scope="module")
def server(guard, to_gguf, serve_here):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen3guard, "_end_of_turn", lambda path: END_OF_TURN)
        file = to_gguf(guard)
    return serve_here(file, "--so8t-policy", "monitor", "-c", "256", "-ctk", "f32", "-ctv", "f32", "-fa", "off")


@pytest.fixture(scope="module")
def cases(guard, server):
    """(what the loop says of the prompt and of each token, the verdict of the server) of many answers."""
    rng = np.random.default_rng(6)
    found = []
    for seed in range(N_CASES):
        tokens = rng.integers(10, 300, 24)
        end = 23 if seed % 2 else 15
        tokens[end] = END_OF_TURN
        options = {"seed": seed, "temperature": 1.0, "ignore_eos": True, "return_tokens": True, "so8t": {"trace": True}}
        reply = COMPLETION.ask(server, tokens.tolist(), n_predict=int(rng.integers(3, 30)), **options)
        generated = reply.raw["tokens"]
        # no token is sampled behind the last one, so it has no verdict
        rows = range(24, 24 + len(generated) - 1)
        found.append((loop(original(guard, [*tokens.tolist(), *generated]), end, rows), reply.so8t))
    return found


def said(heads, path):
    """Risk and category that a verdict tells, as the loop would."""
    labels = {name: max(probabilities, key=probabilities.get) for name, probabilities in heads.items()}
    return Told(labels[f"{path}_risk"], labels.get(f"{path}_category"))


def test_the_cases_have_every_verdict(cases):
    assert {decided([told.risk for told in answer])[0] for (_, answer), _ in cases} == set(RISKS)
    assert {prompt.risk for (prompt, _), _ in cases} == set(RISKS)


def test_each_position_has_risk_and_category_of_the_loop(cases):
    for (prompt, answer), so8t in cases:
        heads = so8t["prompt"]["heads"]
        assert said({name: head["probabilities"] for name, head in heads.items()}, "query") == prompt
        trace = [token["heads"] for token in so8t["trace"] if token["part"] == "answer"]
        assert [said(heads, "response") for heads in trace] == answer


def test_each_answer_has_the_verdict_of_the_loop_where_it_has_it(cases):
    for (prompt, answer), so8t in cases:
        risk, position = decided([told.risk for told in answer])
        assert so8t["prompt"]["action"] == qwen3guard.RISK_ACTIONS[prompt.risk]
        assert so8t["answer"]["action"] == qwen3guard.RISK_ACTIONS[risk]
        assert so8t["answer"]["n_positions"] == len(answer)
        actions = ["allow", "escalate", "refuse"]
        strongest = max((qwen3guard.RISK_ACTIONS[r] for r in (prompt.risk, risk)), key=actions.index)
        assert so8t["decision"] == strongest
        triggered = so8t["triggered"]
        if strongest == "allow":
            assert triggered is None
        elif qwen3guard.RISK_ACTIONS[prompt.risk] == strongest:
            assert (triggered["part"], triggered["head"], triggered["label"]) == ("prompt", "query_risk", prompt.risk)
        else:
            assert (triggered["part"], triggered["head"]) == ("answer", "response_risk")
            assert (triggered["position"], triggered["label"]) == (position, risk)
