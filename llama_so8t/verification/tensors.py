"""Compares a tensor of a file with the values that it should hold."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llama_so8t import kernels, upstream
from llama_so8t.conversion.header import ggml_type
from llama_so8t.tensors import LazyTensor
from llama_so8t.verification.bounds import BOUNDS, HALF_STEP_F16, Bound

_CHUNK = 1 << 19
"""Values compared at a time: bounds the memory to some MB per thread."""

_ROWS = 128
"""Chunks begin at a multiple, as in the conversion: neither rotations nor float8 scales are cut."""


@dataclass(frozen=True)
class TensorMeasure:
    """One tensor of a file beside its expected values.

    ``max_error`` and ``rms_error`` are relative to the RMS of the expected values. ``share`` is the largest error as
    a share of what its type allows there; ``exact`` tensors must be equal. ``problem`` is None where all is well.
    """

    name: str
    type: str
    n: int
    exact: bool
    max_error: float
    rms_error: float
    share: float
    problem: str | None


def measure_tensor(stored: LazyTensor, planned: LazyTensor, importance: np.ndarray | None = None) -> TensorMeasure:
    """Compares all values of a tensor, and what a new quantization gives.

    Args:
        stored: tensor of the file, of the planned shape.
        planned: what the conversion planned, with the type that it gets.
        importance: ``(columns,)`` float32, where the conversion quantized by it.
    """
    kind = planned.dtype
    n, width = math.prod(planned.shape), planned.shape[-1]
    problem: str | None
    if stored.dtype != kind or kind not in BOUNDS:
        problem = "has a type without bounds" if stored.dtype == kind else f"found type {stored.dtype}, expected {kind}"
        nan = math.nan
        return TensorMeasure(planned.name, stored.dtype, n, planned.exact, nan, nan, nan, problem)
    bound = BOUNDS[kind] if importance is None else BOUNDS[kind].weighted()
    max_error = share = squares = errors = 0.0
    first_wrong = first_other = None
    with np.errstate(all="ignore"):  # a damaged tensor has any value; NaN is a problem, and not a warning
        for row, found, values in _chunks(stored, planned):
            error = np.abs(found - values)
            worst = of_allowed(error, values, kind, bound)
            share = max(share, float(worst.max()))
            if first_wrong is None and share > 1:
                # of the block, the value that is off by most
                block = int((worst > 1).argmax())
                size = error.size // worst.size
                inside = np.nan_to_num(error.reshape(-1, size)[block], nan=np.inf).argmax()
                first_wrong = row * width + block * size + int(inside)
            if first_other is None:
                data = kernels.quantize(values, ggml_type(planned), importance, False)
                again = upstream.gguf.dequantize(data, ggml_type(planned))
                # bit by bit: 0 is not -0
                differs = (again.view(np.uint32) != found.view(np.uint32)).any(axis=1)
                first_other = row + int(differs.argmax()) if differs.any() else None
            max_error = max(max_error, float(np.nan_to_num(error.max(), nan=np.inf)))
            squares += float(np.vdot(values, values))
            errors += float(np.vdot(error, error))
    rms, rms_error = math.sqrt(squares / n), math.sqrt(errors / n)
    scale = rms or 1.0
    problem = None
    if first_wrong is not None:
        where = ", ".join(str(int(i)) for i in np.unravel_index(first_wrong, planned.shape))
        allowed_text = "equal values" if bound.largest == 0 else f"no more than {kind} rounds"
        problem = (
            f"differs from the checkpoint, first at [{where}], at most by {max_error / scale:.2g} of the tensor's "
            f"RMS; expected {allowed_text}"
        )
    elif not rms_error <= bound.rms * rms + bound.levels * HALF_STEP_F16:
        problem = f"differs from the checkpoint by {rms_error / scale:.2g} of its RMS, expected at most {bound.rms:g}"
    elif first_other is not None:
        problem = f"is not what quantizing the checkpoint to {kind} gives, first in row {first_other}"
    return TensorMeasure(planned.name, kind, n, planned.exact, max_error / scale, rms_error / scale, share, problem)


def _chunks(stored: LazyTensor, planned: LazyTensor) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(first row, found values, expected values), both ``(rows, width)``, rows counted over all leading axes."""
    width = planned.shape[-1]
    if stored.read_rows is None or planned.read_rows is None or len(planned.shape) != 2:
        yield 0, stored.read().reshape(-1, width), planned.read().reshape(-1, width)
        return
    n_rows = planned.shape[0]
    step = _ROWS * max(1, _CHUNK // (_ROWS * width))
    for row in range(0, n_rows, step):
        stop = min(row + step, n_rows)
        yield row, stored.read_rows(row, stop), planned.read_rows(row, stop)


def of_allowed(error: np.ndarray, values: np.ndarray, kind: str, bound: Bound) -> np.ndarray:
    """Largest error of every block as a share of what is allowed there; infinite where it is not a number.

    Args:
        error: absolute errors, any shape.
        values: expected values, same shape.
        kind: name of a ggml type.
        bound: of that type.

    Returns:
        ``(values / block size,)``.
    """
    size, _ = upstream.gguf.GGML_QUANT_SIZES[upstream.gguf.GGMLQuantizationType[kind]]
    error, largest = error.reshape(-1), np.abs(values).reshape(-1)
    if size > 1:
        error, largest = error.reshape(-1, size).max(axis=1), largest.reshape(-1, size).max(axis=1)
    with np.errstate(all="ignore"):
        share = error / (bound.largest * largest + bound.levels * HALF_STEP_F16)
    share[error == 0] = 0.0
    share[~np.isfinite(share)] = np.inf
    return share
