"""How published SO8T code builds a rotation from its parameters, in float64.

Every function returns R in the form that the upstream code uses; `column_form` turns it into ours, ``y = R x``.
"""

import math

import numpy as np

from llama_so8t import algebra
from llama_so8t.algebra import DIM, N_GENERATORS, PAIRS
from llama_so8t.errors import AlgebraError

ROW, COLUMN = "xR", "Rx"
"""Sides: row vectors times R, ``y = x R``, or column vectors, ``y = R x``."""


def column_form(rotation: np.ndarray, side: str) -> np.ndarray:
    """R of ``y = R x`` from R as upstream builds it: the transpose where it acts on row vectors. ``(..., n, n)``."""
    return rotation.swapaxes(-1, -2) if side == ROW else rotation


def cayley(theta: np.ndarray) -> np.ndarray:
    """``R = (I - A/2)^-1 (I + A/2)`` with ``A = theta - theta^T``. ``(..., 8, 8) -> (..., 8, 8)``."""
    half = 0.5 * _skew(theta)
    return np.linalg.solve(np.eye(DIM) - half, np.eye(DIM) + half)


def exponential(theta: np.ndarray) -> np.ndarray:
    """``R = exp(theta - theta^T)``. ``(..., 8, 8) -> (..., 8, 8)``."""
    return algebra.exp(_skew(theta))


def half_exponential(theta: np.ndarray) -> np.ndarray:
    """``R = exp((theta - theta^T) / 2)``, the map of the NKAT adapters. ``(..., 8, 8) -> (..., 8, 8)``."""
    return algebra.exp(0.5 * _skew(theta))


def triangle_exponential(parameters: np.ndarray, strength: float = 1.0, second_order: bool = False) -> np.ndarray:
    """``R = exp(strength A)`` with ``A = U - U^T``, ``U`` the part above the diagonal; the rest is dead data.

    Args:
        parameters: ``(..., 8, 8)``.
        strength: the sigmoid of the adapter's gate.
        second_order: the series ``I + strength A + (strength A)^2 / 2`` instead, which is no rotation.
    """
    scaled = strength * _skew(np.triu(_blocks(parameters), 1))
    if second_order:
        return np.eye(DIM) + scaled + 0.5 * scaled @ scaled
    return algebra.exp(scaled)


def entry_exponential(coefficients: np.ndarray) -> np.ndarray:
    """``R = exp(A)``, A from its 28 entries above the diagonal in lexicographic order. ``(..., 28) -> (..., 8, 8)``."""
    return algebra.exp(algebra.skew(np.asarray(coefficients, dtype=np.float64)))


def givens_product(angles: np.ndarray) -> np.ndarray:
    """``R = G_01 G_02 ... G_67``, G_ij turning axis i towards axis j by its angle. ``(28,) -> (8, 8)``.

    Raises:
        AlgebraError: not 28 finite angles.
    """
    angles = np.asarray(angles, dtype=np.float64)
    if angles.shape != (N_GENERATORS,) or not np.isfinite(angles).all():
        raise AlgebraError(f"found angles of shape {angles.shape}, expected {N_GENERATORS} finite ones")
    rotation = np.eye(DIM)
    for (i, j), angle in zip(PAIRS, angles, strict=True):
        c, s = math.cos(angle), math.sin(angle)
        rotation[:, [i, j]] = rotation[:, [i, j]] @ np.array([[c, -s], [s, c]])
    return rotation


def row_normalized(parameters: np.ndarray) -> np.ndarray:
    """Rows divided by their norm, the whole negated and scaled where the determinant is negative. No rotation.

    ``Q = -Q`` keeps a determinant of even dimension, so about half of the results have -1; none is orthogonal.

    Args:
        parameters: ``(..., 8, 8)``.
    """
    parameters = _blocks(parameters)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = parameters / np.linalg.norm(parameters, axis=-1, keepdims=True)
        determinant = np.linalg.det(rows)[..., None, None]
        return np.where(determinant < 0, -rows, rows) / np.abs(determinant) ** (1 / DIM)


def scaled_taylor(theta: np.ndarray) -> np.ndarray:
    """The series of layout L4: every block is squared as often as the largest of the tensor needs.

    With ``s_b = max(0, ceil(log2(|A_b|_F + 1e-7)))``: the Taylor polynomial of order 12 of
    ``A_b / (2^s_b + 1e-7)``, squared ``max_b s_b`` times. So R_b is ``exp(2^(max s - s_b) A_b)``, and depends on
    the other blocks of the tensor.

    Args:
        theta: ``(n, 8, 8)``, a whole gate.
    """
    generator = _skew(theta)
    norm = np.linalg.norm(generator, axis=(-2, -1), keepdims=True)
    squarings = np.maximum(np.ceil(np.log2(norm + 1e-7)), 0.0)
    rotation = _taylor(generator / (2.0**squarings + 1e-7), order=12)
    return _squared(rotation, int(squarings.max(initial=0.0)))


def normalized_taylor(theta: np.ndarray) -> np.ndarray:
    """The series of layout L5: small angles are blown up to norm 1, and one large block doubles all others.

    With ``B = A + 1e-6 I`` and ``s_b = min(|B_b|_F, 1)``: the Taylor polynomial of order 10 of
    ``B_b / (s_b + 1e-8)``, squared once if any block of the tensor has ``|B|_F >= 1``.

    Args:
        theta: ``(n, 8, 8)``, a whole gate.
    """
    generator = _skew(theta) + 1e-6 * np.eye(DIM)
    scale = np.minimum(np.linalg.norm(generator, axis=(-2, -1), keepdims=True), 1.0)
    rotation = _taylor(generator / (scale + 1e-8), order=10)
    return _squared(rotation, int(scale.max(initial=0.0)))


def trivialized(original: np.ndarray, base: np.ndarray) -> np.ndarray:
    """``R = base exp(X - X^T)``, X the lower triangle of ``original``: torch's ``parametrizations.orthogonal``.

    Args:
        original: ``(n, n)``, any n.
        base: ``(n, n)``; it alone is not the trained matrix.

    Raises:
        AlgebraError: not two finite square matrices of one size.
    """
    original, base = (np.asarray(values, dtype=np.float64) for values in (original, base))
    if original.ndim != 2 or original.shape != original.shape[::-1] or base.shape != original.shape:
        raise AlgebraError(f"found shapes {original.shape} and {base.shape}, expected two squares of one size")
    if not (np.isfinite(original).all() and np.isfinite(base).all()):
        raise AlgebraError("found NaN or infinity, expected finite numbers")
    import torch  # here: the other builders do not need it

    lower = torch.from_numpy(np.tril(original))
    return base @ torch.linalg.matrix_exp(lower - lower.T).numpy()


def _blocks(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.shape[-2:] != (DIM, DIM):
        raise AlgebraError(f"found shape {values.shape}, expected (..., {DIM}, {DIM})")
    if not np.isfinite(values).all():
        raise AlgebraError("found NaN or infinity, expected finite numbers")
    return values


def _skew(theta: np.ndarray) -> np.ndarray:
    theta = _blocks(theta)
    return theta - theta.swapaxes(-1, -2)


def _taylor(matrix: np.ndarray, order: int) -> np.ndarray:
    result = term = np.broadcast_to(np.eye(DIM), matrix.shape)
    for k in range(1, order + 1):
        term = term @ matrix / k
        result = result + term
    return result


def _squared(matrix: np.ndarray, times: int) -> np.ndarray:
    # angles far outside of what the series can do overflow: the check for orthogonality finds them
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(times):
            matrix = matrix @ matrix
    return matrix
