"""`so8t audit sign`: what it signs, what it refuses to sign, and that `verify` accepts it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import audit_writer as w
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from llama_so8t import cli
from llama_so8t.audit import AuditError, verify
from llama_so8t.audit.keys import read_private_key
from llama_so8t.audit.signing import sign

N = 20


class Place:
    """A log, the server's checkpoint of it, the keys and the signed checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.log, self.note, self.signed = folder / "audit.jsonl", folder / "note", folder / "signed"
        self.pem, self.public = folder / "sign.pem", folder / "public.pem"
        self.key = Ed25519PrivateKey.generate()
        self.pem.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.public.write_bytes(self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def write(self, lines: list[str], at: int = -1, end: str = "\n") -> None:
        """The log, and a checkpoint of one of its lines."""
        w.write(self.log, lines, end)
        w.checkpoint(self.note, self.log.name, lines[at])

    def sign(self):
        return sign(self.log, self.note, self.key, self.signed)

    def refused(self) -> list[str]:
        """Kinds of the findings, after which nothing may have been written."""
        before = self.signed.read_bytes() if self.signed.exists() else None
        found = self.sign().findings
        assert (self.signed.read_bytes() if self.signed.exists() else None) == before
        assert found
        return [finding.kind for finding in found]


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


def test_what_is_signed_is_what_verify_accepts(place):
    lines = w.run(N)
    place.write(lines)
    signing = place.sign()
    assert (signing.findings, signing.n_lines, signing.is_new) == ([], N, True)
    report = verify(place.log, place.signed, place.public)
    assert report.ok and report.notes == []
    # the same bytes as other code makes of the same key
    assert place.signed.read_bytes() == w.checkpoint(place.note, place.log.name, lines[-1], place.key).read_bytes()


def test_openssl_made_the_key(tmp_path):
    pem = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", pem], check=True)
    public = subprocess.run(["openssl", "pkey", "-in", pem, "-pubout"], check=True, capture_output=True).stdout
    key = read_private_key(pem).public_key()
    assert key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) == public


def test_a_log_that_goes_on_is_signed_again(place):
    lines = w.run(N)
    place.write(lines[:7])
    place.sign()
    place.write(lines)
    assert place.sign().is_new
    assert verify(place.log, place.signed, place.public).notes == []
    before = place.signed.stat().st_mtime_ns
    assert not place.sign().is_new
    assert place.signed.stat().st_mtime_ns == before


def test_what_the_server_writes_behind_the_checkpoint_is_not_read(place):
    lines = w.run(N)
    place.write([*lines[:12], lines[12][:40]], at=11, end="")
    assert place.sign().n_lines == 12
    assert verify(place.log, place.signed, place.public).findings[0].kind == "cut"


def test_rotated_files_are_signed_as_one_log(place):
    files = w.rotated(place.log, [5, 4, 3])
    w.checkpoint(place.note, place.log.name, files[0][2])
    assert place.sign().n_lines == 3
    w.checkpoint(place.note, place.log.name, files[-1][-1])
    assert place.sign().n_lines == 12
    Path(f"{place.log}.1").unlink()
    assert "removed" in place.refused()


@pytest.mark.parametrize("at", [1, 5, N - 1])
def test_a_changed_log_is_not_signed(place, at):
    lines = w.run(N)
    place.write(lines)
    lines[at] = lines[at].replace('"event":"', '"event":"x', 1)
    w.write(place.log, lines)
    assert place.refused()


def test_a_log_without_the_line_of_the_checkpoint_is_not_signed(place):
    lines = w.run(N)
    place.write(lines)
    w.write(place.log, lines[:-3])
    assert place.refused() == ["removed"]


def test_a_log_that_was_cut_since_is_not_signed(place):
    """With a checkpoint that fits what is left: only the one signed before betrays it."""
    lines = w.run(N)
    place.write(lines)
    place.sign()
    place.write(lines[:-5])
    assert verify(place.log, place.note).ok
    assert place.refused() == ["removed"]


@pytest.mark.parametrize("n", [N, N + 5])
def test_a_log_that_was_written_anew_since_is_not_signed(place, n):
    lines = w.run(N)
    place.write(lines)
    place.sign()
    place.write(lines[:8] + w.chain([w.request(1000 + i) for i in range(n - 8)], 9, w.hash_of(lines[7])))
    assert verify(place.log, place.note).ok
    assert place.refused()[0] in ("rewritten", "removed")


def test_a_signed_file_that_is_not_ours_is_not_written_over(place):
    lines = w.run(N)
    place.write(lines)
    for text in (w.checkpoint(place.signed, place.log.name, lines[3], Ed25519PrivateKey.generate()).read_text(),
                 w.checkpoint(place.signed, place.log.name, lines[3]).read_text(), "something else\n"):  # fmt: skip
        place.signed.write_text(text, encoding="utf-8")
        with pytest.raises(AuditError, match="signed"):
            place.sign()
        assert place.signed.read_text(encoding="utf-8") == text


def test_a_signed_file_whose_text_was_changed_is_refused(place):
    lines = w.run(N)
    place.write(lines)
    place.sign()
    text = place.signed.read_text(encoding="utf-8").replace(f"\n{N}\n", f"\n{N - 9}\n")
    place.signed.write_text(text, encoding="utf-8")
    with pytest.raises(AuditError, match="signature is false"):
        place.sign()


def test_the_signed_checkpoint_of_another_log_is_not_written_over(place):
    lines = w.run(N)
    w.checkpoint(place.signed, "other.jsonl", lines[3], place.key)
    place.write(lines)
    with pytest.raises(AuditError, match=r"found so8t-audit/other\.jsonl, expected so8t-audit/audit\.jsonl"):
        place.sign()


def test_the_checkpoint_of_the_server_is_not_written_over(place):
    place.write(w.run(N))
    with pytest.raises(AuditError, match="another file"):
        sign(place.log, place.note, place.key, place.note)


def test_keys_that_are_none(place, tmp_path):
    for name, data in {
        "public": place.public.read_bytes(), "junk": b"\xff\0",
        "password": place.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
    }.items():  # fmt: skip
        file = tmp_path / name
        file.write_bytes(data)
        with pytest.raises(AuditError, match=f"{name}: found no Ed25519 private key"):
            read_private_key(file)


def test_the_command_signs_and_says_what_it_signed(place, monkeypatch, capsys):
    monkeypatch.setattr(cli, "COMMANDS", ("audit",))
    lines = w.run(N)
    place.write(lines)
    command = ["audit", "sign", str(place.log), "--checkpoint", str(place.note), "--key", str(place.pem),
               "--out", str(place.signed)]  # fmt: skip
    assert cli.main(command) == 0
    assert f"signed: seq {N}, hash {w.hash_of(lines[-1])}, {N} lines" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert "was signed before" in capsys.readouterr().out
    place.write(lines[:-1])
    assert cli.main(command) == 1
    assert "removed: " in (error := capsys.readouterr().err) and "not written" in error


def test_every_second_until_something_is_wrong(place):
    """It signs what the log has by then, and ends when the log is cut."""
    lines = w.run(N)
    place.write(lines[:5])
    process = subprocess.Popen(
        [sys.executable, "-m", "llama_so8t", "audit", "sign", place.log, "--checkpoint", place.note, "--key", place.pem,
         "--out", place.signed, "--every", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    try:
        for n in (5, 12, N):
            w.write(place.log, lines[:n])  # the log first, as the server does
            w.checkpoint(place.note.with_name("incoming"), place.log.name, lines[n - 1]).replace(place.note)
            _until(lambda n=n: place.signed.exists() and f"\n{n}\n" in place.signed.read_text("utf-8"), process)
        w.checkpoint(place.note.with_name("incoming"), place.log.name, lines[5]).replace(place.note)
        w.write(place.log, lines[:6])
        assert process.wait(timeout=60) == 1
        assert "removed: " in process.stderr.read()
        assert f"\n{N}\n" in place.signed.read_text(encoding="utf-8")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def _until(condition, process) -> None:
    for _ in range(600):
        if condition():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    raise AssertionError("nothing was signed within a minute")


def test_a_log_that_says_what_it_lost_is_signed(place):
    """The chain is whole, and tells of the gap itself; `verify` of the signed log finds it."""
    place.write(w.chain([w.opening(), w.request(1), ("lost", {"lines": 7}), ("close", {})]))
    assert place.sign().findings == []
    assert [finding.kind for finding in verify(place.log, place.signed, place.public).findings] == ["lost"]
