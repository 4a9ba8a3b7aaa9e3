"""Anchors of an audit log: signed notes (https://c2sp.org/signed-note) of the seq and hash of its last line.

The text is three lines, ``so8t-audit/NAME``, seq and hash in base64; then an empty line and the signatures.

The flags, the messages and C2SP call it a *checkpoint* of the log. In this code a checkpoint is a model directory.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama_so8t.audit.keys import read_public_key, read_short
from llama_so8t.audit.log import MAX_SEQ, AuditError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_ORIGIN = "so8t-audit/"
_ED25519 = b"\x01"


@dataclass(frozen=True)
class Signature:
    """A signature line: name and id of a key, and what it made of the text."""

    name: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True)
class Anchor:
    """Line ``seq`` of a log has this hash; ``text`` are the bytes that ``signatures`` sign.

    ``origin``, the first line, is also the name of the key that signs.
    """

    origin: str
    seq: int
    hash: str
    text: bytes
    signatures: tuple[Signature, ...]

    @property
    def name(self) -> str:
        """File name of the log."""
        return self.origin.removeprefix(_ORIGIN)


def read_anchor(path: Path) -> Anchor:
    """Reads an anchor; the signatures are not checked yet.

    Raises:
        OSError: it cannot be read.
        AuditError: it is too long, or no checkpoint of an audit log.
    """
    raw = read_short(path)
    text, blank, rest = raw.partition(b"\n\n")
    try:
        origin, seq, digest = text.decode("utf-8").split("\n")
        lines = rest.decode("utf-8").split("\n")
    except ValueError:
        raise AuditError(
            f"{path}: found no checkpoint, expected {_ORIGIN}NAME, a number and a hash on three lines"
        ) from None
    if not blank or not origin.startswith(_ORIGIN) or lines.pop() != "":
        raise AuditError(
            f"{path}: found no checkpoint of an audit log, expected {_ORIGIN}NAME, an empty line and a last newline"
        )
    if not re.fullmatch("[1-9][0-9]{0,15}", seq, re.ASCII) or int(seq) > MAX_SEQ:
        raise AuditError(f"{path}: line 2: found {seq[:40]!r}, expected a whole number above 0")
    return Anchor(
        origin=origin,
        seq=int(seq),
        hash=_decode(path, digest, range(32, 33)).hex(),
        text=text + b"\n",
        signatures=tuple(_signature(path, line) for line in lines),
    )


def check_signature(anchor: Anchor, public_key: Path) -> str | None:
    """Looks for a signature of a key.

    Args:
        anchor: the note.
        public_key: PEM file of an Ed25519 public key.

    Returns:
        None if the anchor is signed with the key, else what is wrong.

    Raises:
        AuditError: the file has no such key, or the package cryptography is missing.
    """
    return signature_problem(anchor, read_public_key(public_key))


def signature_problem(anchor: Anchor, public_key: "Ed25519PublicKey") -> str | None:
    """What is wrong with the signature of a key.

    Returns:
        None if the anchor is signed with the key; otherwise its signature is false, or it has none of this key.
    """
    from cryptography.exceptions import InvalidSignature

    expected = anchor.origin, key_id(anchor.origin, public_key)
    ours = [s for s in anchor.signatures if (s.name, s.key_id) == expected]
    for signature in ours:
        try:
            public_key.verify(signature.signature, anchor.text)
            return None
        except InvalidSignature:
            pass
    if ours:
        return "its signature is false: the checkpoint was changed, or made by somebody else"
    n = len(anchor.signatures)
    return f"it is not signed with this key (found {n} other signature{'s' * (n != 1)})"


def key_id(name: str, public_key: "Ed25519PublicKey") -> bytes:
    """Four bytes that name a key in signature lines: the first of ``SHA-256(name \\n 0x01 key)``, key in 32 bytes."""
    return hashlib.sha256(f"{name}\n".encode() + _ED25519 + public_key.public_bytes_raw()).digest()[:4]


def _signature(path: Path, line: str) -> Signature:
    dash, _, rest = line.partition(" ")
    name, _, blob = rest.rpartition(" ")
    if dash != "\u2014" or not name:
        raise AuditError(f"{path}: found {line[:40]!r}, expected a signature line: \u2014 NAME BASE64")
    raw = _decode(path, blob, range(5, 1 << 12))  # other kinds of keys have other lengths
    return Signature(name, raw[:4], raw[4:])


def _decode(path: Path, text: str, sizes: range) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    # one encoding for one value: some versions of Python forgive padding and stray bits
    if len(raw) not in sizes or base64.b64encode(raw).decode() != text:
        raise AuditError(f"{path}: found {text[:40]!r}, expected base64 of {sizes.start} to {sizes.stop - 1} bytes")
    return raw
