"""Reviewers in `so8t audit`: their keys, and what became of held answers in every subcommand."""

import hashlib
import json
import re
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import audit_writer as w
import pytest

EDIT = {"n_bytes": 12, "hmac": w.text("another text")["hmac"]}


@pytest.fixture
def log(tmp_path) -> Path:
    """Held answers, one cancelled, one edited without its text and one with it."""
    nobody = {"reviewer": None, "comment": None}
    decisions = [
        {"escalation": "esc-a.1", "status": "cancelled"} | nobody,
        {"escalation": "esc-a.2", "status": "edited", "reviewer": "ann", "comment": "shorter", "text": EDIT},
        {"escalation": "esc-a.3", "status": "edited", "reviewer": "bob", "comment": None,
         "text": EDIT | {"text": "another text"}},
    ]  # fmt: skip
    requests = [w.request(n, "escalate", escalation=d["escalation"], enforced="held") for n, d in enumerate(decisions)]
    lines = w.chain([w.opening(), *requests, *(("escalation", decision) for decision in decisions), ("close", {})])
    path = w.write(tmp_path / "audit.jsonl", lines)
    Path(f"{path}.key").write_text(w.KEY.hex())
    return path


def test_each_subcommand_knows_cancelled_and_edited_answers(so8t, log, tmp_path):
    assert so8t("verify", log)[0] == 0
    shown = so8t("show", log, "--event", "escalation")[1]
    assert "esc-a.1  cancelled\n" in shown and "esc-a.2  edited by ann\n" in shown
    assert f"text: 12 bytes, hmac {EDIT['hmac']}\n" in shown and f"hmac {EDIT['hmac']}: another text" in shown
    assert json.loads(so8t("stats", log, "--json")[1])["escalations"] == [
        {"status": "cancelled", "reviewer": "-", "n": 1},
        {"status": "edited", "reviewer": "ann", "n": 1},
        {"status": "edited", "reviewer": "bob", "n": 1},
    ]
    assert so8t("export", log, "--sqlite", tmp_path / "log.db")[0] == 0
    with closing(sqlite3.connect(tmp_path / "log.db")) as database:
        rows = database.execute("SELECT status, reviewer, text_bytes, text_hmac, text FROM escalations").fetchall()
    assert rows == [
        ("cancelled", None, None, None, None),
        ("edited", "ann", 12, EDIT["hmac"], None),
        ("edited", "bob", 12, EDIT["hmac"], "another text"),
    ]


def test_find_knows_the_text_of_a_reviewer(so8t, log, tmp_path):
    (tmp_path / "text").write_text("another text\n")
    code, out, _ = so8t("find", log, "--text", tmp_path / "text")
    assert code == 0 and [line.split(", ")[-1] for line in out.splitlines()] == [
        "text of escalation esc-a.2", "text of escalation esc-a.3",
    ]  # fmt: skip


def test_a_text_without_its_digest_is_an_error(so8t, tmp_path):
    decision = {"escalation": "e", "status": "edited", "reviewer": "a", "comment": None, "text": {"n_bytes": 3}}
    log = w.write(tmp_path / "audit.jsonl", w.chain([("escalation", decision)]))
    code, _, err = so8t("stats", log)
    assert code == 1 and "text.hmac" in err


def test_a_key_is_printed_once_and_kept_as_its_hash(so8t, tmp_path):
    file = tmp_path / "reviewers"
    keys = [so8t("add-reviewer", file, "--name", name)[1].strip() for name in ("Ada L.", "Grace \u00e9", "Ada L.")]
    assert len(set(keys)) == 3 and all(re.fullmatch(r"[A-Za-z0-9_-]{43}", key) for key in keys)
    hashes = [hashlib.sha256(key.encode()).hexdigest() for key in keys]
    expected = [f"{hashes[0]}  Ada L.", f"{hashes[1]}  Grace \u00e9", f"{hashes[2]}  Ada L."]
    assert file.read_text().splitlines() == expected
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    file.write_text("# who decides\n" + file.read_text().rstrip("\n"))
    so8t("add-reviewer", file, "--name", "Bob")
    assert len(file.read_text().splitlines()) == 5 and stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x1b[0m", " a", "x" * 257, "\u00e9" * 129])
def test_a_name_that_does_not_fit_on_a_line_is_refused(so8t, tmp_path, name):
    code, out, err = so8t("add-reviewer", tmp_path / "reviewers", "--name", name)
    assert code == 1 and out == "" and "expected a printable" in err
    assert not (tmp_path / "reviewers").exists()
