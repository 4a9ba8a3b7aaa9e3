"""Points, ticks and characters of the drawings."""

import numpy as np
import pytest

from llama_so8t.tracing.curves import peaks, runs, ticks
from llama_so8t.tracing.palette import visible
from llama_so8t.tracing.rule import Span


def test_a_long_curve_keeps_its_peaks(rng):
    values = rng.random(10_007) * 0.5
    values[4321] = 0.99
    values[7000:7100] = np.nan
    positions, tops = peaks(values, 100)
    assert len(positions) <= 100 and (np.diff(positions) > 0).all()
    assert tops.max() == 0.99 and positions[tops.argmax()] == 4321
    assert not np.isnan(tops).any()


def test_a_short_curve_is_kept_whole(rng):
    values = rng.random(99)
    positions, tops = peaks(values, 100)
    assert positions.tolist() == list(range(99)) and (tops == values).all()
    assert peaks(np.full(5, np.nan))[0].tolist() == []


def test_runs_are_begin_and_end_of_neighbours_that_are_true():
    assert runs(np.array([1, 1, 0, 0, 1, 0, 1], dtype=bool)) == [(0, 2), (4, 5), (6, 7)]
    assert runs(np.zeros(3, dtype=bool)) == []


@pytest.mark.parametrize(("n_prompt", "n_answer"), [(1, 0), (1, 1), (7, 5), (466, 234), (30_000, 12)])
def test_ticks_are_few_and_say_the_position_in_their_part(n_prompt, n_answer):
    spans = [Span("prompt", 0, n_prompt), Span("answer", n_prompt, n_prompt + n_answer)][: 1 + bool(n_answer)]
    found = ticks(spans, n_prompt + n_answer)
    assert 1 <= len(found) <= 16
    for index, label in found:
        assert int(label) == (index if index < n_prompt else index - n_prompt)


def test_hidden_characters_are_shown():
    assert visible("a\u202eb\u200b\x1b[0m\0") == "a⟨U+202E⟩b⟨U+200B⟩⟨U+001B⟩[0m⟨U+0000⟩"
    assert visible("👩\u200d🔬 \n\t naïve") == "👩\u200d🔬 \n\t naïve"
