"""Makes an SO8T model from a base: rotations at every site, heads of zeros."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t.algebra import DIM, random_generators
from llama_so8t.checkpoint import adapter, vocabulary
from llama_so8t.checkpoint.checkpoint import Checkpoint
from llama_so8t.checkpoint.names import base_tensors, so8t_tensors
from llama_so8t.checkpoint.open import compensated, open_checkpoint
from llama_so8t.errors import CheckpointError, ConfigError
from llama_so8t.files import gguf_file, safetensors_writer
from llama_so8t.files.atomic import new_directory
from llama_so8t.files.json_file import write_json
from llama_so8t.format import SITES, SO8T_FLAGS, default_heads, generator_name
from llama_so8t.model_spec import ModelSpec
from llama_so8t.tensors import LazyTensor

ROTATIONS = ("zero", "random")

COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
)
"""Tokenizer, sampling defaults, and what a copy of the weights has to carry: model card and licence."""

COPIED_FOLDER = "additional_chat_templates"


@dataclass(frozen=True)
class InitializeOptions:
    """What `so8t init` was asked for.

    ``scale`` is the standard deviation of random coefficients in radians. ``compensate`` counter-rotates the
    weights, so that the new model computes exactly what the base does. ``adapter`` writes only generators and
    heads, beside the base.
    """

    base: str
    out: Path
    rotations: str = "zero"
    seed: int = 0
    scale: float = 0.1
    compensate: bool = False
    adapter: bool = False
    shared_blocks: bool = False
    force: bool = False


@dataclass(frozen=True)
class Initialized:
    """What was made: the notes are for the user, and the heads need to be fitted."""

    out: Path
    notes: tuple[str, ...]
    unfitted_heads: tuple[str, ...]


def initialize(options: InitializeOptions) -> Initialized:
    """Writes an SO8T checkpoint or adapter for a base model.

    Raises:
        CheckpointError: the base cannot be read, is an SO8T model, or ``out`` is in use.
        ConfigError: the base is of an unsupported family or shape.
    """
    _check_options(options)
    base = open_checkpoint(options.base)
    if base.is_so8t:
        raise CheckpointError(f"{options.base}: is an SO8T model already, expected a base model")
    config = adapter.so8t_config(base.config, _so8t_fields(options, base))
    spec = ModelSpec.from_config(config)
    added = _added_tensors(options, spec)
    notes = []
    if options.compensate:
        notes += [
            f"site {site} stays zero: a base with q/k norms cannot be compensated for a rotation there"
            for site in spec.unfoldable_sites
        ]
    with new_directory(options.out) as directory:
        if options.adapter:
            _write_adapter(options, base, config, added, directory)
        else:
            notes += _write_full(options, base, config, spec, added, directory)
    return Initialized(options.out, tuple(notes), tuple(spec.heads))


def _check_options(options: InitializeOptions) -> None:
    if options.rotations not in ROTATIONS:
        raise ConfigError(f"rotations: found {options.rotations!r}, expected one of {', '.join(ROTATIONS)}")
    if options.seed < 0:
        raise ConfigError(f"seed: found {options.seed}, expected 0 or more")
    if not 0 <= options.scale < np.inf:
        raise ConfigError(f"scale: found {options.scale}, expected a finite number of radians, 0 or more")
    out = options.out
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not options.force:
        raise CheckpointError(f"{out}: exists and is not empty; choose another --out, or replace it with --force")
    if out.exists() and not any((out / name).is_file() for name in ("config.json", adapter.CONFIG_NAME)):
        raise CheckpointError(f"{out}: is no model directory; --force replaces nothing else")


def _so8t_fields(options: InitializeOptions, base: Checkpoint) -> dict[str, Any]:
    return {
        "so8t_rotation_dim": DIM,
        **dict.fromkeys(SO8T_FLAGS, True),
        "so8t_shared_blocks": options.shared_blocks,
        "so8t_head_representation": list(base.spec.head_representation),
        "so8t_head_kv_representation": list(base.spec.head_kv_representation),
        "so8t_heads": {name: head.to_dict() for name, head in default_heads().items()},
    }


def _added_tensors(options: InitializeOptions, spec: ModelSpec) -> list[LazyTensor]:
    """Generators and heads, each from a random stream of its own, so that no tensor depends on the order."""
    tensors = []
    kept_zero = {
        generator_name(layer, generator)
        for layer in range(spec.n_layer)
        for site in (spec.unfoldable_sites if options.compensate else ())
        for generator in SITES[site].generator_names
    }
    for name, expected in so8t_tensors(spec).items():
        shape = expected.known_shape
        values = np.zeros(shape, dtype=np.float32)
        if options.rotations == "random" and name in spec.generator_shapes() and name not in kept_zero:
            rng = np.random.default_rng([options.seed, *name.encode()])
            values = random_generators(rng, shape[:-1], options.scale).astype(np.float32)
        tensors.append(LazyTensor.of(name, values))
    return tensors


def _write_adapter(
    options: InitializeOptions,
    base: Checkpoint,
    config: dict[str, Any],
    added: list[LazyTensor],
    directory: Path,
) -> None:
    fields = {
        "adapter_type": adapter.TYPE,
        "base_model_name_or_path": adapter.recorded_base(options.base, options.out),
        "base_model_sha256": adapter.weights_sha256(base.path),
        "so8t_compensated": options.compensate,
    }
    fields |= {key: value for key, value in config.items() if key.startswith("so8t_")}
    write_json(directory / adapter.CONFIG_NAME, fields)
    safetensors_writer.write_file(directory / adapter.WEIGHTS_NAME, added)


def _write_full(
    options: InitializeOptions,
    base: Checkpoint,
    config: dict[str, Any],
    spec: ModelSpec,
    added: list[LazyTensor],
    directory: Path,
) -> list[str]:
    tensors = {**base.tensors, **{tensor.name: tensor for tensor in added}}
    if options.compensate:
        # counter-rotated weights rounded to 16 bits would no longer compute the base: one float32 model
        tensors = {name: tensor.as_type("F32") for name, tensor in compensated(options.out, spec, tensors).items()}
        config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
        config["dtype"] = "float32"
    order = [name for name in (*base_tensors(config, spec), *so8t_tensors(spec)) if name in tensors]
    write_json(directory / "config.json", config)
    safetensors_writer.write_sharded(directory, [tensors[name] for name in order])
    if base.vocabulary.gguf is not None:
        vocabulary.write_vocabulary(gguf_file.read_gguf(base.vocabulary.gguf), directory / vocabulary.NAME)
        return vocabulary.write_tokenizer(directory)
    for name in COPIED_FILES:
        if (base.path / name).is_file():
            shutil.copyfile(base.path / name, directory / name)
    if (base.path / COPIED_FOLDER).is_dir():
        shutil.copytree(base.path / COPIED_FOLDER, directory / COPIED_FOLDER)
    if base.generation_config is not None and not (directory / "generation_config.json").is_file():
        write_json(directory / "generation_config.json", base.generation_config)
    return []
