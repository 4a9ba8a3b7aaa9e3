"""Finds a text in an audit log by its HMAC: whether the server saw it, without the log keeping texts."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llama_so8t.audit.log import AuditError, Place
from llama_so8t.audit.records import Escalation, Request, read_record

EDITED = "text"
"""The part of a text that a reviewer wrote in place of an answer."""


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
    """Lines in which one of the texts is a message, the prompt as the model read it, the answer, or a reviewer's text.

    Args:
        records: places and records of a log.
        key: 32 bytes, of `read_key`.
        texts: in UTF-8; of a message as the client sent it.

    Returns:
        Place, record, and "messages[N]", "prompt", "answer" or `EDITED`. A message that is all of the prompt is the
        prompt.

    Raises:
        AuditError: a field is missing or of another type.
    """
    wanted = {hmac.new(key, text, hashlib.sha256).hexdigest() for text in texts}
    for place, record in records:
        content = read_record(place, record)
        if isinstance(content, Escalation) and content.text and content.text.hmac in wanted:
            yield place, record, EDITED
        if isinstance(content, Request):
            prompt = content.prompt.hmac if content.prompt else None
            for i, message in enumerate(content.messages):
                if message.hmac in wanted and message.hmac != prompt:
                    yield place, record, f"messages[{i}]"
            for part, text in (("prompt", content.prompt), ("answer", content.answer)):
                if text and text.hmac in wanted:
                    yield place, record, part
