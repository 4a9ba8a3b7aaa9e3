"""Heads in a file of their own: put into a copy of a model, and taken out of one again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t import upstream
from llama_so8t.errors import CheckpointError, ConversionError
from llama_so8t.files.atomic import new_files
from llama_so8t.files.gguf_file import GgufFile, read_gguf
from llama_so8t.format import ARCH, FORMAT_VERSION, HEADS_TYPE, Keys, Tensors
from llama_so8t.inspection.gguf_heads import format_version, read_heads
from llama_so8t.inspection.tensor_hash import model_sha256

_PARTS = (Tensors.HEAD_WEIGHT.partition("{")[0], Tensors.STEM_WEIGHT.partition("{")[0])
"""Beginnings of the tensor names of heads and stems."""


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
        ConversionError: the heads belong to another base, or a name is there already.
    """
    file = _read_model(model)
    base = _Base(file)
    keys = {key: value.for_writer() for key, value in file.metadata.items()}
    names = list(read_heads(file, base.n_layer))
    tensors = {tensor.name: tensor for tensor in upstream.gguf.GGUFReader(model).tensors}
    added: dict[str, Any] = {}
    new_names: list[str] = []
    for path in heads:
        other = _read_heads_file(path)
        base.check(other)
        for name in read_heads(other, base.n_layer):
            if name in (*names, *new_names):
                raise ConversionError(f"{path}: head {name!r} is there already, expected heads with different names")
            new_names.append(name)
        for tensor in upstream.gguf.GGUFReader(path).tensors:
            if not tensor.name.startswith(_PARTS):
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
    base = _Base(file)
    heads = read_heads(file, base.n_layer)
    if not heads:
        raise CheckpointError(f"{model}: found no heads (key {Keys.HEADS}), expected a model with heads")
    of_heads = {
        k: v.for_writer() for k, v in file.metadata.items() if k == Keys.HEADS or k.startswith(Keys.HEAD_PREFIX)
    }
    keys = {key: value.for_writer() for key, value in file.metadata.items() if key not in of_heads}
    version = keys[Keys.FORMAT_VERSION] if base.is_so8t else keys.pop(Keys.FORMAT_VERSION, None)
    tensors = upstream.gguf.GGUFReader(model).tensors
    kept = [tensor for tensor in tensors if not tensor.name.startswith(_PARTS)]
    moved = [tensor for tensor in tensors if tensor.name.startswith(_PARTS)]
    outs = [out] if heads_out is None else [out, heads_out]
    with new_files(outs) as temporaries:
        _write(temporaries[0], file, keys, kept)
        if heads_out is not None:
            bound = base.keys(model_sha256(temporaries[0])) | ({Keys.FORMAT_VERSION: version} if version else {})
            _write(temporaries[1], None, bound | of_heads, moved)
    return tuple(heads)


class _Base:
    """What a heads file is bound to: architecture, width and layers of a model, and the hash of its tensors."""

    def __init__(self, file: GgufFile) -> None:
        self.path = file.path
        self.arch = _get(file, "general.architecture", str)
        self.is_so8t = self.arch == ARCH
        self.architecture = _get(file, Keys.BASE_ARCHITECTURE, str) if self.is_so8t else self.arch
        self.hidden_size = _get(file, f"{self.arch}.embedding_length", int)
        self.n_layer = _get(file, f"{self.arch}.block_count", int)

    def keys(self, sha256: str) -> dict[str, Any]:
        """Keys of a heads file that is bound to this model and to the tensors with this hash."""
        gguf = upstream.gguf
        kinds = gguf.GGUFValueType
        return {
            "general.architecture": gguf.GGUFValue(ARCH, kinds.STRING),
            "general.type": gguf.GGUFValue(HEADS_TYPE, kinds.STRING),
            Keys.BASE_ARCHITECTURE: gguf.GGUFValue(self.architecture, kinds.STRING),
            Keys.BASE_SHA256: gguf.GGUFValue(sha256, kinds.STRING),
            f"{ARCH}.embedding_length": gguf.GGUFValue(self.hidden_size, kinds.UINT32),
            f"{ARCH}.block_count": gguf.GGUFValue(self.n_layer, kinds.UINT32),
        }

    def check(self, heads: GgufFile) -> None:
        """Compares the model with what the heads say of theirs."""
        for key, found in (
            (Keys.BASE_ARCHITECTURE, self.architecture),
            (f"{ARCH}.embedding_length", self.hidden_size),
            (f"{ARCH}.block_count", self.n_layer),
        ):
            expected = heads.get(key)
            if expected not in (None, found):
                raise ConversionError(
                    f"{heads.path}: its heads belong to a base with {key} {expected!r}, {self.path} has {found!r}"
                )
        sha256 = heads.get(Keys.BASE_SHA256)
        if sha256 is not None and sha256 != model_sha256(self.path):
            raise ConversionError(
                f"{heads.path}: its heads belong to a base whose tensors have the hash {sha256}, "
                f"those of {self.path} have another"
            )


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
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
