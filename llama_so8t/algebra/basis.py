"""The Lie algebra so(8): 28 coefficients, and the skew-symmetric 8x8 matrices they stand for."""

import numpy as np

from llama_so8t.errors import AlgebraError

DIM = 8
"""Size of a block: the dimension of the three representations."""

PAIRS = tuple((i, j) for i in range(DIM) for j in range(i + 1, DIM))
"""The 28 index pairs i < j in lexicographic order: the order of every generator."""

N_GENERATORS = len(PAIRS)

_ROWS, _COLS = (np.array(index) for index in zip(*PAIRS, strict=True))


def basis(i: int, j: int) -> np.ndarray:
    """Basis element ``E_ij - E_ji`` of so(8).

    Returns:
        ``(8, 8)`` int64, +1 at ``[i, j]``, -1 at ``[j, i]``.

    >>> basis(0, 1)[0, 1], basis(0, 1)[1, 0]
    (np.int64(1), np.int64(-1))
    """
    matrix = np.zeros((DIM, DIM), dtype=np.int64)
    matrix[i, j] += 1
    matrix[j, i] -= 1
    return matrix


def skew(coefficients: np.ndarray) -> np.ndarray:
    """Skew-symmetric matrix ``A = sum_{i<j} a_ij (E_ij - E_ji)``, so ``A[i, j] = a_ij``.

    Args:
        coefficients: ``(..., 28)``, order of `PAIRS`, any dtype.

    Returns:
        ``(..., 8, 8)``, same dtype.

    Raises:
        AlgebraError: the last axis is not 28.
    """
    coefficients = np.asarray(coefficients)
    if coefficients.ndim == 0 or coefficients.shape[-1] != N_GENERATORS:
        raise AlgebraError(
            f"generator: found shape {coefficients.shape}, expected (..., {N_GENERATORS}) coefficients a_ij, i < j"
        )
    matrix = np.zeros((*coefficients.shape[:-1], DIM, DIM), dtype=coefficients.dtype)
    matrix[..., _ROWS, _COLS] = coefficients
    matrix[..., _COLS, _ROWS] = -coefficients
    return matrix


def coefficients(matrix: np.ndarray) -> np.ndarray:
    """The 28 coefficients of a skew-symmetric matrix: the inverse of `skew`.

    Only the upper triangle is read.

    Args:
        matrix: ``(..., 8, 8)``.

    Returns:
        ``(..., 28)``, same dtype.

    Raises:
        AlgebraError: another shape.
    """
    matrix = np.asarray(matrix)
    if matrix.shape[-2:] != (DIM, DIM):
        raise AlgebraError(f"matrix: found shape {matrix.shape}, expected (..., {DIM}, {DIM})")
    return matrix[..., _ROWS, _COLS]


def bracket(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Lie bracket ``[a, b] = a @ b - b @ a`` on so(8).

    Args:
        a: ``(..., 8, 8)``, skew-symmetric. Matrices act on column vectors: ``y = a @ x``.
        b: ``(..., 8, 8)``, skew-symmetric, same dtype as ``a``.

    Returns:
        ``(..., 8, 8)``, skew-symmetric. Exact for integer dtypes; floats only round.

    >>> bool(np.array_equal(bracket(basis(0, 1), basis(1, 2)), basis(0, 2)))
    True
    """
    return a @ b - b @ a
