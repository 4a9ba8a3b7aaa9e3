"""What only a checkpoint can show, and who signed it."""

import base64
from dataclasses import replace
from pathlib import Path

import audit_writer as w
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from llama_so8t.audit import AuditError, verify
from llama_so8t.audit.anchor import Anchor, Signature, check_signature, read_anchor
from llama_so8t.audit.verification import NO_CHECKPOINT, NOT_CHECKED, NOT_SIGNED

N = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def private_key():
    return Ed25519PrivateKey.generate()


@pytest.fixture
def public_pem(private_key, tmp_path: Path) -> Path:
    return write_pem(tmp_path / "public.pem", private_key.public_key())


def write_pem(path: Path, public_key) -> Path:
    path.write_bytes(public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def note(path: Path, text: str, private_key=None) -> Path:
    return w.checkpoint(path.with_name("note"), path.name, text, private_key)


def test_a_log_and_its_checkpoint(path):
    lines = w.run(N)
    report = verify(w.write(path, lines), note(path, lines[-1]))
    assert report.ok and report.notes == [NOT_SIGNED]


def test_an_older_checkpoint_covers_less(path):
    lines = w.run(N)
    report = verify(w.write(path, lines), note(path, lines[11]))
    assert report.ok and any("after seq 12" in text for text in report.notes)


@pytest.mark.parametrize("removed", [1, 5, N - 1])
def test_an_anchor_shows_a_removed_tail(path, removed):
    lines = w.run(N)
    [finding] = verify(w.write(path, lines[:-removed]), note(path, lines[-1])).findings
    assert (finding.kind, finding.seq) == ("removed", N)
    assert f"ends at seq {N - removed}: {removed} or more lines" in finding.message


def test_a_half_removed_last_line(path):
    lines = w.run(N)
    kinds = [
        f.kind for f in verify(w.write(path, [*lines[:-1], lines[-1][:50]], end=""), note(path, lines[-1])).findings
    ]
    assert kinds == ["cut", "removed"]


def test_an_anchor_shows_that_the_last_file_is_gone(path):
    files = w.rotated(path, [5, 4, 3])
    checkpoint = note(path, files[-1][-1])
    assert verify(path, checkpoint).ok
    Path(f"{path}.2").replace(path)
    assert {f.kind for f in verify(path, checkpoint).findings} == {"missing", "removed"}


@pytest.mark.parametrize("at", [0, 7, N - 1])
def test_a_log_written_anew(path, at):
    """Line ``at`` replaced and all hashes after it made anew: a right chain, which only the checkpoint betrays."""
    lines = w.run(N)
    checkpoint = note(path, lines[-1])
    prev = w.hash_of(lines[at - 1]) if at else "0" * 64
    w.write(path, lines[:at] + w.chain([w.request(1000 + i) for i in range(N - at)], at + 1, prev))
    assert verify(path).ok and NO_CHECKPOINT in verify(path).notes
    [finding] = verify(path, checkpoint).findings
    assert (finding.kind, finding.place.number, finding.seq) == ("rewritten", N, N)


def test_the_line_of_the_checkpoint_is_gone(path):
    lines = w.run(N)
    checkpoint = note(path, lines[9])
    w.write(path, lines[:9] + lines[10:])
    assert [f.kind for f in verify(path, checkpoint).findings] == ["removed", "removed"]


def test_a_forged_copy_of_the_line_does_not_hide_the_right_one(path):
    lines = w.run(N)
    checkpoint = note(path, lines[9])
    w.write(path, [*lines[:9], w.line(10, w.hash_of(lines[8]), "request"), *lines[9:]])
    assert [f.kind for f in verify(path, checkpoint).findings] == ["inserted"]


def test_the_checkpoint_of_another_name_is_told(path):
    lines = w.run(N)
    other = w.checkpoint(path.with_name("note"), "other.jsonl", lines[-1])
    report = verify(w.write(path, lines), other)
    assert report.ok and any("other.jsonl" in text for text in report.notes)


# --- signatures ------------------------------------------------------------------------------


def test_a_right_signature_leaves_no_note(path, private_key, public_pem):
    lines = w.run(N)
    checkpoint = note(w.write(path, lines), lines[-1], private_key)
    assert verify(path, checkpoint, public_pem).notes == []
    assert verify(path, checkpoint, public_pem).ok
    assert verify(path, checkpoint).notes == [NOT_CHECKED]


def test_an_anchor_without_signature_is_found(path, public_pem):
    lines = w.run(N)
    [finding] = verify(w.write(path, lines), note(path, lines[-1]), public_pem).findings
    assert finding.kind == "signature" and "found 0 other signatures" in finding.message


def test_signed_by_another_key(path, public_pem):
    lines = w.run(N)
    checkpoint = note(w.write(path, lines), lines[-1], Ed25519PrivateKey.generate())
    [finding] = verify(path, checkpoint, public_pem).findings
    assert finding.kind == "signature" and "found 1 other signature)" in finding.message


@pytest.mark.parametrize("edit", ["seq", "hash", "name", "signature", "key id"])
def test_every_edit_of_a_signed_checkpoint_is_seen(path, private_key, public_pem, edit):
    lines = w.run(N)
    checkpoint = note(w.write(path, lines), lines[-1], private_key)
    text = checkpoint.read_text(encoding="utf-8")
    name, seq, digest, blank, signature = text.split("\n")[:5]
    head, blob = signature.rsplit(" ", 1)
    raw = bytearray(base64.b64decode(blob))
    if edit == "seq":
        seq = str(N - 1)
    elif edit == "hash":
        digest = base64.b64encode(bytes(32)).decode()
    elif edit == "name":
        name += "x"
    else:
        raw[{"signature": 40, "key id": 0}[edit]] ^= 1
        signature = f"{head} {base64.b64encode(raw).decode()}"
    checkpoint.write_text("\n".join([name, seq, digest, blank, signature, ""]), encoding="utf-8")
    assert "signature" in [f.kind for f in verify(path, checkpoint, public_pem).findings]


def test_one_of_several_signatures_is_enough(path, private_key, public_pem):
    lines = w.run(N)
    checkpoint = note(w.write(path, lines), lines[-1], Ed25519PrivateKey.generate())
    text = checkpoint.read_text(encoding="utf-8")
    witness = f"\u2014 witness.example/x {base64.b64encode(bytes(76)).decode()}\n"
    signed = text + witness + w.signature_line(path.name, text.split("\n\n")[0] + "\n", private_key)
    checkpoint.write_text(signed, encoding="utf-8")
    assert check_signature(read_anchor(checkpoint), public_pem) is None


def test_other_keys_are_refused(path, tmp_path, private_key):
    checkpoint = note(path, w.run(N)[-1])
    elliptic = write_pem(tmp_path / "ec.pem", ec.generate_private_key(ec.SECP256R1()).public_key())
    private = tmp_path / "private.pem"
    private.write_bytes(private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    junk = tmp_path / "junk.pem"
    junk.write_bytes(b"\xff\x00")
    for pem in (elliptic, private, junk):
        with pytest.raises(AuditError, match="Ed25519 public key"):
            check_signature(read_anchor(checkpoint), pem)


def test_the_note_of_the_documentation_of_signed_notes(tmp_path):
    """A note that other programs made: the example of golang.org/x/mod/sumdb/note and its key."""
    text = b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    line = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    seed = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
    public = write_pem(tmp_path / "public.pem", Ed25519PrivateKey.from_private_bytes(seed).public_key())
    raw = base64.b64decode(line)
    assert raw[:4].hex() == "c74f20a3"
    note = Anchor("PeterNeumann", 1, "0" * 64, text, (Signature("PeterNeumann", raw[:4], raw[4:]),))
    assert check_signature(note, public) is None
    assert "false" in check_signature(replace(note, text=text + b"\n"), public)


# --- hostile checkpoints ---------------------------------------------------------------------

HASH = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        f"so8t-audit/a\n1\n{HASH}\n",
        f"other/a\n1\n{HASH}\n\n",
        f"so8t-audit/a\n0\n{HASH}\n\n",
        f"so8t-audit/a\n-1\n{HASH}\n\n",
        f"so8t-audit/a\n01\n{HASH}\n\n",
        f"so8t-audit/a\n{'9' * 5000}\n{HASH}\n\n",
        f"so8t-audit/a\n9999999999999999\n{HASH}\n\n",
        f"so8t-audit/a\n\u0661\n{HASH}\n\n",
        "so8t-audit/a\n1\nAAAA\n\n",
        f"so8t-audit/a\n1\n{HASH}=\n\n",
        f"so8t-audit/a\n1\n {HASH}\n\n",
        f"so8t-audit/a\n1\n{HASH}\nmore\n\n",
        f"so8t-audit/a\n1\n{HASH}\n\n- a AAAAAAAA\n",
        f"so8t-audit/a\n1\n{HASH}\n\n\u2014 a AAAAAAAA",
        f"so8t-audit/a\n1\n{HASH}\n\n\u2014 AAAAAAAA\n",
        f"so8t-audit/a\n1\n{HASH}\n\n\u2014 a *\n",
        f"so8t-audit/a\n1\n{HASH}\n\n" + "x" * 70_000,
        b"so8t-audit/\xff\n1\n" + HASH.encode() + b"\n\n",
        f"so8t-audit/a\n1\n{HASH}\n\n".encode() + b"\xff\n",
    ],
)
def test_a_hostile_anchor_is_refused_by_name(tmp_path, text):
    path = tmp_path / "note"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(AuditError, match="note"):
        read_anchor(path)
