"""A tensor in a file: known by name, shape and dtype, read only when asked, whole or some rows."""

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llama_so8t.errors import CheckpointError


class DataFile:
    """Bytes of a file, read where asked and not mapped: pages of a map would count as memory of this process.

    It is open as long as a tensor of it lives.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def bytes(self, start: int, count: int) -> np.ndarray:
        """``count`` bytes from ``start``, ``(count,)`` uint8.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
        """
        data = np.empty(count, dtype=np.uint8)
        done = 0
        while done < count:
            # one call reads 2 GiB at most
            read = os.preadv(self._descriptor, [data[done:].data], start + done)
            if read == 0:
                raise CheckpointError(f"{self.path}: ends before byte {start + count}; it was cut since it was opened")
            done += read
        return data


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of a file that is there or that is being made: name, shape (rows first), dtype, and how to read it.

    ``dtype`` is the type in that file, under its name in safetensors or GGUF: "BF16", "Q8_0". ``read`` returns the
    values as a float32 array of ``shape``. ``read_rows(start, stop)``, where the tensor can be read in parts, returns
    rows ``[start, stop)``. Both may give read-only views, and may be called from several threads. ``exact`` is true
    for what is F32 in every file that a conversion writes: rotations, generators, heads.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    read_rows: Callable[[int, int], np.ndarray] | None = None
    exact: bool = False

    @classmethod
    def of(cls, name: str, values: np.ndarray, exact: bool = False) -> "LazyTensor":
        """A tensor whose float32 values are in memory, any shape; not in parts, because it is small."""
        return cls(name, values.shape, "F32", lambda: values, exact=exact)

    @classmethod
    def zeros(cls, name: str, shape: tuple[int, ...]) -> "LazyTensor":
        """A float32 tensor of zeros, made when it is read."""
        return cls(name, shape, "F32", lambda: np.zeros(shape, dtype=np.float32))

    def renamed(self, name: str) -> "LazyTensor":
        """The same tensor under another name."""
        return replace(self, name=name)

    def as_type(self, dtype: str) -> "LazyTensor":
        """The same values, to be stored as another type; what is read stays float32."""
        return replace(self, dtype=dtype)

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> "LazyTensor":
        """The tensor with ``function`` applied on every read; shape stays, dtype becomes F32.

        It is read as a whole from now on: `mapped_rows` where the function can work on some rows.
        """
        read = self.read
        return replace(self, dtype="F32", read=lambda: function(read()), read_rows=None)

    def mapped_rows(self, function: Callable[[np.ndarray, int], np.ndarray]) -> "LazyTensor":
        """The tensor with ``function(rows, first row)`` applied on every read; it keeps the number of rows."""
        read, read_rows = self.read, self.read_rows
        return replace(
            self,
            dtype="F32",
            read=lambda: function(read(), 0),
            read_rows=None if read_rows is None else lambda start, stop: function(read_rows(start, stop), start),
        )
