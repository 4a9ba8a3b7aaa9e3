"""Checkpoints of a real shape with random weights, written without ever holding them."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t.checkpoint.adapter import so8t_config
from llama_so8t.checkpoint.names import base_tensors, so8t_tensors
from llama_so8t.files.json_file import read_json
from llama_so8t.files.safetensors_file import INDEX_NAME
from llama_so8t.model_spec import ModelSpec

QWEN3_4B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
"""config.json of Qwen3-4B-Thinking-2507."""

FLOAT8_BLOCK = 128

_POOL = 1 << 24
_SHARD = "model-{:05d}-of-{:05d}.safetensors"
_ADDED = "so8t.safetensors"
_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "chat_template", "special_tokens")
_QUANTIZATION = {
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [FLOAT8_BLOCK, FLOAT8_BLOCK],
    }
}


def write_base(directory: Path, tokenizer: Path, layers: int, seed: int = 0) -> None:
    """Writes a block-scaled float8 checkpoint of Qwen3-4B's shape in two shards, as published.

    Args:
        directory: new.
        tokenizer: directory with the tokenizer files of a Qwen3 model.
        layers: number of layers.
        seed: of the random numbers.
    """
    config = QWEN3_4B | {"num_hidden_layers": layers}
    shapes = base_tensors(config, ModelSpec.from_config(config))
    names = [name for name, entry in shapes.items() if entry.required]
    rng = np.random.default_rng(seed)
    pools = _pools(rng)
    weight_map: dict[str, str] = {}
    directory.mkdir(parents=True)
    half = len(names) // 2
    for number, part in enumerate((names[:half], names[half:]), start=1):
        entries = [entry for name in part for entry in _stored(name, shapes[name].known_shape)]
        _write(directory / _SHARD.format(number, 2), entries, pools, rng)
        weight_map |= {name: _SHARD.format(number, 2) for name, _, _ in entries}
    for file in tokenizer.iterdir():
        if file.name.startswith(_TOKENIZER_FILES):
            shutil.copyfile(file, directory / file.name)
    _json(directory / INDEX_NAME, {"metadata": {}, "weight_map": weight_map})
    _json(directory / "config.json", config | _QUANTIZATION)


def write_so8t(base: Path, directory: Path, scale: float, seed: int = 0) -> None:
    """Writes an SO8T model on the weights of ``base``: links to its shards, one more with generators and heads.

    Args:
        base: directory of `write_base`.
        directory: new, on the same file system.
        scale: standard deviation of generators and heads; 0 leaves every rotation the identity.
        seed: of the random numbers.
    """
    config = so8t_config(read_json(base / "config.json"), {})
    rng = np.random.default_rng(seed)
    added = [(name, "F32", entry.known_shape) for name, entry in so8t_tensors(ModelSpec.from_config(config)).items()]
    numbers = (rng.standard_normal(_POOL // 16) * scale).astype(np.float32).view(np.uint8)
    weight_map = read_json(base / INDEX_NAME)["weight_map"] | {name: _ADDED for name, _, _ in added}
    directory.mkdir(parents=True)
    for file in base.iterdir():
        os.link(file, directory / file.name)
    for name in ("config.json", INDEX_NAME):
        (directory / name).unlink()
    _write(directory / _ADDED, added, {"F32": numbers}, rng)
    _json(directory / INDEX_NAME, {"metadata": {}, "weight_map": weight_map})
    _json(directory / "config.json", config)


def _stored(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """What the published FP8 files hold: matrices of the layers with scales, all else in BF16."""
    if len(shape) == 2 and ".layers." in name:
        yield name, "F8_E4M3", shape
        yield f"{name}_scale_inv", "BF16", tuple(-(-size // FLOAT8_BLOCK) for size in shape)
    else:
        yield name, "BF16", shape


def _pools(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Bytes to take weights from: normal numbers as float8 (largest 448) and as bfloat16."""
    normal = rng.standard_normal(_POOL).astype(np.float32)
    bits = (normal * 0.02).view(np.uint32) >> 16
    # e4m3: round the float32 to 3 bits of mantissa, and move the exponent from bias 127 to 7
    wide = np.clip(np.abs(normal * 100), 2**-6, 448).view(np.uint32)
    code = ((wide + (1 << 19)) >> 20) - (120 << 3)
    code = np.minimum(code, 0x7E) | np.where(normal < 0, 0x80, 0)
    return {"BF16": bits.astype(np.uint16).view(np.uint8), "F8_E4M3": code.astype(np.uint8)}


def _write(
    path: Path,
    entries: list[tuple[str, str, tuple[int, ...]]],
    pools: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> None:
    sizes = [int(np.prod(shape)) * {"F32": 4, "BF16": 2, "F8_E4M3": 1}[dtype] for _, dtype, shape in entries]
    header, offset = {}, 0
    for (name, dtype, shape), size in zip(entries, sizes, strict=True):
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for (_, dtype, _), size in zip(entries, sizes, strict=True):
            pool = pools[dtype]
            while size > 0:
                start = 4 * int(rng.integers(0, len(pool) // 8))
                part = pool[start : start + size]
                file.write(part.data)
                size -= len(part)


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
