"""JSON files of model directories: objects of bounded size without duplicate names."""

import json
import re
from pathlib import Path
from typing import Any

from llama_so8t.errors import CheckpointError

MAX_BYTES = 100_000_000
"""More than the longest index of shards or tokenizer; keeps a hostile file from filling the memory."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: missing, too long, or as `parse_json`.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path}: found {path.stat().st_size} bytes, expected at most {MAX_BYTES}")
    return parse_json(path.read_bytes(), path)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as transformers writes its configurations: two spaces, UTF-8, a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_json(raw: bytes, path: Path) -> dict[str, Any]:
    """A JSON object; a name that appears twice is refused, because readers disagree on which one counts.

    Raises:
        CheckpointError: not UTF-8, not JSON, not an object, nested too deep, or a name twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in pairs:
            if name in result:
                raise CheckpointError(f"{path}: name {name!r} appears twice")
            result[name] = value
        return result

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from None
    if _SURROGATE.search(raw):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise CheckpointError(f"{path}: found half of a surrogate pair, expected whole characters") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: found a JSON {type(value).__name__}, expected an object")
    return value
