"""Comparisons of measurements taken in turns: what slows both sides of a pair down cancels out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDS = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Median over n values or pairs, and the 95 % bootstrap interval of that median."""

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
    return median_interval(np.asarray(values, dtype=np.float64) / np.asarray(base))


def median_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Median of values, which may be medians of pairs themselves; drawn again with replacement for the interval.

    Args:
        values: ``(n,)``.

    Raises:
        ValueError: there are none, or they are not in one dimension.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"found values of shape {numbers.shape}, expected one or more numbers")
    return Interval(float(np.median(numbers)), *_bootstrap(numbers, np.median), len(numbers))


def geometric_mean(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of ratios, one per test, and its interval: low and high; the tests are drawn again for it.

    Args:
        ratios: ``(n,)``, above 0.
    """
    logarithms = np.log(np.asarray(ratios, dtype=np.float64))
    low, high = _bootstrap(logarithms, np.mean)
    return float(np.exp(logarithms.mean())), float(np.exp(low)), float(np.exp(high))


def _bootstrap(values: np.ndarray, statistic: Callable) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    drawn = statistic(rng.choice(values, (_ROUNDS, len(values))), axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return float(low), float(high)
