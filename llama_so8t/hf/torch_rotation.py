"""The torch twin of `llama_so8t.algebra.rotation`: differentiable rotations and their action."""

import numpy as np
import torch

from llama_so8t.algebra import DIM, N_GENERATORS, REPRESENTATIONS, VECTOR, represent

# rho_t of the 28 unit generators; entries are 0, +-1/2 and +-1, exact in every float type
UNITS = np.eye(N_GENERATORS)
REPRESENTED = np.stack([represent(UNITS, t) for t in range(len(REPRESENTATIONS))])  # (3, 28, 8, 8)


def rotation(generator: torch.Tensor, representation: int | list[int] = VECTOR) -> torch.Tensor:
    """Rotation ``R_t = exp(rho_t(A))``, differentiable; exactly the identity for zero.

    Args:
        generator: ``(..., 28)`` coefficients of A.
        representation: t, or a list with one t for each entry of the axis before the last, which is then that
            long, or 1 (one generator for all).

    Returns:
        ``(..., 8, 8)`` float64 whatever the generator's dtype, acting on columns ``y = R x``.
    """
    # float64 costs as much as float32 at this size; Apple's GPU has none
    dtype = torch.float32 if generator.device.type == "mps" else torch.float64
    units = torch.as_tensor(REPRESENTED[representation], dtype=dtype, device=generator.device)
    return torch.linalg.matrix_exp(torch.einsum("...k,...kij->...ij", generator.to(dtype), units))


def _apply(equation: str, rotations: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    # in float32 at least: a rotation rounded to bfloat16 is orthogonal to two digits only
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return torch.einsum(equation, rotations.to(dtype), x.to(dtype)).to(x.dtype)


def rotate_blocks(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Rotates a hidden vector block by block: ``y[8b+i] = sum_j R_b[i, j] x[8b+j]``.

    Args:
        x: ``(..., d)``.
        rotations: ``(n, 8, 8)``, n = 1 (shared by all blocks) or d/8.

    Returns:
        ``(..., d)``, dtype of x, contiguous.
    """
    blocks = x.unflatten(-1, (-1, DIM))  # (..., d/8, 8)
    rotations = rotations.expand(blocks.shape[-2], DIM, DIM)  # (d/8, 8, 8)
    return _apply("bij,...bj->...bi", rotations, blocks).flatten(-2).contiguous()  # (..., d)


def rotate_heads(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Rotates every block of a head by the head's rotation: ``y[h, 8b+i] = sum_j R_h[i, j] x[h, 8b+j]``.

    Args:
        x: ``(..., heads, head_dim)``.
        rotations: ``(heads, 8, 8)``.

    Returns:
        ``(..., heads, head_dim)``, dtype of x, contiguous.
    """
    blocks = x.unflatten(-1, (-1, DIM))  # (..., heads, head_dim/8, 8)
    return _apply("hij,...hbj->...hbi", rotations, blocks).flatten(-2).contiguous()  # (..., heads, head_dim)


def mix_heads(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Rotates groups of 8 heads into each other: ``y[8g+i] = sum_k C_g[i, k] x[8g+k]``, and leaves the rest.

    Args:
        x: ``(..., heads, head_dim)``.
        rotations: ``(heads // 8, 8, 8)``.

    Returns:
        ``(..., heads, head_dim)``, dtype of x, contiguous.
    """
    n = DIM * rotations.shape[0]
    groups = x[..., :n, :].unflatten(-2, (-1, DIM))  # (..., groups, 8, head_dim)
    mixed = _apply("gik,...gkd->...gid", rotations, groups).flatten(-3, -2)  # (..., n, head_dim)
    return torch.cat((mixed, x[..., n:, :]), dim=-2)  # (..., heads, head_dim)
