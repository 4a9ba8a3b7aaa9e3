"""``pytorch_model.bin``: weights of `torch.save`, read with ``weights_only``, so that no code of theirs runs.

A tensor is read as a whole; conversion streams only from safetensors.
"""

from pathlib import Path

import numpy as np

from llama_so8t.errors import CheckpointError
from llama_so8t.files import torch_file
from llama_so8t.files.json_file import read_json
from llama_so8t.tensors import LazyTensor

SINGLE_NAME = "pytorch_model.bin"
INDEX_NAME = "pytorch_model.bin.index.json"


def is_there(directory: Path) -> bool:
    """Whether a directory holds such weights."""
    return any((directory / name).is_file() for name in (SINGLE_NAME, INDEX_NAME))


def read_sharded(directory: Path) -> dict[str, LazyTensor]:
    """Tensors of ``pytorch_model.bin``, or of the shards that its index names.

    Raises:
        CheckpointError: a shard is missing, is outside the directory, or holds anything but tensors.
    """
    names = [SINGLE_NAME]
    if not (directory / SINGLE_NAME).is_file():
        index = directory / INDEX_NAME
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise CheckpointError(f"{index}: found no weight_map, expected an object of tensor names and shards")
        names = sorted(set(weight_map.values()))
    tensors: dict[str, LazyTensor] = {}
    for name in names:
        if Path(name).name != name or name.startswith(".") or not (directory / name).is_file():
            raise CheckpointError(f"{directory / INDEX_NAME}: found shard {name!r}, expected a file beside it")
        for key, entry in torch_file.read(directory / name).items():
            if key in tensors:
                raise CheckpointError(f"{directory / name}: tensor {key!r} is in an earlier shard too")

            def read(entry: torch_file.Entry = entry) -> np.ndarray:
                return entry.read().astype(np.float32)

            tensors[key] = LazyTensor(key, entry.shape, "F32", read)
    return tensors
