"""Finds a text in an audit log by its HMAC: whether the server saw it, without the log keeping texts."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llama_so8t.audit.log import AuditError, Place
from llama_so8t.audit.records import Request, read_record


def read_key(path: Path) -> bytes:
    """The 32 bytes of an audit key, which are 64 hex digits in its file.

    Raises:
        OSError: the file cannot be read.
        AuditError: anything else is in it.
    """
    with path.open("rb") as file:
        raw = file.read(80).strip()
    if not re.fullmatch(rb"[0-9a-fA-F]{64}", raw):
        raise AuditError(f"{path}: found no audit key, expected 64 hex digits")
    return bytes.fromhex(raw.decode())


def find(
    records: Iterable[tuple[Place, dict[str, Any]]], key: bytes, texts: Iterable[bytes]
) -> Iterator[tuple[Place, dict[str, Any], str]]:
    """Requests whose prompt or answer is one of the texts.

    Args:
        records: places and records of a log.
        key: 32 bytes, of `read_key`.
        texts: in UTF-8, as the server saw them.

    Returns:
        Place, record, and "prompt" or "answer".

    Raises:
        AuditError: a field is missing or of another type.
    """
    wanted = {hmac.new(key, text, hashlib.sha256).hexdigest() for text in texts}
    for place, record in records:
        content = read_record(place, record)
        if isinstance(content, Request):
            for part, text in (("prompt", content.prompt), ("answer", content.answer)):
                if text and text.hmac in wanted:
                    yield place, record, part
