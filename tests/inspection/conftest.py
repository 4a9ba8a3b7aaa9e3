"""Small SO8T models for `so8t inspect`: GGUF files written with gguf-py, an adapter written by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gguf_files
import numpy as np
import pytest

from llama_so8t.algebra import random_generators, rotation
from llama_so8t.checkpoint import adapter
from llama_so8t.format import SITES, Keys, Tensors, default_heads, default_representations

N_LAYER, N_HEAD, N_HEAD_KV, WIDTH = 3, 9, 3, 72


@pytest.fixture
def shape() -> SimpleNamespace:
    """Layers and hidden size of the files of `write_gguf`."""
    return SimpleNamespace(n_layer=N_LAYER, width=WIDTH)


@pytest.fixture(params=[1, 2])
def version(request) -> int:
    """Version of the format of the files of `write_gguf`."""
    return request.param


@pytest.fixture
def place(version: int) -> Callable[[int, str], str]:
    """Where a message says that the generator NAME of a layer stands."""

    def name(layer: int, generator: str) -> str:
        if version == 1:
            return f"blk.{layer}.so8t_{generator}_gen.weight"
        return f"blk.{layer}.so8t_gen.weight ({generator})"

    return name


@pytest.fixture
def write_gguf(gguf, tmp_path: Path, rng: np.random.Generator, version: int) -> Callable[..., Path]:
    """Writes an so8t file; ``edit(metadata, tensors)`` may spoil it before it is written.

    There the generators are tensors of their own; they are put into one where the file is of version 2.
    """

    def write(explicit: tuple[str, ...] = ("gate", "qk"), edit: Callable | None = None, arch: str = "so8t") -> Path:
        head, head_kv = default_representations(N_HEAD), default_representations(N_HEAD_KV)
        metadata = {
            f"{arch}.block_count": N_LAYER,
            f"{arch}.embedding_length": WIDTH,
            f"{arch}.attention.head_count": N_HEAD,
            f"{arch}.attention.head_count_kv": N_HEAD_KV,
            Keys.FORMAT_VERSION: version,
            Keys.BASE_ARCHITECTURE: "llama",
            Keys.ROTATION_DIMENSION: 8,
            Keys.ROTATION_EXPLICIT: list(explicit),
            Keys.ROTATION_FOLDED: [site for site in SITES if site not in explicit],
            Keys.ATTN_HEAD_REPRESENTATION: head,
            Keys.ATTN_HEAD_KV_REPRESENTATION: head_kv,
        }
        tensors = {Tensors.OUT_GENERATOR: random_generators(rng, (WIDTH // 8,), 0.3)}
        for layer in range(N_LAYER):
            for name in (name for site in SITES for name in SITES[site].generator_names):
                n = WIDTH // 8 if name in ("gate_safe", "gate_cmd", "ffn") else 1
                tensors[Tensors.GENERATOR.format(layer=layer, name=name)] = random_generators(rng, (n,), 0.3)
            _add_rotations(tensors, layer, explicit, head, head_kv)
        _add_heads(metadata, tensors, rng)
        if edit is not None:
            edit(metadata, tensors)
        if metadata.get(Keys.FORMAT_VERSION, 1) > 1:
            _pack(tensors)
        arrays = {name: np.asarray(values, dtype=np.float32) for name, values in tensors.items()}
        return gguf_files.write_gguf(tmp_path / f"{arch}.gguf", arch, metadata, arrays)

    return write


def _pack(tensors) -> None:
    for layer in range(N_LAYER):
        names = [f"blk.{layer}.so8t_{name}_gen.weight" for site in SITES for name in SITES[site].generator_names]
        rows = [np.asarray(tensors.pop(name), dtype=np.float32) for name in names if name in tensors]
        if rows:
            tensors.setdefault(f"blk.{layer}.so8t_gen.weight", np.concatenate(rows))


def _add_rotations(tensors, layer, explicit, head, head_kv) -> None:
    for site in explicit:
        for name in SITES[site].generator_names:
            generator = tensors[Tensors.GENERATOR.format(layer=layer, name=name)]
            made = {name: rotation(generator)}
            if site == "qk":
                made = {
                    "q": np.concatenate([rotation(generator, t) for t in head]),
                    "k": np.concatenate([rotation(generator, t) for t in head_kv]),
                }
            if site == "v":
                made = {"v": np.concatenate([rotation(generator, t) for t in head_kv])}
            for tensor, rotations in made.items():
                tensors[Tensors.ROTATION.format(layer=layer, name=tensor)] = rotations


def _add_heads(metadata, tensors, rng) -> None:
    from llama_so8t.upstream import gguf

    metadata[Keys.HEADS] = list(default_heads())
    for name, spec in default_heads().items():
        metadata |= {
            Keys.HEAD_LABELS.format(name=name): list(spec.labels),
            Keys.HEAD_ACTIONS.format(name=name): list(spec.actions),
            Keys.HEAD_THRESHOLDS.format(name=name): list(spec.thresholds),
            Keys.HEAD_REPRESENTATION.format(name=name): gguf.GGUFValue(spec.representation, gguf.GGUFValueType.INT32),
        }
        tensors[Tensors.HEAD_WEIGHT.format(name=name)] = rng.normal(size=(2, WIDTH))
        tensors[Tensors.HEAD_BIAS.format(name=name)] = rng.normal(size=2)


@pytest.fixture
def adapter_directory(gguf, tmp_path: Path, rng: np.random.Generator) -> Path:
    """An adapter on a one-layer llama GGUF base, with heads that are still zero."""
    from safetensors.numpy import save_file

    d, head_dim, ff, vocab = 64, 8, 16, 4
    base = tmp_path / "base.gguf"
    shapes = {
        "attn_norm": (d,),
        "ffn_norm": (d,),
        "attn_q": (d, d),
        "attn_k": (head_dim, d),
        "attn_v": (head_dim, d),
    }
    shapes |= {"attn_output": (d, d), "ffn_gate": (ff, d), "ffn_up": (ff, d), "ffn_down": (d, ff)}
    tensors = {f"blk.0.{name}.weight": np.ones(shape) for name, shape in shapes.items()}
    tensors |= {"token_embd.weight": np.ones((vocab, d)), "output_norm.weight": np.ones(d)}
    metadata = {"llama.block_count": 1, "llama.embedding_length": d, "llama.feed_forward_length": ff}
    metadata |= {
        "llama.context_length": 16,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 1,
    }
    metadata |= {"llama.rope.dimension_count": head_dim, "llama.attention.layer_norm_rms_epsilon": 1e-5}
    arrays = {name: values.astype(np.float32) for name, values in tensors.items()}
    gguf_files.write_gguf(base, "llama", metadata, arrays)

    directory = tmp_path / "adapter"
    directory.mkdir()
    fields = {
        "adapter_type": "so8t",
        "base_model_name_or_path": "../base.gguf",
        "base_model_sha256": adapter.weights_sha256(base),
        "so8t_compensated": True,
        "so8t_shared_blocks": True,
        "so8t_heads": {name: spec.to_dict() for name, spec in default_heads().items()},
    }
    (directory / adapter.CONFIG_NAME).write_text(json.dumps(fields))
    generators = {f"model.layers.0.so8t.{name}" for site in SITES for name in SITES[site].generator_names}
    added = {name: random_generators(rng, (1,), 0.3) for name in sorted(generators)}
    added |= {"so8t.out": random_generators(rng, (1,), 0.3)}
    for name in default_heads():
        added |= {f"{name}_head.weight": np.zeros((2, d)), f"{name}_head.bias": np.zeros(2)}
    save_file({name: values.astype(np.float32) for name, values in added.items()}, directory / adapter.WEIGHTS_NAME)
    return directory
