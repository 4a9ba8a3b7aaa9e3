"""Headers of GGUF files: keys, and name, shape and type of every tensor; how a model is cut into several files."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t import upstream
from llama_so8t.errors import ConversionError
from llama_so8t.tensors import LazyTensor


@dataclass(frozen=True)
class Shard:
    """One file: its keys (values are `gguf.GGUFValue`) and its tensors, with the ggml types that they get in it."""

    keys: Mapping[str, Any]
    tensors: Sequence[LazyTensor]


def ggml_type(tensor: LazyTensor) -> Any:
    """The `gguf.GGMLQuantizationType` of a tensor of a GGUF file."""
    return upstream.gguf.GGMLQuantizationType[tensor.dtype]


def n_bytes(tensor: LazyTensor) -> int:
    """Size of a tensor in a GGUF file, in bytes, without padding."""
    block_size, type_size = upstream.gguf.GGML_QUANT_SIZES[ggml_type(tensor)]
    return math.prod(tensor.shape) // block_size * type_size


def split(keys: Mapping[str, Any], tensors: Sequence[LazyTensor], max_bytes: int | None) -> list[Shard]:
    """One shard, or several of at most ``max_bytes`` of tensors, with the keys of llama.cpp's split files."""
    groups: list[list[LazyTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = n_bytes(tensor)
        if max_bytes is not None and groups[-1] and filled + size > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    if len(groups) == 1:
        return [Shard(keys, tensors)]
    gguf = upstream.gguf
    kinds = gguf.GGUFValueType
    return [
        Shard(
            # only the first file has the model's keys, as in upstream's split files
            (dict(keys) if number == 0 else {})
            | {
                gguf.Keys.Split.LLM_KV_SPLIT_NO: gguf.GGUFValue(number, kinds.UINT16),
                gguf.Keys.Split.LLM_KV_SPLIT_COUNT: gguf.GGUFValue(len(groups), kinds.UINT16),
                gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT: gguf.GGUFValue(len(tensors), kinds.INT32),
            },
            group,
        )
        for number, group in enumerate(groups)
    ]


def write_header(path: Path, shard: Shard, arch: str) -> int:
    """Writes keys and tensor infos of a file, without data.

    Returns:
        Its size: the data begins at the next multiple of the alignment.

    Raises:
        ConversionError: a key does not fit its type.
    """
    writer = upstream.gguf.GGUFWriter(path, arch=arch)
    upstream.put_keys(writer, shard.keys)
    for tensor in shard.tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), n_bytes(tensor), raw_dtype=ggml_type(tensor)
        )
    try:
        writer.write_header_to_file()
        try:
            writer.write_kv_data_to_file()
        except (struct.error, OverflowError, UnicodeEncodeError) as error:
            raise ConversionError(f"a key does not fit its type in GGUF: {error}") from error
        writer.write_ti_data_to_file()
        return writer.fout[0].tell()
    finally:
        writer.close()
