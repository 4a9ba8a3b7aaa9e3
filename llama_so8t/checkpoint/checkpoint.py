"""A model on disk: configuration, tensors by name, tokenizer. Nothing is read before it is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t import kernels
from llama_so8t.checkpoint.names import EMBEDDING
from llama_so8t.checkpoint.vocabulary import Vocabulary
from llama_so8t.errors import CheckpointError
from llama_so8t.folding import LayerRotations, layer_rotations
from llama_so8t.format import generator_name
from llama_so8t.model_spec import ModelSpec
from llama_so8t.tensors import StoredTensor


@dataclass(frozen=True)
class Checkpoint:
    """A base model, an SO8T model, or an SO8T adapter together with its base: all look the same.

    ``tensors`` has Hugging Face names; the output matrix is ``lm_head.weight`` under either of its names, and
    absent where the embedding serves as output. Weights are in Hugging Face row order.
    """

    path: Path
    config: dict[str, Any]
    spec: ModelSpec
    tensors: Mapping[str, StoredTensor]
    vocabulary: Vocabulary
    generation_config: dict[str, Any] | None = None

    @property
    def is_so8t(self) -> bool:
        """False for a base model, which has no generators and heads."""
        return self.config.get("model_type") == "so8t"

    @property
    def dtype(self) -> str:
        """Stored dtype of the weights, by the example of the embedding: F32, F16, BF16, or a GGUF type."""
        return self.tensors[EMBEDDING].dtype

    def tensor_names(self) -> tuple[str, ...]:
        """Names in the order of the file."""
        return tuple(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, rows first."""
        return self._find(name).shape

    def load(self, name: str) -> np.ndarray:
        """One tensor as float32; it may be a read-only view of the mapped file."""
        return self._find(name).read()

    def layer_rotations(self, layer: int) -> LayerRotations:
        """Rotations of one layer in float64, from its generators."""
        return rotations_of(self.path, self.spec, self.tensors, layer)

    def _find(self, name: str) -> StoredTensor:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing")
        return self.tensors[name]


def rotations_of(path: Path, spec: ModelSpec, tensors: Mapping[str, StoredTensor], layer: int) -> LayerRotations:
    """Rotations of one layer from the generators among ``tensors``; ``path`` is for errors.

    Raises:
        CheckpointError: a generator has NaN or infinite coefficients.
    """

    return layer_rotations(spec, lambda generator: finite(path, tensors[generator_name(layer, generator)]))


def finite(path: Path, tensor: StoredTensor) -> np.ndarray:
    """Reads a tensor in which NaN or infinity would silently spoil all others.

    Raises:
        CheckpointError: it has such a value.
    """
    values = tensor.read()
    check_finite(path, tensor.name, values)
    return values


def check_finite(path: Path, name: str, values: np.ndarray, first_row: int = 0) -> None:
    """Looks for NaN and infinity in some rows of a tensor.

    Raises:
        CheckpointError: there is one.
    """
    bad = kernels.first_nonfinite(values)
    if bad is not None:
        index = np.unravel_index(bad, values.shape)
        where = ", ".join(str(int(i) + (first_row if axis == 0 else 0)) for axis, i in enumerate(index))
        raise CheckpointError(f"{path}: tensor {name!r}: found {values[index]} at [{where}], expected finite numbers")


class RotationCache:
    """Rotations of the last few layers asked for: threads read tensors of neighbouring layers."""

    def __init__(self, path: Path, spec: ModelSpec, tensors: Mapping[str, StoredTensor]) -> None:
        self.get = lru_cache(maxsize=4)(lambda layer: rotations_of(path, spec, tensors, layer))
