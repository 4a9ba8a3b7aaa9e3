"""Measures heads as the runtime uses them, on data that no fit has seen, beside classifiers without a model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llama_so8t.format import ARGMAX, HeadSpec
from llama_so8t.heads.baselines import BASELINES, scores
from llama_so8t.heads.features import Features
from llama_so8t.heads.fitting import acting_rates, auroc, balanced_weights, debounced
from llama_so8t.heads.regression import Direction
from llama_so8t.heads.splits import Labelled, Task

ALL = "all"


def evaluate_task(task: Task, direction: Direction, head: HeadSpec, features: Features) -> dict[str, Any]:
    """Acting rates by the rule of the head, and AUROC without any threshold, on the held-out examples.

    A prompt acts if the probability at its last token reaches the threshold (rule argmax: is larger than that of
    the first label), an answer if ``debounce`` consecutive tokens do.

    Returns:
        An entry of ``tasks`` of the report.
    """
    labels = np.array([row.label for row in task.held_out])
    sets = np.array([row.example.set for row in task.held_out])
    found = np.array([_score(row, task, direction, head, features) for row in task.held_out])
    by_classifier = {"head": found, **_baselines(task)}
    return {
        "head": task.head,
        "position": task.position,
        "fit": _counts(task.fit),
        "held_out": _counts(task.held_out),
        "rates": acting_rates(task.position, sets, labels, acts(head, found)),
        "auroc": [
            {
                "acting": positive,
                "benign": negative,
                "n": [int(of_positive.sum()), int(of_negative.sum())],
                **{
                    name: round(auroc(labels[of_positive | of_negative], values[of_positive | of_negative]), 4)
                    for name, values in by_classifier.items()
                },
            }
            for positive, negative in comparisons(sets, labels)
            for of_positive in [(labels == 1) & ((sets == positive) | (positive == ALL))]
            for of_negative in [(labels == 0) & ((sets == negative) | (negative == ALL))]
        ],
    }


def comparisons(sets: np.ndarray, labels: np.ndarray) -> list[tuple[str, str]]:
    """Pairs of sets to tell apart: everything, each acting set from all benign ones, and every two of one source.

    The last are the fair ones: one source words both of its labels alike.

    Args:
        sets: name of the set of each example, ``(n,)``.
        labels: 0 or 1, ``(n,)``.
    """
    positives, negatives = (sorted({str(name) for name in sets[labels == label]}) for label in (1, 0))
    found = [(ALL, ALL)] + ([(name, ALL) for name in positives] if len(positives) > 1 else [])
    return found + [(name, name) for name in positives if name in negatives]


def acts(head: HeadSpec, scores: np.ndarray) -> np.ndarray:
    """Where label 1 of a head acts, by the log odds of that label, ``(n,) -> (n,)`` bool; the first of equals wins."""
    return scores > 0 if head.rule == ARGMAX else scores >= logit(head.thresholds[1])


def logit(probability: float) -> float:
    """Log odds; thresholds of 0 and 1 are -inf and inf."""
    if not 0 < probability < 1:
        return -math.inf if probability <= 0 else math.inf
    return math.log(probability / (1 - probability))


def _score(row: Labelled, task: Task, direction: Direction, head: HeadSpec, features: Features) -> float:
    if task.position == "prompt":
        return float(direction(features.prompt(row.example)))
    return debounced(direction(features.answer(row.example)), head.debounce)


def _baselines(task: Task) -> Mapping[str, np.ndarray]:
    def texts(rows: Sequence[Labelled]) -> list[str]:
        key = "prompt" if task.position == "prompt" else "answer"
        return [getattr(row.example, key) for row in rows]

    labels = np.array([row.label for row in task.fit])
    weights = balanced_weights(task.fit)
    return {
        name: scores(analyzer, texts(task.fit), labels, weights, texts(task.held_out))
        for name, analyzer in BASELINES.items()
    }


def _counts(rows: Sequence[Labelled]) -> list[dict[str, Any]]:
    """Number of examples and of groups by set and label."""
    keys = sorted({(row.example.set, row.label) for row in rows})
    return [
        {
            "set": name,
            "label": label,
            "n": sum((row.example.set, row.label) == (name, label) for row in rows),
            "groups": len({row.group for row in rows if (row.example.set, row.label) == (name, label)}),
        }
        for name, label in keys
    ]
