"""GGUF files made with gguf-py of the pinned tree."""

import numpy as np
import pytest
from gguf_files import write_gguf
from tiny_models import base_config

from llama_so8t.checkpoint.names import base_tensors, gguf_name
from llama_so8t.model_spec import ModelSpec


@pytest.fixture
def write_gguf_base(gguf, tmp_path):
    """Writes a random base model as GGUF and returns its path and its tensors in Hugging Face order.

    ``edit(keys, tensors)`` may spoil both before the file is written.
    """

    def write(family="llama", edit=None, qtype="F32", **fields):
        config = base_config(family, **fields)
        spec = ModelSpec.from_config(config)
        keys = {
            "general.name": "Tiny",
            f"{family}.block_count": spec.n_layer,
            f"{family}.context_length": config["max_position_embeddings"],
            f"{family}.embedding_length": spec.hidden_size,
            f"{family}.feed_forward_length": config["intermediate_size"],
            f"{family}.attention.head_count": spec.n_head,
            f"{family}.attention.head_count_kv": spec.n_head_kv,
            f"{family}.attention.key_length": spec.head_dim,
            f"{family}.attention.value_length": spec.head_dim,
            f"{family}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
            f"{family}.rope.freq_base": config["rope_parameters"]["rope_theta"],
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": [f"t{i}" for i in range(config["vocab_size"])],
            "tokenizer.ggml.eos_token_id": 2,
        }
        rng = np.random.default_rng(1)
        expected = {
            name: rng.normal(size=entry.shape).astype(np.float32)
            for name, entry in base_tensors(config, spec).items()
            if entry.required
        }
        tensors = {}
        for name, values in expected.items():
            if family == "llama" and ("q_proj" in name or "k_proj" in name):
                values = interleaved(values, spec.head_dim)
            tensors[gguf_name(name, spec)] = values
        if edit:
            edit(keys, tensors)
        typed = {name: (values, qtype if values.ndim == 2 else "F32") for name, values in tensors.items()}
        path = write_gguf(tmp_path / f"{family}-base.gguf", family, keys, typed)
        return path, config, expected

    return write


def interleaved(values, head_dim):
    """Row order of arch llama, row by row: row 2i + s of a head was row s*head_dim/2 + i."""
    result = np.empty_like(values)
    half = head_dim // 2
    for start in range(0, len(values), head_dim):
        for i in range(half):
            result[start + 2 * i] = values[start + i]
            result[start + 2 * i + 1] = values[start + half + i]
    return result
