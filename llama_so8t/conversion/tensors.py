"""Which tensors a file gets: name, shape, type, and how each is computed when its turn comes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llama_so8t import folding
from llama_so8t.algebra import DIM, rotation
from llama_so8t.checkpoint import Checkpoint
from llama_so8t.checkpoint.checkpoint import RotationCache, check_finite, finite
from llama_so8t.checkpoint.gguf_base import interleave_halves
from llama_so8t.checkpoint.names import OUTPUT, base_tensors, gguf_name, layer_tensor
from llama_so8t.format import (
    GENERATORS,
    OUT_GENERATOR,
    ROTATIONS,
    Tensors,
    generator_name,
    head_tensor_prefix,
    stem_tensor_prefix,
)
from llama_so8t.tensors import StoredTensor


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the new file: name, shape (rows first), and how its float32 values are computed.

    ``read_rows(start, stop)``, where it is not None, computes some rows. ``exact`` keeps it F32 in every file.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    read_rows: Callable[[int, int], np.ndarray] | None = None
    exact: bool = False

    @classmethod
    def of(cls, tensor: StoredTensor, name: str) -> "PlannedTensor":
        """A stored tensor under its name in the new file."""
        return cls(name, tensor.shape, tensor.read, tensor.read_rows)


def plan_tensors(
    checkpoint: Checkpoint, folded: Sequence[str], explicit: Sequence[str], allow_nonfinite: bool = False
) -> Iterator[PlannedTensor]:
    """All tensors of the SO8T file in file order; computed lazily.

    Args:
        checkpoint: an SO8T model.
        folded: sites to absorb into the weights.
        explicit: sites whose rotation matrices the file carries.
        allow_nonfinite: whether NaN and infinity among the weights are let through.
    """
    cache = RotationCache(checkpoint.path, checkpoint.spec, checkpoint.tensors)
    layer = -1
    for name in _present(checkpoint):
        found = layer_tensor(name)
        if (found[0] if found else -1) != layer:
            if layer >= 0:
                yield from _layer_extras(checkpoint, cache, layer, explicit)
            layer = found[0] if found else -1
        tensor = _folded(checkpoint, cache, name, folded, allow_nonfinite)
        yield PlannedTensor.of(tensor, gguf_name(name, checkpoint.spec))
    yield from plan_heads(checkpoint)


def plan_stock_tensors(
    checkpoint: Checkpoint, folded: Sequence[str], allow_nonfinite: bool = False
) -> Iterator[PlannedTensor]:
    """The tensors of the base architecture alone, rotations folded; computed lazily.

    Arch llama rotates neighbours in its rope where Hugging Face rotates halves, so the rows of q and k are
    interleaved, as upstream's converter does.
    """
    cache = RotationCache(checkpoint.path, checkpoint.spec, checkpoint.tensors)
    spec = checkpoint.spec
    for name in _present(checkpoint):
        tensor = _folded(checkpoint, cache, name, folded, allow_nonfinite)
        if spec.base_model_type == "llama":
            for part, n_head in (("q_proj", spec.n_head), ("k_proj", spec.n_head_kv)):
                if f".self_attn.{part}." in name:
                    tensor = tensor.mapped(lambda weight, n_head=n_head: interleave_halves(weight, n_head))
        yield PlannedTensor.of(tensor, gguf_name(name, spec))


def _present(checkpoint: Checkpoint) -> list[str]:
    return [
        name
        for name in base_tensors(checkpoint.config, checkpoint.spec)
        if name in checkpoint.tensors and not (name == OUTPUT and checkpoint.config.get("tie_word_embeddings"))
    ]


def _folded(
    checkpoint: Checkpoint, cache: RotationCache, name: str, folded: Sequence[str], allow_nonfinite: bool
) -> StoredTensor:
    tensor = checkpoint.tensors[name]
    found = layer_tensor(name)
    rotated = found is not None and bool(folded) and folding.is_rotated(found[1])

    def turn(rows: np.ndarray, start: int) -> np.ndarray:
        if not allow_nonfinite:
            check_finite(checkpoint.path, name, rows, start)
        if not rotated:
            return rows
        step = folding.fold_step(found[1], tensor.shape, cache.get(found[0]), folded)
        return rows if step is None else step(rows, start)

    return tensor.mapped_rows(turn)


def _layer_extras(
    checkpoint: Checkpoint, cache: RotationCache, layer: int, explicit: Sequence[str]
) -> Iterator[PlannedTensor]:
    spec = checkpoint.spec
    matrices = {"q": spec.n_head, "k": spec.n_head_kv, "v": spec.n_head_kv}
    for site in spec.sites:
        for generator in GENERATORS[site]:
            tensor = checkpoint.tensors[generator_name(layer, generator)]
            name = Tensors.GENERATOR.format(layer=layer, name=generator)
            yield PlannedTensor(name, tensor.shape, lambda tensor=tensor: finite(checkpoint.path, tensor), exact=True)
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


def plan_heads(checkpoint: Checkpoint) -> Iterator[PlannedTensor]:
    """The generator before the heads, the stems and the heads: what a heads file holds."""
    spec = checkpoint.spec
    generator = checkpoint.tensors[OUT_GENERATOR]
    yield PlannedTensor(Tensors.OUT_GENERATOR, generator.shape, lambda: finite(checkpoint.path, generator), exact=True)

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
