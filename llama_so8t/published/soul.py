"""The soul of layout L14: alpha and one rotation of the whole width, in a file beside the base model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama_so8t.algebra import TOLERANCE
from llama_so8t.errors import AlgebraError, CheckpointError
from llama_so8t.files import torch_file
from llama_so8t.published.rotations import trivialized

_ORIGINAL, _BASE = ".parametrizations.weight.original", ".parametrizations.weight.0.base"
_MODULES = ("so8_rotation", "rotation")
_CHUNK = 1 << 22
"""Elements per float64 step."""


@dataclass(frozen=True)
class Soul:
    """``h + sigmoid(alpha) R h`` before the output matrix. ``rotation`` is (d, d) float64, columns ``y = R x``."""

    alpha: float
    rotation: np.ndarray

    @property
    def gate(self) -> float:
        """``sigmoid(alpha)``."""
        return float(np.exp(-np.logaddexp(0.0, -self.alpha)))

    def folded(self, weight: np.ndarray) -> np.ndarray:
        """``W' = W + sigmoid(alpha) W R``. ``(vocab, d) -> (vocab, d)`` float32."""
        result = np.empty(weight.shape, dtype=np.float32)
        step = max(1, _CHUNK // weight.shape[1])
        for start in range(0, len(weight), step):
            part = weight[start : start + step].astype(np.float64)
            result[start : start + step] = part + self.gate * (part @ self.rotation)
        return result

    def orthogonality_error(self) -> float:
        """Largest entry of ``|R^T R - I|``."""
        return float(np.abs(self.rotation.T @ self.rotation - np.eye(len(self.rotation))).max())


def read_soul(path: Path, width: int | None = None) -> Soul:
    """Reads ``soul.pt`` or ``soul_params.pt``.

    Args:
        path: the file.
        width: hidden size of the model beside it; None where there is none.

    Raises:
        CheckpointError: unreadable; alpha missing or not finite; no rotation, or one that is not orthogonal or
            of another width.
    """
    found = torch_file.read(path)
    if "alpha" not in found or found["alpha"].shape not in ((), (1,)):
        raise CheckpointError(f"{path}: found no alpha, expected one number; this file has no soul to fold")
    alpha = float(found["alpha"].read().reshape(()))
    if not np.isfinite(alpha):
        raise CheckpointError(f"{path}: found alpha {alpha}, expected a finite number; the training has diverged")
    module = next((name for name in _MODULES if name + _ORIGINAL in found and name + _BASE in found), None)
    if module is None:
        raise CheckpointError(
            f"{path}: found no rotation (names {', '.join(sorted(found)[:4])}), expected NAME{_ORIGINAL} and "
            f"NAME{_BASE} for NAME in {', '.join(_MODULES)}; without the rotation alpha scales nothing"
        )
    try:
        soul = Soul(alpha, trivialized(found[module + _ORIGINAL].read(), found[module + _BASE].read()))
    except AlgebraError as error:
        raise CheckpointError(f"{path}: {module}: {error}") from None
    if width is not None and len(soul.rotation) != width:
        raise CheckpointError(f"{path}: {module}: found width {len(soul.rotation)}, expected {width} of the model")
    if not (distance := soul.orthogonality_error()) <= TOLERANCE:
        raise CheckpointError(f"{path}: {module}: found |R^T R - I| {distance:.3g}, expected at most {TOLERANCE}")
    return soul
