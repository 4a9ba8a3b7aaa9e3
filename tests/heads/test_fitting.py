"""The regression, its folding and the threshold."""

import math
from pathlib import Path

import numpy as np
import pytest
from required import absent, package

from llama_so8t.format import default_heads
from llama_so8t.heads import baselines
from llama_so8t.heads.evaluation import comparisons, evaluate_task, logit
from llama_so8t.heads.fitting import (
    POSITIONS,
    acting_rates,
    auroc,
    balanced_weights,
    debounced,
    fit_head,
    spread,
    threshold_at,
)
from llama_so8t.heads.regression import N_FOLDS, Rows, fit, folds, out_of_fold
from llama_so8t.heads.store import tuned
from tests.heads.conftest import SyntheticFeatures, task

package("sklearn")


def _rows(rng, n=400, d=16, scale=1.0, shift=0.0) -> tuple[Rows, np.ndarray]:
    direction = rng.normal(size=d)
    labels = rng.integers(0, 2, size=n)
    states = (rng.normal(size=(n, d)) + np.outer(labels - 0.5, 4 * direction / np.linalg.norm(direction))) * scale
    return Rows(states + shift, labels, np.arange(n), np.ones(n)), direction


def test_separable_states_give_the_direction_that_separates_them(rng):
    rows, direction = _rows(rng)
    found = fit(rows, 10.0)
    cosine = found.weight @ direction / np.linalg.norm(found.weight) / np.linalg.norm(direction)
    assert cosine > 0.95
    assert auroc(rows.labels, found(rows.states)) > 0.97


def test_standardization_is_folded(rng):
    rows, _ = _rows(rng)
    stretch, shift = rng.uniform(0.01, 100, size=16), rng.normal(size=16) * 50
    moved = Rows(rows.states * stretch + shift, rows.labels, rows.groups, rows.weights)
    np.testing.assert_allclose(
        fit(moved, 1.0)(moved.states), fit(rows, 1.0)(rows.states), atol=1e-3
    )  # two runs of an optimizer


def test_a_constant_feature_gets_no_weight(rng):
    rows, _ = _rows(rng)
    rows.states[:, 3] = 7.0
    assert fit(rows, 1.0).weight[3] == 0


def test_weights_count_rows(rng):
    rows, _ = _rows(rng, n=100)
    twice = Rows(*(np.concatenate([getattr(rows, f)] * 2) for f in Rows.__dataclass_fields__))
    double = Rows(rows.states, rows.labels, rows.groups, np.full(100, 2.0))
    np.testing.assert_allclose(fit(twice, 1.0).weight, fit(double, 1.0).weight, atol=1e-4)


def test_a_fold_has_not_seen_its_own_labels(rng):
    n = 60
    groups = np.arange(n)
    rows = Rows(rng.normal(size=(n, 500)), rng.integers(0, 2, size=n), groups, np.ones(n))
    fold = folds(groups, seed=0)
    directions = out_of_fold(rows, 100.0, fold)
    assert len(directions) == N_FOLDS
    inside = np.array([directions[k](state) for k, state in zip(fold, rows.states, strict=True)])
    assert auroc(rows.labels, fit(rows, 100.0)(rows.states)) == 1.0  # noise, learned by heart
    assert auroc(rows.labels, inside) < 0.75


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("n", [1, 7, 20, 100])
def test_a_threshold_keeps_its_rate_and_no_lower_one_does(rng, rate, n):
    for scores in (rng.normal(size=n), rng.integers(0, 4, size=n).astype(float)):
        threshold = threshold_at(scores, rate)
        assert (scores >= threshold).mean() <= rate
        below = scores[scores < threshold]
        assert (scores >= below.max()).mean() > rate


def test_a_threshold_ignores_answers_that_can_never_act():
    assert threshold_at(np.array([-math.inf, -math.inf, 2.0]), 0.5) < 2.0
    assert math.isfinite(threshold_at(np.full(5, -math.inf), 0.05))


def test_debounce_asks_for_consecutive_positions():
    values = np.array([5.0, -1.0, 3.0, 2.0, 4.0, -2.0, 9.0])
    assert [debounced(values, n) for n in (1, 2, 3)] == [9.0, 2.0, 2.0]
    assert debounced(values[:2], 3) == -math.inf


def test_spread_takes_first_and_last_once():
    assert spread(1).tolist() == [0]
    assert spread(3).tolist() == [0, 1, 2]
    positions = spread(100)
    assert len(positions) == POSITIONS and positions[0] == 0 and positions[-1] == 99


def test_labels_weigh_the_same_and_so_do_sets_within_a_label():
    rows = task("safety", "prompt", n=62).fit[:37]
    weights = balanced_weights(rows)
    labels = np.array([row.label for row in rows])
    sets = np.array([row.example.set for row in rows])
    assert weights.sum() == pytest.approx(1)
    for label in (0, 1):
        assert weights[labels == label].sum() == pytest.approx(0.5)
        assert np.ptp([weights[sets == name].sum() for name in set(sets[labels == label])]) < 1e-12


def test_a_head_learns_prompts_and_answers_and_keeps_the_rate_in_every_set():
    tasks = [task("safety", "prompt", 200), task("safety", "answer", 200)]
    features = SyntheticFeatures()
    found = fit_head(tasks, features, seed=0, max_false_positives=0.05)
    cosine = found.direction.weight @ features.direction / np.linalg.norm(found.direction.weight)
    assert cosine > 0.9
    for rate in found.validation["rates"]:
        assert rate["rate"] <= 0.05 if rate["label"] == 0 else rate["rate"] > 0.3
    head = tuned(default_heads()["safety"], found.threshold, found.debounce, "both")
    for one in tasks:
        report = evaluate_task(one, found.direction, head, features)
        assert report["auroc"][0]["head"] > 0.95
        assert report["auroc"][0]["all_words"] < 0.9  # the stand-in texts do not say their label


def test_a_head_without_signal_is_no_better_than_chance_out_of_fold():
    found = fit_head([task("safety", "prompt", 300)], SyntheticFeatures(separation=0), 0, 0.05)
    assert 0.35 < found.validation["auroc"]["prompt"] < 0.65


def test_one_seed_gives_one_head():
    tasks = [task("authority", "prompt", 100)]
    a, b = (fit_head(tasks, SyntheticFeatures(), 5, 0.05) for _ in range(2))
    assert np.array_equal(a.direction.weight, b.direction.weight) and a.threshold == b.threshold


def test_sets_are_compared_as_a_whole_and_with_their_own_source():
    sets, labels = np.array(["a", "a", "b", "c"]), np.array([1, 0, 1, 0])
    assert comparisons(sets, labels) == [("all", "all"), ("a", "all"), ("b", "all"), ("a", "a")]


def test_rates_are_by_set_and_label():
    sets, labels, acts = (
        np.array(["a", "a", "a", "b"]),
        np.array([1, 1, 0, 0]),
        np.array([True, False, True, False]),
    )
    found = [
        (rate["set"], rate["label"], rate["n"], rate["rate"]) for rate in acting_rates("prompt", sets, labels, acts)
    ]
    assert found == [("a", 1, 2, 0.5), ("a", 0, 1, 1.0), ("b", 0, 1, 0.0)]


def test_logit_is_the_inverse_of_the_softmax_of_two():
    assert logit(1 / (1 + math.exp(-1.7))) == pytest.approx(1.7)
    assert logit(0.0) == -math.inf and logit(1.0) == math.inf


def test_baselines_see_what_they_are_named_after():
    assert baselines.first_word("How do you do?") == ["how"]
    assert baselines.function_words("how is the octonion made of")[:-1] == ["how", "is", "the", "made", "of"]
    labels = np.array([0, 1] * 20)
    texts = [("red apple" if label else "green apple") for label in labels]
    scores = baselines.scores(baselines.all_words, texts, labels, np.ones(40), ["green", "red"])
    assert scores[0] < 0 < scores[1]


def test_no_module_of_heads_has_a_text_of_the_sets_in_it():
    folder = Path(baselines.__file__).parent
    from llama_so8t.heads import datasets

    try:
        texts = [e.prompt for e in (*datasets.advbench(), *datasets.harmbench(), *datasets.strongreject())]
    except datasets.DatasetError as error:
        absent("data", error)
    code = " ".join(datasets.normalized(file.read_text()) for file in folder.glob("*.py"))
    assert not [index for index, text in enumerate(texts) if datasets.normalized(text) in code]
