"""The three representations: homomorphisms, their orders, the triality identity."""

import itertools

import numpy as np
import pytest
from properties import assert_triality

from llama_so8t.algebra import (
    DOUBLED,
    GAMMA,
    N_GENERATORS,
    PAIRS,
    SPINOR_MINUS,
    SPINOR_PLUS,
    VECTOR,
    basis,
    bracket,
    coefficients,
    exp,
    random_generators,
    represent,
    rotation,
    skew,
    triality_residual,
)
from llama_so8t.errors import AlgebraError

IDENTITY = np.eye(N_GENERATORS, dtype=np.int64)
ALL = (VECTOR, SPINOR_PLUS, SPINOR_MINUS)


def doubled(generator, representation):
    """``2 rho_t(A)``: exact on integers."""
    return skew(DOUBLED[representation] @ generator)


def test_doubled_tables_follow_the_gamma_matrices(rng):
    generator = rng.integers(-9, 10, N_GENERATORS)
    plus = sum(a * GAMMA[i] @ GAMMA[j].T for a, (i, j) in zip(generator, PAIRS, strict=True))
    minus = sum(a * GAMMA[i].T @ GAMMA[j] for a, (i, j) in zip(generator, PAIRS, strict=True))
    np.testing.assert_array_equal(doubled(generator, VECTOR), 2 * skew(generator))
    np.testing.assert_array_equal(doubled(generator, SPINOR_PLUS), plus)
    np.testing.assert_array_equal(doubled(generator, SPINOR_MINUS), minus)


@pytest.mark.parametrize("representation", ALL)
def test_representation_preserves_the_bracket_exactly(representation):
    # with D = 2 rho: [D(A), D(B)] = 4 [rho(A), rho(B)] = 4 rho([A, B]) = 2 D([A, B])
    for p, q in itertools.combinations(PAIRS, 2):
        a, b = coefficients(basis(*p)), coefficients(basis(*q))
        both = bracket(doubled(a, representation), doubled(b, representation))
        of_bracket = doubled(coefficients(bracket(skew(a), skew(b))), representation)
        np.testing.assert_array_equal(both, 2 * of_bracket, err_msg=f"{p, q}")


@pytest.mark.parametrize("representation", ALL)
def test_representation_preserves_the_bracket_of_random_generators(rng, tolerance, representation):
    a, b = random_generators(rng, (2, 30), scale=1.0)
    both = bracket(represent(a, representation), represent(b, representation))
    of_bracket = represent(coefficients(bracket(skew(a), skew(b))), representation)
    np.testing.assert_allclose(both, of_bracket, rtol=0, atol=20 * tolerance.float64)  # entries reach 20


def test_spinor_plus_has_order_two():
    np.testing.assert_array_equal(DOUBLED[SPINOR_PLUS] @ DOUBLED[SPINOR_PLUS], 4 * IDENTITY)
    assert (DOUBLED[SPINOR_PLUS] != 2 * IDENTITY).any()


def test_spinor_minus_has_order_three():
    np.testing.assert_array_equal(np.linalg.matrix_power(DOUBLED[SPINOR_MINUS], 3), 8 * IDENTITY)
    assert (DOUBLED[SPINOR_MINUS] != 2 * IDENTITY).any()


def test_spinor_plus_and_minus_generate_the_symmetric_group_of_order_six():
    # the relation of S3: plus . minus . plus = minus^-1 = minus^2; in doubled tables 8 and 4
    plus, minus = DOUBLED[SPINOR_PLUS], DOUBLED[SPINOR_MINUS]
    np.testing.assert_array_equal(plus @ minus @ plus, 2 * minus @ minus)


def test_triality_identity_holds_exactly_for_the_algebra():
    # derivative at zero of the identity: sum_c A[c, a] G_c = rho_s+(A) G_a - G_a rho_s-(A)
    for unit in IDENTITY:
        left = np.einsum("ca,cij->aij", doubled(unit, VECTOR), GAMMA)
        right = doubled(unit, SPINOR_PLUS) @ GAMMA - GAMMA @ doubled(unit, SPINOR_MINUS)
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("scale", [0.0, 0.01, 0.3, 1.0, 4.0])
def test_triality_identity_holds_for_random_rotations(rng, tolerance, scale):
    generator = random_generators(rng, (50,), scale)
    three = [rotation(generator, t) for t in ALL]
    assert_triality(*three, tolerance.float64)
    residual = triality_residual(*three)
    assert residual.shape == (50,)
    assert residual.max() < tolerance.float64


def test_triality_residual_sees_rotations_of_different_generators(rng):
    first, second = random_generators(rng, (2,), scale=0.3)
    right = [rotation(first, t) for t in ALL]
    for t in ALL:
        wrong = list(right)
        wrong[t] = rotation(second, t)
        assert triality_residual(*wrong) > 0.01
    assert triality_residual(right[VECTOR], right[SPINOR_MINUS], right[SPINOR_PLUS]) > 0.01


def test_a_full_turn_is_the_identity_for_vectors_and_minus_one_for_spinors(tolerance):
    turn = coefficients(2 * np.pi * basis(0, 1))
    for t, sign in ((VECTOR, 1), (SPINOR_PLUS, -1), (SPINOR_MINUS, -1)):
        np.testing.assert_allclose(rotation(turn, t), sign * np.eye(8), rtol=0, atol=tolerance.float64)


def test_the_three_representations_are_inequivalent(tolerance):
    # half turns in four planes: minus one for vectors, and the two spinors have opposite signs
    half_turns = coefficients(np.pi * (basis(0, 1) + basis(2, 3) + basis(4, 5) + basis(6, 7)))
    traces = [np.trace(rotation(half_turns, t)) for t in ALL]
    assert abs(traces[VECTOR] + 8) < tolerance.float64
    assert abs(traces[SPINOR_PLUS] + traces[SPINOR_MINUS]) < tolerance.float64
    assert abs(abs(traces[SPINOR_PLUS]) - 8) < tolerance.float64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_represent_keeps_shape_and_dtype(rng, dtype):
    generator = random_generators(rng, (2, 3), 1.0).astype(dtype)
    for t in ALL:
        matrix = represent(generator, t)
        assert matrix.shape == (2, 3, 8, 8) and matrix.dtype == dtype
        np.testing.assert_array_equal(matrix, -np.swapaxes(matrix, -1, -2))


def test_rotation_is_the_exponential_of_the_representation(rng):
    generator = random_generators(rng, (4,), 1.0)
    for t in ALL:
        np.testing.assert_array_equal(rotation(generator, t), exp(represent(generator, t)))


@pytest.mark.parametrize("representation", [3, -1, "vector", None])
def test_unknown_representation_is_refused(representation):
    with pytest.raises(AlgebraError, match=r"representation: found .*expected 0 \(vector\), 1 \(spinor"):
        represent(np.zeros(N_GENERATORS), representation)


@pytest.mark.parametrize("representation", [VECTOR, SPINOR_PLUS, SPINOR_MINUS])
def test_generator_of_the_wrong_length_is_refused(representation):
    with pytest.raises(AlgebraError, match=r"generator: found shape \(27,\), expected \(\.\.\., 28\)"):
        represent(np.zeros(27), representation)


def test_tables_are_read_only():
    assert DOUBLED.dtype == np.int64 and not DOUBLED.flags.writeable
