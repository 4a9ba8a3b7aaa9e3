"""Weights in 8-bit floats beside their scales become plain tensors: ``W = W8 * scale``.

Scales: one per block (``weight_scale_inv`` of DeepSeek and Qwen FP8 models), per row, or one for all
(``weight_scale`` of compressed-tensors and of transformers' per-tensor FP8). The product is float32, as in
llama.cpp's own converter.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t.errors import CheckpointError
from llama_so8t.files.finite import finite
from llama_so8t.tensors import LazyTensor

DTYPES = ("F8_E4M3", "F8_E5M2")

_METHODS = ("fp8", "compressed-tensors")
_SCALES = (".weight_scale_inv", ".weight_scale")
_OF_ACTIVATIONS = (".input_scale", ".activation_scale", ".output_scale", ".k_scale", ".v_scale")


def scaled(path: Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors with scales multiplied in, and without the scales.

    Args:
        path: of the model, for errors.
        config: fields of config.json; ``quantization_config`` says the block size.
        tensors: as stored.

    Raises:
        CheckpointError: another quantization, a scale that is missing, not finite, without weight, or of a
            wrong shape.
    """
    quantization = config.get("quantization_config") or config.get("compression_config") or {}
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if quantization and not (isinstance(method, str) and method in _METHODS):
        raise CheckpointError(
            f"{path / 'config.json'}: found quantization_config of method {method!r}, expected "
            f"{' or '.join(_METHODS)}; convert from the unquantized model"
        )
    result = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if f".{kind}" in _SCALES:
            if tensors.get(f"{stem}.weight", tensor).dtype not in DTYPES:
                raise CheckpointError(f"{path}: tensor {name!r}: found no 8-bit float {stem}.weight to scale")
        elif tensor.dtype in DTYPES:
            result[name] = _scaled(path, quantization, tensor, tensors)
        elif not (quantization and f".{kind}" in _OF_ACTIVATIONS):
            result[name] = tensor
    return result


def _scaled(
    path: Path, quantization: Mapping[str, Any], tensor: LazyTensor, tensors: Mapping[str, LazyTensor]
) -> LazyTensor:
    stem = tensor.name.removesuffix(".weight")
    found = [tensors[stem + suffix] for suffix in _SCALES if stem + suffix in tensors]
    if len(found) != 1 or not tensor.name.endswith(".weight") or len(tensor.shape) != 2:
        raise CheckpointError(
            f"{path}: tensor {tensor.name!r}: found {tensor.dtype} of shape {list(tensor.shape)} with "
            f"{len(found)} scales, expected a matrix NAME.weight with NAME{_SCALES[0]} or NAME{_SCALES[1]}"
        )
    scale = found[0]
    rows, columns = tensor.shape
    stated = _block_size(path, quantization)
    blocks = None if stated is None else (-(-rows // stated[0]), -(-columns // stated[1]))
    if scale.shape in ((), (1,), (1, 1), (rows,), (rows, 1)):
        block = (1, columns)
        values = np.broadcast_to(finite(path, scale).reshape(-1, 1), (rows, 1))
    elif stated is not None and scale.shape == blocks:
        block = stated
        values = finite(path, scale)
    else:
        wanted = "" if stated is None or blocks is None else f"{list(blocks)} (blocks of {list(stated)}), "
        raise CheckpointError(
            f"{path}: tensor {scale.name!r}: found shape {list(scale.shape)} for a weight of "
            f"{list(tensor.shape)}, expected {wanted}one scale per row, or a single one"
        )

    def multiply(part: np.ndarray, start: int) -> np.ndarray:
        scaled = np.empty_like(part) if not part.flags.writeable else part
        row = start
        while row < start + len(part):
            stop = min((row // block[0] + 1) * block[0], start + len(part))
            at = slice(row - start, stop - start)
            spread = np.repeat(values[row // block[0]], block[1])[:columns]
            np.multiply(part[at], spread, out=scaled[at])
            row = stop
        return scaled

    # the dtype stays in sight: it says what the source was
    return tensor.mapped_rows(multiply).as_type(tensor.dtype)


def _block_size(path: Path, quantization: Mapping[str, Any]) -> tuple[int, int] | None:
    block = quantization.get("weight_block_size")
    for group in (quantization.get("config_groups") or {}).values():
        block = block or ((group or {}).get("weights") or {}).get("block_structure")
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(type(b) is int and b > 0 for b in block):
        raise CheckpointError(
            f"{path / 'config.json'}: found weight_block_size {block!r}, expected two whole numbers above 0"
        )
    return block[0], block[1]
