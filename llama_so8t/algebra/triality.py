"""The three 8-dimensional representations of so(8) and the identity that ties them together."""

import numpy as np

from llama_so8t.algebra.basis import DIM, N_GENERATORS, PAIRS, coefficients, skew
from llama_so8t.algebra.octonions import GAMMA
from llama_so8t.errors import AlgebraError

VECTOR, SPINOR_PLUS, SPINOR_MINUS = 0, 1, 2
REPRESENTATIONS = ("vector", "spinor_plus", "spinor_minus")
"""Names by index. The index is what configurations and GGUF files store."""


def _doubled_tables() -> np.ndarray:
    # 2 * rho_t on coefficients is integral, so the tables are exact
    tables = np.zeros((3, N_GENERATORS, N_GENERATORS), dtype=np.int64)
    tables[VECTOR] = 2 * np.eye(N_GENERATORS, dtype=np.int64)
    for column, (i, j) in enumerate(PAIRS):
        tables[SPINOR_PLUS][:, column] = coefficients(GAMMA[i] @ GAMMA[j].T)
        tables[SPINOR_MINUS][:, column] = coefficients(GAMMA[i].T @ GAMMA[j])
    tables.setflags(write=False)
    return tables


DOUBLED = _doubled_tables()
"""``(3, 28, 28)`` int64: ``DOUBLED[t] / 2`` maps the coefficients of A to those of ``rho_t(A)``.

``rho_v = id``, ``rho_s+ = 1/2 sum a_ij G_i G_j^T`` (order 2), ``rho_s- = 1/2 sum a_ij G_i^T G_j`` (order 3).
"""


def represent(generator: np.ndarray, representation: int) -> np.ndarray:
    """Skew-symmetric matrix ``rho_t(A)``.

    Args:
        generator: ``(..., 28)`` coefficients of A, floating point.
        representation: t: 0 vector, 1 spinor+, 2 spinor-.

    Returns:
        ``(..., 8, 8)``, same dtype.

    Raises:
        AlgebraError: unknown representation, or a last axis that is not 28.
    """
    if representation not in (VECTOR, SPINOR_PLUS, SPINOR_MINUS):
        raise AlgebraError(f"representation: found {representation!r}, expected 0 (vector), 1 (spinor+) or 2 (spinor-)")
    vector = skew(generator)
    if representation == VECTOR:
        return vector
    table = DOUBLED[representation].astype(vector.dtype) / 2
    return skew(coefficients(vector) @ table.T)


def triality_residual(vector: np.ndarray, spinor_plus: np.ndarray, spinor_minus: np.ndarray) -> np.ndarray:
    """Largest violation of ``sum_c (R_v v)_c G_c = R_s+ (sum_c v_c G_c) R_s-^T`` over the unit vectors v.

    Args:
        vector: ``R_v``, ``(..., 8, 8)``.
        spinor_plus: ``R_s+``, ``(..., 8, 8)``.
        spinor_minus: ``R_s-``, ``(..., 8, 8)``.

    Returns:
        ``(...)``: maximum absolute entry; below 1e-12 in float64 when all three come from one generator.
    """
    left = np.einsum("...ca,cij->...aij", vector, GAMMA)
    right = np.einsum("...ik,akl,...jl->...aij", spinor_plus, GAMMA, spinor_minus)
    return np.abs(left - right).reshape(*left.shape[:-3], DIM**3).max(axis=-1)
