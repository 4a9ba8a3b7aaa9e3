"""Reader of safetensors files that trusts nothing: every header field is checked before data is touched.

Of our own, because the safetensors library names no tensor in its errors and has no bfloat16 in numpy.
Format: https://huggingface.co/docs/safetensors (8 bytes header length, JSON header, data without holes).
"""

import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t import kernels
from llama_so8t.errors import CheckpointError
from llama_so8t.files.json_file import parse_json, read_json
from llama_so8t.tensors import DataFile, LazyTensor

MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors library itself."""

MAX_DIMENSIONS = 32
"""Fewer than numpy has in any version."""

_DTYPES_BY_BYTES = {
    8: "F64 I64 U64",
    4: "F32 I32 U32",
    2: "F16 BF16 I16 U16",
    1: "F8_E4M3 F8_E5M2 I8 U8 BOOL",
}
_DTYPE_BYTES = {dtype: size for size, dtypes in _DTYPES_BY_BYTES.items() for dtype in dtypes.split()}
_READABLE: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
}

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


def read_file(path: Path) -> dict[str, LazyTensor]:
    """Tensors of one file, in the order of their data.

    Raises:
        CheckpointError: the file is truncated, or its header is malformed or contradicts the data.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if size < 8 or header_bytes > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"{path}: found a header of {header_bytes} bytes in a file of {size} bytes, "
                    f"expected a safetensors file; it is truncated or of another kind"
                )
            raw = file.read(header_bytes)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    header = parse_json(raw, path)
    header.pop("__metadata__", None)
    data_bytes = size - 8 - header_bytes
    data = DataFile(path)
    entries = [(name, *_entry(path, name, fields, data_bytes)) for name, fields in header.items()]
    entries.sort(key=lambda entry: (entry[3], entry[4]))
    end, previous = 0, None
    for name, _, _, start, stop in entries:
        if start < end:
            raise CheckpointError(f"{path}: tensor {name!r}: found data from byte {start}, which overlaps {previous!r}")
        if start > end:
            raise CheckpointError(f"{path}: tensor {name!r}: found data from byte {start}, expected {end} (no holes)")
        end, previous = stop, name
    if end != data_bytes:
        raise CheckpointError(f"{path}: found {data_bytes} bytes of data, expected {end} from the header")
    readers = [_Reader(data, name, dtype, shape, 8 + header_bytes + start) for name, dtype, shape, start, _ in entries]
    return {
        reader.name: LazyTensor(reader.name, reader.shape, reader.dtype, reader, reader.rows if reader.shape else None)
        for reader in readers
    }


def is_there(directory: Path) -> bool:
    """Whether a directory holds such weights."""
    return any((directory / name).is_file() for name in (SINGLE_NAME, INDEX_NAME))


def read_sharded(directory: Path) -> dict[str, LazyTensor]:
    """Tensors of ``model.safetensors``, or of the shards that ``model.safetensors.index.json`` names.

    Raises:
        CheckpointError: as `read_file`, or index and shards contradict each other.
    """
    if (directory / SINGLE_NAME).is_file():
        return read_file(directory / SINGLE_NAME)
    index_path = directory / INDEX_NAME
    if not index_path.is_file():
        raise CheckpointError(f"{directory}: found neither {SINGLE_NAME} nor {INDEX_NAME}, expected one of them")
    shards = shard_names(directory)
    weight_map = read_json(index_path)["weight_map"]
    tensors: dict[str, LazyTensor] = {}
    for shard in shards:
        for name, tensor in read_file(directory / shard).items():
            if name in tensors:
                raise CheckpointError(f"{directory / shard}: tensor {name!r} is in an earlier shard too")
            if weight_map.get(name) != shard:
                raise CheckpointError(f"{directory / shard}: tensor {name!r}: the index says {weight_map.get(name)!r}")
            tensors[name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{directory / shard}: tensor {name!r} is in {INDEX_NAME}, but not in the shard")
    return tensors


def shard_names(directory: Path) -> list[str]:
    """Weight files of a directory, sorted; plain names only, so that an index cannot point elsewhere.

    Raises:
        CheckpointError: the index is malformed, or names a shard outside the directory or a missing one.
    """
    if (directory / SINGLE_NAME).is_file():
        return [SINGLE_NAME]
    path = directory / INDEX_NAME
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{path}: found no weight_map, expected an object of tensor names and shards")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard or "\\" in shard or shard.startswith(".") or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{path}: found shard {shard!r}, expected a plain file name NAME.safetensors")
        if not (directory / shard).is_file():
            raise CheckpointError(f"{path}: shard {shard} is missing; finish the download of the model")
    return shards


@dataclass(frozen=True)
class _Reader:
    """Reads one tensor as float32; a class, not a closure, so that it names itself in errors."""

    data: DataFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    def __call__(self) -> np.ndarray:
        return self._values(0, self.shape)

    def rows(self, start: int, stop: int) -> np.ndarray:
        row_size = math.prod(self.shape[1:])
        return self._values(start * row_size, (stop - start, *self.shape[1:]))

    def _values(self, skipped: int, shape: tuple[int, ...]) -> np.ndarray:
        if self.dtype not in _READABLE:
            raise CheckpointError(
                f"{self.data.path}: tensor {self.name!r}: found dtype {self.dtype}, "
                f"expected one of {', '.join(_READABLE)}"
            )
        stored = _READABLE[self.dtype]
        raw = self.data.bytes(self.start + skipped * stored.itemsize, math.prod(shape) * stored.itemsize)
        values = raw.view(stored).reshape(shape)
        if self.dtype == "BF16":
            return kernels.from_bf16(values)
        if self.dtype == "F8_E4M3":
            return kernels.from_e4m3(values)
        if self.dtype == "F8_E5M2":
            # the upper half of a float16
            return (values.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
        return values.astype(np.float32, copy=False)


def _entry(path: Path, name: str, fields: Any, data_bytes: int) -> tuple[str, tuple[int, ...], int, int]:
    where = f"{path}: tensor {name!r}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: found {reprlib.repr(fields)}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise CheckpointError(f"{where}: found dtype {reprlib.repr(dtype)}, expected one of {', '.join(_DTYPE_BYTES)}")
    if not isinstance(shape, list) or not all(_is_count(size) for size in shape):
        raise CheckpointError(f"{where}: found shape {reprlib.repr(shape)}, expected whole numbers of 0 or more")
    if len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{where}: found {len(shape)} dimensions, expected at most {MAX_DIMENSIONS}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise CheckpointError(f"{where}: found data_offsets {reprlib.repr(offsets)}, expected [start, end]")
    start, stop = offsets
    if not start <= stop <= data_bytes:
        raise CheckpointError(f"{where}: found data_offsets {offsets}, expected them inside {data_bytes} bytes of data")
    expected = math.prod(shape) * _DTYPE_BYTES[dtype]
    if stop - start != expected:
        raise CheckpointError(f"{where}: found {stop - start} bytes, expected {expected} for {dtype} {shape}")
    return dtype, tuple(shape), start, stop


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
