"""Writer of safetensors files, tensor by tensor: the header is known before any weight is read."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llama_so8t.files.safetensors_file import INDEX_NAME, SINGLE_NAME
from llama_so8t.tensors import LazyTensor

MAX_SHARD_BYTES = 2_000_000_000

_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def write_sharded(directory: Path, tensors: Sequence[LazyTensor], max_bytes: int | None = None) -> None:
    """Writes ``model.safetensors``, or shards of at most ``max_bytes`` (MAX_SHARD_BYTES) and their index.

    A tensor keeps its dtype where that is F32, F16 or BF16; all others are written as F32.
    """
    max_bytes = max_bytes or MAX_SHARD_BYTES
    shards: list[list[LazyTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = _size(tensor)
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    if len(shards) == 1:
        write_file(directory / SINGLE_NAME, tensors)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(directory / name, shard)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(_size(tensor) for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def write_file(path: Path, tensors: Sequence[LazyTensor]) -> None:
    """Writes one safetensors file, in the given order, with the marker that transformers asks for."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + _size(tensor)
        header[tensor.name] = {
            "dtype": _dtype(tensor),
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for tensor in tensors:
            file.write(_encoded(tensor))


def _dtype(tensor: LazyTensor) -> str:
    return tensor.dtype if tensor.dtype in _BYTES else "F32"


def _size(tensor: LazyTensor) -> int:
    return math.prod(tensor.shape) * _BYTES[_dtype(tensor)]


def _encoded(tensor: LazyTensor) -> memoryview:
    values = np.ascontiguousarray(tensor.read(), dtype="<f4")
    dtype = _dtype(tensor)
    if dtype == "F16":
        values = values.astype("<f2")
    elif dtype == "BF16":
        # exact: the values were read from bfloat16, so the lower half of each float32 is zero
        values = (values.view("<u4") >> 16).astype("<u2")
    return values.reshape(-1).data.cast("B")
