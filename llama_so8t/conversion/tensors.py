"""Which tensors a file gets: name, shape, type, and how each is computed when its turn comes."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from llama_so8t import folding
from llama_so8t.algebra import DIM, N_GENERATORS, rotation
from llama_so8t.checkpoint import Checkpoint
from llama_so8t.checkpoint.names import OUTPUT, base_tensors, gguf_name, layer_tensor
from llama_so8t.checkpoint.row_order import to_gguf
from llama_so8t.files.finite import check_finite
from llama_so8t.folding import RotationCache
from llama_so8t.format import (
    HEAD_FORMS,
    OUT_GENERATOR,
    SITES,
    Tensors,
    generator_name,
    head_tensor_prefix,
    stem_tensor_prefix,
)
from llama_so8t.tensors import LazyTensor


def plan_tensors(
    checkpoint: Checkpoint, folded: Sequence[str], explicit: Sequence[str], allow_nonfinite: bool = False
) -> Iterator[LazyTensor]:
    """All tensors of the SO8T file in file order; computed lazily.

    Args:
        checkpoint: an SO8T model.
        folded: sites to absorb into the weights.
        explicit: sites whose rotation matrices the file carries.
        allow_nonfinite: whether NaN and infinity among the weights are let through.
    """
    rotations = checkpoint.rotations()
    layer = -1
    # before the layers: an estimator of memory takes what stands behind them for one more layer
    yield from plan_heads(checkpoint)
    for name in _present(checkpoint):
        found = layer_tensor(name)
        if (found[0] if found else -1) != layer:
            if layer >= 0:
                yield from _layer_extras(checkpoint, rotations, layer, explicit)
            layer = found[0] if found else -1
        tensor = _folded(checkpoint, rotations, name, folded, allow_nonfinite)
        yield tensor.renamed(gguf_name(name, checkpoint.spec))


def plan_stock_tensors(
    checkpoint: Checkpoint, folded: Sequence[str], allow_nonfinite: bool = False
) -> Iterator[LazyTensor]:
    """The tensors of the base architecture alone, in its order of rows, rotations folded; computed lazily."""
    rotations = checkpoint.rotations()
    spec = checkpoint.spec
    for name in _present(checkpoint):
        tensor = _folded(checkpoint, rotations, name, folded, allow_nonfinite)
        yield to_gguf(tensor, spec).renamed(gguf_name(name, spec))


def _present(checkpoint: Checkpoint) -> list[str]:
    return [
        name
        for name in base_tensors(checkpoint.config, checkpoint.spec)
        if name in checkpoint.tensors and not (name == OUTPUT and checkpoint.config.get("tie_word_embeddings"))
    ]


def _folded(
    checkpoint: Checkpoint, rotations: RotationCache, name: str, folded: Sequence[str], allow_nonfinite: bool
) -> LazyTensor:
    tensor = checkpoint.tensors[name]
    found = layer_tensor(name) if folded else None

    def turn(rows: np.ndarray, start: int) -> np.ndarray:
        if not allow_nonfinite:
            check_finite(checkpoint.path, name, rows, start)
        if found is None or not folding.is_rotated(found[1]):
            return rows
        layer, suffix = found
        step = folding.fold_step(suffix, tensor.shape, rotations.layer(layer), folded)
        return rows if step is None else step(rows, start)

    return tensor.mapped_rows(turn)


def _layer_extras(
    checkpoint: Checkpoint, rotations: RotationCache, layer: int, explicit: Sequence[str]
) -> Iterator[LazyTensor]:
    spec = checkpoint.spec
    yield from _generators(checkpoint, layer)
    for site in (SITES[name] for name in spec.sites if name in explicit):
        for part in site.rotations:
            name = Tensors.ROTATION.format(layer=layer, name=part.name)
            n = spec.n_rotations(part, checkpoint.shape(generator_name(layer, part.generator))[0])
            # row-major (n, 8, 8) is ggml [8, 8, n] with [j, i, b] = R_b[i][j]
            read = partial(_rotation, rotations, layer, part.name)
            yield LazyTensor(name, (n, DIM, DIM), "F32", read, exact=True)


def _generators(checkpoint: Checkpoint, layer: int) -> Iterator[LazyTensor]:
    """The generators of a layer, one behind the other: the order is that of `format.generator_rows`."""
    names = [generator_name(layer, name) for site in checkpoint.spec.sites for name in SITES[site].generator_names]
    if not names:
        return
    n_rows = sum(checkpoint.shape(name)[0] for name in names)

    def read() -> np.ndarray:
        return np.concatenate([checkpoint.load_finite(name) for name in names])

    yield LazyTensor(Tensors.GENERATORS.format(layer=layer), (n_rows, N_GENERATORS), "F32", read, exact=True)


def _rotation(rotations: RotationCache, layer: int, name: str) -> np.ndarray:
    return rotations.layer(layer)[name].astype(np.float32)


def _exact(checkpoint: Checkpoint, name: str, new_name: str) -> LazyTensor:
    """A tensor of the checkpoint as it is, checked."""
    read = partial(checkpoint.load_finite, name)
    return LazyTensor(new_name, checkpoint.shape(name), "F32", read, exact=True)


def plan_heads(checkpoint: Checkpoint) -> Iterator[LazyTensor]:
    """The generator before the heads, the stems and the heads: what a heads file holds."""
    spec = checkpoint.spec
    yield _exact(checkpoint, OUT_GENERATOR, Tensors.OUT_GENERATOR)
    # one representation per stem, as ModelSpec checks: the rotation before a stem is folded into it
    stems = {head.stem: head for head in spec.heads.values() if head.stem is not None}
    for stem, head in stems.items():
        for part in HEAD_FORMS[head.activation].stem_tensors:
            name = f"{stem_tensor_prefix(stem)}.{part.name}"
            yield from _part(checkpoint, name, head.representation if part.reads else None)
    for head in spec.heads.values():
        for suffix in ("weight", "bias"):
            first_layer = suffix == "weight" and head.stem is None
            name = f"{head_tensor_prefix(head.name)}.{suffix}"
            yield from _part(checkpoint, name, head.representation if first_layer else None)


def _part(checkpoint: Checkpoint, name: str, representation: int | None) -> Iterator[LazyTensor]:
    """A tensor of a head or stem, if the checkpoint has it; with the rotation before it, where there is one, folded."""
    if name not in checkpoint.tensors:
        return
    tensor = _exact(checkpoint, name, gguf_name(name, checkpoint.spec))
    if representation is not None:
        tensor = tensor.mapped(lambda weight: _before_heads(checkpoint, weight, representation))
    yield tensor


def _before_heads(checkpoint: Checkpoint, weight: np.ndarray, representation: int) -> np.ndarray:
    rotations = rotation(checkpoint.load_generator(OUT_GENERATOR), representation)
    n_taps = weight.shape[1] // checkpoint.spec.hidden_size
    # one rotation for all blocks serves any number of taps; one for each block begins anew with every tap
    return folding.rotate_columns(weight, rotations if len(rotations) == 1 else np.tile(rotations, (n_taps, 1, 1)))
