"""Reader of the files that `torch.save` writes, for untrusted ones: tensors and numbers, no code.

A zip with uncompressed members, so that no member is larger than the file; then torch's own reader with
``weights_only``, which refuses every object that is not data.
"""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t.errors import CheckpointError

MAX_DEPTH = 8


def members(path: Path) -> tuple[zipfile.ZipInfo, ...] | None:
    """The members of a zip, listed and not read; None if the file is no zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return None


@dataclass(frozen=True)
class Entry:
    """A tensor or a number of a file; its values stay on disk until they are read."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    """Floating point as float64, others as stored."""


def read(path: Path) -> dict[str, Entry]:
    """Tensors and numbers of a file by dotted name; nested dictionaries are flattened.

    A file that holds one tensor has it under the name of the file.

    Raises:
        CheckpointError: no zip of `torch.save`, compressed, or with something that is no data.
    """
    listed = members(path)
    if listed is None or not any(Path(item.filename).name == "data.pkl" for item in listed):
        raise CheckpointError(f"{path}: found no zip with a data.pkl, expected a file of torch.save")
    for item in listed:
        if item.compress_type != zipfile.ZIP_STORED or item.file_size > path.stat().st_size:
            raise CheckpointError(f"{path}: member {item.filename!r} is compressed, expected a file of torch.save")
    import torch  # here: most checkpoints have no such file

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises whatever damaged bytes lead it to
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: is not a file of tensors and numbers alone: {reason}") from None
    found: dict[str, Entry] = {}
    _flatten(path, content, "", found, 0)
    return found


def _flatten(path: Path, value: Any, name: str, found: dict[str, Entry], depth: int) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        # a view with strides of 0 can claim more elements than the file has bytes
        if value.is_sparse or value.numel() > path.stat().st_size:
            raise CheckpointError(f"{path}: {name!r}: found {list(value.shape)}, which the file cannot hold")
        found[name or path.name] = Entry(tuple(value.shape), lambda: _array(value.detach()))
    elif isinstance(value, Mapping) and depth < MAX_DEPTH:
        for key, entry in value.items():
            _flatten(path, entry, f"{name}.{key}" if name else str(key), found, depth + 1)
    elif isinstance(value, bool | int | float):
        found[name or path.name] = Entry((), lambda: np.array(value, dtype=np.float64))


def _array(tensor: Any) -> np.ndarray:
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()
