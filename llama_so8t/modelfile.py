"""Ollama Modelfile of a GGUF file: where the file is, how to sample, where to stop, licence.

Grammar: parser/parser.go of Ollama 0.33. A value is bare, in quotes or in three quotes, without escapes; a
quoted one ends at the first line that ends with its quotes, and characters that do not print are dropped.
"""

import os
import re
import reprlib
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t.errors import CheckpointError, ConversionError
from llama_so8t.files.atomic import new_file
from llama_so8t.files.gguf_file import GgufFile, read_gguf
from llama_so8t.format import ARCH, Keys

REQUIRES = "0.32.6"
"""First Ollama that starts llama-server with the options of the pinned tree (``--load-mode``)."""

MAX_CONTEXT = 8192
"""Ollama reserves memory for the whole context, so the length a model was trained for is no default."""

MAX_LICENSE_BYTES = 1 << 20

_SAMPLING = (
    # generation_config.json, key after general.sampling., parameter of Ollama, kind
    ("temperature", "temp", "temperature", float),
    ("top_k", "top_k", "top_k", int),
    ("top_p", "top_p", "top_p", float),
    ("min_p", "min_p", "min_p", float),
    ("repetition_penalty", "penalty_repeat", "repeat_penalty", float),
    ("penalty_last_n", "penalty_last_n", "repeat_last_n", int),
)
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_CONTROL, _USER_DEFINED = 3, 4
_FLOAT32_LIMIT = 2.0**128
_FIRST_LINE = "# written by so8t modelfile"
_LICENSE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md")


def write_modelfile(
    gguf: Path,
    outfile: Path | None = None,
    *,
    generation_config: Mapping[str, Any] | None = None,
    license_file: Path | None = None,
    system: str | None = None,
    replace: bool = False,
) -> Path:
    """Writes the Modelfile of a GGUF file; it appears complete or not at all.

    Args:
        gguf: the model.
        outfile: default ``Modelfile`` beside ``gguf``. FROM is relative to its directory.
        generation_config: fields of generation_config.json; they come before the file's ``general.sampling`` keys.
        license_file: text for LICENSE; default the LICENSE in the directory of ``gguf``, if that is a model directory.
        system: text for SYSTEM; default none.
        replace: whether ``outfile`` may exist.

    Returns:
        ``outfile``.

    Raises:
        CheckpointError: ``gguf`` is damaged, or a key has the wrong type.
        ConversionError: ``outfile`` exists, or the grammar cannot express a name or a text.
    """
    outfile = outfile or gguf.with_name("Modelfile")
    if not outfile.parent.is_dir() or outfile.is_dir():
        raise ConversionError(f"{outfile}: expected a file name in an existing directory")
    if outfile.exists() and not replace:
        raise ConversionError(f"{outfile}: exists already; choose another name, or replace it with --force")
    text = modelfile(
        read_gguf(gguf), _relative(gguf, outfile), generation_config or {}, _license_text(gguf, license_file), system
    )
    with new_file(outfile) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return outfile


def is_ours(path: Path) -> bool:
    """Whether a Modelfile was written here, so that replacing it loses nobody's work."""
    with path.open("rb") as file:
        return file.readline(1000).strip() == _FIRST_LINE.encode()


def modelfile(
    file: GgufFile,
    source: str,
    generation_config: Mapping[str, Any],
    license_text: str | None = None,
    system: str | None = None,
) -> str:
    """The text of a Modelfile.

    Without TEMPLATE, so that the chat template inside the file serves, and without RENDERER and PARSER.

    Args:
        file: the model.
        source: its path for FROM, relative to the Modelfile.
        generation_config: as in `write_modelfile`.
        license_text: text of a licence file.
        system: text for SYSTEM.

    Raises:
        CheckpointError: a key of the file has the wrong type.
        ConversionError: the grammar cannot express a name or a text.
    """
    lines = [_FIRST_LINE]
    if file.get("general.architecture") == ARCH:
        lines.append(f"# architecture {ARCH}: Ollama needs the patched llama-server and llama-quantize to run it")
    elif Keys.HEADS in file.metadata:
        lines.append("# verdict heads: Ollama needs the patched llama-server and llama-quantize to use them")
    lines.append(f"FROM {source if _is_bare(source) else _quoted(file.path, 'the file name', source)}")
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(file, generation_config).items()]
    lines += [f"PARAMETER stop {stop}" for stop in _stops(file, generation_config)]
    if system is not None:
        lines.append(f"SYSTEM {_quoted(file.path, 'the system text', _printable(system))}")
    for text in (_license_keys(file), license_text):
        if text is not None:
            lines.append(f"LICENSE {_quoted(file.path, 'the licence', _printable(text))}")
    lines.append(f"REQUIRES {REQUIRES}")
    return "\n".join(lines) + "\n"


# --- values ----------------------------------------------------------------------------------


def _relative(gguf: Path, outfile: Path) -> str:
    # "./" keeps a file named like a model, or with "~" or a quote in front, a file
    relative = Path(os.path.relpath(gguf, outfile.parent)).as_posix()
    return relative if relative.startswith("../") else f"./{relative}"


def _parameters(file: GgufFile, generation_config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for field, key, parameter, kind in _SAMPLING:
        if generation_config.get(field) is not None:
            value, where = generation_config[field], f"generation_config {field}"
        else:
            value, where = file.get(f"general.sampling.{key}"), f"key general.sampling.{key}"
        if value is not None:
            found[parameter] = _number(file.path, where, value, kind)
    architecture = file.get("general.architecture")
    length = file.get(f"{architecture}.context_length")
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise CheckpointError(
            f"{file.path}: key {architecture}.context_length: found {length!r}, expected a whole number above 0"
        )
    return found | {"num_ctx": str(min(length, MAX_CONTEXT))}


def _number(path: Path, where: str, value: Any, kind: type) -> str:
    allowed, limit = ((int, float), _FLOAT32_LIMIT) if kind is float else (int, 2**31)
    # "not (x < limit)" so that NaN is refused too
    if isinstance(value, bool) or not isinstance(value, allowed) or not abs(value) < limit:
        expected = "a number that fits float32" if kind is float else "a whole number that fits int32"
        raise CheckpointError(f"{path}: {where}: found {reprlib.repr(value)}, expected {expected}")
    # the shortest decimal of a float32: 0.6, and not 0.6000000238418579
    return str(np.float32(value)) if kind is float else str(value)


def _stops(file: GgufFile, generation_config: Mapping[str, Any]) -> list[str]:
    """Texts of the tokens that end an answer, quoted; a token of plain text is none, it may occur inside one."""
    ids = generation_config.get("eos_token_id")
    ids = [*(ids if isinstance(ids, list) else [ids]), *(file.get(f"tokenizer.ggml.{key}") for key in _END_KEYS)]
    tokens, types = (_items(file, f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    texts = [
        tokens[index].decode("utf-8", "surrogateescape")
        for index in ids
        if isinstance(index, int)
        and 0 <= index < min(len(tokens), len(types))
        and types[index] in (_CONTROL, _USER_DEFINED)
        and isinstance(tokens[index], bytes)
    ]
    # llama-server stops at the token itself, so what the grammar cannot express is no loss
    return [_in_quotes(text) for text in dict.fromkeys(texts) if text and _can_be_written(text)]


def _items(file: GgufFile, key: str) -> list[Any]:
    entry = file.metadata.get(key)  # undecoded: a vocabulary has 300 000 strings
    return entry.value if entry is not None and entry.sub_type is not None else []


def _license_keys(file: GgufFile) -> str | None:
    found = []
    for key in ("general.license", "general.license.name", "general.license.link"):
        value = file.get(key)
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if value is not None and not isinstance(value, str):
            raise CheckpointError(f"{file.path}: key {key}: found {value!r}, expected a string")
        found += [value] if value else []
    return "\n".join(dict.fromkeys(found)) or None


def _license_text(gguf: Path, license_file: Path | None) -> str | None:
    if license_file is None:
        # elsewhere, a LICENSE beside the file is that of some other work
        if not (gguf.parent / "config.json").is_file():
            return None
        license_file = next((p for n in _LICENSE_NAMES if (p := gguf.parent / n).is_file()), None)
        if license_file is None:
            return None
    size = license_file.stat().st_size
    if size > MAX_LICENSE_BYTES:
        raise ConversionError(f"{license_file}: found {size} bytes, expected a licence of at most {MAX_LICENSE_BYTES}")
    try:
        return license_file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConversionError(f"{license_file}: is not UTF-8 text: {error}") from None


# --- grammar ---------------------------------------------------------------------------------


def _printable(text: str) -> str:
    """What Ollama's parser keeps of a text, but with spaces of every kind as spaces."""
    spaced = "".join(" " if unicodedata.category(c) == "Zs" else c for c in text.replace("\r\n", "\n"))
    return "".join(c for c in spaced if c.isprintable() or c in "\n\t")


def _is_bare(path: str) -> bool:
    return path.isprintable() and path == path.strip()


def _can_be_written(text: str) -> bool:
    # three quotes at the end of a line would end the value
    return all(c.isprintable() or c in "\n\r\t" for c in text) and not re.search(r'"""[ \t]*[\n\r]', text)


def _in_quotes(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def _quoted(path: Path, what: str, text: str) -> str:
    if not _can_be_written(text):
        raise ConversionError(
            f"{path}: {what} cannot be written in a Modelfile: found {text!r}, expected printable characters "
            f"and no line that ends with three quotes"
        )
    return _in_quotes(text)
