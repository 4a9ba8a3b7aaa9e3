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
        """``count`` bytes from ``start`` as uint8.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
        """
        data = np.empty(count, dtype=np.uint8)
        done = 0
        while done < count:
            # one call reads 2 GiB at most
            read = os.preadv(self._descriptor, [data[done:]], start + done)
            if read == 0:
                raise CheckpointError(f"{self.path}: ends before byte {start + count}; it was cut since it was opened")
            done += read
        return data


@dataclass(frozen=True)
class StoredTensor:
    """Name, shape (rows first) and stored dtype of a tensor, and how to read it.

    ``read`` returns a float32 array of ``shape``. ``read_rows``, where the tensor can be read in parts, returns
    rows ``[start, stop)``. Both may give read-only views, and may be called from several threads.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    read_rows: Callable[[int, int], np.ndarray] | None = None

    def renamed(self, name: str) -> "StoredTensor":
        """The same tensor under another name."""
        return replace(self, name=name)

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> "StoredTensor":
        """The tensor with ``function`` applied on every read; shape stays, dtype becomes F32.

        It is read as a whole from now on: `mapped_rows` where the function can work on some rows.
        """
        read = self.read
        return replace(self, dtype="F32", read=lambda: function(read()), read_rows=None)

    def mapped_rows(self, function: Callable[[np.ndarray, int], np.ndarray]) -> "StoredTensor":
        """The tensor with ``function(rows, first row)`` applied on every read; it keeps the number of rows."""
        read, read_rows = self.read, self.read_rows
        return replace(
            self,
            dtype="F32",
            read=lambda: function(read(), 0),
            read_rows=None if read_rows is None else lambda start, stop: function(read_rows(start, stop), start),
        )
