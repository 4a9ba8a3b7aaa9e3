"""A GGUF file of a base family seen as a Hugging Face model: fields, names, order of rows."""

from typing import Any

import numpy as np

from llama_so8t.checkpoint.names import GLOBAL_NAMES, LAYER_NAMES
from llama_so8t.checkpoint.row_order import from_gguf
from llama_so8t.errors import CheckpointError
from llama_so8t.files.gguf_file import GgufFile
from llama_so8t.format import FAMILIES
from llama_so8t.model_spec import ModelSpec
from llama_so8t.tensors import LazyTensor

LLAMA3_POSITIONS = 8192
"""``original_max_position_embeddings`` of every published Llama 3 (config.json of 3.1, 3.2 and 3.3)."""

ROPE_FREQS = "rope_freqs.weight"
"""Llama 3 rope factors: a tensor in GGUF, ``rope_parameters`` in Hugging Face."""

_UNSUPPORTED_KEYS = (
    "expert_count",
    "attention.sliding_window",
    "attention.scale",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "rope.dimension_sections",
)
_GLOBAL_FROM_GGUF = {gguf: hf for hf, gguf in GLOBAL_NAMES.items()}
_LAYER_FROM_GGUF = {gguf: hf for hf, gguf in LAYER_NAMES.items()}


def base_config(file: GgufFile) -> dict[str, Any]:
    """``config.json`` fields of the base model, from its metadata and tensor names.

    Raises:
        CheckpointError: as `hyperparameters`, or the embedding is missing.
    """
    config = hyperparameters(file)
    family = FAMILIES[config["model_type"]]
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file.path}: tensor 'token_embd.weight' is missing")
    config |= {
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "float32",
    }
    for bias, tensor in ((family.qkv_bias, "attn_q"), (family.mlp_bias, "ffn_down")):
        if isinstance(bias, str):
            config[bias] = f"blk.0.{tensor}.bias" in file.tensors
    for field, key in (
        ("bos_token_id", "bos_token_id"),
        ("eos_token_id", "eos_token_id"),
        ("pad_token_id", "padding_token_id"),
    ):
        value = file.get(f"tokenizer.ggml.{key}")
        if value is not None:
            config[field] = value
    return config


def hyperparameters(file: GgufFile) -> dict[str, Any]:
    """The fields that follow from the metadata alone, so from ``vocab.gguf`` too.

    Raises:
        CheckpointError: another architecture, a split file, a missing key, or a feature so8t graphs lack.
    """
    arch = file.get("general.architecture")
    if not isinstance(arch, str) or arch not in FAMILIES:
        hint = "; it is a converted model already" if arch == "so8t" else ""
        raise CheckpointError(f"{file.path}: found general.architecture {arch!r}, expected {', '.join(FAMILIES)}{hint}")
    if _number(file, "split.count", 1) > 1:
        raise CheckpointError(
            f"{file.path}: is one part of a split model; join the parts with llama-gguf-split --merge"
        )
    for key in _UNSUPPORTED_KEYS:
        if file.get(f"{arch}.{key}"):
            raise CheckpointError(f"{file.path}: found {arch}.{key}, which so8t models do not support")

    if not file.get(f"{arch}.attention.causal", True):
        raise CheckpointError(f"{file.path}: found {arch}.attention.causal false, expected a language model")
    n_head = _count(file, f"{arch}.attention.head_count")
    hidden_size = _count(file, f"{arch}.embedding_length")
    head_dim = file.get(f"{arch}.attention.key_length", hidden_size // n_head)
    for key in ("attention.value_length", "rope.dimension_count"):
        found = file.get(f"{arch}.{key}", head_dim)
        if found != head_dim:
            raise CheckpointError(f"{file.path}: found {arch}.{key} {found}, expected the head size {head_dim}")
    return {
        "architectures": [FAMILIES[arch].architecture],
        "model_type": arch,
        "hidden_size": hidden_size,
        "intermediate_size": _count(file, f"{arch}.feed_forward_length"),
        "num_hidden_layers": _count(file, f"{arch}.block_count"),
        "num_attention_heads": n_head,
        "num_key_value_heads": file.get(f"{arch}.attention.head_count_kv", n_head),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _count(file, f"{arch}.context_length"),
        "rms_norm_eps": _number(file, f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope_parameters(file, arch),
    }


def base_tensors(file: GgufFile, spec: ModelSpec) -> dict[str, LazyTensor]:
    """Tensors under their Hugging Face names, with the rows of q and k in Hugging Face order.

    Raises:
        CheckpointError: a tensor that the base families do not have.
    """
    tensors = {}
    for name, tensor in file.tensors.items():
        if name == ROPE_FREQS:
            continue
        hf_name = _hf_name(name)
        if hf_name is None:
            raise CheckpointError(f"{file.path}: tensor {name!r} is not one of a dense {spec.base_model_type} model")
        tensors[hf_name] = from_gguf(tensor.renamed(hf_name), spec)
    return tensors


def _hf_name(name: str) -> str | None:
    if name in _GLOBAL_FROM_GGUF:
        return _GLOBAL_FROM_GGUF[name]
    parts = name.split(".", 2)
    if len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal() and parts[2] in _LAYER_FROM_GGUF:
        return f"model.layers.{parts[1]}.{_LAYER_FROM_GGUF[parts[2]]}"
    return None


def _rope_parameters(file: GgufFile, arch: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": _number(file, f"{arch}.rope.freq_base", 10000.0),
    }
    scaling = file.get(f"{arch}.rope.scaling.type", "none")
    if scaling not in ("none", "linear", "yarn"):
        raise CheckpointError(f"{file.path}: found {arch}.rope.scaling.type {scaling!r}, expected none, linear or yarn")
    # files from before 2023-11 have linear scaling as one key
    linear = _number(file, f"{arch}.rope.scale_linear", 1.0)
    if scaling == "none" and linear != 1.0:
        scaling = "linear"
    if scaling != "none":
        parameters |= {"rope_type": scaling, "factor": _number(file, f"{arch}.rope.scaling.factor", linear)}
    if scaling == "yarn":
        for field, key in (
            ("original_max_position_embeddings", "original_context_length"),
            ("attention_factor", "yarn_attn_factor"),
            ("beta_fast", "yarn_beta_fast"),
            ("beta_slow", "yarn_beta_slow"),
        ):
            if f"{arch}.rope.scaling.{key}" in file.metadata:
                parameters[field] = _number(file, f"{arch}.rope.scaling.{key}")
    if ROPE_FREQS in file.tensors:
        if scaling != "none":
            raise CheckpointError(
                f"{file.path}: found {ROPE_FREQS} beside rope scaling {scaling!r}, expected one of them"
            )
        parameters |= _llama3_parameters(file, parameters["rope_theta"])
    return parameters


def _llama3_parameters(file: GgufFile, theta: float) -> dict[str, Any]:
    """Recovers ``rope_type: llama3`` from its factors, which is all that a GGUF file keeps of it.

    All published models use low_freq_factor 1, high_freq_factor 4 and LLAMA3_POSITIONS
    (config.json of 3.1, 3.2 and 3.3); other factors are refused rather than approximated.
    """
    found = file.tensors[ROPE_FREQS].read()
    parameters = {
        "rope_type": "llama3",
        "factor": float(found.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": LLAMA3_POSITIONS,
    }
    expected = llama3_factors(parameters, theta, 2 * found.size)
    if not np.allclose(found, expected, rtol=1e-5, atol=0):
        raise CheckpointError(
            f"{file.path}: tensor {ROPE_FREQS!r}: the factors are not those of Llama 3 scaling with factor "
            f"{parameters['factor']:g}; convert from the Hugging Face directory instead"
        )
    return parameters


def llama3_factors(parameters: dict[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """Divisors of the rope frequencies: 1 for short waves, ``factor`` for long ones, a ramp between.

    Llama 3.1 scaling; the smooth part is ``1 / ((1 - s) / factor + s)`` with
    ``s = (positions / wavelength - low) / (high - low)``. Returns ``(head_dim // 2,)`` float32.
    """
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    positions, factor = parameters["original_max_position_embeddings"], parameters["factor"]
    smooth = np.clip((positions / wavelength - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _count(file: GgufFile, key: str) -> int:
    value = file.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{file.path}: found {key} {value!r}, expected a whole number above 0")
    return value


def _number(file: GgufFile, key: str, default: float | None = None) -> float:
    """A number; of a float32 the shortest decimal, so 1e-05 and not 9.999999747378752e-06."""
    value = file.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CheckpointError(f"{file.path}: found {key} {value!r}, expected a number")
    return float(str(np.float32(value))) if isinstance(value, float) else value
