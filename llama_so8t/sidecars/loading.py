"""Loads sidecar files back into the reference model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llama_so8t.checkpoint.checks import check_tensors
from llama_so8t.checkpoint.fields import FIELDS
from llama_so8t.checkpoint.names import MAX_LAYERS, base_tensors, so8t_tensors
from llama_so8t.errors import CheckpointError, So8tError
from llama_so8t.files.json_file import read_json
from llama_so8t.format import ARCH
from llama_so8t.hf import SO8TTransformerConfig, SO8TTransformerForCausalLM
from llama_so8t.model_spec import ModelSpec
from llama_so8t.sidecars.metadata import FURTHER, WRITTEN
from llama_so8t.sidecars.npz import read_npz
from llama_so8t.sidecars.quantization import LIMIT, TYPE, ZERO_POINT
from llama_so8t.sidecars.writing import METADATA_NAME, QUANTIZATION_NAME, TENSORS_NAME

_MAX_HEADS = 1 << 16
_MAX_SCALE = float(torch.finfo(torch.float32).max) / LIMIT


def load_sidecars(directory: Path) -> SO8TTransformerForCausalLM:
    """The reference model, float32, with the weights that `write_sidecars` rounded to int8.

    Nothing in the files is trusted: keys, names, types, shapes and sizes are compared with each other before a
    weight is read, and nothing is unpickled.

    Raises:
        CheckpointError: a file is missing, malformed, or contradicts another.
        ConfigError: the metadata contradict themselves.
    """
    fields = _fields(directory / METADATA_NAME)
    spec = ModelSpec.from_config({"base_model_type": "qwen3"} | fields)
    path = directory / TENSORS_NAME
    scales = _scales(directory / QUANTIZATION_NAME)
    tensors = read_npz(path, scales)
    absent = [name for name in scales if name not in tensors]
    if absent:
        raise CheckpointError(f"{path}: tensor {absent[0]!r} is missing, expected by {QUANTIZATION_NAME}")
    check_tensors(path, tensors, base_tensors(fields, spec) | so8t_tensors(spec))
    model = _model(directory / METADATA_NAME, fields)
    for name, tensor in tensors.items():
        unexpected = model.load_state_dict({name: torch.from_numpy(tensor.read())}, strict=False).unexpected_keys
        if unexpected:
            raise CheckpointError(f"{path}: tensor {name!r}: the reference model has none of this name")
    return model


def _fields(path: Path) -> dict[str, Any]:
    fields = read_json(path)
    missing = [key for key in (*FIELDS, *WRITTEN) if key not in fields]
    unknown = [key for key in fields if key not in (*FIELDS, *WRITTEN, *FURTHER)]
    if missing or unknown:
        raise CheckpointError(
            f"{path}: found {len(missing)} keys missing and {len(unknown)} unknown, first {[*missing, *unknown][0]!r}"
        )
    if fields["model_type"] != ARCH:
        raise CheckpointError(f"{path}: found model_type {fields['model_type']!r}, expected {ARCH!r}")
    # before anything makes a list of that length
    for key, limit in (("num_hidden_layers", MAX_LAYERS), ("num_attention_heads", _MAX_HEADS)):
        if not isinstance(fields[key], int) or not 0 < fields[key] <= limit:
            raise CheckpointError(f"{path}: found {key} {fields[key]!r}, expected a whole number up to {limit}")
    return fields


def _model(path: Path, fields: Mapping[str, Any]) -> SO8TTransformerForCausalLM:
    """The model before its weights."""
    try:
        return SO8TTransformerForCausalLM(SO8TTransformerConfig(**fields)).eval()
    except So8tError:
        raise
    except Exception as error:  # transformers raises whatever its libraries raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path}: transformers refuses the configuration: {reason[0]}") from error


def _scales(path: Path) -> dict[str, float]:
    scales = {}
    for name, entry in read_json(path).items():
        scale = entry.get("scale") if isinstance(entry, dict) else None
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale <= _MAX_SCALE:
            raise CheckpointError(f"{path}: tensor {name!r}: found scale {scale!r}, expected a number above 0")
        for key, expected in (("quantization_type", TYPE), ("zero_point", ZERO_POINT)):
            if entry.get(key) != expected:
                raise CheckpointError(f"{path}: tensor {name!r}: found {key} {entry.get(key)!r}, expected {expected!r}")
        scales[name] = float(scale)
    return scales
