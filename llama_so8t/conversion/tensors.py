"""Which tensors a file gets: name, shape, type, and how each is computed when its turn comes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llama_so8t import folding
from llama_so8t.algebra import DIM, rotation
from llama_so8t.checkpoint import Checkpoint
from llama_so8t.checkpoint.checkpoint import RotationCache, finite
from llama_so8t.checkpoint.names import OUTPUT, base_tensors, gguf_name, layer_tensor
from llama_so8t.layout import (
    GENERATORS,
    OUT_GENERATOR,
    ROTATIONS,
    Tensors,
    generator_name,
    head_tensor_prefix,
    stem_tensor_prefix,
)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the new file. ``read`` computes it as float32; ``exact`` keeps it F32 in every file."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    exact: bool = False


def plan_tensors(
    checkpoint: Checkpoint, folded: Sequence[str], explicit: Sequence[str]
) -> Iterator[PlannedTensor]:
    """All tensors of the SO8T file in file order; computed lazily.

    Args:
        checkpoint: an SO8T model.
        folded: sites to absorb into the weights.
        explicit: sites whose rotation matrices the file carries.
    """
    cache = RotationCache(checkpoint.path, checkpoint.spec, checkpoint.tensors)
    layer = -1
    for name in base_tensors(checkpoint.config, checkpoint.spec):
        if name not in checkpoint.tensors or (
            name == OUTPUT and checkpoint.config.get("tie_word_embeddings")
        ):
            continue
        found = layer_tensor(name)
        if (found[0] if found else -1) != layer:
            if layer >= 0:
                yield from _layer_extras(checkpoint, cache, layer, explicit)
            layer = found[0] if found else -1
        yield _base_tensor(checkpoint, cache, name, folded)
    yield from _heads(checkpoint)


def _base_tensor(
    checkpoint: Checkpoint, cache: RotationCache, name: str, folded: Sequence[str]
) -> PlannedTensor:
    found = layer_tensor(name)
    shape = checkpoint.shape(name)
    target = gguf_name(name, checkpoint.spec)
    if found is None or not folding.is_rotated(found[1]):
        return PlannedTensor(target, shape, lambda: checkpoint.load(name))
    layer, suffix = found
    return PlannedTensor(
        target, shape, lambda: folding.fold(suffix, checkpoint.load(name), cache.get(layer), folded)
    )


def _layer_extras(
    checkpoint: Checkpoint, cache: RotationCache, layer: int, explicit: Sequence[str]
) -> Iterator[PlannedTensor]:
    spec = checkpoint.spec
    matrices = {"q": spec.n_head, "k": spec.n_head_kv, "v": spec.n_head_kv}
    for site in spec.sites:
        for generator in GENERATORS[site]:
            tensor = checkpoint.tensors[generator_name(layer, generator)]
            name = Tensors.GENERATOR.format(layer=layer, name=generator)
            yield PlannedTensor(
                name, tensor.shape, lambda tensor=tensor: finite(checkpoint.path, tensor), exact=True
            )
        if site not in explicit:
            continue
        for part in ROTATIONS[site]:
            name = Tensors.ROTATION.format(layer=layer, name=part)
            n = matrices.get(part) or checkpoint.shape(generator_name(layer, part))[0]
            # row-major (n, 8, 8) is ggml [8, 8, n] with [j, i, b] = R_b[i][j]
            yield PlannedTensor(
                name,
                (n, DIM, DIM),
                lambda part=part: getattr(cache.get(layer), part).astype(np.float32),
                exact=True,
            )


def _heads(checkpoint: Checkpoint) -> Iterator[PlannedTensor]:
    spec = checkpoint.spec
    generator = checkpoint.tensors[OUT_GENERATOR]
    yield PlannedTensor(
        Tensors.OUT_GENERATOR, generator.shape, lambda: finite(checkpoint.path, generator), exact=True
    )

    def rotated(name: str, representation: int) -> np.ndarray:
        return folding.rotate_columns(
            finite(checkpoint.path, checkpoint.tensors[name]),
            rotation(finite(checkpoint.path, generator), representation),
        )

    # one representation per stem, as ModelSpec checks: the rotation before a stem is folded into it
    stems = {head.stem: head.representation for head in spec.heads.values() if head.stem is not None}
    for stem, representation in stems.items():
        for suffix in ("weight", "bias", "norm.weight"):
            yield from _part(
                checkpoint,
                f"{stem_tensor_prefix(stem)}.{suffix}",
                representation if suffix == "weight" else None,
                rotated,
            )
    for head in spec.heads.values():
        for suffix in ("weight", "bias"):
            first_layer = suffix == "weight" and head.stem is None
            yield from _part(
                checkpoint,
                f"{head_tensor_prefix(head.name)}.{suffix}",
                head.representation if first_layer else None,
                rotated,
            )


def _part(
    checkpoint: Checkpoint, name: str, representation: int | None, rotated: Callable[[str, int], np.ndarray]
) -> Iterator[PlannedTensor]:
    if name not in checkpoint.tensors:
        return
    tensor = checkpoint.tensors[name]

    def read() -> np.ndarray:
        return finite(checkpoint.path, tensor) if representation is None else rotated(name, representation)

    yield PlannedTensor(gguf_name(name, checkpoint.spec), tensor.shape, read, exact=True)
