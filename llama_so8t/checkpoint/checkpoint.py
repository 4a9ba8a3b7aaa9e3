"""A model on disk: configuration, tensors by name, tokenizer. Nothing is read before it is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t.checkpoint.checks import generator
from llama_so8t.checkpoint.names import EMBEDDING, stem_sizes
from llama_so8t.checkpoint.vocabulary import Vocabulary
from llama_so8t.errors import CheckpointError
from llama_so8t.files.finite import finite
from llama_so8t.folding import LayerRotations, RotationCache
from llama_so8t.format import HEAD_DIM, INNER, head_tensor_prefix
from llama_so8t.model_spec import ModelSpec
from llama_so8t.tensors import LazyTensor


@dataclass(frozen=True)
class Checkpoint:
    """A base model, an SO8T model, or an SO8T adapter together with its base: all look the same.

    ``tensors`` has Hugging Face names; the output matrix is ``lm_head.weight`` under either of its names, and
    absent where the embedding serves as output. Weights are in Hugging Face row order.
    """

    path: Path
    config: dict[str, Any]
    spec: ModelSpec
    tensors: Mapping[str, LazyTensor]
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
        """Shape of a tensor, rows first.

        Raises:
            CheckpointError: the tensor is missing.
        """
        return self._find(name).shape

    def load(self, name: str) -> np.ndarray:
        """The values of a tensor, float32 of its shape; they may be read-only.

        Raises:
            CheckpointError: the tensor is missing, or its file is damaged.
        """
        return self._find(name).read()

    def load_finite(self, name: str) -> np.ndarray:
        """`load` for a tensor in which NaN or infinity would silently spoil all others; float32 of its shape.

        Raises:
            CheckpointError: as `load`, or it has such a value.
        """
        return finite(self.path, self._find(name))

    def load_generator(self, name: str) -> np.ndarray:
        """The coefficients of a generator, float32 ``(n, 28)``.

        Raises:
            CheckpointError: as `load_finite`, or a coefficient is too large.
        """
        return generator(self.path, self._find(name))

    @property
    def unfitted_heads(self) -> tuple[str, ...]:
        """Names of the heads whose weight is all zeros, as `so8t init` writes it: they say nothing of a text.

        Raises:
            CheckpointError: as `load`.
        """
        return tuple(name for name in self.spec.heads if not self.load(f"{head_tensor_prefix(name)}.weight").any())

    @property
    def stem_fields(self) -> dict[str, dict[str, int] | None]:
        """The fields of ``config.json`` with the sizes of the stems, as the tensors have them."""
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        sizes = {head.stem: stem_sizes(head, shapes) for head in self.spec.heads.values() if head.stem is not None}
        return {
            field: {stem: found[size] for stem, found in sizes.items() if size in found} or None
            for field, size in (("so8t_stem_sizes", INNER), ("so8t_stem_head_dims", HEAD_DIM))
        }

    def rotations(self) -> RotationCache:
        """Rotations of the layers, from their generators."""
        return RotationCache(self.spec, self.load_generator)

    def layer_rotations(self, layer: int) -> LayerRotations:
        """Rotations of one layer, float64.

        Raises:
            CheckpointError: a generator has coefficients that are not finite, or too large.
        """
        return self.rotations().layer(layer)

    def _find(self, name: str) -> LazyTensor:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: tensor {name!r} is missing")
        return self.tensors[name]
