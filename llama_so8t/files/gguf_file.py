"""Reader of GGUF files that trusts nothing. Metadata keeps its exact bytes, so that a copy is a copy.

Of our own, because gguf-py's reader makes one numpy array per token and decodes strings.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little endian).
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t import upstream
from llama_so8t.errors import CheckpointError
from llama_so8t.tensors import DataFile, LazyTensor

MAX_TENSORS = 1_000_000
MAX_KEYS = 1_000_000
MAX_ARRAY = 64 * 1024 * 1024
"""Limit of Ollama's decoder too."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4


@dataclass(frozen=True)
class KeyValue:
    """A metadata value: numbers as Python numbers, strings as undecoded bytes, arrays as lists of those."""

    value: Any
    type: int
    sub_type: int | None = None

    def text(self) -> Any:
        """The value with strings decoded as UTF-8; malformed bytes are replaced."""
        if self.type == _STRING:
            return self.value.decode("utf-8", "replace")
        if self.sub_type == _STRING:
            return [item.decode("utf-8", "replace") for item in self.value]
        return self.value

    def for_writer(self) -> Any:
        """The value as a `gguf.GGUFValue`, which upstream's writer writes back byte for byte."""
        gguf = upstream.gguf
        sub_type = None if self.sub_type is None else gguf.GGUFValueType(self.sub_type)
        return gguf.GGUFValue(self.value, gguf.GGUFValueType(self.type), sub_type)

    @property
    def is_empty_array(self) -> bool:
        """Upstream's writer refuses these; its own converter leaves them out."""
        return self.sub_type is not None and not self.value


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensors of a GGUF file, in file order."""

    path: Path
    metadata: dict[str, KeyValue]
    tensors: dict[str, LazyTensor]

    def get(self, key: str, default: Any = None) -> Any:
        """Decoded value of a key, or ``default``."""
        return self.metadata[key].text() if key in self.metadata else default


def read_gguf(path: Path) -> GgufFile:
    """Header of a GGUF file; tensor data stays on disk until a tensor is read.

    Raises:
        CheckpointError: not GGUF, another version or byte order, truncated, or a field out of its limits.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < 24 or file.read(4) != b"GGUF":
            raise CheckpointError(f"{path}: found no GGUF magic, expected a GGUF file")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(path, mapped)
    cursor.offset = 4
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise CheckpointError(f"{path}: found GGUF version {version}, expected 2 or 3 in little endian")
    n_tensors, n_keys = cursor.scalar("Q"), cursor.scalar("Q")
    if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
        raise CheckpointError(f"{path}: found {n_tensors} tensors and {n_keys} keys, expected at most {MAX_TENSORS}")
    metadata: dict[str, KeyValue] = {}
    for _ in range(n_keys):
        key = cursor.name("key")
        if key in metadata:
            raise CheckpointError(f"{path}: key {key!r} appears twice")
        metadata[key] = _read_value(cursor, key)
    infos = [_read_info(cursor) for _ in range(n_tensors)]
    alignment = metadata["general.alignment"].value if "general.alignment" in metadata else 32
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: found general.alignment {alignment!r}, expected a power of two")
    start = -(-cursor.offset // alignment) * alignment
    data = DataFile(path)
    tensors: dict[str, LazyTensor] = {}
    for name, shape, type_number, offset in infos:
        if name in tensors:
            raise CheckpointError(f"{path}: tensor {name!r} appears twice")
        tensors[name] = _tensor(data, size, name, shape, type_number, start + offset)
    return GgufFile(path, metadata, tensors)


class _Cursor:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.offset = path, data, 0

    def take(self, count: int) -> bytes:
        end = self.offset + count
        if end > len(self.data):
            raise CheckpointError(f"{self.path}: is truncated: found {len(self.data)} bytes, expected {end} or more")
        taken = self.data[self.offset : end]
        self.offset = end
        return taken

    def scalar(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def string(self) -> bytes:
        return self.take(self.scalar("Q"))

    def strings(self, count: int) -> list[bytes]:
        # a vocabulary has 300 000 of them: no method call for each
        data, offset, size, length = self.data, self.offset, len(self.data), struct.Struct("<Q").unpack_from
        items = []
        for _ in range(count):
            start = offset + 8
            end = start + length(data, offset)[0] if start <= size else start
            if end > size:
                raise CheckpointError(f"{self.path}: is truncated: found {size} bytes, expected {end} or more")
            items.append(data[start:end])
            offset = end
        self.offset = offset
        return items

    def name(self, kind: str) -> str:
        try:
            return self.string().decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.path}: found a {kind} that is not UTF-8 before byte {self.offset}") from None


def _read_value(cursor: _Cursor, key: str) -> KeyValue:
    kind = cursor.scalar("I")
    if kind in _SCALARS:
        return KeyValue(cursor.scalar(_SCALARS[kind]), kind)
    if kind == _STRING:
        return KeyValue(cursor.string(), kind)
    if kind != _ARRAY:
        raise CheckpointError(f"{cursor.path}: key {key!r}: found value type {kind}, expected 0 to 12")
    item, count = cursor.scalar("I"), cursor.scalar("Q")
    if count > MAX_ARRAY:
        raise CheckpointError(f"{cursor.path}: key {key!r}: found {count} items, expected at most {MAX_ARRAY}")
    if item in _SCALARS:
        form = _SCALARS[item]
        return KeyValue(list(struct.unpack(f"<{count}{form}", cursor.take(count * struct.calcsize(form)))), kind, item)
    if item != _STRING:
        raise CheckpointError(f"{cursor.path}: key {key!r}: found an array of type {item}, expected numbers or strings")
    return KeyValue(cursor.strings(count), kind, item)


def _read_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.name("tensor name")
    n_dims = cursor.scalar("I")
    if not 1 <= n_dims <= _MAX_DIMS:
        raise CheckpointError(f"{cursor.path}: tensor {name!r}: found {n_dims} dimensions, expected 1 to {_MAX_DIMS}")
    dims = [cursor.scalar("Q") for _ in range(n_dims)]
    type_number, offset = cursor.scalar("I"), cursor.scalar("Q")
    return name, tuple(reversed(dims)), type_number, offset


def _tensor(data: DataFile, size: int, name: str, shape: tuple[int, ...], type_number: int, start: int) -> LazyTensor:
    gguf = upstream.gguf
    where = f"{data.path}: tensor {name!r}"
    try:
        kind = gguf.GGMLQuantizationType(type_number)
    except ValueError:
        raise CheckpointError(f"{where}: found type number {type_number}, which the pinned llama.cpp lacks") from None
    block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block_size:
        raise CheckpointError(
            f"{where}: found rows of {shape[-1]}, expected a multiple of {block_size} for {kind.name}"
        )
    count = math.prod(shape) // block_size * type_size
    if start + count > size:
        raise CheckpointError(
            f"{where}: is truncated: found {size} bytes in the file, expected {start + count} or more"
        )

    def read_rows(first: int, last: int) -> np.ndarray:
        part = (last - first, *shape[1:])
        if not count:
            return np.zeros(part, dtype=np.float32)
        raw = data.bytes(start + count * first // shape[0], count * (last - first) // shape[0])
        try:
            with np.errstate(all="ignore"):  # a block may have a scale that is NaN; who reads it looks for that
                return gguf.dequantize(raw.reshape(*part[:-1], -1), kind).reshape(part)
        except NotImplementedError:
            raise CheckpointError(f"{where}: found type {kind.name}, which gguf-py cannot read back") from None

    return LazyTensor(
        name,
        shape,
        kind.name,
        lambda: read_rows(0, shape[0]),
        # in one dimension a row is a single number, which has no blocks
        read_rows if len(shape) > 1 else None,
    )
