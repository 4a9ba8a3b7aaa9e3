"""Eight bits with one scale per tensor: ``x ~ s q``, s = max|x| / 127, zero point 0."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from llama_so8t.tensors import LazyTensor

TYPE = "int8_per_tensor"
"""Not Q8_0, which has a scale for every 32 weights."""

ZERO_POINT = 0
LIMIT = 127

_BLOCK_VALUES = 1 << 22
_SMALLEST = np.finfo(np.float32).tiny


def scale_of(tensor: LazyTensor) -> float:
    """s, a float32 number; 1 for a tensor of zeros or below the smallest normal float32; NaN or infinity if one is
    among the values."""
    scale = np.float32(0)
    for values in _row_blocks(tensor):
        # maximum, unlike max, keeps a NaN
        scale = np.maximum(scale, np.maximum(values.max(), -values.min()))
    scale /= np.float32(LIMIT)
    return 1.0 if scale < _SMALLEST else float(scale)


def quantize(tensor: LazyTensor, scale: float) -> Iterator[np.ndarray]:
    """Integers ``q = round(x / s)``, int8, as blocks of rows; ``|x - s q| <= s / 2`` but for rounding in float32."""
    for values in _row_blocks(tensor):
        quotient = values / np.float32(scale)
        yield np.rint(quotient, out=quotient).astype(np.int8)


def dequantize(quantized: np.ndarray, scale: float) -> np.ndarray:
    """``s q``: int8 of any shape to float32 of the same."""
    return quantized.astype(np.float32) * np.float32(scale)


def _row_blocks(tensor: LazyTensor) -> Iterator[np.ndarray]:
    """Some megabytes at a time, where the tensor can be read in parts."""
    read_rows = tensor.read_rows or _slices(tensor.read())
    rows = max(1, _BLOCK_VALUES // math.prod(tensor.shape[1:]))
    for start in range(0, tensor.shape[0], rows):
        stop = min(start + rows, tensor.shape[0])
        yield read_rows(start, stop)


def _slices(whole: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: whole[start:stop]
