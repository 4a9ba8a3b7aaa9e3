"""Whether the tensors of a checkpoint are those its configuration asks for."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llama_so8t.algebra import MAX_COEFFICIENT
from llama_so8t.checkpoint.names import IGNORED_SUFFIXES, OUTPUT, OUTPUT_ALIAS, Expected, stem_sizes
from llama_so8t.errors import CheckpointError
from llama_so8t.files.finite import finite
from llama_so8t.format import HEAD_DIM, HEAD_FORMS, INNER, head_tensor_prefix, stem_tensor_prefix
from llama_so8t.model_spec import ModelSpec
from llama_so8t.tensors import LazyTensor

_SHOWN = 3
_SIZE_NAMES = {INNER: "the width", HEAD_DIM: "the size of a key"}


def normalized(path: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Tensors under their canonical names, without buffers that follow from the configuration.

    Raises:
        CheckpointError: the output matrix is there under both of its names.
    """
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(IGNORED_SUFFIXES):
            continue
        if name == OUTPUT_ALIAS:
            if OUTPUT in tensors:
                raise CheckpointError(f"{path}: found both {OUTPUT_ALIAS} and {OUTPUT}, expected one of them")
            tensor = tensor.renamed(OUTPUT)
        result[tensor.name] = tensor
    return result


def check_tensors(path: Path, tensors: Mapping[str, LazyTensor], expected: Mapping[str, Expected]) -> None:
    """Compares names and shapes.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape; the message names it.
    """
    missing = [name for name, entry in expected.items() if entry.required and name not in tensors]
    if missing:
        raise CheckpointError(f"{path}: {_listed('tensor', missing)} missing")
    unknown = [name for name in tensors if name not in expected]
    if unknown:
        raise CheckpointError(
            f"{path}: {_listed('tensor', unknown)} not expected from config.json; "
            f"remove what does not belong, or correct the configuration"
        )
    for name, tensor in tensors.items():
        shape = expected[name].shape
        if len(shape) != len(tensor.shape) or any(
            want not in (None, found) for want, found in zip(shape, tensor.shape, strict=True)
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(f"{path}: tensor {name!r}: found shape {list(tensor.shape)}, expected [{wanted}]")


def check_stems(path: Path, tensors: Mapping[str, LazyTensor], spec: ModelSpec) -> None:
    """Checks the sizes of every stem, which a file may know alone.

    Raises:
        CheckpointError: heads and stem disagree, or a stem of attention is not made of whole heads.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for head in spec.heads.values():
        if head.stem is None:
            continue
        prefix, sizes = stem_tensor_prefix(head.stem), stem_sizes(head, shapes)
        names = {f"{prefix}.{part.name}": part.sizes for part in HEAD_FORMS[head.activation].stem_tensors}
        names[f"{head_tensor_prefix(head.name)}.weight"] = ("labels", INNER)
        for name, kinds in names.items():
            for axis, kind in enumerate(kinds):
                expected, what = sizes.get(kind), _SIZE_NAMES.get(kind)
                if expected is not None and name in shapes and shapes[name][axis] != expected:
                    raise CheckpointError(
                        f"{path}: tensor {name!r}: found shape {list(shapes[name])}, "
                        f"expected {expected} on axis {axis}, {what} of its stem"
                    )
        head_dim = sizes.get(HEAD_DIM, 1)
        if not sizes[INNER] or not head_dim or sizes[INNER] % head_dim:
            raise CheckpointError(
                f"{path}: stem {head.stem!r}: found the width {sizes[INNER]} and keys of {head_dim}, "
                "expected a multiple: one or more whole heads"
            )


def generator(path: Path, tensor: LazyTensor) -> np.ndarray:
    """The coefficients of a generator ``(n, 28)``, float32, in radians; ``path`` is for errors.

    Raises:
        CheckpointError: one of them is NaN, infinite, or so large that its rotation depends on who computes it.
    """
    values = finite(path, tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > MAX_COEFFICIENT:
        raise CheckpointError(
            f"{path}: tensor {tensor.name!r}: found a coefficient of {largest:.3g}, "
            f"expected at most {MAX_COEFFICIENT:g} radians"
        )
    return values


def _listed(noun: str, names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{noun}{'s' if len(names) > 1 else ''} {shown}{more} {'are' if len(names) > 1 else 'is'}"
