"""Opens what a user calls a model: a Hugging Face directory, a GGUF base, or an SO8T adapter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t.checkpoint import adapter, float8, gguf_base, qwen3guard, vocabulary
from llama_so8t.checkpoint.checkpoint import Checkpoint
from llama_so8t.checkpoint.checks import check_stems, check_tensors, generator, normalized
from llama_so8t.checkpoint.names import base_tensors, layer_tensor, so8t_tensors
from llama_so8t.errors import CheckpointError
from llama_so8t.files import gguf_file, pytorch_bin, safetensors_file
from llama_so8t.files.json_file import read_json
from llama_so8t.folding import RotationCache, compensate_step, is_rotated
from llama_so8t.format import ARCH, FAMILIES
from llama_so8t.model_spec import ModelSpec
from llama_so8t.published import as_base
from llama_so8t.tensors import LazyTensor


def open_checkpoint(path: str | Path, base: str | Path | None = None) -> Checkpoint:
    """Opens a model; headers are read and checked, weights are not.

    Args:
        path: Hugging Face directory of a base or SO8T model, SO8T adapter directory, or GGUF file of a base
            family; also ``package:NAME/FILE``, a file inside an installed Python package.
        base: for an adapter, the base to use instead of the one that the adapter names.

    Raises:
        CheckpointError: something is missing, malformed, or does not fit; names file and tensor.
        ConfigError: the configuration contradicts itself or is of an unsupported family.
    """
    found = adapter.resolve(str(path), Path())
    if found.is_file():
        _no_base(found, base)
        return _open_gguf(found)
    if not found.is_dir():
        raise CheckpointError(f"{found}: no such file or directory, expected a model directory or a GGUF file")
    if (found / adapter.CONFIG_NAME).is_file():
        return _open_adapter(found, base)
    _no_base(found, base)
    return _open_directory(found)


def _open_directory(path: Path) -> Checkpoint:
    config = _of_family(path, read_json(path / "config.json"))
    # a directory may hold both: safetensors are the ones to trust
    pickled = not safetensors_file.is_there(path) and pytorch_bin.is_there(path)
    stored = float8.scaled(path, config, (pytorch_bin if pickled else safetensors_file).read_sharded(path))
    config, stored = as_base(path, config, stored)
    tensors = normalized(path, stored)
    if qwen3guard.is_guard(config):
        config, tensors = qwen3guard.as_so8t(path, config, tensors)
    spec = ModelSpec.from_config(config)
    vocab = path / vocabulary.NAME
    source = vocabulary.Vocabulary(gguf=vocab) if vocab.is_file() else vocabulary.Vocabulary(directory=path)
    generation = path / "generation_config.json"
    return _checked(
        Checkpoint(path, config, spec, tensors, source, read_json(generation) if generation.is_file() else None)
    )


def _of_family(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration under the name of one of the families; Mistral without a window, for one, is a llama.

    Raises:
        CheckpointError: another family.
    """
    model_type, file = config.get("model_type"), path / "config.json"
    aliases = {alias: family for family in FAMILIES.values() for alias in family.aliases}
    if not isinstance(model_type, str):
        raise CheckpointError(f"{file}: found model_type {model_type!r}, expected a text")
    if model_type in aliases:
        if config.get("sliding_window"):
            raise CheckpointError(
                f"{file}: found model_type {model_type!r} with sliding_window {config['sliding_window']!r}, "
                f"but so8t attends to all positions"
            )
        config = {key: value for key, value in config.items() if key != "sliding_window"}
        family = aliases[model_type]
        return config | {"model_type": family.name, "architectures": [family.architecture]}
    if model_type not in (ARCH, *FAMILIES):
        expected = f"{', '.join((ARCH, *FAMILIES))} or {' or '.join(aliases)}"
        raise CheckpointError(f"{file}: found model_type {model_type!r}, expected {expected}")
    return config


def _open_gguf(path: Path) -> Checkpoint:
    file = gguf_file.read_gguf(path)
    config = gguf_base.base_config(file)
    spec = ModelSpec.from_config(config)
    tensors = gguf_base.base_tensors(file, spec)
    return _checked(Checkpoint(path, config, spec, tensors, vocabulary.Vocabulary(gguf=path)))


def _open_adapter(path: Path, base: str | Path | None) -> Checkpoint:
    fields = adapter.read_fields(path)
    base_path = adapter.find_base(path, fields, base)
    if (base_path / adapter.CONFIG_NAME).is_file():
        raise CheckpointError(f"{base_path}: is an adapter itself, expected the base model of {path}")
    adapter.check_base(path, fields, base_path)
    model = open_checkpoint(base_path)
    if model.is_so8t:
        raise CheckpointError(f"{base_path}: is an SO8T model already, expected the base model of {path}")
    config = adapter.merged_config(model.config, fields)
    spec = ModelSpec.from_config(config)
    added = safetensors_file.read_file(path / adapter.WEIGHTS_NAME)
    check_tensors(path / adapter.WEIGHTS_NAME, added, so8t_tensors(spec))
    tensors = {**model.tensors, **added}
    if fields.get("so8t_compensated"):
        tensors = compensated(path, spec, tensors)
    return _checked(Checkpoint(path, config, spec, tensors, model.vocabulary, model.generation_config))


def compensated(path: Path, spec: ModelSpec, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The same tensors, counter-rotated on every read where a foldable site is; ``path`` is for errors."""
    rotations = RotationCache(spec, lambda name: generator(path, tensors[name]))

    def turned(name: str, tensor: LazyTensor) -> LazyTensor:
        found = layer_tensor(name)
        if found is None or not is_rotated(found[1]):
            return tensor
        layer, suffix = found

        def turn(rows: np.ndarray, start: int) -> np.ndarray:
            step = compensate_step(suffix, tensor.shape, rotations.layer(layer), spec)
            return rows if step is None else step(rows, start)

        return tensor.mapped_rows(turn)

    return {name: turned(name, tensor) for name, tensor in tensors.items()}


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    expected = base_tensors(checkpoint.config, checkpoint.spec)
    if checkpoint.is_so8t:
        expected |= so8t_tensors(checkpoint.spec)
    check_tensors(checkpoint.path, checkpoint.tensors, expected)
    if checkpoint.is_so8t:
        check_stems(checkpoint.path, checkpoint.tensors, checkpoint.spec)
    return checkpoint


def _no_base(path: Path, base: str | Path | None) -> None:
    if base is not None:
        raise CheckpointError(f"{path}: is a complete model; a base is for adapters only")
