"""Writes the four sidecar files of an SO8T model."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llama_so8t.checkpoint import Checkpoint
from llama_so8t.checkpoint.names import OUTPUT, base_tensors, so8t_tensors
from llama_so8t.errors import ConversionError
from llama_so8t.files.atomic import new_files
from llama_so8t.files.finite import finite
from llama_so8t.files.json_file import write_json
from llama_so8t.sidecars.metadata import DTYPES, metadata
from llama_so8t.sidecars.npz import COMPRESSION_LEVEL, write_npz
from llama_so8t.sidecars.quantization import TYPE, ZERO_POINT, quantize, scale_of
from llama_so8t.sidecars.tokenizer import tokenizer_info

METADATA_NAME = "model_metadata.json"
QUANTIZATION_NAME = "quantization_info.json"
TOKENIZER_NAME = "tokenizer_info.json"
TENSORS_NAME = "model_tensors_8bit.npz"
NAMES = (METADATA_NAME, TENSORS_NAME, QUANTIZATION_NAME, TOKENIZER_NAME)


def write_sidecars(
    checkpoint: Checkpoint,
    directory: Path,
    compression_level: int = COMPRESSION_LEVEL,
    progress: bool = False,
) -> tuple[Path, ...]:
    """Writes metadata, int8 weights, scales and tokenizer; all four appear complete, or none does.

    Every tensor of the model is there under its Hugging Face name, generators and heads too; the output matrix
    only where the embedding does not serve for it. Memory holds some rows at a time where the tensor can be
    read in parts.

    Args:
        checkpoint: an SO8T model.
        directory: made if it is not there; other files in it stay.
        compression_level: of zlib, 0 to 9.
        progress: whether to show a bar.

    Returns:
        Paths of the files.

    Raises:
        ConversionError: a plain base model, or another compression level.
        CheckpointError: a weight is not finite, or the tokenizer cannot be read.
        ConfigError: ``config.json`` lacks a field.
    """
    if not checkpoint.is_so8t:
        raise ConversionError(
            f"{checkpoint.path}: is a plain model without rotations and heads; "
            f"make an SO8T model of it first: so8t init --base {checkpoint.path} --out DIR"
        )
    if compression_level not in range(10):
        raise ConversionError(f"compression_level: found {compression_level!r}, expected 0 to 9")
    described, tokenizer = metadata(checkpoint), tokenizer_info(checkpoint.vocabulary)
    directory.mkdir(parents=True, exist_ok=True)
    paths = tuple(directory / name for name in NAMES)
    with new_files(paths) as (metadata_file, tensors_file, quantization_file, tokenizer_file):
        scales: dict[str, dict[str, Any]] = {}
        write_npz(tensors_file, _quantized(checkpoint, scales, progress), compression_level)
        write_json(metadata_file, described)
        write_json(quantization_file, scales)
        write_json(tokenizer_file, tokenizer)
    return paths


def _quantized(
    checkpoint: Checkpoint, scales: dict[str, dict[str, Any]], progress: bool
) -> Iterator[tuple[str, tuple[int, ...], Iterator[np.ndarray]]]:
    """Name, shape and integers of every tensor; what else is known about it goes to ``scales``."""
    tied = checkpoint.config.get("tie_word_embeddings")
    expected = base_tensors(checkpoint.config, checkpoint.spec) | so8t_tensors(checkpoint.spec)
    names = [name for name in expected if name in checkpoint.tensors and not (tied and name == OUTPUT)]
    for name in tqdm(names, unit="tensor", desc=TENSORS_NAME, disable=not progress):
        tensor = checkpoint.tensors[name]
        scale = scale_of(tensor)
        if not math.isfinite(scale):
            finite(checkpoint.path, tensor)
        scales[name] = {
            "scale": scale,
            "zero_point": ZERO_POINT,
            "original_dtype": f"torch.{DTYPES[tensor.dtype]}" if tensor.dtype in DTYPES else tensor.dtype,
            "quantization_type": TYPE,
        }
        yield name, tensor.shape, quantize(tensor, scale)
