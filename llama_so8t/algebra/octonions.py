"""Octonion units and the gamma matrices ``G_a`` of so(8), as exact integers.

The product follows the Fano rule ``e_i e_(i+1) = e_(i+3)``, indices 1..7 taken mod 7
(J. Baez, "The Octonions", Bull. AMS 39 (2002), section 2).
"""

import numpy as np

from llama_so8t.algebra.basis import DIM


def _left_multiplication() -> np.ndarray:
    gamma = np.zeros((DIM, DIM, DIM), dtype=np.int64)

    def product(a: int, b: int, c: int, sign: int) -> None:
        gamma[a, c, b] = sign

    for a in range(DIM):
        product(0, a, a, 1)
        product(a, 0, a, 1)
        if a:
            product(a, a, 0, -1)
    for n in range(7):
        i, j, k = 1 + n, 1 + (n + 1) % 7, 1 + (n + 3) % 7
        for a, b, c in ((i, j, k), (j, k, i), (k, i, j)):
            product(a, b, c, 1)
            product(b, a, c, -1)
    gamma.setflags(write=False)
    return gamma


GAMMA = _left_multiplication()
"""``(8, 8, 8)`` int64: ``GAMMA[a, c, b]`` is the coefficient of e_c in ``e_a e_b``.

``GAMMA[a]`` is the matrix of left multiplication by e_a, and
``GAMMA[i] @ GAMMA[j].T + GAMMA[j] @ GAMMA[i].T == 2 * (i == j) * I``.
"""


def multiply(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Octonion product ``(x y)_c = sum_ab x_a y_b GAMMA[a, c, b]``.

    Args:
        x: ``(..., 8)``.
        y: ``(..., 8)``.

    Returns:
        ``(..., 8)``. Not associative; ``|x y| = |x| |y|``.
    """
    return np.einsum("...a,...b,acb->...c", x, y, GAMMA)
