"""A published SO8T checkpoint as the base model that computes the same: rotations folded, gates gone, names plain."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t.algebra import DIM, TOLERANCE, determinant, is_member, orthogonality_error
from llama_so8t.errors import AlgebraError, CheckpointError
from llama_so8t.folding import rotate_columns, rotate_rows
from llama_so8t.published.identify import Signature, identify, plain_name
from llama_so8t.published.rotations import column_form
from llama_so8t.published.soul import read_soul
from llama_so8t.published.table import (
    AFTER_O_PROJ,
    BEFORE_LM_HEAD,
    BEFORE_O_PROJ,
    CONFIG_FLAGS,
    FOLDABLE,
    NEEDS_ORIGIN,
    REFUSE,
    Layout,
)
from llama_so8t.tensors import LazyTensor

_LOG = logging.getLogger(__name__)

LAYOUT_KEY, ORIGIN_KEY, EXACT_KEY = "so8t_layout", "so8t_layout_origin", "so8t_layout_exact"
"""Keys of config.json with which a user says what a checkpoint cannot: its layout, its origin, its exponential."""

_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_LORA = re.compile(r"\.lora_[AB]\.|\.lora_embedding_[AB]\.")


@dataclass(frozen=True)
class Statement:
    """What the user says about a checkpoint. ``exact`` asks for the exponential that an inexact one was meant to be."""

    layout: str | None = None
    origin: str | None = None
    exact: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: object) -> "Statement":
        """Reads ``so8t_layout``, ``so8t_layout_origin`` and ``so8t_layout_exact``.

        Raises:
            CheckpointError: one of them is of the wrong kind.
        """
        layout, origin = config.get(LAYOUT_KEY), config.get(ORIGIN_KEY)
        for key, value in ((LAYOUT_KEY, layout), (ORIGIN_KEY, origin)):
            if not isinstance(value, str | None):
                raise CheckpointError(f"{where}: found {key} {value!r}, expected a string")
        exact = config.get(EXACT_KEY, False)
        if not isinstance(exact, bool):
            raise CheckpointError(f"{where}: found {EXACT_KEY} {exact!r}, expected true or false")
        return cls(layout, origin, exact)


@dataclass(frozen=True)
class Restored:
    """Configuration and tensors of the base model, read lazily, and notes for the user."""

    layout: Layout
    config: dict[str, Any]
    tensors: dict[str, LazyTensor]
    notes: tuple[str, ...]


def restore(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    layout: str | None = None,
    origin: str | None = None,
) -> Restored | None:
    """The base model of a directory in a published SO8T layout, computing what the upstream model computes.

    Rotations beside o_proj or before lm_head are folded when a weight is read: ``W' = R W`` and ``b' = R b`` after
    a linear map, ``W' = W R`` before it, ``W' = W + sigmoid(alpha) W R`` for a soul (R for columns, ``y = R x``).
    An output matrix that is tied to the embedding becomes a tensor of its own first.

    Args:
        path: the directory.
        config: its config.json, which may state layout, origin and exponential.
        tensors: its tensors by stored name.
        layout: id of the layout, instead of the one that config.json states.
        origin: where its rotation was in training, instead of what config.json states; see `Layout.origins`.

    Returns:
        None where nothing of SO8T is found, or everything is in this project's own format.

    Raises:
        CheckpointError: mixed signatures, a layout that is refused (with the reason), a missing statement, a
            rotation that is missing, not finite, of the wrong shape or not orthogonal.
    """
    stated = Statement.from_config(config, path / "config.json")
    stated = Statement(layout or stated.layout, origin or stated.origin, stated.exact)
    files = [file.name for file in path.iterdir() if file.is_file()] if path.is_dir() else []
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    found = identify(shapes, config, files, stated.layout, str(path))
    if found is None:
        if stated.exact or stated.origin:
            raise CheckpointError(f"{path}: found no SO8T layout, expected one as {ORIGIN_KEY} states")
        return None
    row = found.layout
    if row.verdict == REFUSE:
        raise CheckpointError(f"{path}: layout {row.id} ({row.name}) is refused: {row.reason}")
    applied = _applied(path, row, stated)
    notes = [f"layout {row.id} ({row.name}): {row.reason}"]
    notes += [f"tensor {name!r} of another layout is left out, as stated" for name in found.others]
    base = _base(path, found, tensors)
    plain_config = {
        key: value for key, value in config.items() if key not in (*CONFIG_FLAGS, LAYOUT_KEY, ORIGIN_KEY, EXACT_KEY)
    }
    if row.site in FOLDABLE and applied:
        base = _folded(path, found, config, tensors, base, stated)
    elif row.site in FOLDABLE:
        notes.append("the gates are left out: they were never applied")
    if row.site == BEFORE_LM_HEAD:
        base = _with_soul(path, row, files, base, notes)
        plain_config["tie_word_embeddings"] = False
    return Restored(row, plain_config, base, tuple(notes))


def as_base(
    path: Path, config: dict[str, Any], tensors: dict[str, LazyTensor]
) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Configuration and tensors of a directory as `restore` makes them, its notes logged; others as they are.

    Raises:
        CheckpointError: as `restore`.
    """
    restored = restore(path, config, tensors)
    if restored is None:
        return config, tensors
    for note in restored.notes:
        _LOG.warning("%s: %s", path, note)
    return restored.config, restored.tensors


def builder_of(
    row: Layout, config: Mapping[str, Any], exact: bool = False
) -> Callable[[np.ndarray], np.ndarray] | None:
    """The function that makes R of a parameter in the shape of `Layout.shape`; None where its formula is not known."""
    if exact:
        return row.exact
    if row.without_cayley is not None and config.get("so8t_use_cayley", True) is False:
        return row.without_cayley
    return row.builder


def gate_rotations(
    where: object, found: Signature, name: str, theta: np.ndarray, config: Mapping[str, Any], exact: bool = False
) -> np.ndarray:
    """Rotations of one gate in column form, (nb, 8, 8) float64, checked.

    Raises:
        CheckpointError: NaN or infinity in theta, or a block outside of SO(8); names tensor and block.
    """
    builder = builder_of(found.layout, config, exact)
    if builder is None:
        raise CheckpointError(f"{where}: layout {found.layout.id} has one exponential only; remove {EXACT_KEY}")
    try:
        rotations = column_form(builder(theta), found.layout.side or "")
    except AlgebraError as error:
        raise CheckpointError(f"{where}: tensor {name!r}: {error}") from None
    outside = np.flatnonzero(~is_member(rotations))
    if len(outside):
        block = rotations[outside[0]]
        raise CheckpointError(
            f"{where}: tensor {name!r}: block {outside[0]}: found |R^T R - I| {orthogonality_error(block):.3g} and "
            f"determinant {determinant(block):.6g}, expected 0 and 1 within {TOLERANCE}: not a rotation"
        )
    return rotations


def expected_layers(row: Layout, config: Mapping[str, Any]) -> set[int] | None:
    """Layers that should have a gate: ``layer_indices`` of config.json, else what upstream does; None: any."""
    indices, count = config.get("layer_indices"), config.get("num_hidden_layers")
    if isinstance(indices, list) and all(isinstance(index, int) for index in indices):
        return set(indices)
    if row.layers is None or not isinstance(count, int):
        return None
    return set(range(count)) if row.layers == "all" else {0, count // 2, count - 1}


def _applied(path: Path, row: Layout, stated: Statement) -> bool:
    if row.verdict != NEEDS_ORIGIN:
        if stated.origin is not None:
            raise CheckpointError(f"{path}: found origin {stated.origin!r}, layout {row.id} has only one")
        return True
    if stated.origin is None or stated.origin not in row.origins:
        raise CheckpointError(
            f"{path}: layout {row.id} ({row.name}): {row.reason}; found origin {stated.origin!r}, say which with "
            f'"{ORIGIN_KEY}" in config.json: {" or ".join(repr(name) for name in row.origins)}'
        )
    return row.origins[stated.origin]


def _base(path: Path, found: Signature, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    # everything but the gates, under the names of the base family
    wrapped = f".self_attn.{found.layout.wrapper}."
    is_wrapped = found.layout.wrapper is not None
    dropped = {*found.parameters, *found.others}
    dropped |= {name for name in found.keys if not (is_wrapped and wrapped in plain_name(name))}
    base: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if name in dropped:
            continue
        if _LORA.search(name):
            raise CheckpointError(
                f"{path}: tensor {name!r}: found a LoRA, expected merged weights; merge it first "
                f"(W + lora_alpha / r B A) and keep the gates"
            )
        plain = plain_name(name).replace(".base_layer.", ".")
        if is_wrapped:
            plain = plain.replace(wrapped, ".self_attn.")
        if plain in base:
            raise CheckpointError(f"{path}: found {plain!r} twice, once inside a wrapper")
        base[plain] = tensor.renamed(plain)
    return base


def _folded(
    path: Path,
    found: Signature,
    config: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    base: dict[str, LazyTensor],
    stated: Statement,
) -> dict[str, LazyTensor]:
    row, result = found.layout, dict(base)
    layers = {layer for layer in found.parameters.values() if layer is not None}
    if len(layers) != len(found.parameters):
        raise CheckpointError(f"{path}: layout {row.id}: found two gates of one layer, expected one")
    expected = expected_layers(row, config)
    if not layers or (expected is not None and layers != expected):
        wanted = "one gate or more" if expected is None else f"gates in layers {_listed(expected)}"
        raise CheckpointError(
            f"{path}: layout {row.id}: found gates in layers {_listed(layers)}, expected {wanted}; the weights were "
            f"trained around a rotation that is not in the file (layer_indices in config.json says where gates are)"
        )
    for name, layer in found.parameters.items():
        linear = f"model.layers.{layer}.self_attn.o_proj"
        if f"{linear}.weight" not in base:
            raise CheckpointError(f"{path}: tensor {name!r}: found no {linear}.weight to fold it into")
        weight = base[f"{linear}.weight"]
        axis = 0 if row.site == AFTER_O_PROJ else 1
        shape = (weight.shape[axis] // DIM, DIM, DIM)
        if len(weight.shape) != 2 or weight.shape[axis] % DIM or tensors[name].shape != shape:
            raise CheckpointError(
                f"{path}: tensor {name!r}: found shape {list(tensors[name].shape)}, expected {list(shape)} for "
                f"{linear}.weight of shape {list(weight.shape)}"
            )
        rotations = gate_rotations(path, found, name, tensors[name].read(), config, stated.exact)
        step = _before(rotations) if row.site == BEFORE_O_PROJ else _after(rotations)
        turned = [f"{linear}.weight"] if row.site == BEFORE_O_PROJ else [f"{linear}.weight", f"{linear}.bias"]
        for target in (target for target in turned if target in base):
            result[target] = base[target].mapped_rows(step)
    return result


def _before(rotations: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda rows, start: rotate_columns(rows, rotations)


def _after(rotations: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    # parts begin and end between blocks
    return lambda rows, start: rotate_rows(rows, rotations[start // DIM : (start + len(rows)) // DIM])


def _with_soul(
    path: Path, row: Layout, files: list[str], base: dict[str, LazyTensor], notes: list[str]
) -> dict[str, LazyTensor]:
    present = [name for name in row.files if name in files]
    if len(present) != 1:
        raise CheckpointError(
            f"{path}: layout {row.id}: found {' and '.join(present) or 'no soul file'}, expected one of "
            f"{', '.join(row.files)} beside the weights of the base model"
        )
    if _EMBEDDING not in base:
        raise CheckpointError(f"{path}: tensor {_EMBEDDING!r} is missing, expected the base model of {present[0]}")
    output = base.get(_OUTPUT)
    if output is None:
        output = base[_EMBEDDING].renamed(_OUTPUT)
        notes.append("the output matrix was tied to the embedding and is a tensor of its own now")
    soul = read_soul(path / present[0], base[_EMBEDDING].shape[-1])
    notes.append(f"{present[0]}: alpha {soul.alpha:.6g}, sigmoid(alpha) {soul.gate:.6g}")
    return {**base, _OUTPUT: output.mapped_rows(lambda rows, start: soul.folded(rows))}


def _listed(layers: set[int]) -> str:
    return ", ".join(str(layer) for layer in sorted(layers)) or "none"
