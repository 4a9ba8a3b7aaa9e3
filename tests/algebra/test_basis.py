"""so(8) as skew-symmetric matrices: the bracket, its table and the order of the 28 coefficients."""

import itertools

import numpy as np
import pytest

from llama_so8t.algebra import DIM, N_GENERATORS, PAIRS, basis, bracket, coefficients, skew
from llama_so8t.errors import AlgebraError


def random_integer_matrix(rng):
    return skew(rng.integers(-9, 10, N_GENERATORS))


def test_pairs_are_the_28_index_pairs_in_lexicographic_order():
    assert PAIRS == tuple(itertools.combinations(range(8), 2))
    assert (DIM, N_GENERATORS) == (8, 28)


def test_bracket_table_of_the_basis_is_exact():
    # [X_ij, X_kl] = d_jk X_il - d_ik X_jl - d_jl X_ik + d_il X_jk, with X_ii = 0
    for (i, j), (k, m) in itertools.product(PAIRS, PAIRS):
        expected = (j == k) * basis(i, m) - (i == k) * basis(j, m)
        expected += (i == m) * basis(j, k) - (j == m) * basis(i, k)
        np.testing.assert_array_equal(bracket(basis(i, j), basis(k, m)), expected, err_msg=f"{i, j, k, m}")


def test_jacobi_identity_holds_exactly_on_integers(rng):
    for _ in range(20):
        a, b, c = (random_integer_matrix(rng) for _ in range(3))
        cyclic = bracket(a, bracket(b, c)) + bracket(b, bracket(c, a)) + bracket(c, bracket(a, b))
        assert not cyclic.any()


def test_bracket_is_antisymmetric_and_stays_in_the_algebra(rng):
    a, b = random_integer_matrix(rng), random_integer_matrix(rng)
    product = bracket(a, b)
    np.testing.assert_array_equal(product, -bracket(b, a))
    np.testing.assert_array_equal(product, -product.T)
    assert product.any()


def test_the_algebra_is_perfect_so_brackets_span_all_28_dimensions():
    brackets = [coefficients(bracket(basis(*p), basis(*q))) for p in PAIRS for q in PAIRS]
    assert np.linalg.matrix_rank(np.array(brackets)) == N_GENERATORS


def test_basis_matches_skew_of_a_unit_coefficient():
    for index, (i, j) in enumerate(PAIRS):
        unit = np.zeros(N_GENERATORS, dtype=np.int64)
        unit[index] = 1
        np.testing.assert_array_equal(skew(unit), basis(i, j))
        assert (basis(i, j)[i, j], basis(i, j)[j, i]) == (1, -1)


def test_skew_puts_the_coefficient_a_ij_at_row_i_column_j():
    matrix = skew(np.arange(1, 29))
    assert (matrix[0, 1], matrix[0, 7], matrix[1, 2], matrix[6, 7]) == (1, 7, 8, 28)
    np.testing.assert_array_equal(matrix, -matrix.T)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64])
def test_coefficients_are_the_inverse_of_skew(rng, shape, dtype):
    generator = rng.integers(-99, 100, (*shape, N_GENERATORS)).astype(dtype)
    matrix = skew(generator)
    assert matrix.shape == (*shape, 8, 8) and matrix.dtype == dtype
    np.testing.assert_array_equal(coefficients(matrix), generator)


@pytest.mark.parametrize("shape", [(27,), (8, 8), (28, 1), ()])
def test_skew_refuses_a_last_axis_that_is_not_28(shape):
    with pytest.raises(AlgebraError, match=r"found shape .*expected \(\.\.\., 28\) coefficients a_ij, i < j"):
        skew(np.zeros(shape))


@pytest.mark.parametrize("shape", [(28,), (8, 7), (7, 8)])
def test_coefficients_refuse_a_matrix_that_is_not_8_by_8(shape):
    with pytest.raises(AlgebraError, match=r"matrix: found shape .*expected \(\.\.\., 8, 8\)"):
        coefficients(np.zeros(shape))
