"""Comparisons of measurements taken in turns: what slows both sides of a pair down cancels out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDS = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Median over the pairs, and the 95 % bootstrap interval of that median."""

    median: float
    low: float
    high: float
    n: int

    def text(self, form: str = ".3f") -> str:
        """``median (low to high)``."""
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> Interval:
    """Median of ``values[i] / base[i]``; the pairs are drawn again with replacement for the interval.

    Args:
        values: ``(n,)``, one measurement per round.
        base: ``(n,)``, that of the base in the same round, above 0.
    """
    return _compare(values, base, np.divide)


def paired_difference(values: Sequence[float], base: Sequence[float]) -> Interval:
    """Median of ``values[i] - base[i]``, as `paired_ratio`."""
    return _compare(values, base, np.subtract)


def _compare(values: Sequence[float], base: Sequence[float], operation: Callable) -> Interval:
    pairs = operation(np.asarray(values, dtype=np.float64), np.asarray(base, dtype=np.float64))
    if pairs.ndim != 1 or not len(pairs):
        raise ValueError(f"found pairs of shape {pairs.shape}, expected one or more numbers")
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(pairs, (_ROUNDS, len(pairs))), axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return Interval(float(np.median(pairs)), float(low), float(high), len(pairs))
