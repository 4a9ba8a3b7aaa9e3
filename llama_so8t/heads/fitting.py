"""Fits a head on all its positions: one direction, one threshold, chosen on folds of the training data."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_so8t.heads.features import Features
from llama_so8t.heads.regression import N_FOLDS, STRENGTHS, Direction, Rows, fit, folds, out_of_fold
from llama_so8t.heads.splits import Labelled, Task

POSITIONS = 8
"""Tokens of an answer that train, spread evenly over it; each carries the label of the whole answer."""

_MARGIN = 1e-3
"""Distance in log odds from the highest score when no score may act at all."""

DEBOUNCES = (1, 2, 4, 8)
"""Candidates for the number of consecutive tokens that must agree before an answer is stopped."""


@dataclass(frozen=True)
class Fitted:
    """A fitted head. ``threshold`` is a probability; ``validation`` has what the folds said, for the report."""

    direction: Direction
    strength: float
    debounce: int
    threshold: float
    validation: dict


def fit_head(tasks: Sequence[Task], features: Features, seed: int, max_false_positives: float) -> Fitted:
    """Fits the tasks of one head together.

    A head has one threshold for prompts and answers alike: the lowest at which, out of fold, at most
    ``max_false_positives`` of every single set of benign examples acts. Strength and debounce are those that catch
    the largest part of the other examples there, every set weighing the same, the mean over the tasks.
    """
    parts = [_Part(task, features) for task in tasks]
    rows = Rows(*(np.concatenate([getattr(part.rows, name) for part in parts]) for name in Rows.__dataclass_fields__))
    fold = folds(rows.groups, seed)
    debounces = DEBOUNCES if any(task.position == "answer" for task in tasks) else (1,)
    trials = []
    for strength in STRENGTHS:
        logits = _out_of_fold_by_part(parts, rows, strength, fold)
        for debounce in debounces:
            scores = [part.scores(values, debounce) for part, values in zip(parts, logits, strict=True)]
            trials.append(_Trial(strength, debounce, parts, scores, max_false_positives))
    best = max(trials, key=lambda trial: trial.caught)  # the first of equals: most regularized, shortest
    threshold = 1 / (1 + math.exp(-best.limit))
    return Fitted(fit(rows, best.strength), best.strength, best.debounce, threshold, best.validation())


class _Trial:
    """One strength and debounce with what it does to every training example out of fold."""

    def __init__(
        self,
        strength: float,
        debounce: int,
        parts: Sequence["_Part"],
        scores: Sequence[np.ndarray],
        max_false_positives: float,
    ) -> None:
        self.strength, self.debounce = strength, debounce
        self._parts = list(zip(parts, scores, strict=True))
        limits = {
            f"{part.task.position}: {name}": threshold_at(
                found[(part.labels == 0) & (part.sets == name)], max_false_positives
            )
            for part, found in self._parts
            for name in sorted(set(part.sets[part.labels == 0]))
        }
        self.limit = max(limits.values())
        self.decided_by = max(limits, key=lambda name: limits[name])
        self.caught = float(
            np.mean(
                [
                    np.average(found[part.labels == 1] >= self.limit, weights=part.weights[part.labels == 1])
                    for part, found in self._parts
                ]
            )
        )

    def validation(self) -> dict:
        """What the report says about the folds."""
        return {
            "folds": N_FOLDS,
            "decided_by": self.decided_by,
            "caught": round(self.caught, 4),
            "auroc": {part.task.position: round(part.auroc(found), 4) for part, found in self._parts},
            "rates": [
                rate
                for part, found in self._parts
                for rate in acting_rates(part.task.position, part.sets, part.labels, found >= self.limit)
            ],
        }


class _Part:
    """One task as rows: a row per prompt, `POSITIONS` rows per answer."""

    def __init__(self, task: Task, features: Features) -> None:
        self.task = task
        self.labels = np.array([row.label for row in task.fit])
        self.sets = np.array([row.example.set for row in task.fit])
        self.weights = balanced_weights(task.fit)
        self.groups = np.array([row.group for row in task.fit])
        if task.position == "prompt":
            self._states = [features.prompt(row.example)[None] for row in task.fit]
            picks = [np.array([0])] * len(task.fit)
        else:
            self._states = [features.answer(row.example) for row in task.fit]
            picks = [spread(len(states)) for states in self._states]
        counts = np.array([len(pick) for pick in picks])
        self.rows = Rows(
            states=np.concatenate([states[pick] for states, pick in zip(self._states, picks, strict=True)]),
            labels=np.repeat(self.labels, counts),
            groups=np.repeat(self.groups, counts),
            weights=np.repeat(self.weights / counts, counts),
        )

    def logits(self, of_group: dict[str, Direction]) -> list[np.ndarray]:
        """Log odds at every position of every example, by the direction that has not seen its group."""
        return [of_group[group](states) for group, states in zip(self.groups, self._states, strict=True)]

    def scores(self, logits: Sequence[np.ndarray], debounce: int) -> np.ndarray:
        """One score per example: a prompt's log odds, or what `debounced` makes of an answer."""
        n = debounce if self.task.position == "answer" else 1
        return np.array([debounced(values, n) for values in logits])

    def auroc(self, scores: np.ndarray) -> float:
        return auroc(self.labels, scores, self.weights)


def _out_of_fold_by_part(
    parts: Sequence[_Part], rows: Rows, strength: float, fold: np.ndarray
) -> list[list[np.ndarray]]:
    directions = out_of_fold(rows, strength, fold)
    of_group = {group: directions[number] for group, number in zip(rows.groups, fold, strict=True)}
    return [part.logits(of_group) for part in parts]


def spread(n: int) -> np.ndarray:
    """At most `POSITIONS` different positions of n, ``(positions,)`` int, evenly spread from 0 to n - 1."""
    return np.unique(np.linspace(0, n - 1, POSITIONS).round().astype(int))


def balanced_weights(rows: Sequence[Labelled]) -> np.ndarray:
    """Weights ``(rows,)`` float64 that sum to 1: the two labels weigh the same, and within a label every set does.

    Otherwise the largest set of each label decides, and the head learns to tell these two styles apart.
    """
    sizes = Counter((row.label, row.example.set) for row in rows)
    sets = Counter(label for label, _ in sizes)
    return np.array([1 / (len(sets) * sets[row.label] * sizes[row.label, row.example.set]) for row in rows])


def debounced(logits: np.ndarray, n: int) -> float:
    """The largest value that ``n`` consecutive positions all reach; -inf for fewer than n, which never act.

    An answer is stopped at threshold t exactly if this is at least t.

    Args:
        logits: log odds at the positions of an answer, ``(positions,)``.
        n: the debounce.
    """
    if len(logits) < n:
        return -math.inf
    return float(np.lib.stride_tricks.sliding_window_view(logits, n).min(axis=1).max())


def threshold_at(scores: np.ndarray, rate: float) -> float:
    """The lowest threshold that at most a fraction ``rate`` of the scores reach.

    It lies halfway between the lowest score that may act and the highest that may not, so that rounding moves
    none across.

    Args:
        scores: log odds, ``(n,)``, one or more; -inf is below every threshold.
        rate: from 0 to 1.
    """
    ordered = np.sort(scores)[::-1]
    stays_below = ordered[min(int(rate * len(ordered) + 1e-9), len(ordered) - 1)]
    above = scores[scores > stays_below]
    if not math.isfinite(stays_below):
        return float(above.min()) - 1.0 if len(above) else 0.0
    return float(above.min() + stays_below) / 2 if len(above) else float(stays_below) + _MARGIN


def auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve; scores of -inf rank below all others.

    Args:
        labels: 0 or 1, ``(n,)``; both are there.
        scores: ``(n,)``.
        weights: ``(n,)``, or None where all weigh the same.
    """
    from sklearn.metrics import roc_auc_score

    finite = scores[np.isfinite(scores)]
    floor = (finite.min() if len(finite) else 0.0) - 1.0
    return float(roc_auc_score(labels, np.where(np.isfinite(scores), scores, floor), sample_weight=weights))


def acting_rates(position: str, sets: np.ndarray, labels: np.ndarray, acts: np.ndarray) -> list[dict]:
    """How often each set acts, by label: true positives for label 1, false positives for label 0.

    Args:
        position: "prompt" or "answer", for the result.
        sets: name of the set of each example, ``(n,)``.
        labels: 0 or 1, ``(n,)``.
        acts: whether the head acts on it, ``(n,)`` bool.

    Returns:
        An object of ``rates`` of the report for every set and label.
    """
    return [
        {
            "position": position,
            "set": str(name),
            "label": int(label),
            "n": int(inside.sum()),
            "rate": round(float(acts[inside].mean()), 4),
        }
        for label in (1, 0)
        for name in sorted(set(sets[labels == label]))
        for inside in [(sets == name) & (labels == label)]
    ]
