"""The fields of ``config.json`` that sidecars and YAML files repeat: flat, with their defaults filled in."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llama_so8t.algebra import DIM
from llama_so8t.checkpoint.checkpoint import Checkpoint
from llama_so8t.errors import ConfigError
from llama_so8t.format import SO8T_FLAGS

FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "attention_bias",
    "attention_dropout",
    "use_cache",
    "tie_word_embeddings",
    "so8t_rotation_dim",
    *SO8T_FLAGS,
)

# the same in transformers' configurations of all base families
_DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_cache": True,
    "tie_word_embeddings": False,
    "so8t_rotation_dim": DIM,
} | dict.fromkeys(SO8T_FLAGS, True)


def model_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    """`FIELDS` of a model and their values, in this order.

    Raises:
        ConfigError: ``config.json`` lacks one that has no default.
    """
    config, spec = checkpoint.config, checkpoint.spec
    values = _DEFAULTS | {key: value for key, value in config.items() if value is not None}
    values |= config.get("rope_parameters") or {}
    values |= {"num_key_value_heads": spec.n_head_kv, "head_dim": spec.head_dim}
    missing = [key for key in FIELDS if key not in values]
    if missing:
        raise ConfigError(f"{checkpoint.path}: config.json has no {missing[0]}")
    return {key: values[key] for key in FIELDS}


def check_fields(checkpoint: Checkpoint, expected: Mapping[str, Any]) -> None:
    """Compares a model with what a file of the user says about it.

    Raises:
        ConfigError: they differ; names the field and both values.
    """
    found = model_fields(checkpoint) if expected else {}
    for key, value in expected.items():
        if not _same(found[key], value):
            raise ConfigError(
                f"{checkpoint.path}: found {key} {found[key]!r}, but the configuration file says {value!r}; "
                f"correct the file, or name the model that it was written for"
            )


def _same(a: Any, b: Any) -> bool:
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in (a, b)):
        return type(a) is type(b) and a == b
    # a GGUF base has its numbers as float32
    return a == b or (float in (type(a), type(b)) and max(abs(a), abs(b)) < 1e30 and np.float32(a) == np.float32(b))
