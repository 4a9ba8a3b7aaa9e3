"""Exact SO(8) mathematics on numpy: generators, octonions, the three representations, checks.

Conventions (docs/conventions.md): column vectors ``y = R x``; a generator is 28 coefficients
``a_ij``, i < j in lexicographic order, with ``A[i, j] = a_ij``.
"""

from llama_so8t.algebra.basis import DIM, N_GENERATORS, PAIRS, basis, bracket, coefficients, skew
from llama_so8t.algebra.check import (
    MAX_COEFFICIENT,
    TOLERANCE,
    commutator_norm,
    determinant,
    is_member,
    orthogonality_error,
)
from llama_so8t.algebra.octonions import GAMMA, multiply
from llama_so8t.algebra.rotation import exp, random_generators, rotate_blocks, rotation
from llama_so8t.algebra.triality import (
    DOUBLED,
    REPRESENTATIONS,
    SPINOR_MINUS,
    SPINOR_PLUS,
    VECTOR,
    represent,
    triality_residual,
)

__all__ = [
    "DIM",
    "DOUBLED",
    "GAMMA",
    "MAX_COEFFICIENT",
    "N_GENERATORS",
    "PAIRS",
    "REPRESENTATIONS",
    "SPINOR_MINUS",
    "SPINOR_PLUS",
    "TOLERANCE",
    "VECTOR",
    "basis",
    "bracket",
    "coefficients",
    "commutator_norm",
    "determinant",
    "exp",
    "is_member",
    "multiply",
    "orthogonality_error",
    "random_generators",
    "represent",
    "rotate_blocks",
    "rotation",
    "skew",
    "triality_residual",
]
