"""Inner loops of a conversion: ``libso8t-kernels`` where it is built, numpy otherwise, with the same bytes.

Every function may run in several threads at once; the native ones release Python's lock.
"""

import ctypes as c
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_so8t import upstream
from llama_so8t.bindings.library import library_directory
from llama_so8t.errors import ConversionError, RuntimeLibraryError

VERSION = 1
"""SO8T_KERNELS_VERSION of so8t-kernels.h."""

_I64, _POINTER = c.c_int64, c.c_void_p

_PROTOTYPES = {
    # int32_t so8t_kernels_version(void)
    "version": (c.c_int32, []),
    # void so8t_kernels_from_e4m3(const uint8_t * src, float * dst, int64_t n)
    "from_e4m3": (None, [_POINTER, _POINTER, _I64]),
    # void so8t_kernels_from_bf16(const uint16_t * src, float * dst, int64_t n)
    "from_bf16": (None, [_POINTER, _POINTER, _I64]),
    # int64_t so8t_kernels_first_nonfinite(const float * src, int64_t n)
    "first_nonfinite": (_I64, [_POINTER, _I64]),
    # void so8t_kernels_rotate(src, dst, n_rows, n_per_row, columns, n_columns, n_groups, stride, rows)
    "rotate": (None, [_POINTER, _POINTER, _I64, _I64, _POINTER, _I64, _I64, _I64, _POINTER]),
    # uint64_t so8t_kernels_quantize(int32_t type, src, dst, int64_t n_rows, int64_t n_per_row, imatrix, bool check)
    "quantize": (c.c_uint64, [c.c_int32, _POINTER, _POINTER, _I64, _I64, _POINTER, c.c_bool]),
}

_DIM = 8

_WITHOUT_BUILD = ("F32", "F16", "BF16", "Q8_0")
"""Types in which gguf-py gives the bytes of llama-quantize."""


@dataclass(frozen=True)
class ColumnRotation:
    """Rotations of groups of 8 columns, ``stride`` apart: ``y[k] = sum_i x[i] R[i, k]``.

    ``matrices``: ``(n, 8, 8)`` float64, one per group, or one for all. Group g holds the ``8 stride`` columns from
    ``8 stride g``. Columns past ``groups`` stay.
    """

    matrices: np.ndarray
    groups: int
    stride: int = 1


@functools.cache
def library() -> c.CDLL | None:
    """The native kernels, or None where they are not built."""
    try:
        path = next(iter(sorted(library_directory().glob("*so8t-kernels.*"))))
        found = c.CDLL(str(path))
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(found, f"so8t_kernels_{name}")
            function.restype, function.argtypes = result, arguments
    except (RuntimeLibraryError, StopIteration, OSError, AttributeError):
        return None
    return found if found.so8t_kernels_version() == VERSION else None


def from_e4m3(raw: np.ndarray) -> np.ndarray:
    """float8 e4m3fn (OCP 8-bit floating point, 2023) as uint8, any shape, to float32."""
    if (native := library()) is None:
        return _e4m3_table()[raw]
    raw = np.ascontiguousarray(raw)
    values = np.empty(raw.shape, dtype=np.float32)
    native.so8t_kernels_from_e4m3(raw.ctypes.data, values.ctypes.data, raw.size)
    return values


def from_bf16(raw: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16, any shape, to float32."""
    if (native := library()) is None:
        # a bfloat16 is the upper half of a float32
        return (raw.astype(np.uint32) << 16).view(np.float32)
    raw = np.ascontiguousarray(raw)
    values = np.empty(raw.shape, dtype=np.float32)
    native.so8t_kernels_from_bf16(raw.ctypes.data, values.ctypes.data, raw.size)
    return values


def first_nonfinite(values: np.ndarray) -> int | None:
    """Flat index of the first NaN or infinity of a float32 array of any shape, or None."""
    values = np.ascontiguousarray(values)
    if (native := library()) is None:
        bad = np.flatnonzero(~np.isfinite(values))
        return int(bad[0]) if len(bad) else None
    index = native.so8t_kernels_first_nonfinite(values.ctypes.data, values.size)
    return None if index < 0 else index


def rotate(values: np.ndarray, columns: ColumnRotation | None, rows: np.ndarray | None) -> np.ndarray:
    """``W' = diag(R_rows) (W R_columns)`` in float64, each sum in ascending order, rounded to float32 once.

    Args:
        values: ``(n_rows, n_columns)`` float32.
        columns: rotation of the columns, or None.
        rows: ``(n_rows / 8, 8, 8)`` float64, one matrix for every 8 rows, or None.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if (native := library()) is None:
        return _rotate(values, columns, rows)
    matrices = None if columns is None else np.ascontiguousarray(columns.matrices, dtype=np.float64)
    rows = None if rows is None else np.ascontiguousarray(rows, dtype=np.float64)
    turned = np.empty_like(values)
    native.so8t_kernels_rotate(
        values.ctypes.data,
        turned.ctypes.data,
        *values.shape,
        None if matrices is None else matrices.ctypes.data,
        0 if matrices is None else len(matrices),
        0 if columns is None else columns.groups,
        0 if columns is None else columns.stride,
        None if rows is None else rows.ctypes.data,
    )
    return turned


def quantize(values: np.ndarray, kind: Any, importance: np.ndarray | None = None, check: bool = True) -> np.ndarray:
    """Rows of float32 to a ggml type, byte for byte as `llama-quantize` does.

    Args:
        values: ``(n_rows, n_columns)`` float32; n_columns a multiple of the block size.
        kind: a `gguf.GGMLQuantizationType`.
        importance: ``(n_columns,)`` float32, or None.
        check: whether values that do not fit the type are an error.

    Returns:
        ``(n_rows, bytes per row)`` uint8.

    Raises:
        ConversionError: a value is too large for the type, or the type needs the native kernels.
    """
    gguf = upstream.gguf
    if kind == gguf.GGMLQuantizationType.F32:
        return np.ascontiguousarray(values, dtype=np.float32).view(np.uint8)
    if (native := library()) is None:
        return _quantize(values, kind, importance, check)
    values = np.ascontiguousarray(values, dtype=np.float32)
    block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
    data = np.empty((values.shape[0], values.shape[1] // block_size * type_size), dtype=np.uint8)
    importance = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    size = native.so8t_kernels_quantize(
        int(kind),
        values.ctypes.data,
        data.ctypes.data,
        *values.shape,
        None if importance is None else importance.ctypes.data,
        check,
    )
    if size != data.nbytes:
        raise ConversionError(_too_large(values, kind))
    return data


def _rotate(values: np.ndarray, columns: ColumnRotation | None, rows: np.ndarray | None) -> np.ndarray:
    x: np.ndarray
    wide = values.astype(np.float64)
    if columns is not None:
        n = _DIM * columns.stride * columns.groups
        x = wide[:, :n].reshape(len(wide), columns.groups, _DIM, columns.stride)
        # R of group g, input i, as a column over the outputs k
        matrix = columns.matrices[None, :, :, :, None]
        total = x[:, :, 0:1] * matrix[:, :, 0]
        for i in range(1, _DIM):
            total = total + x[:, :, i : i + 1] * matrix[:, :, i]
        wide[:, :n] = total.reshape(len(wide), n)
    if rows is not None:
        x = wide.reshape(-1, _DIM, wide.shape[1])
        total = x[:, 0:1] * rows[:, :, 0, None]
        for k in range(1, _DIM):
            total = total + x[:, k : k + 1] * rows[:, :, k, None]
        wide = total.reshape(wide.shape)
    return wide.astype(np.float32)


def _quantize(values: np.ndarray, kind: Any, importance: np.ndarray | None, check: bool) -> np.ndarray:
    if kind.name not in _WITHOUT_BUILD or importance is not None:
        raise ConversionError(
            f"{kind.name}{' with an importance matrix' if importance is not None else ''} needs the native "
            f"kernels: found no libso8t-kernels; run `make build`, or set SO8T_LIBRARY_PATH"
        )
    with np.errstate(over="ignore"):
        data = upstream.gguf.quantize(values, kind)
    if check and kind.name == "F16" and not np.isfinite(data).all():
        raise ConversionError(_too_large(values, kind))
    return data.view(np.uint8)


def _too_large(values: np.ndarray, kind: Any) -> str:
    return f"found values up to {np.abs(values).max():g}, which do not fit {kind.name}; choose BF16 or F32"


@functools.cache
def _e4m3_table() -> np.ndarray:
    bits = np.arange(256)
    exponent, mantissa = (bits >> 3) & 15, bits & 7
    values = np.where(exponent > 0, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(1.0 * mantissa, -9))
    values[bits & 127 == 127] = np.nan
    return np.copysign(values, np.where(bits < 128, 1.0, -1.0)).astype(np.float32)
