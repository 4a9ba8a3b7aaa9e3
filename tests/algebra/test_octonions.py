"""Octonions: the Fano rule, the composition algebra and the Clifford relation of the gamma matrices."""

import itertools

import numpy as np

from llama_so8t.algebra import GAMMA, multiply


def unit(index):
    return np.eye(8, dtype=np.int64)[index]


def test_gamma_equals_the_golden_table(so8_golden):
    np.testing.assert_array_equal(GAMMA, so8_golden["G"])


def test_unit_zero_is_the_identity():
    for a in range(8):
        np.testing.assert_array_equal(multiply(unit(0), unit(a)), unit(a))
        np.testing.assert_array_equal(multiply(unit(a), unit(0)), unit(a))


def test_fano_rule_fixes_the_products_of_the_imaginary_units():
    for i in range(1, 8):
        j, k = 1 + i % 7, 1 + (i + 2) % 7  # i + 1 and i + 3, mod 7 into 1..7
        np.testing.assert_array_equal(multiply(unit(i), unit(j)), unit(k))
        np.testing.assert_array_equal(multiply(unit(j), unit(k)), unit(i))
        np.testing.assert_array_equal(multiply(unit(k), unit(i)), unit(j))
        np.testing.assert_array_equal(multiply(unit(i), unit(i)), -unit(0))


def test_imaginary_units_anticommute():
    for i, j in itertools.permutations(range(1, 8), 2):
        np.testing.assert_array_equal(multiply(unit(i), unit(j)), -multiply(unit(j), unit(i)))


def test_gamma_is_the_matrix_of_left_multiplication(rng):
    x, y = rng.integers(-9, 10, (2, 8))
    np.testing.assert_array_equal(multiply(x, y), np.einsum("a,acb->cb", x, GAMMA) @ y)


def test_clifford_relation_holds_exactly():
    for i, j in itertools.product(range(8), range(8)):
        relation = GAMMA[i] @ GAMMA[j].T + GAMMA[j] @ GAMMA[i].T
        np.testing.assert_array_equal(relation, 2 * (i == j) * np.eye(8, dtype=np.int64), err_msg=f"{i, j}")


def test_norm_of_a_product_is_the_product_of_norms_exactly(rng):
    x, y = rng.integers(-99, 100, (2, 50, 8))
    product = multiply(x, y)
    assert product.shape == (50, 8)
    np.testing.assert_array_equal((product**2).sum(-1), (x**2).sum(-1) * (y**2).sum(-1))


def test_product_is_alternative_but_not_associative(rng):
    x, y = rng.integers(-9, 10, (2, 8))
    np.testing.assert_array_equal(multiply(x, multiply(x, y)), multiply(multiply(x, x), y))
    np.testing.assert_array_equal(multiply(multiply(y, x), x), multiply(y, multiply(x, x)))
    left = multiply(multiply(unit(1), unit(2)), unit(3))
    np.testing.assert_array_equal(left, -multiply(unit(1), multiply(unit(2), unit(3))))


def test_gamma_is_read_only():
    assert GAMMA.dtype == np.int64 and not GAMMA.flags.writeable
