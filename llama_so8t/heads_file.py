"""Heads in a file of their own: written, put into a copy of a model, and taken out of one again."""

import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t import upstream
from llama_so8t.conversion.so8t_keys import head_keys
from llama_so8t.errors import CheckpointError, ConversionError
from llama_so8t.files.atomic import new_files
from llama_so8t.files.gguf_file import GgufFile, read_gguf
from llama_so8t.files.json_file import read_json
from llama_so8t.files.tensor_hash import base_sha256
from llama_so8t.format import ARCH, FAMILIES, FORMAT_VERSION, HEAD_TENSORS, HEADS_TYPE, HeadSpec, Keys
from llama_so8t.inspection.gguf_heads import format_version, read_heads
from llama_so8t.tensors import LazyTensor


def attach(model: Path, heads: Sequence[Path], out: Path) -> tuple[str, ...]:
    """Writes a copy of a GGUF model that has the heads of other files, too. All else is byte for byte the same.

    Args:
        model: GGUF file, not split.
        heads: heads files; their heads and stems have different names.
        out: the copy.

    Returns:
        Names of the heads that were put in.

    Raises:
        CheckpointError: a file is damaged, or of another kind.
        ConfigError: a head has values that no head has.
        ConversionError: the heads belong to another base, a name is there already, or the rotations of the model are
            in a form that its new version lacks.
    """
    file = _read_model(model)
    if file.get("general.architecture") == ARCH and format_version(file) < FORMAT_VERSION:
        raise ConversionError(
            f"{model}: is of format version {format_version(file)}, and heads that are put in are of version "
            f"{FORMAT_VERSION}: expected a file of this version; convert its checkpoint again"
        )
    base = Base.of_gguf(file)
    keys = {key: value.for_writer() for key, value in file.metadata.items()}
    n_layer = _layers(file)
    names = list(read_heads(file, n_layer))
    tensors = {tensor.name: tensor for tensor in upstream.gguf.GGUFReader(model).tensors}
    added: dict[str, Any] = {}
    new_names: list[str] = []
    for path in heads:
        other = _read_heads_file(path)
        base.check(file.path, other)
        for name in read_heads(other, n_layer):
            if name in (*names, *new_names):
                raise ConversionError(f"{path}: head {name!r} is there already, expected heads with different names")
            new_names.append(name)
        for tensor in upstream.gguf.GGUFReader(path).tensors:
            if not tensor.name.startswith(HEAD_TENSORS):
                continue  # the rotation before the heads, which their weights have
            if tensor.name in added or tensor.name in tensors:
                raise ConversionError(f"{path}: tensor {tensor.name!r} is there already, expected stems of other names")
            added[tensor.name] = tensor
        keys |= {key: value.for_writer() for key, value in other.metadata.items() if key.startswith(Keys.HEAD_PREFIX)}
    kinds = upstream.gguf.GGUFValueType
    keys[Keys.FORMAT_VERSION] = upstream.gguf.GGUFValue(FORMAT_VERSION, kinds.UINT32)
    keys[Keys.HEADS] = upstream.gguf.GGUFValue(names + new_names, kinds.ARRAY, kinds.STRING)
    with new_files([out]) as (temporary,):
        _write(temporary, file, keys, [*added.values(), *tensors.values()])
    return tuple(new_names)


def detach(model: Path, out: Path, heads_out: Path | None = None) -> tuple[str, ...]:
    """Writes a copy of a GGUF model without its heads. All else is byte for byte the same.

    Args:
        model: GGUF file with heads, not split.
        out: the copy.
        heads_out: a heads file to write, bound to the copy.

    Returns:
        Names of the heads that were taken out.

    Raises:
        CheckpointError: the file is damaged, or has no heads.
    """
    file = _read_model(model)
    base = Base.of_gguf(file)
    heads = read_heads(file, _layers(file))
    if not heads:
        raise CheckpointError(f"{model}: found no heads (key {Keys.HEADS}), expected a model with heads")
    of_heads = {
        k: v.for_writer() for k, v in file.metadata.items() if k == Keys.HEADS or k.startswith(Keys.HEAD_PREFIX)
    }
    keys = {key: value.for_writer() for key, value in file.metadata.items() if key not in of_heads}
    version = (
        keys[Keys.FORMAT_VERSION] if file.get("general.architecture") == ARCH else keys.pop(Keys.FORMAT_VERSION, None)
    )
    tensors = upstream.gguf.GGUFReader(model).tensors
    kept = [tensor for tensor in tensors if not tensor.name.startswith(HEAD_TENSORS)]
    moved = [tensor for tensor in tensors if tensor.name.startswith(HEAD_TENSORS)]
    outs = [out] if heads_out is None else [out, heads_out]
    with new_files(outs) as temporaries:
        _write(temporaries[0], file, keys, kept)
        if heads_out is not None:
            bound = replace(base, sha256=base_sha256(temporaries[:1])).keys() | (
                {Keys.FORMAT_VERSION: version} if version else {}
            )
            _write(temporaries[1], None, bound | of_heads, moved)
    return tuple(heads)


@dataclass(frozen=True)
class Base:
    """What a heads file is bound to: width, architecture and layers of a model, and the hash of its tensors.

    What is None is not known, and not compared. The architecture is that of llama.cpp; of a model of the architecture
    so8t, that of its base.
    """

    hidden_size: int
    architecture: str | None = None
    n_layer: int | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, model: Path) -> "Base":
        """A base from a GGUF file, with the hash of its tensors, or from a model directory, without.

        Raises:
            CheckpointError: a file is missing or damaged, or the architecture is unknown to llama.cpp.
        """
        if not model.is_dir():
            return replace(cls.of_gguf(read_gguf(model)), sha256=base_sha256([model], "hash of the base"))
        where = model / "config.json"
        config = read_json(where)
        sizes = config.get("text_config", config)
        found: dict[str, Any] = {}
        for key in ("hidden_size", "num_hidden_layers"):
            found[key] = sizes.get(key) if isinstance(sizes, dict) else None
            if type(found[key]) is not int or not 0 < found[key] < 1 << 31:
                raise CheckpointError(
                    f"{where}: found {key} {reprlib.repr(found[key])}, expected a whole number above 0"
                )
        return cls(found["hidden_size"], _architecture(where, config), found["num_hidden_layers"])

    @classmethod
    def of_gguf(cls, file: GgufFile) -> "Base":
        """A base from the metadata of its file."""
        arch = _get(file, "general.architecture", str)
        architecture = _get(file, Keys.BASE_ARCHITECTURE, str) if arch == ARCH else arch
        return cls(_get(file, f"{arch}.embedding_length", int), architecture, _layers(file))

    def keys(self) -> dict[str, Any]:
        """Keys of a heads file that is bound to this model."""
        kinds = upstream.gguf.GGUFValueType
        values = {
            "general.architecture": (ARCH, kinds.STRING),
            "general.type": (HEADS_TYPE, kinds.STRING),
            Keys.BASE_ARCHITECTURE: (self.architecture, kinds.STRING),
            Keys.BASE_SHA256: (self.sha256, kinds.STRING),
            f"{ARCH}.embedding_length": (self.hidden_size, kinds.UINT32),
            f"{ARCH}.block_count": (self.n_layer, kinds.UINT32),
        }
        return {key: upstream.gguf.GGUFValue(*value) for key, value in values.items() if value[0] is not None}

    def check(self, path: Path, heads: GgufFile) -> None:
        """Compares the model with what the heads say of theirs; ``path`` is that of the model."""
        for key, found in (
            (Keys.BASE_ARCHITECTURE, self.architecture),
            (f"{ARCH}.embedding_length", self.hidden_size),
            (f"{ARCH}.block_count", self.n_layer),
        ):
            expected = heads.get(key)
            if expected not in (None, found):
                raise ConversionError(
                    f"{heads.path}: its heads belong to a base with {key} {expected!r}, {path} has {found!r}"
                )
        sha256 = heads.get(Keys.BASE_SHA256)
        if sha256 is not None and sha256 != base_sha256([path]):
            raise ConversionError(
                f"{heads.path}: its heads belong to a base whose tensors have the hash {sha256}, "
                f"those of {path} have another"
            )


def write_heads_file(path: Path, base: Base, heads: Collection[HeadSpec], tensors: Collection[LazyTensor]) -> None:
    """Writes heads and the tensors of heads and stems, float32, as a file that is bound to a base.

    Raises:
        CheckpointError: a tensor cannot be read.
        ConfigError: a head reads behind the layers of the base.
    """
    for head in heads:
        if base.n_layer is not None:
            head.check_taps(base.n_layer)
    with new_files([path]) as (temporary,):
        writer = upstream.gguf.GGUFWriter(temporary, arch=ARCH)
        upstream.put_keys(writer, base.keys() | head_keys(heads))
        for tensor in tensors:
            writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.read(), dtype=np.float32))
        _finish(writer)


def _read_model(path: Path) -> GgufFile:
    file = read_gguf(path)
    if file.get("general.type") == HEADS_TYPE:
        raise CheckpointError(f"{path}: is a heads file, expected a model")
    if file.get("split.count", 1) != 1:
        raise CheckpointError(f"{path}: is split into {file.get('split.count')} files, expected one; join them first")
    return file


def _read_heads_file(path: Path) -> GgufFile:
    file = read_gguf(path)
    if file.get("general.type") != HEADS_TYPE or not format_version(file):
        raise CheckpointError(f"{path}: is no heads file, expected general.type {HEADS_TYPE!r}")
    if Keys.HEADS not in file.metadata:
        raise CheckpointError(f"{path}: key {Keys.HEADS} is missing")
    return file


def _layers(file: GgufFile) -> int:
    return _get(file, f"{_get(file, 'general.architecture', str)}.block_count", int)


def _architecture(where: Path, config: Mapping[str, Any]) -> str:
    """The name in llama.cpp of the architecture of a model directory."""
    model_type = config.get("base_model_type", config.get("model_type"))
    if config.get("model_type") == ARCH or model_type in FAMILIES:
        return str(model_type)
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    try:
        return upstream.gguf.MODEL_ARCH_NAMES[upstream.conversion.get_model_class(name).model_arch]
    except (NotImplementedError, TypeError):
        raise CheckpointError(f"{where}: found the class {name!r}, which llama.cpp does not convert") from None


def _get(file: GgufFile, key: str, kind: type) -> Any:
    value = file.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CheckpointError(f"{file.path}: key {key} is {value!r}, expected a value of type {kind.__name__}")
    return value


def _write(path: Path, model: GgufFile | None, keys: Mapping[str, Any], tensors: Sequence[Any]) -> None:
    """Writes keys and tensors in this order, with the alignment of ``model``."""
    for key, value in keys.items():
        if value.type == upstream.gguf.GGUFValueType.ARRAY and not value.value:
            where = model.path if model is not None else path
            raise CheckpointError(f"{where}: key {key} is an empty array, which cannot be copied")
    writer = upstream.gguf.GGUFWriter(path, arch=ARCH)
    writer.data_alignment = model.get("general.alignment", 32) if model is not None else 32
    upstream.put_keys(writer, keys)
    for tensor in tensors:
        writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    _finish(writer)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
