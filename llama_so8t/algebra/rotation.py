"""SO(8): rotations from generators, acting on column vectors ``y = R x``."""

import numpy as np

from llama_so8t.algebra.basis import DIM, N_GENERATORS
from llama_so8t.algebra.triality import VECTOR, represent
from llama_so8t.errors import AlgebraError


def exp(matrix: np.ndarray) -> np.ndarray:
    """Exponential of skew-symmetric matrices, in float64.

    ``i A`` is Hermitian with eigenpairs (w, U), so ``exp(A) = U diag(exp(-i w)) U^H``: orthogonal to
    rounding for every angle, with no series to truncate.

    Args:
        matrix: ``(..., 8, 8)``, skew-symmetric.

    Returns:
        ``(..., 8, 8)`` float64 in SO(8); exactly the identity for zero.

    Raises:
        AlgebraError: an entry is not finite.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise AlgebraError("generator: found NaN or infinity, expected finite coefficients")
    w, u = np.linalg.eigh(1j * matrix)
    rotation = np.einsum("...ik,...k,...jk->...ij", u, np.exp(-1j * w), u.conj()).real
    zero = ~matrix.any(axis=(-2, -1), keepdims=True)
    return np.where(zero, np.eye(DIM), rotation)


def rotation(generator: np.ndarray, representation: int = VECTOR) -> np.ndarray:
    """Rotation ``R_t = exp(rho_t(A))``.

    Args:
        generator: ``(..., 28)`` coefficients of A, real.
        representation: t: 0 vector, 1 spinor+, 2 spinor-.

    Returns:
        ``(..., 8, 8)`` float64 in SO(8).
    """
    return exp(represent(np.asarray(generator, dtype=np.float64), representation))


def random_generators(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Independent normal coefficients with standard deviation ``scale`` (radians).

    Returns:
        ``(*shape, 28)`` float64.
    """
    return rng.normal(0.0, scale, (*shape, N_GENERATORS))


def rotate_blocks(x: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Rotates the last axis block by block: ``y[8b+i] = sum_j R_b[i, j] x[8b+j]``.

    Args:
        x: ``(..., d)``, d a multiple of 8.
        rotations: ``(n, 8, 8)``, n = 1 (one rotation for all blocks) or d/8.

    Returns:
        ``(..., d)``.

    Raises:
        AlgebraError: d is not a multiple of 8, or n fits neither case.
    """
    d = x.shape[-1]
    if d % DIM or rotations.shape[0] not in (1, d // DIM):
        raise AlgebraError(f"rotate_blocks: found width {d} and {rotations.shape[0]} rotations, expected 8n and 1 or n")
    blocks = x.reshape(*x.shape[:-1], d // DIM, DIM)
    return np.einsum("...bj,bij->...bi", blocks, np.broadcast_to(rotations, (d // DIM, DIM, DIM))).reshape(x.shape)
