"""SO(8): the exponential, its direction, the golden numbers and block-wise action."""

import numpy as np
import pytest
from properties import assert_in_so8

from llama_so8t.algebra import (
    PAIRS,
    SPINOR_MINUS,
    SPINOR_PLUS,
    VECTOR,
    basis,
    coefficients,
    exp,
    is_member,
    random_generators,
    rotate_blocks,
    rotation,
    skew,
)
from llama_so8t.errors import AlgebraError

GOLDEN_NAMES = {VECTOR: "R_v", SPINOR_PLUS: "R_s_plus", SPINOR_MINUS: "R_s_minus"}


def test_rotations_equal_the_golden_numbers(so8_golden, tolerance):
    assert len(so8_golden["cases"]) >= 5
    for case in so8_golden["cases"]:
        for t, name in GOLDEN_NAMES.items():
            found = rotation(np.array(case["generator"]), t)
            message = f"{name} at scale {case['scale']}"
            np.testing.assert_allclose(found, case[name], rtol=0, atol=tolerance.float64, err_msg=message)


def test_positive_coefficient_turns_axis_j_towards_axis_i():
    # A[i, j] = +a and columns: y_i = cos(a) x_i + sin(a) x_j
    for i, j in PAIRS:
        found = exp(0.3 * basis(i, j))
        expected = np.eye(8)
        expected[i, i] = expected[j, j] = np.cos(0.3)
        expected[i, j], expected[j, i] = np.sin(0.3), -np.sin(0.3)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("representation", GOLDEN_NAMES)
@pytest.mark.parametrize("scale", [1e-9, 0.1, 3.0, 100.0, 1e4])
def test_exponential_is_in_so8_for_every_angle(rng, tolerance, representation, scale):
    found = rotation(random_generators(rng, (20,), scale), representation)
    assert_in_so8(found, tolerance.float64)
    assert is_member(found, tolerance.float64).all()


@pytest.mark.parametrize("representation", GOLDEN_NAMES)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_generator_is_exactly_the_identity(representation, zero):
    np.testing.assert_array_equal(rotation(np.full(28, zero), representation), np.eye(8))


def test_zero_in_a_batch_is_exact_and_leaves_the_others_alone(rng):
    generators = random_generators(rng, (3,), 1.0)
    generators[1] = 0
    found = rotation(generators)
    np.testing.assert_array_equal(found[1], np.eye(8))
    np.testing.assert_array_equal(found[0], rotation(generators[0]))
    np.testing.assert_array_equal(found[2], rotation(generators[2]))


@pytest.mark.parametrize("representation", GOLDEN_NAMES)
def test_negative_generator_is_the_inverse(rng, tolerance, representation):
    generator = random_generators(rng, (20,), 2.0)
    product = rotation(generator, representation) @ rotation(-generator, representation)
    assert np.abs(product - np.eye(8)).max() < tolerance.float64


def test_multiples_of_one_generator_add_their_angles(rng, tolerance):
    matrix = skew(random_generators(rng, (), 1.0))
    product = exp(0.7 * matrix) @ exp(1.1 * matrix)
    np.testing.assert_allclose(product, exp(1.8 * matrix), rtol=0, atol=tolerance.float64)


def test_exponential_equals_its_power_series_for_small_angles(rng, tolerance):
    matrix = skew(random_generators(rng, (), 0.1))
    series, term = np.eye(8), np.eye(8)
    for n in range(1, 20):
        term = term @ matrix / n
        series = series + term
    np.testing.assert_allclose(exp(matrix), series, rtol=0, atol=tolerance.float64)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_generator_that_is_not_finite_is_refused(bad):
    generator = np.zeros((2, 28))
    generator[1, 5] = bad
    with pytest.raises(AlgebraError, match="generator: found NaN or infinity, expected finite coefficients"):
        rotation(generator)


def test_random_generators_have_the_shape_and_scale_asked_for(rng):
    found = random_generators(rng, (100, 9), 0.25)
    assert found.shape == (100, 9, 28)
    assert abs(found.std() - 0.25) < 0.01 and abs(found.mean()) < 0.01


@pytest.mark.parametrize("n", [1, 3])
def test_rotate_blocks_is_a_block_diagonal_matrix_on_columns(rng, tolerance, n):
    rotations = rotation(random_generators(rng, (n,), 1.0))
    x = rng.normal(size=(2, 5, 24))
    matrix = np.zeros((24, 24))
    for b in range(3):
        matrix[8 * b : 8 * b + 8, 8 * b : 8 * b + 8] = rotations[b % n]
    expected = (matrix @ x[..., None])[..., 0]
    found = rotate_blocks(x, rotations)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance.float64)
    norms = [np.linalg.norm(v.reshape(2, 5, 3, 8), axis=-1) for v in (x, found)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=0, atol=tolerance.float64)


@pytest.mark.parametrize(("width", "n"), [(20, 1), (24, 2), (24, 4)])
def test_rotate_blocks_refuses_widths_and_counts_that_do_not_fit(width, n):
    with pytest.raises(AlgebraError, match=f"found width {width} and {n} rotations, expected 8n and 1 or n"):
        rotate_blocks(np.zeros(width), np.zeros((n, 8, 8)))


def test_quarter_turn_moves_axis_five_to_axis_two():
    generator = coefficients(np.pi / 2 * basis(2, 5))
    expected = np.eye(8)
    expected[[2, 5], [2, 5]] = 0
    expected[2, 5], expected[5, 2] = 1, -1
    np.testing.assert_allclose(rotation(generator), expected, rtol=0, atol=1e-14)
