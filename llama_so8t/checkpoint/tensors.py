"""A tensor in a file: known by name, shape and dtype, read only when asked."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class StoredTensor:
    """Name, shape (rows first) and stored dtype of a tensor, and how to read it.

    ``read`` returns a float32 array of ``shape``. It may be a read-only view of a mapped file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    def renamed(self, name: str) -> "StoredTensor":
        """The same tensor under another name."""
        return replace(self, name=name)

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> "StoredTensor":
        """The tensor with ``function`` applied on every read; shape stays, dtype becomes F32."""
        read = self.read
        return replace(self, dtype="F32", read=lambda: function(read()))
