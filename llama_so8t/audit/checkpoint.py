"""Checkpoints of an audit log: signed notes (https://c2sp.org/signed-note) of the seq and hash of its last line.

The text is three lines, ``so8t-audit/NAME``, seq and hash in base64; then an empty line and the signatures.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama_so8t.audit.log import MAX_SEQ, AuditError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_BYTES = 1 << 16
"""A note with one signature has about 300."""

_ORIGIN = "so8t-audit/"
_ED25519 = b"\x01"


@dataclass(frozen=True)
class Signature:
    """A signature line: name and id of a key, and what it made of the text."""

    name: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True)
class Checkpoint:
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


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint; the signatures are not checked yet.

    Raises:
        AuditError: missing, too long, or no checkpoint of an audit log.
    """
    raw = _read(path)
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
    return Checkpoint(
        origin=origin,
        seq=int(seq),
        hash=_decode(path, digest, range(32, 33)).hex(),
        text=text + b"\n",
        signatures=tuple(_signature(path, line) for line in lines),
    )


def check_signature(checkpoint: Checkpoint, public_key: Path) -> str | None:
    """Looks for a signature of a key.

    Args:
        checkpoint: the note.
        public_key: PEM file of an Ed25519 public key.

    Returns:
        None if the checkpoint is signed with the key, else what is wrong.

    Raises:
        AuditError: the file has no such key, or the package cryptography is missing.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise AuditError("checking a signature needs the package cryptography: pip install cryptography") from None
    try:
        key = load_pem_public_key(read_pem(public_key))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise AuditError(
            f"{public_key}: found no Ed25519 public key, expected a PEM file; "
            f"openssl pkey -in PRIVATE.pem -pubout makes it of the private key"
        )
    return signature_problem(checkpoint, key)


def signature_problem(checkpoint: Checkpoint, public_key: "Ed25519PublicKey") -> str | None:
    """None if the checkpoint is signed with the key, else what is wrong."""
    from cryptography.exceptions import InvalidSignature

    expected = checkpoint.origin, key_id(checkpoint.origin, public_key)
    ours = [s for s in checkpoint.signatures if (s.name, s.key_id) == expected]
    for signature in ours:
        try:
            public_key.verify(signature.signature, checkpoint.text)
            return None
        except InvalidSignature:
            pass
    if ours:
        return "its signature is false: the checkpoint was changed, or made by somebody else"
    n = len(checkpoint.signatures)
    return f"it is not signed with this key (found {n} other signature{'s' * (n != 1)})"


def key_id(name: str, public_key: "Ed25519PublicKey") -> bytes:
    """Four bytes that name a key in signature lines."""
    return hashlib.sha256(f"{name}\n".encode() + _ED25519 + public_key.public_bytes_raw()).digest()[:4]


def read_pem(path: Path) -> bytes:
    """The bytes of a file of keys; a long one is refused."""
    return _read(path)


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


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise AuditError(f"{path}: found more than {MAX_BYTES} bytes, expected a file of a few hundred")
    return raw
