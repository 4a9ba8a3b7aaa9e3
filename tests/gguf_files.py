"""GGUF files for tests, written and copied by gguf-py of the pinned tree, which must be there (fixture `gguf`)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Tensor = np.ndarray | tuple[np.ndarray, str]
"""An array as it is, or ``(array, type)``: float32 values to quantize, or uint8 that are blocks of the type."""


def write_gguf(
    path: Path,
    arch: str = "so8t",
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes a file and returns its path.

    Args:
        path: where to; a file there is replaced.
        arch: ``general.architecture``.
        keys: metadata. Strings, bools and lists have their own type, whole numbers are uint32 (int32 below 0) and
            others float32; a `gguf.GGUFValue` says its type itself.
        tensors: by name, in the order of the file.
    """
    from llama_so8t.upstream import gguf

    writer = gguf.GGUFWriter(path, arch)
    if "general.architecture" in (keys or {}):
        writer.remove_key("general.architecture")
    for key, value in (keys or {}).items():
        _add_key(writer, key, value)
    for name, tensor in (tensors or {}).items():
        _add_tensor(writer, name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def copy_gguf(
    source: Path,
    path: Path,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor | Callable[[np.ndarray], Tensor | None] | None] | None = None,
) -> Path:
    """Copies a file with some keys or tensors changed; ``path`` may be ``source``.

    Args:
        source: a file that gguf-py can read.
        path: where to.
        keys: new values, of the type that the key has in ``source``, or as in `write_gguf`. None removes a key.
        tensors: new values, or a function that gets those of ``source`` (dequantized) and changes them in place or
            returns others. None removes a tensor.
    """
    from llama_so8t.upstream import gguf

    reader = gguf.GGUFReader(source)
    old_keys: dict[str, Any] = {}
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            old_keys[name] = gguf.GGUFValue(field.contents(), field.types[0], sub_type)
    arch = old_keys.pop("general.architecture").value
    new_keys = dict(old_keys)
    for name, value in (keys or {}).items():
        if name in old_keys and not isinstance(value, gguf.GGUFValue) and value is not None:
            value = gguf.GGUFValue(value, old_keys[name].type, old_keys[name].sub_type)
        new_keys[name] = value
    new_tensors: dict[str, Any] = {t.name: (t.data, t.tensor_type.name) for t in reader.tensors}
    for name, tensor in (tensors or {}).items():
        if callable(tensor):
            stored, kind = new_tensors[name]
            values = np.array(gguf.dequantize(stored, gguf.GGMLQuantizationType[kind]))
            returned = tensor(values)
            tensor = values if returned is None else returned
        new_tensors[name] = tensor
    temporary = path.with_name(path.name + ".new")
    write_gguf(
        temporary,
        arch,
        {name: value for name, value in new_keys.items() if value is not None},
        {name: tensor for name, tensor in new_tensors.items() if tensor is not None},
    )
    return temporary.replace(path)


def _add_key(writer: Any, key: str, value: Any) -> None:
    from llama_so8t.upstream import gguf

    if isinstance(value, gguf.GGUFValue):
        writer.add_key_value(key, value.value, value.type, value.sub_type)
    elif isinstance(value, list | tuple):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
    else:
        writer.add_float32(key, value)


def _add_tensor(writer: Any, name: str, tensor: Tensor) -> None:
    from llama_so8t.upstream import gguf

    if isinstance(tensor, np.ndarray):
        writer.add_tensor(name, np.ascontiguousarray(tensor))
        return
    values, kind = tensor
    qtype = gguf.GGMLQuantizationType[kind]
    is_raw = values.dtype == np.uint8 or kind in ("F16", "F32", "F64", "I8", "I16", "I32", "I64")
    writer.add_tensor(name, values if is_raw else gguf.quantize(values, qtype), raw_dtype=qtype)
