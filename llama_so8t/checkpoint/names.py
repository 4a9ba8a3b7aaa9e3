"""Tensors of the base families: Hugging Face names, GGUF names, shapes."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_so8t.errors import CheckpointError
from llama_so8t.format import (
    HEAD_DIM,
    HEAD_FORMS,
    INNER,
    LINEAR_NAMES,
    READ,
    HeadSpec,
    Tensors,
    head_tensor_prefix,
    stem_tensor_prefix,
)
from llama_so8t.model_spec import ModelSpec

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"
OUTPUT_ALIAS = "task_head.weight"

GLOBAL_NAMES = {
    EMBEDDING: "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    OUTPUT: "output.weight",
}
"""Hugging Face name -> GGUF name, outside the layers."""


def _linear(name: str) -> dict[str, str]:
    return {f"{name}.{part}": f"{LINEAR_NAMES[name]}.{part}" for part in ("weight", "bias")}


LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    **_linear("self_attn.q_proj"),
    **_linear("self_attn.k_proj"),
    **_linear("self_attn.v_proj"),
    **_linear("self_attn.o_proj"),
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    **_linear("mlp.gate_proj"),
    **_linear("mlp.up_proj"),
    **_linear("mlp.down_proj"),
}
"""After ``model.layers.{i}.`` -> after ``blk.{i}.``."""

MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS of llama.cpp."""

IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".attention.masked_bias")
"""Buffers that old checkpoints carry; they follow from the configuration."""


@dataclass(frozen=True)
class Expected:
    """Shape of a tensor; None stands for a size that the file decides."""

    shape: tuple[int | None, ...]
    required: bool = True

    @property
    def known_shape(self) -> tuple[int, ...]:
        """The shape, where no size is left to the file.

        Raises:
            ValueError: one is.
        """
        sizes = tuple(size for size in self.shape if size is not None)
        if len(sizes) != len(self.shape):
            raise ValueError(f"found shape {self.shape}, expected one whose sizes are all known")
        return sizes


def layer_tensor(name: str) -> tuple[int, str] | None:
    """Layer and suffix of ``model.layers.{i}.SUFFIX``, or None."""
    parts = name.split(".", 3)
    if len(parts) != 4 or parts[:2] != ["model", "layers"] or not parts[2].isdecimal():
        return None
    return int(parts[2]), parts[3]


def base_tensors(config: Mapping[str, Any], spec: ModelSpec) -> dict[str, Expected]:
    """Every tensor of the base model in the order of a GGUF file.

    Raises:
        CheckpointError: vocab_size or intermediate_size is not a positive whole number, or too many layers.
    """
    if spec.n_layer > MAX_LAYERS:
        raise CheckpointError(f"config.json: found {spec.n_layer} layers, expected at most {MAX_LAYERS}")
    d, ff, vocab = spec.hidden_size, _size(config, "intermediate_size"), _size(config, "vocab_size")
    q, kv, head_dim = spec.n_head * spec.head_dim, spec.n_head_kv * spec.head_dim, spec.head_dim
    linear = {
        "self_attn.q_proj": (q, d, spec.qkv_bias),
        "self_attn.k_proj": (kv, d, spec.qkv_bias),
        "self_attn.v_proj": (kv, d, spec.qkv_bias),
        "self_attn.o_proj": (d, q, spec.o_bias),
        "mlp.gate_proj": (ff, d, spec.mlp_bias),
        "mlp.up_proj": (ff, d, spec.mlp_bias),
        "mlp.down_proj": (d, ff, spec.mlp_bias),
    }
    layer: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
    if spec.has_qk_norm:
        layer |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    for name, (rows, columns, bias) in linear.items():
        layer[f"{name}.weight"] = (rows, columns)
        if bias:
            layer[f"{name}.bias"] = (rows,)
    tensors = {EMBEDDING: Expected((vocab, d))}
    for index in range(spec.n_layer):
        for suffix in LAYER_NAMES:
            if suffix in layer:
                tensors[f"model.layers.{index}.{suffix}"] = Expected(layer[suffix])
    tensors["model.norm.weight"] = Expected((d,))
    tensors[OUTPUT] = Expected((vocab, d), required=not config.get("tie_word_embeddings"))
    return tensors


def so8t_tensors(spec: ModelSpec) -> dict[str, Expected]:
    """Every tensor that SO8T adds: generators, stems, heads. An inner size of None is decided by the file."""
    tensors = {name: Expected(shape) for name, shape in spec.generator_shapes().items()}
    for head in spec.heads.values():
        columns: int | None = len(head.taps) * spec.hidden_size
        if head.stem is not None:
            inner, head_dim = spec.stem_sizes.get(head.stem), spec.stem_head_dims.get(head.stem)
            sizes = {READ: columns, INNER: inner, HEAD_DIM: head_dim}
            for part in HEAD_FORMS[head.activation].stem_tensors:
                shape = tuple(sizes[size] for size in part.sizes)
                tensors[f"{stem_tensor_prefix(head.stem)}.{part.name}"] = Expected(shape, part.required)
            columns = inner
        prefix = head_tensor_prefix(head.name)
        tensors[f"{prefix}.weight"] = Expected((len(head.labels), columns))
        tensors[f"{prefix}.bias"] = Expected((len(head.labels),), required=False)
    return tensors


def stem_sizes(head: HeadSpec, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """`INNER` and, where there are keys, `HEAD_DIM` of the stem of a head, as the first tensor that has each says it.

    Args:
        head: with a stem.
        shapes: of the tensors of a checkpoint, by name; those of the stem have as many sizes as they should.
    """
    sizes: dict[str, int] = {}
    for part in HEAD_FORMS[head.activation].stem_tensors:
        shape = shapes.get(f"{stem_tensor_prefix(str(head.stem))}.{part.name}", ())
        for size, found in zip(part.sizes, shape, strict=False):
            sizes.setdefault(size, found)
    sizes.pop(READ, None)
    return sizes


def gguf_name(name: str, spec: ModelSpec) -> str:
    """GGUF name of a base, head or stem tensor.

    Raises:
        KeyError: a name outside `base_tensors` and `so8t_tensors`; generators have their own form.
    """
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    found = layer_tensor(name)
    if found is not None:
        return f"blk.{found[0]}.{LAYER_NAMES[found[1]]}"
    for head in spec.heads.values():
        prefix = head_tensor_prefix(head.name)
        forms = {f"{prefix}.weight": Tensors.HEAD_WEIGHT, f"{prefix}.bias": Tensors.HEAD_BIAS}
        if name in forms:
            return forms[name].format(name=head.name)
        if head.stem is not None:
            prefix, _, part = name.partition(f"{stem_tensor_prefix(head.stem)}.")
            if not prefix and part in HEAD_FORMS[head.activation].stem:
                return Tensors.STEM.format(stem=head.stem, part=part)
    raise KeyError(name)


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"config.json: found {key} {reprlib.repr(value)}, expected a whole number above 0")
    return value
