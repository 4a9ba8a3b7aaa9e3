"""Membership in SO(8): what the loader refuses."""

import numpy as np
import pytest

from llama_so8t.algebra import (
    TOLERANCE,
    basis,
    commutator_norm,
    determinant,
    exp,
    is_member,
    orthogonality_error,
    random_generators,
    rotation,
)


def test_rotations_stored_as_float32_are_members(rng):
    found = rotation(random_generators(rng, (50,), 2.0)).astype(np.float32)
    assert is_member(found).shape == (50,)
    assert is_member(found).all()
    assert orthogonality_error(found).max() < TOLERANCE / 10


def test_reflection_is_orthogonal_but_not_a_member():
    reflection = np.diag([1.0, 1, 1, 1, 1, 1, 1, -1])
    assert orthogonality_error(reflection) == 0
    assert determinant(reflection) == -1
    assert not is_member(reflection)


def test_orthogonality_error_is_the_largest_entry_of_the_gram_difference():
    matrix = np.eye(8)
    matrix[2, 5] = 0.5  # gram: 0.5 off the diagonal, 0.25 on it
    assert orthogonality_error(matrix) == 0.5
    assert not is_member(matrix)


@pytest.mark.parametrize(("stretch", "member"), [(0.4, True), (0.6, False)])
def test_tolerance_decides_between_rounding_and_stretching(stretch, member):
    # R -> (1 + e) R has gram error 2e on one axis
    matrix = exp(basis(0, 3))
    matrix[:, 0] *= 1 + stretch * TOLERANCE
    assert is_member(matrix) == member


@pytest.mark.filterwarnings("ignore:invalid value encountered in det")
def test_members_are_told_apart_in_a_batch():
    batch = np.stack([np.eye(8), 2 * np.eye(8), np.full((8, 8), np.nan), np.zeros((8, 8))])
    np.testing.assert_array_equal(is_member(batch), [True, False, False, False])


def test_commutator_norm_measures_whether_order_matters(rng):
    assert commutator_norm(basis(0, 1), basis(2, 3)) == 0
    assert commutator_norm(basis(0, 1), basis(1, 2)) == np.sqrt(2)  # [X_01, X_12] = X_02
    first, second = rotation(random_generators(rng, (2,), 0.5))
    assert commutator_norm(first, second) > 0.1
    assert commutator_norm(first, first) == 0
