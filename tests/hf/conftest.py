"""Tiny models of the three base families, small enough to run hundreds of times."""

import pytest
from required import package

TINY = {
    "vocab_size": 61,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,  # generation must not stop early
    "pad_token_id": 0,
}
# ten query heads on five key-value heads: one full group of 8, and two heads past it
SHAPES = {
    "qwen3": {"hidden_size": 32, "num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 16},
    "llama": {"hidden_size": 80, "num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 16},
    "qwen2": {"hidden_size": 80, "num_attention_heads": 10, "num_key_value_heads": 5},
}
THREE_LABELS = {
    "labels": ["a", "b", "c"],
    "actions": ["allow", "refuse", "escalate"],
    "thresholds": [0.5, 0.5, 0.5],
}


@pytest.fixture
def base_config():
    """Factory: configuration of a tiny base model of a family."""
    transformers = package("transformers")

    def make(family="qwen3", **fields):
        return transformers.CONFIG_MAPPING[family](**{**TINY, **SHAPES[family], **fields})

    return make


@pytest.fixture
def config(base_config):
    """Factory: SO8T configuration of a tiny model; ``so8t_*`` fields and fields of the base."""
    from llama_so8t.hf import SO8TTransformerConfig

    def make(family="qwen3", **fields):
        so8t = {key: fields.pop(key) for key in list(fields) if key.startswith("so8t_")}
        return SO8TTransformerConfig.from_base(base_config(family, **fields), **so8t)

    return make


@pytest.fixture
def model(config):
    """Factory: tiny model, weights large enough that every part shows, generators of size ``scale``."""
    import torch

    from llama_so8t.hf import SO8TTransformerForCausalLM

    def make(family="qwen3", scale=0.3, **fields):
        built = SO8TTransformerForCausalLM(config(family, **fields)).eval()
        with torch.no_grad():
            for name, parameter in built.named_parameters():
                if "so8t." in name:
                    parameter.normal_(0.0, scale) if scale else parameter.zero_()
                elif "norm" in name:
                    parameter.normal_(1.0, 0.3)  # an uneven norm does not commute with a rotation
                elif parameter.ndim == 2:
                    parameter.normal_(0.0, parameter.shape[1] ** -0.5)
                else:
                    parameter.normal_(0.0, 0.3)
        return built

    return make


@pytest.fixture
def head_forms():
    """Fields with the two heads of SO8T, linear and MLP heads, two on a Qwen3Guard stem, two that look back."""
    from llama_so8t.format import default_heads

    attention = {"activation": "attention", "stem": "look", "taps": [1, 0], "tap_norm": "rms", "sliding_window": 4}
    return {
        "so8t_heads": {
            **default_heads(),
            "risk": {**THREE_LABELS, "activation": "rmsnorm", "stem": "response"},
            "category": {**THREE_LABELS, "activation": "rmsnorm", "stem": "response"},
            "tone": {**THREE_LABELS, "activation": "gelu", "stem": "tone", "representation": 2},
            "topic": {**THREE_LABELS, "activation": "tanh", "stem": "topic", "representation": 1},
            "plain": {**THREE_LABELS, "representation": 0},
            "look": {**THREE_LABELS, **attention, "representation": 1},
            "back": {**THREE_LABELS, **attention, "representation": 1},
        },
        "so8t_stem_sizes": {"response": 24, "tone": 12, "topic": 8, "look": 12},
        "so8t_stem_head_dims": {"look": 4},
    }


@pytest.fixture
def tokens():
    """``(2, 11)`` token ids."""
    torch = package("torch")
    return torch.randint(2, TINY["vocab_size"], (2, 11), generator=torch.Generator().manual_seed(8))
