"""The ``so8t.*`` keys of a file: section 4 of the format."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from llama_so8t import upstream
from llama_so8t.algebra import DIM
from llama_so8t.errors import ConversionError
from llama_so8t.format import FORMAT_VERSION, HEAD_KEYS, HeadSpec, Keys
from llama_so8t.model_spec import ModelSpec

_FLOAT32_LIMIT = 2.0**128


def so8t_keys(spec: ModelSpec, explicit: Sequence[str], folded: Sequence[str]) -> dict[str, Any]:
    """Keys that describe rotations and heads, values as `gguf.GGUFValue`.

    An empty list is an absent key: upstream's writer has no empty arrays. The site out is in neither list,
    because it is always folded.

    Args:
        spec: the model.
        explicit: sites whose rotations are in the graph.
        folded: sites whose rotations are in the weights.
    """
    keys: dict[str, Any] = {}
    put = _Putter(keys)
    put.text(Keys.BASE_ARCHITECTURE, spec.base_model_type)
    put.uint(Keys.ROTATION_DIMENSION, DIM)
    put.texts(Keys.ROTATION_EXPLICIT, explicit)
    put.texts(Keys.ROTATION_FOLDED, folded)
    put.ints(Keys.ATTN_HEAD_REPRESENTATION, spec.head_representation)
    put.ints(Keys.ATTN_HEAD_KV_REPRESENTATION, spec.head_kv_representation)
    return head_keys(spec.heads.values()) | keys


def head_keys(heads: Collection[HeadSpec]) -> dict[str, Any]:
    """The version of the format and the keys of the heads, which a file of any architecture may have."""
    keys: dict[str, Any] = {}
    put = _Putter(keys)
    put.uint(Keys.FORMAT_VERSION, FORMAT_VERSION)
    put.texts(Keys.HEADS, [head.name for head in heads])
    for head in heads:
        _put_head(put, head)
    return keys


def stock_keys(folded: Sequence[str]) -> dict[str, Any]:
    """The key that a file of the base's architecture has: a loader of ours tells by it which adapters fit its weights.

    Args:
        folded: sites whose rotations are in the weights.
    """
    keys: dict[str, Any] = {}
    _Putter(keys).texts(Keys.ROTATION_FOLDED, folded)
    return keys


def _put_head(put: "_Putter", head: HeadSpec) -> None:
    writers: dict[str, Callable[[str, Any], None]] = {
        "str": put.text,
        "f32": put.float,
        "u32": put.uint,
        "i32": put.int,
    }
    writers |= {"str[]": put.texts, "f32[]": put.floats, "i32[]": put.ints}
    for key in HEAD_KEYS.values():
        value = getattr(head, key.field)
        if value is not None:
            writers[key.type](key.of(head.name), value)


class _Putter:
    """Types of the format: each method is one, so that a Python int never becomes another width by chance."""

    def __init__(self, keys: dict[str, Any]) -> None:
        self.keys = keys
        self.types = upstream.gguf.GGUFValueType

    def uint(self, key: str, value: int) -> None:
        self._put(key, _whole(key, value, 0, 2**32 - 1), self.types.UINT32)

    def int(self, key: str, value: int) -> None:
        self._put(key, _whole(key, value, -(2**31), 2**31 - 1), self.types.INT32)

    def float(self, key: str, value: float) -> None:
        self._put(key, _real(key, value), self.types.FLOAT32)

    def text(self, key: str, value: str) -> None:
        self._put(key, value, self.types.STRING)

    def texts(self, key: str, values: Sequence[str]) -> None:
        self._put_array(key, list(values), self.types.STRING)

    def ints(self, key: str, values: Sequence[Any]) -> None:
        self._put_array(key, list(values), self.types.INT32)

    def floats(self, key: str, values: Sequence[Any]) -> None:
        self._put_array(key, [_real(key, value) for value in values], self.types.FLOAT32)

    def _put(self, key: str, value: Any, kind: Any) -> None:
        self.keys[key] = upstream.gguf.GGUFValue(value, kind)

    def _put_array(self, key: str, values: list[Any], kind: Any) -> None:
        if values:
            self.keys[key] = upstream.gguf.GGUFValue(values, self.types.ARRAY, kind)


def _whole(key: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConversionError(f"key {key}: found {value!r}, expected a whole number from {low} to {high}")
    return value


def _real(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _FLOAT32_LIMIT:
        raise ConversionError(f"key {key}: found {value!r}, expected a number that fits float32")
    return float(value)
