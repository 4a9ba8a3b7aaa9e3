"""Logistic regression on hidden states: one direction, standardization folded into it, calibrated on folds."""

from dataclasses import dataclass

import numpy as np

N_FOLDS = 5
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Inverse regularization C to choose from, for weights that sum to one."""


@dataclass(frozen=True)
class Rows:
    """Training rows. ``states`` (n, d) float32; ``weights`` positive; rows of one group never part."""

    states: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Direction:
    """The function ``w . f + b``: log odds of label 1. ``weight`` (d,) and ``bias`` in float64."""

    weight: np.ndarray
    bias: float

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Log odds of every row, ``(..., d) -> (...)``."""
        return states @ self.weight + self.bias


def fit(rows: Rows, strength: float) -> Direction:
    """Fits ``w`` and ``b`` on standardized states ``(f - m) / s`` and folds m and s into them.

    ``w' . (f - m) / s + b' = (w' / s) . f + (b' - sum m w' / s)``, checked by test_standardization_is_folded.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    mean = np.average(rows.states, axis=0, weights=rows.weights)
    scale = np.sqrt(np.average((rows.states - mean) ** 2, axis=0, weights=rows.weights))
    scale[scale == 0] = 1.0  # a constant feature gets weight 0 from the penalty
    model = LogisticRegression(C=strength, max_iter=2000)
    # one thread: sums in one order give one result on every machine, and so small a problem is no slower
    with threadpool_limits(1):
        model.fit((rows.states - mean) / scale, rows.labels, sample_weight=rows.weights / rows.weights.sum())
    weight = model.coef_[0] / scale
    return Direction(weight, float(model.intercept_[0] - mean @ weight))


def folds(groups: np.ndarray, seed: int) -> np.ndarray:
    """Fold number of every row, ``(n,)``: groups shuffled by ``seed``, then the smallest fold takes the next."""
    names, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    filled = np.zeros(N_FOLDS, dtype=int)
    fold_of = np.empty(len(names), dtype=int)
    for group in order:
        fold_of[group] = int(np.argmin(filled))
        filled[fold_of[group]] += sizes[group]
    return fold_of[inverse]


def out_of_fold(rows: Rows, strength: float, fold: np.ndarray) -> list[Direction]:
    """One direction per fold, fitted on the rows of the other folds.

    Args:
        rows: hidden states, labels and weights.
        strength: C of the regression, above 0.
        fold: number of the fold of each row, ``(n,)`` int from 0 to `N_FOLDS` - 1.
    """
    found = []
    for number in range(N_FOLDS):
        kept = fold != number
        found.append(fit(Rows(*(getattr(rows, f)[kept] for f in Rows.__dataclass_fields__)), strength))
    return found
