"""The YAML file that the first SO8T converter was run with, as options of `so8t convert`.

Each key is one of four things: an option, a statement about the model that has to be true, something that
always happens and cannot be switched off, or without effect on a conversion. Any other key is an error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llama_so8t.checkpoint.fields import FIELDS
from llama_so8t.errors import ConfigError
from llama_so8t.sidecars.npz import COMPRESSION_LEVEL

MAX_BYTES = 1 << 20

STATEMENTS = {f"model.{name}": name for name in FIELDS if not name.startswith("so8t_") and name != "model_type"} | {
    f"so8t.{name.removeprefix('so8t_')}": name for name in FIELDS if name.startswith("so8t_")
}
"""Key -> field of the model, compared when the model is opened."""

ALWAYS = (
    "so8t.multihead_attention",
    "gguf.include_metadata",
    "gguf.include_tokenizer",
    "gguf.include_weights",
    "gguf.preserve_so8t_structure",
    "gguf.preserve_triality_symmetry",
    "conversion.verify_so8t_structure",
    "conversion.verify_triality_symmetry",
)
"""True, or an error: a file without weights or tokenizer is no model, and the loader always verifies."""

OPTIONS = (
    "model.model_path",
    "model.tokenizer_name",
    "quantization.load_in_8bit",
    "quantization.llm_int8_skip_modules",
    "gguf.model_type",
    "gguf.quantization",
    "gguf.dtype",
    "gguf.output_dir",
    "gguf.filename",
    "conversion.compression_level",
)

WITHOUT_EFFECT = frozenset(
    f"{group}.{name}"
    for group, names in {
        "so8t": "safety_weight cmd_weight pet_lambda group_monitoring gradient_checkpointing use_flash_attention",
        "quantization": "llm_int8_enable_fp32_cpu_offload llm_int8_threshold llm_int8_has_fp16_weight "
        "torch_dtype device_map trust_remote_code low_cpu_mem_usage use_cache",
        "memory": "max_memory gpu_memory_fraction cpu_offload gradient_checkpointing use_cache offload_folder",
        "logging": "level log_file console_output progress_bar tqdm_enabled",
        "conversion": "batch_size max_sequence_length save_intermediate",
    }.items()
    for name in names.split()
)
"""Training, bitsandbytes, memory and log of the first converter."""

MODEL_TYPES = ("so8t", "qwen3_so8t_transformer")
QUANTIZATIONS = {"8bit": "q8_0", "4bit": "q4_k_m"}
"""``gguf.quantization`` -> outtype; the first converter called its 4 bits Q4_K_M."""

DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""``gguf.dtype`` -> outtype, where ``gguf.quantization`` is none."""


@dataclass(frozen=True)
class ConfigFile:
    """What a YAML file asks for; None where it says nothing.

    ``expected`` are fields that the model must have (`checkpoint.fields.check_fields`), ``without_effect`` the
    keys that change nothing, for a note to the user.
    """

    model: Path | None = None
    outfile: Path | None = None
    outtype: str | None = None
    keep: tuple[str, ...] = ()
    compression_level: int = COMPRESSION_LEVEL
    expected: Mapping[str, Any] = field(default_factory=dict)
    without_effect: tuple[str, ...] = ()


def read_config_yaml(path: Path) -> ConfigFile:
    """Reads a configuration file; paths in it are relative to the working directory, as on the command line.

    Raises:
        ConfigError: not such a file, a key that is unknown, doubled or of the wrong kind, or two that contradict
            each other.
    """
    values = _flat(path)
    known = {*STATEMENTS, *ALWAYS, *OPTIONS, *WITHOUT_EFFECT}
    for key in values:
        if key not in known:
            raise ConfigError(f"{path}: unknown key {key!r}; remove it, or correct its name")
    for key in ALWAYS:
        if values.get(key, True) is not True:
            raise ConfigError(f"{path}: found {key} {values[key]!r}, but it cannot be switched off; remove the key")
    model, tokenizer = _text(path, values, "model.model_path"), _text(path, values, "model.tokenizer_name")
    if tokenizer is not None and tokenizer != model:
        raise ConfigError(
            f"{path}: found model.tokenizer_name {tokenizer!r} and model.model_path {model!r}; the tokenizer is the "
            f"model's own, another one would give wrong token ids; remove the key"
        )
    model_type = _text(path, values, "gguf.model_type")
    if model_type not in (None, *MODEL_TYPES):
        raise ConfigError(f"{path}: found gguf.model_type {model_type!r}, expected {' or '.join(MODEL_TYPES)}")
    level = values.get("conversion.compression_level", COMPRESSION_LEVEL)
    if type(level) is not int or level not in range(10):
        raise ConfigError(f"{path}: found conversion.compression_level {level!r}, expected a whole number 0 to 9")
    return ConfigFile(
        model=None if model is None else Path(model),
        outfile=_outfile(path, values),
        outtype=_outtype(path, values),
        keep=_keep(path, values),
        compression_level=level,
        expected={name: values[key] for key, name in STATEMENTS.items() if key in values},
        without_effect=tuple(key for key in values if key in WITHOUT_EFFECT),
    )


def _outfile(path: Path, values: Mapping[str, Any]) -> Path | None:
    directory, name = _text(path, values, "gguf.output_dir"), _text(path, values, "gguf.filename")
    if name is None and directory is None:
        return None
    if name is None or Path(name).name != name:
        raise ConfigError(f"{path}: found gguf.filename {name!r}, expected the name of a file, without directories")
    return Path(directory or ".") / name


def _outtype(path: Path, values: Mapping[str, Any]) -> str | None:
    quantization, dtype = _text(path, values, "gguf.quantization"), _text(path, values, "gguf.dtype")
    eight_bit = values.get("quantization.load_in_8bit")
    if eight_bit is not None and type(eight_bit) is not bool:
        raise ConfigError(f"{path}: found quantization.load_in_8bit {eight_bit!r}, expected true or false")
    if quantization not in (None, "none", *QUANTIZATIONS):
        raise ConfigError(
            f"{path}: found gguf.quantization {quantization!r}, expected none, {' or '.join(QUANTIZATIONS)}; "
            f"other types are given on the command line with --outtype"
        )
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"{path}: found gguf.dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    if eight_bit is not None and quantization is not None and eight_bit != (quantization == "8bit"):
        raise ConfigError(
            f"{path}: found quantization.load_in_8bit {eight_bit} and gguf.quantization {quantization!r}, "
            f"which contradict each other"
        )
    if quantization == "none" and dtype is None:
        raise ConfigError(f"{path}: gguf.quantization is none, expected gguf.dtype beside it")
    return QUANTIZATIONS.get("8bit" if eight_bit else quantization or "") or DTYPES.get(dtype or "")


def _keep(path: Path, values: Mapping[str, Any]) -> tuple[str, ...]:
    key = "quantization.llm_int8_skip_modules"
    modules = values.get(key) or []
    if not isinstance(modules, list) or not all(isinstance(module, str) for module in modules):
        raise ConfigError(f"{path}: found {key} {modules!r}, expected a list of names")
    return tuple(modules)


def _text(path: Path, values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is not None and (not isinstance(value, str) or not value):
        raise ConfigError(f"{path}: found {key} {value!r}, expected text")
    return value


def _flat(path: Path) -> dict[str, Any]:
    """``group.name`` -> value: a scalar, or a list of them."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path}: found {path.stat().st_size} bytes, expected a configuration of at most {MAX_BYTES}")
    try:
        groups = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise ConfigError(f"{path}: expected groups of keys: model, so8t, quantization, gguf, conversion")
    return {f"{group}.{name}": value for group, names in groups.items() for name, value in names.items()}


class _Loader(yaml.SafeLoader):
    """Plain data, every key once, no references: with them a short file could stand for a huge one."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _error(self.peek_event(), "references are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise _error(key, f"key {key.value!r} appears twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def _error(where: yaml.Node | yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    mark = where.start_mark
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark if isinstance(mark, yaml.Mark) else None)


# PyYAML takes 1e-6 for text, because YAML 1.1 asks for a point
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)
