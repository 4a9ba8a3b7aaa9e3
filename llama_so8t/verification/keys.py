"""Compares the metadata of a file with the keys that it should have."""

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llama_so8t import upstream
from llama_so8t.files.gguf_file import GgufFile


def key_problems(file: GgufFile, expected: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the keys of a file; a key that is not expected is wrong too.

    Args:
        file: the file.
        expected: name -> `gguf.GGUFValue`.
    """
    float32 = upstream.gguf.GGUFValueType.FLOAT32
    for key, value in expected.items():
        entry = file.metadata.get(key)
        if entry is None:
            yield f"key {key}: is missing"
        elif entry.type != value.type or (value.sub_type is not None and entry.sub_type != value.sub_type):
            yield f"key {key}: found type {_type(entry)}, expected {_type(value)}"
        else:
            rounds = float32 in (entry.type, entry.sub_type)
            if _comparable(entry.value, rounds) != _comparable(value.value, rounds):
                yield f"key {key}: found {_shown(entry.value)}, expected {_shown(value.value)}"
    for key in file.metadata:
        if key not in expected:
            yield f"key {key}: is not one of this model"


def _comparable(value: Any, rounds: bool) -> Any:
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_comparable(item, rounds) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return float(np.float32(value)) if rounds else value


def _shown(value: Any) -> str:
    items = value if isinstance(value, list) else [value]
    texts = [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in items]
    return reprlib.repr(texts if isinstance(value, list) else texts[0])


def _type(entry: Any) -> str:
    kinds = upstream.gguf.GGUFValueType
    name = kinds(entry.type).name.lower()
    return name if entry.sub_type is None else f"{name} of {kinds(entry.sub_type).name.lower()}"
