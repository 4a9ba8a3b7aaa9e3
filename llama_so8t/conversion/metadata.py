"""Keys of the base model, as upstream's converter writes them: hyper-parameters, tokenizer, chat template."""

import gc
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t import upstream
from llama_so8t.checkpoint import Checkpoint
from llama_so8t.checkpoint.gguf_base import ROPE_FREQS, hyperparameters
from llama_so8t.errors import ConversionError
from llama_so8t.files.gguf_file import GgufFile, read_gguf
from llama_so8t.format import ARCH, FAMILIES

# keys that describe the weights of the base file, or how it was cut, and would be false in the new one
_DROPPED_PREFIXES = ("split.", "quantize.", "general.tensor_extra")
_DROPPED_KEYS = ("general.alignment", "general.parameter_count", "llama.tensor_data_layout")

# of SO8T, and what describes stored weights, which are plain when upstream's code would see them
_NOT_OF_THE_BASE = ("base_model_type", "auto_map", "quantization_config", "compression_config")

# weights, and files that make upstream treat the directory as something other than a plain language model
_NOT_LINKED = ("config.json", "modules.json", "adapter_config.json")
_NOT_LINKED_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".index.json", ".py")


@dataclass(frozen=True)
class BaseMetadata:
    """Keys of the new file (values are `gguf.GGUFValue`) and tensors that are configuration: rope factors."""

    keys: dict[str, Any]
    tensors: dict[str, np.ndarray]


def base_metadata(
    checkpoint: Checkpoint,
    arch: str,
    file_type: int,
    shapes: Sequence[tuple[int, ...]],
    model_name: str | None = None,
) -> BaseMetadata:
    """Keys of the base under the prefix of the new architecture.

    Args:
        checkpoint: an SO8T model.
        arch: ``so8t``, or the architecture of the base.
        file_type: number for ``general.file_type``.
        shapes: shapes of the base's tensors; their sizes make ``general.size_label``.
        model_name: value for ``general.name`` instead of the name found.

    Raises:
        ConversionError: upstream's converter refuses the configuration or the tokenizer.
    """
    if checkpoint.vocabulary.gguf is not None:
        found = _from_gguf(checkpoint, arch, read_gguf(checkpoint.vocabulary.gguf))
    else:
        found = _from_directory(checkpoint, arch, file_type, shapes)
    gguf = upstream.gguf
    keys = found.keys
    spec = checkpoint.spec
    if arch == ARCH:
        for key, value in (
            ("vocab_size", checkpoint.config["vocab_size"]),
            ("attention.key_length", spec.head_dim),
            ("attention.value_length", spec.head_dim),
            ("rope.dimension_count", spec.head_dim),
        ):
            keys.setdefault(f"{arch}.{key}", gguf.GGUFValue(value, gguf.GGUFValueType.UINT32))
    # with this key a server takes the model for an embedding model and refuses to chat
    keys.pop(f"{arch}.pooling_type", None)
    keys["general.architecture"] = gguf.GGUFValue(arch, gguf.GGUFValueType.STRING)
    keys["general.file_type"] = gguf.GGUFValue(file_type, gguf.GGUFValueType.UINT32)
    keys["general.quantization_version"] = gguf.GGUFValue(gguf.GGML_QUANT_VERSION, gguf.GGUFValueType.UINT32)
    if model_name is not None:
        keys["general.name"] = gguf.GGUFValue(model_name, gguf.GGUFValueType.STRING)
    return found


def _from_gguf(checkpoint: Checkpoint, arch: str, file: GgufFile) -> BaseMetadata:
    _check_agreement(checkpoint, file)
    prefix = f"{checkpoint.spec.base_model_type}."
    keys = {}
    for key, entry in file.metadata.items():
        if key.startswith(_DROPPED_PREFIXES) or key in _DROPPED_KEYS:
            continue
        if entry.is_empty_array:
            continue
        name = f"{arch}.{key.removeprefix(prefix)}" if key.startswith(prefix) else key
        keys[name] = entry.for_writer()
    extra = {ROPE_FREQS: file.tensors[ROPE_FREQS].read()} if ROPE_FREQS in file.tensors else {}
    return BaseMetadata(keys, extra)


def _check_agreement(checkpoint: Checkpoint, file: GgufFile) -> None:
    """The keys come from the GGUF, the weights fit config.json: both have to say the same."""
    said, config = hyperparameters(file), checkpoint.config
    said["vocab_size"] = len(file.get("tokenizer.ggml.tokens", ()))
    said |= said.pop("rope_parameters")
    found = config | (config.get("rope_parameters") or {})
    for field in ("model_type", "architectures", "hidden_act"):
        said.pop(field)
    for field, value in said.items():
        if field in found and found[field] != value:
            raise ConversionError(
                f"{checkpoint.path}: found {field} {found[field]!r} in config.json, "
                f"but {value!r} in {file.path}; make them agree, "
                f"or remove the latter where a tokenizer.json is beside it"
            )


def _from_directory(
    checkpoint: Checkpoint, arch: str, file_type: int, shapes: Sequence[tuple[int, ...]]
) -> BaseMetadata:
    """Runs upstream's model class on a directory that looks like the base and holds no weights."""
    conversion, gguf = upstream.conversion, upstream.gguf
    base_type = checkpoint.spec.base_model_type
    model_class = _plain(conversion.get_model_class(FAMILIES[base_type].architecture))
    with tempfile.TemporaryDirectory(prefix="so8t-") as temporary:
        # upstream derives names from the name of the directory
        directory = Path(temporary) / Path(os.path.abspath(checkpoint.path)).name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(_base_fields(checkpoint)), encoding="utf-8")
        _link_files(checkpoint, directory)
        collecting = gc.isenabled()
        gc.disable()  # hundreds of thousands of tokens and no cycle among them: each collection would walk them all
        try:
            model = model_class(directory, gguf.LlamaFileType(file_type), directory)
            model.gguf_writer.arch = arch
            for number, shape in enumerate(shapes):
                model.gguf_writer.add_tensor_info(f"{number}.weight", shape, np.dtype(np.float32), 0)
            model.prepare_metadata(vocab_only=False)
            extra = {name: tensor.numpy() for name, tensor in model.generate_extra_tensors()}
        except Exception as error:  # upstream raises whatever its libraries raise
            reason = str(error).strip().splitlines()
            raise ConversionError(
                f"{checkpoint.path}: llama.cpp's converter refuses the configuration or the tokenizer: "
                f"{type(error).__name__}: {reason[0] if reason else 'no message'}"
            ) from error
        finally:
            if collecting:
                gc.enable()
    return BaseMetadata(upstream.keys_of(model.gguf_writer), extra)


def _plain(model_class: Any) -> type:
    # upstream makes a reranker of every Qwen3 directory with that word in its name or model card
    members = {"model_arch": model_class.model_arch, "_is_qwen3_reranker": lambda model: False}
    return type(model_class.__name__, (model_class,), members)


def _base_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    base_type = checkpoint.spec.base_model_type
    fields = {
        key: value
        for key, value in checkpoint.config.items()
        if not key.startswith("so8t_") and key not in _NOT_OF_THE_BASE
    }
    return fields | {"model_type": base_type, "architectures": [FAMILIES[base_type].architecture]}


def _link_files(checkpoint: Checkpoint, directory: Path) -> None:
    # the model card of an adapter is its own, everything else is the base's
    for source in (checkpoint.path, checkpoint.vocabulary.directory):
        if source is None:
            continue
        for file in sorted(source.iterdir()):
            target = directory / file.name
            if file.name in _NOT_LINKED or file.name.endswith(_NOT_LINKED_SUFFIXES) or target.exists():
                continue
            os.symlink(file.resolve(), target)
