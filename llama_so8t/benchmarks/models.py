"""GGUF files of one shape: the base and its SO8T forms, all on the same bytes of weights."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t import kernels, upstream
from llama_so8t.benchmarks.synthetic import QWEN3_4B
from llama_so8t.checkpoint import Checkpoint
from llama_so8t.checkpoint.adapter import so8t_config
from llama_so8t.checkpoint.names import base_tensors, so8t_tensors
from llama_so8t.checkpoint.vocabulary import Vocabulary
from llama_so8t.conversion.header import Shard, ggml_type, n_bytes, write_header
from llama_so8t.conversion.options import ROTATION_MODES, ConvertOptions
from llama_so8t.conversion.so8t_keys import head_keys, so8t_keys
from llama_so8t.conversion.tensor_types import choose_types, file_type
from llama_so8t.conversion.tensors import plan_heads, plan_stock_tensors, plan_tensors
from llama_so8t.folding import foldable_sites
from llama_so8t.format import ARCH, Tensors
from llama_so8t.model_spec import ModelSpec
from llama_so8t.tensors import LazyTensor


def _shape(width: int, inner: int, layers: int, heads: tuple[int, int, int], vocabulary: int) -> dict[str, Any]:
    n_head, n_head_kv, head_dim = heads
    return QWEN3_4B | {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": n_head,
        "num_key_value_heads": n_head_kv,
        "head_dim": head_dim,
        "vocab_size": vocabulary,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _shape(256, 512, 2, (8, 2, 32), 512),  # for tests
    "135M": _shape(576, 1536, 30, (9, 3, 64), 49152),  # SmolLM2-135M
    "0.6B": _shape(1024, 3072, 28, (16, 8, 128), 151936),  # Qwen3-0.6B
    "4B": QWEN3_4B,
}
"""``config.json`` of a qwen3 model of each size; the vocabulary is tied."""


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    ``rotations``: None is the base architecture; "fold" and "explicit" are those of `so8t convert`; else the sites
    that are explicit, comma-separated, and the others count as folded. ``heads``: the two heads of the SO8T model;
    ``probe``: instead of them `_probe`, which looks inside and back.
    """

    rotations: str | None
    heads: bool
    probe: bool = False

    @property
    def name(self) -> str:
        """As it stands in tables: "qwen3", "so8t fold + heads", ..."""
        if self.rotations is None:
            form = "qwen3"
        elif self.rotations in ROTATION_MODES:
            form = f"so8t {self.rotations}"
        else:
            form = f"so8t sites {self.rotations or 'none'}"
        return f"{form} + probe" if self.probe else f"{form} + heads" if self.heads else form


ARMS = tuple(Arm(rotations, heads) for rotations in (None, "fold", "explicit") for heads in (False, True))
BASE = ARMS[0]
"""What the others are measured against."""

PROBE = Arm(None, heads=False, probe=True)
"""The base with the heads of SingProbe."""

KNOWN_ARMS = {arm.name: arm for arm in (*ARMS, PROBE)}
"""Arms by name: those of the tables in docs/speed.md, and `PROBE`."""

WEIGHTS = "weights.gguf"
"""The second part of every model."""

_POOL = 1 << 22
_ROW = 4096
_SIGMA = 0.02
_GENERATOR_SCALE = 0.3


def write_models(
    directory: Path, shape: str, outtype: str, arms: Sequence[Arm] = ARMS, shared_blocks: bool = False, seed: int = 0
) -> dict[Arm, Path]:
    """Writes the files of a shape; quantized matrices are random blocks.

    Each file is a split model whose second part, the weights, is the same file for all arms: one copy on the disk,
    in the page cache and, where llama.cpp maps it, in memory. Keys, names, shapes and types are the converter's, as
    are rotations and heads. There is no vocabulary: only numbers of tokens.

    Args:
        directory: existing; takes the weights once, in the size of the model.
        shape: one of `SHAPES`.
        outtype: as `so8t convert --outtype`.
        arms: which files.
        shared_blocks: one rotation for all blocks of a site instead of one per block.
        seed: of the random numbers.

    Returns:
        The file to load for each arm.

    Raises:
        ConversionError: the type needs the native kernels or llama-quantize, and they are not built.
    """
    rng = np.random.default_rng(seed)
    options = ConvertOptions(model=directory, outtype=outtype)
    base = _checkpoint(directory, SHAPES[shape], shared_blocks, BASE, rng)
    planned = list(plan_stock_tensors(base, ()))
    keys = _base_keys(base, base.spec.base_model_type, outtype)
    weights = choose_types(planned, keys, base.spec.base_model_type, options, base.spec)
    shared = directory / WEIGHTS
    n_weights = len(weights)
    extras = {arm: _extras(_checkpoint(directory, SHAPES[shape], shared_blocks, arm, rng), arm) for arm in arms}
    _write(shared, Shard(_split_keys(1), weights), _random_blocks(rng))
    # it follows the writing, not the first measurement
    _sync(shared)
    paths = {}
    for arm, (own_keys, tensors) in extras.items():
        stem = re.sub(r"[^0-9a-z]+", "-", arm.name)
        paths[arm], second = (directory / upstream.gguf.SHARD_NAME_FORMAT.format(stem, number, 2) for number in (1, 2))
        second.symlink_to(shared.name)
        arch = base.spec.base_model_type if arm.rotations is None else ARCH
        arm_keys = _base_keys(base, arch, outtype) | own_keys | _split_keys(0, n_weights + len(tensors))
        _write(paths[arm], Shard(arm_keys, tensors), _computed)
    return paths


def _probe(n_layer: int) -> dict[str, Any]:
    """Ten labels of three heads on one stem of attention at three layers, in SingProbe's size for small models:
    four query heads of 64 (docs/convert.md)."""
    taps = [n_layer // 3, 2 * n_layer // 3, n_layer - 1]
    common = {
        "taps": sorted(set(taps)), "tap_norm": "rms", "stem": "probe", "activation": "attention", "link": "sigmoid",
    }  # fmt: skip
    sizes = {"query": 8, "response": 1, "hallucination": 1}
    heads = {
        name: common | {"labels": list("abcdefgh"[:n]), "actions": ["refuse"] * n, "thresholds": [0.5] * n}
        for name, n in sizes.items()
    }
    return {"so8t_heads": heads, "so8t_stem_sizes": {"probe": 256}, "so8t_stem_head_dims": {"probe": 64}}


def _checkpoint(
    directory: Path, config: dict[str, Any], shared_blocks: bool, arm: Arm, rng: np.random.Generator
) -> Checkpoint:
    heads = _probe(config["num_hidden_layers"]) if arm.probe else {} if arm.heads else {"so8t_heads": {}}
    full = so8t_config(config, {"so8t_shared_blocks": shared_blocks} | heads)
    spec = ModelSpec.from_config(full)
    tensors = {
        name: LazyTensor(name, entry.known_shape, "F32", _no_data)
        for name, entry in base_tensors(full, spec).items()
        if entry.required
    }
    for name, entry in so8t_tensors(spec).items():
        values = rng.normal(0.0, _GENERATOR_SCALE, entry.known_shape).astype(np.float32)
        tensors[name] = LazyTensor.of(name, values)
    return Checkpoint(directory, full, spec, tensors, Vocabulary())


def _no_data() -> np.ndarray:
    raise AssertionError("weights of a benchmark are random blocks")


def _extras(checkpoint: Checkpoint, arm: Arm) -> tuple[dict[str, Any], list[LazyTensor]]:
    """Keys and tensors that this arm has beside the base's."""
    spec = checkpoint.spec
    if arm.rotations is None:
        keys = head_keys(spec.heads.values()) if spec.heads else {}
        # the rotation before the heads is in their weights; a base architecture has no tensor for its generator
        tensors = [tensor for tensor in plan_heads(checkpoint) if tensor.name != Tensors.OUT_GENERATOR]
        return keys, tensors
    if arm.rotations == "fold":
        explicit = [site for site in spec.sites if site not in foldable_sites(spec)]
    else:
        explicit = [site for site in spec.sites if arm.rotations == "explicit" or site in arm.rotations.split(",")]
    folded = [site for site in spec.sites if site not in explicit]
    tensors = [tensor for tensor in plan_tensors(checkpoint, folded, explicit) if tensor.exact]
    return so8t_keys(spec, explicit, folded), tensors


def _base_keys(checkpoint: Checkpoint, arch: str, outtype: str) -> dict[str, Any]:
    config, spec = checkpoint.config, checkpoint.spec
    gguf = upstream.gguf
    types = gguf.GGUFValueType
    numbers = {
        "block_count": spec.n_layer,
        "context_length": config["max_position_embeddings"],
        "embedding_length": spec.hidden_size,
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": spec.n_head,
        "attention.head_count_kv": spec.n_head_kv,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "rope.dimension_count": spec.head_dim,
        "vocab_size": config["vocab_size"],
    }
    reals = {"attention.layer_norm_rms_epsilon": config["rms_norm_eps"], "rope.freq_base": config["rope_theta"]}
    return (
        {
            "general.architecture": gguf.GGUFValue(arch, types.STRING),
            "general.file_type": gguf.GGUFValue(file_type(outtype), types.UINT32),
            "tokenizer.ggml.model": gguf.GGUFValue("no_vocab", types.STRING),
        }
        | {f"{arch}.{key}": gguf.GGUFValue(value, types.UINT32) for key, value in numbers.items()}
        | {f"{arch}.{key}": gguf.GGUFValue(float(value), types.FLOAT32) for key, value in reals.items()}
    )


def _split_keys(number: int, n_tensors: int | None = None) -> dict[str, Any]:
    gguf = upstream.gguf
    names, types = gguf.Keys.Split, gguf.GGUFValueType
    keys = {
        names.LLM_KV_SPLIT_NO: gguf.GGUFValue(number, types.UINT16),
        names.LLM_KV_SPLIT_COUNT: gguf.GGUFValue(2, types.UINT16),
    }
    if n_tensors is not None:
        keys[names.LLM_KV_SPLIT_TENSORS_COUNT] = gguf.GGUFValue(n_tensors, types.INT32)
    return keys


def _write(path: Path, shard: Shard, data: Callable[[LazyTensor], memoryview]) -> None:
    """Header, then ``data(tensor)`` as often as it takes to fill each tensor."""
    alignment = upstream.gguf.GGUF_DEFAULT_ALIGNMENT
    size = write_header(path, shard, "")
    with path.open("ab") as file:
        file.write(bytes(-size % alignment))
        for tensor in shard.tensors:
            size = left = n_bytes(tensor)
            while left:
                left -= file.write(data(tensor)[:left])
            file.write(bytes(-size % alignment))


def _computed(tensor: LazyTensor) -> memoryview:
    return np.ascontiguousarray(tensor.read(), dtype=np.float32).reshape(-1).view(np.uint8).data


def _random_blocks(rng: np.random.Generator) -> Callable[[LazyTensor], memoryview]:
    """Blocks of the tensor's type from a pool of some MB; ones for the weights of norms."""
    values = rng.normal(0.0, _SIGMA, _POOL).astype(np.float32).reshape(-1, _ROW)
    pools: dict[Any, np.ndarray] = {}

    def data(tensor: LazyTensor) -> memoryview:
        if len(tensor.shape) == 1:
            return np.ones(tensor.shape, dtype=np.float32).view(np.uint8).data
        kind = ggml_type(tensor)
        if kind not in pools:
            pools[kind] = kernels.quantize(values, kind).reshape(-1)
        pool = pools[kind]
        _, block_bytes = upstream.gguf.GGML_QUANT_SIZES[kind]
        start = int(rng.integers(len(pool) // block_bytes // 2)) * block_bytes
        return pool[start:].data

    return data


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
