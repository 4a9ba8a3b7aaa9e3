"""The shared asserts see what they are for."""

import numpy as np
import pytest
from properties import assert_in_so8, assert_same_function, assert_triality


def turned(angle, i=0, j=1):
    rotation = np.eye(8)
    rotation[[i, j], [i, j]] = np.cos(angle)
    rotation[i, j], rotation[j, i] = -np.sin(angle), np.sin(angle)
    return rotation


def test_members_of_so8_pass():
    assert_in_so8(np.stack([np.eye(8), turned(0.7) @ turned(2.0, 3, 6)]), 1e-14)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r * 1.001, r"R\^T R differs"),
        (lambda r: np.diag([1.0] * 7 + [-1]) @ r, "det R differs"),
        (lambda r: r * np.nan, r"R\^T R differs"),
        (lambda r: r[:7], "expected"),
        (lambda r: r[None][:0], "expected"),
    ],
)
def test_others_do_not(change, words):
    with pytest.raises(AssertionError, match=words):
        assert_in_so8(change(turned(0.3)), 1e-6)


def test_triality_is_that_of_the_golden_numbers(so8_golden):
    for case in so8_golden["cases"]:
        three = [np.array(case[name]) for name in ("R_v", "R_s_plus", "R_s_minus")]
        assert_triality(*three, 1e-12)
        if case["scale"] == 0:
            continue
        for order in ([0, 2, 1], [1, 0, 2], [2, 1, 0]):
            with pytest.raises(AssertionError, match="triality identity"):
                assert_triality(*(three[i] for i in order), 1e-3)


def test_the_same_function_has_the_same_names_shapes_and_values():
    values = {"task": np.arange(6.0).reshape(2, 3), "safety": np.ones((2, 2))}
    assert_same_function(values, {name: value + 0.01 for name, value in values.items()}, 0.011)
    assert_same_function(values["task"], values["task"] + 0.01, 0.0021, scale=5)
    for wrong in (
        {"task": values["task"]},
        dict(reversed(values.items())),
        values | {"safety": np.ones((2, 1))},
        values | {"safety": np.full((2, 2), np.nan)},
        values | {"task": values["task"] + 0.02},
    ):
        with pytest.raises(AssertionError):
            assert_same_function(wrong, values, 0.011)
    with pytest.raises(AssertionError):
        assert_same_function(values["task"].astype(np.float32), values["task"], 0)
