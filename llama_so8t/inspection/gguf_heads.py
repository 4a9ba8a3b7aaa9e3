"""The heads of a GGUF file as `HeadSpec`: each key is known, of the right type, and in a version that has it."""

import reprlib
from typing import Any

from llama_so8t.errors import CheckpointError, ConfigError
from llama_so8t.files.gguf_file import GgufFile
from llama_so8t.format import FORMAT_VERSION, HEAD_KEYS, HeadKey, HeadSpec, Keys, check_dependencies

_UINT32, _INT32, _FLOAT32, _STRING, _ARRAY = 4, 5, 6, 8, 9
_TYPES = {"u32": _UINT32, "i32": _INT32, "f32": _FLOAT32, "str": _STRING}


def format_version(file: GgufFile) -> int:
    """Version of the format; 1 where a file does not say it.

    Raises:
        CheckpointError: not a version that this program reads.
    """
    entry = file.metadata.get(Keys.FORMAT_VERSION)
    if entry is None:
        return 1
    if entry.type != _UINT32 or not 1 <= entry.value <= FORMAT_VERSION:
        raise CheckpointError(
            f"{file.path}: found {Keys.FORMAT_VERSION} {reprlib.repr(entry.text())}, "
            f"this program reads 1 to {FORMAT_VERSION}"
        )
    return entry.value


def read_heads(file: GgufFile, n_layer: int) -> dict[str, HeadSpec]:
    """Heads in the order of the file; none where it has no key ``so8t.heads``.

    Args:
        file: the file.
        n_layer: layers of the model, which the taps must fit.

    Raises:
        CheckpointError: a key is missing, unknown, of another type, or of a later version than the file.
        ConfigError: values that no head has.
    """
    version = format_version(file)
    names = []
    if Keys.HEADS in file.metadata:
        names = _value(file, Keys.HEADS, "str[]")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise CheckpointError(f"{file.path}: key {Keys.HEADS} names {twice!r} twice")
    heads = {}
    for name in names:
        fields = {
            key.field: _value(file, key.of(name), key.type) for key in HEAD_KEYS.values() if _is_there(file, key, name)
        }
        form = fields.pop("form", None)
        head = HeadSpec(name=name, **fields)
        if form not in (None, head.form):
            raise ConfigError(f"head {name!r}: found form {reprlib.repr(form)}, expected {head.form!r} by its stem")
        head.check_taps(n_layer)
        _check_token(file, head)
        heads[name] = head
    check_dependencies(heads.values())
    _check_stems(file, heads)
    _check_keys(file, version, names)
    return heads


def _check_token(file: GgufFile, head: HeadSpec) -> None:
    n_vocab = file.get(f"{file.get('general.architecture')}.vocab_size")  # a heads file has none
    if isinstance(n_vocab, int) and head.prompt_token is not None and head.prompt_token >= n_vocab:
        raise ConfigError(
            f"head {head.name!r}: found prompt_token {head.prompt_token}, expected a token of the vocabulary, "
            f"0 to {n_vocab - 1}"
        )


def _check_stems(file: GgufFile, heads: dict[str, HeadSpec]) -> None:
    stems: dict[str, HeadSpec] = {}
    for head in heads.values():
        first = stems.setdefault(head.stem, head) if head.stem is not None else head
        for field in ("activation", "taps", "tap_norm", "sliding_window"):
            found, expected = getattr(head, field), getattr(first, field)
            if found != expected:
                what = "activations" if field == "activation" else field
                raise CheckpointError(
                    f"{file.path}: heads {first.name} and {head.name} share the stem {head.stem}: "
                    f"found {what} {expected} and {found}, expected the same"
                )


def _check_keys(file: GgufFile, version: int, names: list[str]) -> None:
    for full in file.metadata:
        if not full.startswith(Keys.HEAD_PREFIX):
            continue
        name, _, field = full.removeprefix(Keys.HEAD_PREFIX).partition(".")
        key = HEAD_KEYS.get(field)
        if key is None:
            raise CheckpointError(
                f"{file.path}: found the unknown key {full!r}, expected one of {', '.join(HEAD_KEYS)}"
            )
        if name not in names:
            raise CheckpointError(f"{file.path}: found key {full!r} of a head that {Keys.HEADS} does not name")
        if key.since > version:
            raise CheckpointError(
                f"{file.path}: found key {full!r}, which came with version {key.since}, in a file of version {version}"
            )


def _is_there(file: GgufFile, key: HeadKey, name: str) -> bool:
    return key.required or key.of(name) in file.metadata


def _value(file: GgufFile, key: str, type_name: str) -> Any:
    entry = file.metadata.get(key)
    if entry is None:
        raise CheckpointError(f"{file.path}: key {key} is missing")
    is_list = type_name.endswith("[]")
    kind = _TYPES[type_name.removesuffix("[]")]
    if (entry.type, entry.sub_type) != ((_ARRAY, kind) if is_list else (kind, None)):
        raise CheckpointError(
            f"{file.path}: key {key} is {reprlib.repr(entry.text())}, expected a value of type {type_name}"
        )
    return tuple(entry.text()) if is_list else entry.text()
