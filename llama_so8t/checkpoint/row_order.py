"""The order of the rows of q and k, which GGUF files of arch llama have another way than Hugging Face.

The rope of that architecture rotates neighbours, Hugging Face's rotates the halves of a head. Upstream's converter
interleaves the halves, so that both are the same function: row ``2i + s`` of a head in such a file is row
``s*head_dim/2 + i`` of Hugging Face. All other architectures, so8t among them, keep the order of Hugging Face.
"""

import numpy as np

from llama_so8t.checkpoint.names import layer_tensor
from llama_so8t.model_spec import ModelSpec
from llama_so8t.tensors import LazyTensor


def to_gguf(tensor: LazyTensor, spec: ModelSpec) -> LazyTensor:
    """A tensor of a checkpoint with its rows as a GGUF file of the base architecture has them; named as before."""
    n_head = _interleaved_heads(tensor.name, spec)
    return tensor if n_head is None else tensor.mapped(lambda weight: interleave_halves(weight, n_head))


def from_gguf(tensor: LazyTensor, spec: ModelSpec) -> LazyTensor:
    """The inverse of `to_gguf`: a tensor of such a file, under its Hugging Face name, in the order of a checkpoint."""
    n_head = _interleaved_heads(tensor.name, spec)
    return tensor if n_head is None else tensor.mapped(lambda weight: split_halves(weight, n_head))


def interleave_halves(weight: np.ndarray, n_head: int) -> np.ndarray:
    """Hugging Face order -> order of arch llama. ``(n_head*head_dim, in)`` or ``(n_head*head_dim,)``, any dtype."""
    rows = weight.shape[0]
    return weight.reshape(n_head, 2, rows // n_head // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def split_halves(weight: np.ndarray, n_head: int) -> np.ndarray:
    """Order of arch llama -> Hugging Face order, the inverse of `interleave_halves`; shapes and dtype as there."""
    rows = weight.shape[0]
    return weight.reshape(n_head, rows // n_head // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _interleaved_heads(name: str, spec: ModelSpec) -> int | None:
    """Number of heads of a tensor (Hugging Face name) whose rows differ, or None where they do not."""
    found = layer_tensor(name)
    if not spec.family.interleaved_rope or found is None:
        return None
    return {"self_attn.q_proj": spec.n_head, "self_attn.k_proj": spec.n_head_kv}.get(found[1].rpartition(".")[0])
