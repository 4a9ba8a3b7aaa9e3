"""Heads of a GGUF file that say nothing of a text, found without reading more of it."""

from llama_so8t.files.gguf_file import GgufFile
from llama_so8t.format import Keys, Tensors


def unfitted_heads(file: GgufFile) -> tuple[str, ...]:
    """Names of the heads whose weight is all zeros, as `so8t init` writes it; `so8t inspect` checks the rest of a head.

    Raises:
        CheckpointError: the file is damaged.
    """
    named = file.get(Keys.HEADS, ())
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    weights = {name: file.tensors.get(Tensors.HEAD_WEIGHT.format(name=name)) for name in dict.fromkeys(names)}
    return tuple(name for name, weight in weights.items() if weight is not None and not weight.read().any())
