"""Ed25519 keys in PEM files, and other files of a few hundred bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_so8t.audit.log import AuditError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAX_BYTES = 1 << 16
"""A note with one signature has about 300."""


def read_short(path: Path) -> bytes:
    """All bytes of a key or a note.

    Raises:
        OSError: the file cannot be read.
        AuditError: it has more than `MAX_BYTES`.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise AuditError(f"{path}: found more than {MAX_BYTES} bytes, expected a file of a few hundred")
    return raw


def read_public_key(path: Path) -> "Ed25519PublicKey":
    """The Ed25519 public key of a PEM file.

    Raises:
        OSError: the file cannot be read.
        AuditError: it has no such key, or the package cryptography is missing.
    """
    key = _load(path, "checking a signature", lambda serialization, raw: serialization.load_pem_public_key(raw))
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not isinstance(key, Ed25519PublicKey):
        raise AuditError(
            f"{path}: found no Ed25519 public key, expected a PEM file; "
            f"openssl pkey -in PRIVATE.pem -pubout makes it of the private key"
        )
    return key


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """The Ed25519 key of a PEM file without a password.

    Raises:
        OSError: the file cannot be read.
        AuditError: it has no such key, or the package cryptography is missing.
    """
    key = _load(path, "signing", lambda serialization, raw: serialization.load_pem_private_key(raw, password=None))
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not isinstance(key, Ed25519PrivateKey):
        raise AuditError(
            f"{path}: found no Ed25519 private key, expected a PEM file without a password; "
            f"openssl genpkey -algorithm ed25519 makes one"
        )
    return key


def _load(path: Path, purpose: str, load: Callable[[Any, bytes], Any]) -> Any:
    """A key of any kind, or None where none can be read; ``load`` takes cryptography's serialization and the bytes."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise AuditError(f"{purpose} needs the package cryptography: pip install cryptography") from None
    try:
        return load(serialization, read_short(path))
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        return None
