"""int8 tensors in a ``.npz`` file: written one by one and always to the same bytes, read without trust.

Format: a zip archive of ``NAME.npy`` members, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from llama_so8t.errors import CheckpointError
from llama_so8t.sidecars.quantization import dequantize
from llama_so8t.tensors import LazyTensor

SUFFIX = ".npy"
DTYPE = np.dtype(np.int8)

COMPRESSION_LEVEL = 6
"""Of zlib, unless asked otherwise."""

MAX_EXPANSION = 100
"""int8 weights deflate by a third at most; zeros by a thousand, which a hostile file could use."""

SMALL_BYTES = 1 << 26
"""Total size below which a model may be all zeros."""

_HEADER_BYTES = 512
_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNIX = 3


def write_npz(
    path: Path, tensors: Iterable[tuple[str, tuple[int, ...], Iterable[np.ndarray]]], compression_level: int
) -> None:
    """Writes int8 tensors in their order, each given as name, shape and blocks of rows.

    Memory holds one block. Same tensors, same bytes, as far as zlib is the same: dates and attributes are fixed.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=compression_level) as archive:
        for name, shape, blocks in tensors:
            entry = zipfile.ZipInfo(name + SUFFIX, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = _UNIX
            # an entry of its own does not take the archive's; the attribute has no other name before Python 3.13
            entry._compresslevel = compression_level  # type: ignore[attr-defined]
            with archive.open(entry, "w", force_zip64=True) as file:
                header = {"descr": DTYPE.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for block in blocks:
                    file.write(block.data.cast("B"))


def read_npz(path: Path, scales: Mapping[str, float]) -> dict[str, LazyTensor]:
    """Tensors of a file by `write_npz` as float32; headers are read and checked, values when asked for.

    Args:
        path: the file.
        scales: name -> scale, for every tensor that the file may have.

    Raises:
        CheckpointError: no such archive, members that are doubled, unknown, encrypted, of another type or size
            than they say, or larger than a model of this file size can be.
    """
    tensors: dict[str, LazyTensor] = {}
    total = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(SUFFIX)
                where = f"{path}: member {entry.filename!r}"
                if not entry.filename.endswith(SUFFIX) or name not in scales:
                    raise CheckpointError(f"{where}: found in no entry of the scales, expected tensors with a scale")
                if name in tensors:
                    raise CheckpointError(f"{where}: appears twice")
                if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise CheckpointError(f"{where}: is encrypted or of another compression than deflate")
                total += entry.file_size
                if total > max(SMALL_BYTES, MAX_EXPANSION * path.stat().st_size):
                    raise CheckpointError(
                        f"{where}: found {total} bytes so far in a file of {path.stat().st_size}, "
                        f"expected int8 weights, which do not shrink that much"
                    )
                shape = _shape(archive, entry, where)
                tensors[name] = LazyTensor(name, shape, "I8", _Reader(path, entry.filename, shape, scales[name]))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: is not a readable npz file: {error}") from None
    return tensors


class _Reader:
    """Reads one member; opens the file anew, so that nothing stays open."""

    def __init__(self, path: Path, member: str, shape: tuple[int, ...], scale: float) -> None:
        self.path, self.member, self.shape, self.scale = path, member, shape, scale

    def __call__(self) -> np.ndarray:
        where = f"{self.path}: member {self.member!r}"
        n = math.prod(self.shape)
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                _read_header(file, where)
                raw = file.read(n)
                rest = file.read(1)  # the checksum is compared at the end of the member
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CheckpointError(f"{where}: is damaged: {error}") from None
        if len(raw) != n or rest:
            raise CheckpointError(f"{where}: found another size than at first, expected {n} bytes")
        return dequantize(np.frombuffer(raw, DTYPE).reshape(self.shape), self.scale)


def _shape(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> tuple[int, ...]:
    with archive.open(entry) as file:
        shape = _read_header(file, where)
        expected = file.tell() + math.prod(shape)
    if entry.file_size != expected:
        raise CheckpointError(f"{where}: found {entry.file_size} bytes, expected {expected} for shape {list(shape)}")
    return shape


def _read_header(file: IO[bytes], where: str) -> tuple[int, ...]:
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"found version {version}, expected (1, 0)")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_HEADER_BYTES)
    except (ValueError, SyntaxError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{where}: is no array of numpy: {str(error).splitlines()[0]}") from None
    if dtype != DTYPE or fortran_order:
        order = "Fortran" if fortran_order else "C"
        raise CheckpointError(f"{where}: found {dtype} in {order} order, expected int8 in C order")
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise CheckpointError(f"{where}: found shape {list(shape)}, expected sizes above 0")
    return shape
