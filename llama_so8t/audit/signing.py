"""Signs checkpoints of an audit log, and only of a log that goes on from the one signed before."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama_so8t.audit.checkpoint import Checkpoint, key_id, read_checkpoint, read_pem, signature_problem
from llama_so8t.audit.log import AuditError
from llama_so8t.audit.tampering import Finding
from llama_so8t.audit.verification import verify_until
from llama_so8t.files.atomic import new_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Signing:
    """What `sign` did: ``checkpoint`` was signed if there are no findings; ``is_new`` unless it was signed before."""

    checkpoint: Checkpoint
    n_lines: int
    findings: list[Finding]
    is_new: bool


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """The Ed25519 key of a PEM file without a password.

    Raises:
        AuditError: the file has no such key, or the package cryptography is missing.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise AuditError("signing needs the package cryptography: pip install cryptography") from None
    try:
        key = load_pem_private_key(read_pem(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise AuditError(
            f"{path}: found no Ed25519 private key, expected a PEM file without a password; "
            f"openssl genpkey -algorithm ed25519 makes one"
        )
    return key


def sign(
    path: Path, checkpoint: Path, private_key: "Ed25519PrivateKey", out: Path, progress: str | None = None
) -> Signing:
    """Signs the newest checkpoint of a log, after reading the log up to it.

    Nothing is written where the chain up to the checkpoint is broken, or where the log does not go on from the
    checkpoint that ``out`` has by now.

    Args:
        path: the file that the server writes; FILE.1, FILE.2, ... are read before it.
        checkpoint: what the server keeps of its newest line.
        private_key: signs the text of the checkpoint, as C2SP signed-note says.
        out: gets the checkpoint and its signature, all at once.
        progress: title of a progress bar, which is drawn if stderr is a terminal.

    Raises:
        AuditError: a file cannot be read, or ``out`` is there and not signed with this key, or of another log.
    """
    if out.exists() and out.samefile(checkpoint):
        raise AuditError(f"{out}: found the checkpoint of the server, expected another file to write")
    note = read_checkpoint(checkpoint)
    public_key = private_key.public_key()
    earlier = read_checkpoint(out) if out.exists() else None
    if earlier:
        problem = signature_problem(earlier, public_key)
        if problem is None and earlier.origin != note.origin:
            problem = f"found {earlier.origin}, expected {note.origin}"
        if problem:
            raise AuditError(f"{out}: {problem}; move it away to begin anew")
    if earlier and note.seq < earlier.seq:
        message = (
            f"{checkpoint} has seq {note.seq}, but seq {earlier.seq} was signed before: lines were cut off since, or "
            f"this is an old copy of the checkpoint"
        )
        return Signing(note, 0, [Finding("removed", message, seq=earlier.seq)], False)
    report = verify_until(path, note, earlier, progress)
    is_new = earlier is None or earlier.text != note.text
    if report.ok and is_new:
        blob = key_id(note.origin, public_key) + private_key.sign(note.text)
        with new_file(out) as temporary:
            temporary.write_bytes(
                note.text + b"\n" + f"\u2014 {note.origin} {base64.b64encode(blob).decode()}\n".encode()
            )
    return Signing(note, report.n_lines, report.findings, is_new)
