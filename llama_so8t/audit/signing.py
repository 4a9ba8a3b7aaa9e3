"""Signs anchors of an audit log, and only of a log that goes on from the one signed before."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama_so8t.audit.anchor import Anchor, key_id, read_anchor, signature_problem
from llama_so8t.audit.log import AuditError
from llama_so8t.audit.tampering import Finding
from llama_so8t.audit.verification import verify_until
from llama_so8t.files.atomic import new_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Signing:
    """What `sign` did: ``anchor`` was signed if there are no findings; ``is_new`` unless it was signed before."""

    anchor: Anchor
    n_lines: int
    findings: list[Finding]
    is_new: bool


def sign(path: Path, anchor: Path, private_key: "Ed25519PrivateKey", out: Path, progress: str | None = None) -> Signing:
    """Signs the newest anchor of a log, after reading the log up to it.

    Nothing is written where the chain up to the anchor is broken, or where the log does not go on from the anchor that
    ``out`` has by now. That the server lost records is no reason: the chain says so itself.

    Args:
        path: the file that the server writes; FILE.1, FILE.2, ... are read before it.
        anchor: what the server keeps of its newest line.
        private_key: signs the text of the anchor, as C2SP signed-note says.
        out: gets the anchor and its signature, all at once.
        progress: title of a progress bar, which is drawn if stderr is a terminal.

    Raises:
        OSError: a file cannot be read or written.
        AuditError: there is no log or no anchor, or ``out`` is there and not signed with this key, or of another log.
    """
    if out.exists() and out.samefile(anchor):
        raise AuditError(f"{out}: found the checkpoint of the server, expected another file to write")
    note = read_anchor(anchor)
    public_key = private_key.public_key()
    earlier = read_anchor(out) if out.exists() else None
    if earlier:
        problem = signature_problem(earlier, public_key)
        if problem is None and earlier.origin != note.origin:
            problem = f"found {earlier.origin}, expected {note.origin}"
        if problem:
            raise AuditError(f"{out}: {problem}; move it away to begin anew")
    if earlier and note.seq < earlier.seq:
        message = (
            f"{anchor} has seq {note.seq}, but seq {earlier.seq} was signed before: lines were cut off since, or "
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
