"""Pairs, their medians and intervals."""

import numpy as np
import pytest

from llama_so8t.benchmarks.paired import geometric_mean, median_interval, paired_ratio


def test_what_slows_both_sides_down_cancels_out(rng):
    """The machine is up to ten times slower in some rounds; the ratio is 0.97 all the same."""
    slow = rng.uniform(1, 10, 40)
    found = paired_ratio(0.97 * slow, slow)
    assert found.median == pytest.approx(0.97) and found.low == pytest.approx(0.97) == found.high
    assert found.n == 40


def test_the_median_ignores_a_round_that_was_disturbed():
    found = median_interval([1.0, 1.0, 1.0, 89.0, 1.0])
    assert found.median == 1.0 and found.high == 89.0


def test_the_interval_covers_the_median_it_was_drawn_from():
    """In 95 of 100 cases; of 400 samples, between 90 % and 99 % (binomial, 5 standard deviations)."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        found = paired_ratio(1.0 + 0.05 * rng.standard_normal(30), np.ones(30))
        hits += found.low <= 1.0 <= found.high
    assert 0.90 <= hits / 400 <= 0.99


def test_more_rounds_make_a_narrower_interval(rng):
    wide, narrow = (paired_ratio(1 + 0.1 * rng.standard_normal(n), np.ones(n)) for n in (10, 1000))
    assert narrow.high - narrow.low < (wide.high - wide.low) / 3


def test_the_same_measurements_give_the_same_interval():
    values, base = [1.0, 1.2, 0.9, 1.1], [1.0, 1.1, 1.0, 0.9]
    assert paired_ratio(values, base) == paired_ratio(values, base)


def test_one_pair_is_its_own_interval():
    found = paired_ratio([3.0], [2.0])
    assert (found.median, found.low, found.high, found.n) == (1.5, 1.5, 1.5, 1)


@pytest.mark.parametrize("values", [[], [[1.0]]])
def test_no_pairs_are_an_error(values):
    with pytest.raises(ValueError, match="expected one or more numbers"):
        paired_ratio(values, values)


def test_the_mean_of_ratios_is_geometric():
    """Half as fast and twice as fast is as fast on average."""
    mean, low, high = geometric_mean([0.5, 2.0])
    assert (mean, low, high) == pytest.approx((1.0, 0.5, 2.0))
    mean, low, high = geometric_mean([0.99] * 12)
    assert mean == pytest.approx(0.99) and low == pytest.approx(0.99) == high
