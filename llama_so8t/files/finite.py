"""NaN and infinity in a tensor of a file, which would silently spoil whatever is computed from it."""

from pathlib import Path

import numpy as np

from llama_so8t import kernels
from llama_so8t.errors import CheckpointError
from llama_so8t.tensors import LazyTensor


def finite(path: Path, tensor: LazyTensor) -> np.ndarray:
    """The values of a tensor, float32 of its shape; ``path`` is for errors.

    Raises:
        CheckpointError: one of them is NaN or infinite.
    """
    values = tensor.read()
    check_finite(path, tensor.name, values)
    return values


def check_finite(path: Path, name: str, values: np.ndarray, first_row: int = 0) -> None:
    """Looks for NaN and infinity in some rows of a tensor.

    Args:
        path: of the model, for errors.
        name: of the tensor, for errors.
        values: float32, any shape; rows first.
        first_row: number of the first of these rows in the tensor.

    Raises:
        CheckpointError: there is one.
    """
    bad = kernels.first_nonfinite(values)
    if bad is not None:
        index = np.unravel_index(bad, values.shape)
        where = ", ".join(str(int(i) + (first_row if axis == 0 else 0)) for axis, i in enumerate(index))
        raise CheckpointError(f"{path}: tensor {name!r}: found {values[index]} at [{where}], expected finite numbers")
