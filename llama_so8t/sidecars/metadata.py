"""``model_metadata.json``: 27 flat keys, from which the reference model's configuration can be made."""

from typing import Any

from llama_so8t import __version__
from llama_so8t.checkpoint import Checkpoint
from llama_so8t.checkpoint.fields import model_fields
from llama_so8t.model_spec import ModelSpec

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

WRITTEN = ("quantization", "dtype", "created_at", "converter")
"""What describes the files, after the 23 keys that describe the model."""

SLIDING = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
SO8T_FIELDS = (
    "so8t_shared_blocks",
    "so8t_head_representation",
    "so8t_head_kv_representation",
    "so8t_heads",
    "so8t_stem_sizes",
    "so8t_stem_head_dims",
)
FURTHER = ("base_model_type", "mlp_bias", "rope_parameters", "rope_scaling", *SLIDING, *SO8T_FIELDS)
"""Keys beyond the 27; each is there only where a reader of the 27 would take the model for another one."""


def metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Content of ``model_metadata.json`` for an SO8T model.

    ``created_at`` is null: with a date no two conversions of one model would be the same.

    Raises:
        ConfigError: as `model_fields`.
    """
    return (
        model_fields(checkpoint)
        | {
            "quantization": "8bit",
            "dtype": DTYPES.get(checkpoint.dtype, "float32"),
            "created_at": None,
            "converter": f"llama_so8t {__version__}",
        }
        | _further(checkpoint)
    )


def _further(checkpoint: Checkpoint) -> dict[str, Any]:
    config, spec = checkpoint.config, checkpoint.spec
    keys = []
    if spec.base_model_type != "qwen3":
        keys.append("base_model_type")
    if config.get("mlp_bias"):
        keys.append("mlp_bias")
    if (config.get("rope_parameters") or {}).get("rope_type", "default") != "default":
        keys.append("rope_parameters")
    if config.get("rope_scaling"):
        keys.append("rope_scaling")
    if config.get("use_sliding_window"):
        keys += SLIDING
    for key in SO8T_FIELDS:
        without = {name: value for name, value in config.items() if name != key}
        if ModelSpec.from_config(without) != spec:
            keys.append(key)
    return {key: config[key] for key in keys if key in config}
