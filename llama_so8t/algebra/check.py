"""Measures of group membership: what `so8t inspect` shows and the loader enforces."""

import numpy as np

from llama_so8t.algebra.basis import DIM

TOLERANCE = 1e-4
"""Largest orthogonality and determinant error a file may have (the rotations are stored as float32)."""

MAX_COEFFICIENT = 1e6
"""Largest coefficient of a generator, in radians. Up to it exp in float64 is exact to 1e-8 however it is computed; far
beyond it two programs that agree on the generator disagree on the rotation."""


def orthogonality_error(rotation: np.ndarray) -> np.ndarray:
    """Largest absolute entry of ``R^T R - I``. ``(..., 8, 8) -> (...)``."""
    rotation = np.asarray(rotation, dtype=np.float64)
    gram = np.swapaxes(rotation, -1, -2) @ rotation
    return np.abs(gram - np.eye(DIM)).max(axis=(-2, -1))


def determinant(rotation: np.ndarray) -> np.ndarray:
    """Determinant, +1 in SO(8). ``(..., 8, 8) -> (...)``."""
    return np.linalg.det(np.asarray(rotation, dtype=np.float64))


def commutator_norm(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Frobenius norm of ``a b - b a``: zero only where the order of the gates does not matter. ``-> (...)``."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.linalg.norm(a @ b - b @ a, axis=(-2, -1))


def is_member(rotation: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """Whether ``R^T R = I`` and ``det R = +1`` within ``tolerance``. NaN is none. ``(..., 8, 8) -> (...)`` bool."""
    with np.errstate(invalid="ignore"):
        return (orthogonality_error(rotation) <= tolerance) & (np.abs(determinant(rotation) - 1.0) <= tolerance)
