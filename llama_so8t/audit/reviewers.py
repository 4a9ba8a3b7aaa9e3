"""The reviewers of a server: names, and hashes of the keys that prove them, one pair on a line of a file."""

import hashlib
import secrets
from pathlib import Path

from llama_so8t.audit.log import AuditError
from llama_so8t.files.atomic import new_file

KEY_BYTES = 32
MAX_NAME = 256
"""Bytes in UTF-8, as in the server."""


def add_reviewer(path: Path, name: str) -> str:
    """Makes a key, and appends ``SHA-256(key)  name`` to the file, which is made with mode 600 if it is missing.

    Returns:
        The key, which is kept nowhere: 43 letters and digits, - and _ in base64.

    Raises:
        OSError: the file cannot be read or written.
        AuditError: the name is empty, too long, or has characters that do not fit on the line.
    """
    if not name.strip() or name != name.strip() or not name.isprintable() or len(name.encode()) > MAX_NAME:
        raise AuditError(
            f"found the name {name!r}, expected a printable one of 1 to {MAX_NAME} bytes, without spaces around"
        )
    before, mode = b"", 0o600
    if path.exists():
        before, mode = path.read_bytes(), path.stat().st_mode & 0o777
    if before and not before.endswith(b"\n"):
        before += b"\n"
    key = secrets.token_urlsafe(KEY_BYTES)
    line = f"{hashlib.sha256(key.encode()).hexdigest()}  {name}\n"
    with new_file(path) as incoming:
        incoming.touch(mode)
        incoming.chmod(mode)
        incoming.write_bytes(before + line.encode())
    return key
