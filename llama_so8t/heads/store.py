"""Fitted directions as head tensors of a checkpoint or adapter, and back."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t.algebra import rotate_blocks, rotation
from llama_so8t.checkpoint import Checkpoint, adapter
from llama_so8t.errors import CheckpointError, ConfigError
from llama_so8t.files import safetensors_file, safetensors_writer
from llama_so8t.files.atomic import new_directory
from llama_so8t.files.json_file import write_json
from llama_so8t.format import OUT_GENERATOR, THRESHOLD, HeadSpec, head_tensor_prefix
from llama_so8t.heads.regression import Direction
from llama_so8t.tensors import LazyTensor


def head_weights(direction: Direction, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a two-label head that reads ``z = diag(R) f``, from log odds ``w . f + b``.

    With ``u = diag(R) w`` the rotation cancels, ``u . z = w R^T R f = w . f``. The rows are symmetric, ``-u/2``
    and ``+u/2``, so that the difference of the two logits is the log odds.

    Args:
        direction: w and b.
        out: ``(n, 8, 8)`` rotations R of the site out in the representation of the head.

    Returns:
        weight ``(2, d)`` and bias ``(2,)`` float32.
    """
    turned = rotate_blocks(direction.weight, out)
    sign = np.array([-0.5, 0.5])
    return np.outer(sign, turned).astype(np.float32), (sign * direction.bias).astype(np.float32)


def read_direction(checkpoint: Checkpoint, head: HeadSpec) -> Direction:
    """The log odds of label 1 of a stored head as a function of ``f``: the inverse of `head_weights`.

    Temperature is applied. For heads of any origin, symmetric or not.

    Raises:
        ConfigError: the head is not linear with two labels.
    """
    check_form(head)
    prefix = head_tensor_prefix(head.name)
    weight = checkpoint.load(f"{prefix}.weight").astype(np.float64)
    bias = checkpoint.load(f"{prefix}.bias") if f"{prefix}.bias" in checkpoint.tensors else np.zeros(2)
    back = np.swapaxes(out_rotations(checkpoint, head), -1, -2)
    return Direction(
        rotate_blocks(weight[1] - weight[0], back) / head.temperature,
        float(bias[1] - bias[0]) / head.temperature,
    )


def out_rotations(checkpoint: Checkpoint, head: HeadSpec) -> np.ndarray:
    """Rotations of the site out as the head sees them, ``(n, 8, 8)`` float64."""
    return rotation(checkpoint.load_generator(OUT_GENERATOR), head.representation)


_FIXED = ("taps", "tap_norm", "link", "aggregation", "prompt_aggregation", "prompt_thresholds", "depends_on")
"""Fields of a head whose default is the only value that a fit knows: f at every position, a softmax, a run of them."""


def check_form(head: HeadSpec) -> None:
    """Only linear heads with two labels that read the state after the final norm are fitted and evaluated.

    Raises:
        ConfigError: another form.
    """
    if head.stem is not None or len(head.labels) != 2:
        form = f"a stem and {len(head.labels)} labels" if head.stem else f"{len(head.labels)} labels"
        raise ConfigError(f"head {head.name!r}: found {form}, expected a linear head with 2 labels")
    defaults = HeadSpec.__dataclass_fields__
    for field in _FIXED:
        found, expected = getattr(head, field), defaults[field].default
        if found != expected:
            raise ConfigError(
                f"head {head.name!r}: found {field} {_shown(found)}, expected {_shown(expected)}: "
                "so8t heads fits and evaluates no other"
            )


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def tuned(head: HeadSpec, threshold: float, debounce: int, scope: str) -> HeadSpec:
    """The head with the threshold of its acting label, a probability; the other label keeps its own."""
    return replace(
        head,
        thresholds=(head.thresholds[0], round(threshold, 6)),
        temperature=1.0,
        debounce=debounce,
        scope=scope,
        rule=THRESHOLD,
    )


def check_out(checkpoint: Checkpoint, out: Path) -> None:
    """Whether a model may be written to ``out``: the model itself, or a directory that is new or empty.

    Raises:
        CheckpointError: it may not.
    """
    if out.resolve() != checkpoint.path.resolve() and out.exists() and (out.is_file() or any(out.iterdir())):
        raise CheckpointError(f"{out}: exists and is not empty; choose another --out")


def write(
    checkpoint: Checkpoint,
    out: Path,
    directions: Mapping[str, Direction],
    heads: Mapping[str, HeadSpec],
    files: Mapping[str, str],
) -> None:
    """Writes a copy of a model with other heads; ``out`` may be the model itself.

    Args:
        checkpoint: directory or adapter.
        out: directory that is made or replaced, complete or not at all.
        directions: by head name.
        heads: the entries of ``so8t_heads`` to replace.
        files: further text files, name -> content.

    Raises:
        CheckpointError: ``out`` is another non-empty directory, or the model has no tensor for a head.
    """
    check_out(checkpoint, out)
    path = checkpoint.path
    replaced: dict[str, np.ndarray] = {}
    for name, direction in directions.items():
        weight, bias = head_weights(direction, out_rotations(checkpoint, heads[name]))
        prefix = head_tensor_prefix(name)
        replaced |= {f"{prefix}.weight": weight, f"{prefix}.bias": bias}
    is_adapter = (path / adapter.CONFIG_NAME).is_file()
    with new_directory(out) as directory:
        shutil.copytree(path, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*"))
        _write_config(directory / (adapter.CONFIG_NAME if is_adapter else "config.json"), heads)
        if is_adapter:
            stored = safetensors_file.read_file(path / adapter.WEIGHTS_NAME)
            safetensors_writer.write_file(directory / adapter.WEIGHTS_NAME, _replaced(stored, replaced))
        else:
            stored = safetensors_file.read_sharded(path)
            safetensors_writer.write_sharded(directory, _replaced(stored, replaced))
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")


def _write_config(path: Path, heads: Mapping[str, HeadSpec]) -> None:
    config = safetensors_file.parse_json(path.read_bytes(), path)
    stored = config.get("so8t_heads") or {}
    config["so8t_heads"] = {**stored, **{name: head.to_dict() for name, head in heads.items()}}
    write_json(path, config)


def _replaced(stored: Mapping[str, LazyTensor], values: Mapping[str, np.ndarray]) -> list[LazyTensor]:
    """Tensors in their order with other values; a head bias that was left out is added at the end."""
    tensors = {**stored, **{name: LazyTensor.of(name, value) for name, value in values.items()}}
    return list(tensors.values())
