"""`so8t audit` as a user calls it: exit codes, messages, tables, the database."""

import hashlib
import json
import sqlite3
import sys
from pathlib import Path

import audit_writer as w
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from gguf_files import write_gguf

HOSTILE = "\x1b[31mred\x1b[0m\n\r\x07\u202eevil\x9b2J \ud800"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def records() -> list[tuple[str, dict]]:
    """Two runs: allowed, refused and held requests."""
    held = {"escalation": "esc-1", "enforced": "released"}
    return [
        w.opening(),
        w.request(1),
        w.request(2, "refuse", keep=True),
        ("escalation", {"escalation": "esc-1", "status": "allowed", "reviewer": "ann", "comment": "fine"}),
        w.request(3, "escalate", **held),
        ("close", {}),
        w.opening(w.digest("other")),
        w.request(4, model=None, answer=None, triggered=None),
        ("escalation", {"escalation": "esc-2", "status": "timeout", "reviewer": None, "comment": None}),
    ]


@pytest.fixture
def log(path) -> Path:
    return w.write(path, w.chain(records()))


# --- verify ----------------------------------------------------------------------------------


def test_verify_says_ok_of_a_whole_log(so8t, log):
    code, out, _ = so8t("verify", log)
    assert code == 0 and out.splitlines()[-1] == "ok"
    assert "no checkpoint was given" in out and "9 lines" in out


def test_verify_names_what_is_wrong(so8t, log):
    lines = log.read_text().splitlines()
    lines[2] = lines[2].replace("refuse", "allow")
    del lines[5]
    code, out, _ = so8t("verify", w.write(log, lines))
    assert code == 1
    assert f"changed: {log}:3 (seq 3) was changed" in out
    assert f"removed: the line of seq 6 is missing between {log}:5 and {log}:6" in out
    assert out.splitlines()[-1] == "2 findings"


def test_verify_prints_its_report_as_json(so8t, log):
    code, out, _ = so8t("verify", log, "--json")
    report = json.loads(out)
    assert code == 0 and report["ok"] and report["lines"] == 9 and report["findings"] == []
    assert report["models"] == [{"sha256": w.MODEL, "runs": 1}, {"sha256": w.digest("other"), "runs": 1}]
    assert report["last"]["seq"] == 9 and report["last"]["hash"] == w.hash_of(log.read_text().splitlines()[-1])
    lines = log.read_text().splitlines()
    code, out, _ = so8t("verify", w.write(log, lines[:4] + lines[5:]), "--json")
    [finding] = json.loads(out)["findings"]
    assert code == 1 and {key: finding[key] for key in ("kind", "file", "line", "seq")} == {
        "kind": "removed",
        "file": str(log),
        "line": 5,
        "seq": 5,
    }


def test_verify_with_a_signed_checkpoint(so8t, log, tmp_path):
    key = Ed25519PrivateKey.generate()
    pem = tmp_path / "public.pem"
    pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    lines = log.read_text().splitlines()
    note = w.checkpoint(tmp_path / "note", log.name, lines[-1], key)
    code, out, _ = so8t("verify", log, "--checkpoint", note, "--public-key", pem)
    assert code == 0 and "no checkpoint" not in out and "not checked" not in out
    code, out, _ = so8t("verify", w.write(log, lines[:-1]), "--checkpoint", note, "--public-key", pem)
    assert code == 1 and "ends at seq 8" in out
    code, _, err = so8t("verify", log, "--public-key", pem)
    assert code == 1 and "--public-key needs --checkpoint" in err
    code, _, err = so8t("verify", log, "--checkpoint", tmp_path / "none")
    assert code == 1 and err.startswith("so8t audit: error:")


def test_verify_with_a_model(so8t, log, gguf, tmp_path):
    values = np.arange(64, dtype=np.float32)
    model = write_gguf(tmp_path / "m.gguf", tensors={"w": values})
    sha256 = hashlib.sha256(b"w\0f32\x0064\0" + hashlib.sha256(values.tobytes()).digest()).hexdigest()
    code, out, _ = so8t("verify", log, "--model", model)
    assert code == 1 and out.count(sha256) == 2
    code, out, _ = so8t("verify", w.write(log, w.chain([w.opening(sha256)])), "--model", model)
    assert code == 0


def test_verify_without_a_log(so8t, path):
    code, _, err = so8t("verify", path)
    assert code == 1 and "found no such file" in err


def test_without_cryptography_only_signatures_fail(so8t, log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    note = w.checkpoint(tmp_path / "note", log.name, log.read_text().splitlines()[-1])
    assert so8t("verify", log, "--checkpoint", note)[0] == 0
    code, _, err = so8t("verify", log, "--checkpoint", note, "--public-key", note)
    assert code == 1 and "pip install cryptography" in err


def test_hostile_names_do_not_reach_the_terminal(so8t, tmp_path):
    path = w.write(tmp_path / "a\x1b[2J.jsonl", w.run(5)[1:])
    code, out, _ = so8t("verify", path)
    assert code == 1 and "\x1b" not in out


# --- show ------------------------------------------------------------------------------------


def seqs(out: str) -> list[int]:
    return [json.loads(line)["seq"] for line in out.splitlines()]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], list(range(1, 10))),
        (["--seq", "3:5"], [3, 4, 5]),
        (["--seq", "8:"], [8, 9]),
        (["--seq", ":2"], [1, 2]),
        (["--seq", "4"], [4]),
        (["--event", "request"], [2, 3, 5, 8]),
        (["--decision", "refuse"], [3]),
        (["--event", "request", "--tail", "2"], [5, 8]),
        (["--seq", "100:"], []),
    ],
)
def test_show_chooses_lines_by_its_options(so8t, log, args, expected):
    code, out, _ = so8t("show", log, "--json", *args)
    assert code == 0 and seqs(out) == expected


def test_show_json_is_the_record(so8t, log):
    _, out, _ = so8t("show", log, "--json")
    assert [json.loads(line) for line in out.splitlines()] == [
        json.loads(line) for line in log.read_text().splitlines()
    ]


def test_show_prints_lines_for_people(so8t, log):
    code, out, _ = so8t("show", log)
    assert code == 0
    for part in (
        f"1  2026-11-24T05:00:01.001Z  open  model Tiny (so8t) {w.MODEL}  policy enforce {w.POLICY}",
        "request  chatcmpl-2  refuse, enforced: stop",
        "triggered by safety=UNSAFE at answer 3, probability 0.7500",
        "answer 3: safety=UNSAFE 0.7500",
        "prompt: 2 tokens, 8 bytes",
        ": prompt 2\n",
        "held as esc-1",
        "esc-1  allowed by ann",
        "comment: fine",
        "close",
    ):
        assert part in out, part


@pytest.mark.parametrize("args", [[], ["--json"]])
def test_show_never_drives_the_terminal(so8t, path, args):
    raw = json.dumps(HOSTILE)
    request = w.request(1, prompt={"n_tokens": 1, "n_bytes": 1, "hmac": HOSTILE, "text": HOSTILE}, request=HOSTILE)
    held = {"escalation": HOSTILE, "status": HOSTILE, "reviewer": HOSTILE, "comment": HOSTILE}
    lines = []
    for event, fields in (w.opening(HOSTILE), request, ("escalation", held), (HOSTILE, {})):
        # the writer keeps letters as they are; half a surrogate pair can only stand there as an escape
        record = {"seq": len(lines) + 1, "time": "2026-11-24T05:05:05.123Z", "event": event} | fields
        text = json.dumps(record | {"prev": w.hash_of(lines[-1]) if lines else "0" * 64})[:-1]
        lines.append(f'{text},"hash":"{w.digest(text)}"}}')
    assert raw[1:-1] in lines[1]
    code, out, _ = so8t("show", w.write(path, lines), *args)
    assert code == 0 and out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert len(out.splitlines()) == (4 if args else out.count("\n"))


def test_show_shortens_long_texts(so8t, path):
    text = {"n_tokens": 1, "n_bytes": 1, "hmac": "", "text": "x" * 5000}
    _, out, _ = so8t("show", w.write(path, w.chain([w.request(1, prompt=text)])))
    assert "xxx... (5000 characters)" in out and len(out) < 3000


def test_lines_that_cannot_be_used_are_named(so8t, log):
    lines = log.read_text().splitlines()
    lines[2] = lines[2].replace("refuse", "allow")
    lines.insert(4, "junk")
    w.write(log, lines)
    for command in ("show", "stats"):
        code, _, err = so8t(command, log, "--json")
        assert code == 1 and f"{log}:3: left out: its text is not the one" in err and f"{log}:5: left out" in err
    code, out, _ = so8t("show", log, "--json")
    assert seqs(out) == [1, 2, 4, 5, 6, 7, 8, 9]
    code, _, err = so8t("show", w.write(log, ["junk"] * 5000), "--json")
    assert code == 1 and len(err.splitlines()) == 1 and "more than 100 lines" in err


@pytest.mark.parametrize(
    "args", [["--seq", "a"], ["--seq", ":"], ["--seq", "1:2:3"], ["--tail", "0"], ["--tail", "-1"]]
)
def test_show_refuses_other_arguments(so8t, log, args):
    with pytest.raises(SystemExit) as caught:
        so8t("show", log, *args)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"decision": 7}, "field decision: found 7, expected a text"),
        ({"verdicts": {}}, "field verdicts: found {}, expected a list"),
        ({"verdicts": [7]}, "field verdicts: found [7], expected a list of objects"),
        ({"prompt": {"n_tokens": True}}, "field prompt.n_tokens: found True, expected a whole number"),
        ({"slot": 2**63}, "field slot: found 9223372036854775808"),
        ({"triggered": {"part": "x"}}, "field triggered.position: found nothing"),
        ({"messages": {}}, "field messages: found {}, expected a list of objects"),
        ({"messages": [{"role": 1, "n_bytes": 1, "hmac": ""}]}, "field messages[0].role: found 1, expected a text"),
        ({"messages": [{"n_bytes": 1}]}, "field messages[0].hmac: found nothing, expected a text"),
        ({"messages_omitted": -1}, "field messages_omitted: found -1"),
        (
            {"verdicts": [{"part": "a", "position": 1, "head": "h", "label": "l", "probabilities": {"l": 1.5}}]},
            "field verdicts[0].probabilities.l: found 1.5, expected a number from 0 to 1",
        ),
    ],
)
@pytest.mark.parametrize("command", ["show", "stats", "export", "find"])
def test_fields_of_the_wrong_type(so8t, path, tmp_path, command, changed, message):
    w.write(path, w.chain([w.opening(), w.request(1, **changed)]))
    (tmp_path / "key").write_text(w.KEY.hex())
    options = {"export": ["--sqlite", tmp_path / "x.db"], "find": ["--key", tmp_path / "key", "--text", path]}
    code, _, err = so8t(command, path, *options.get(command, []))
    assert code == 1 and f"{path}:2: {message}" in err
    assert not (tmp_path / "x.db").exists()


# --- stats -----------------------------------------------------------------------------------


def test_stats_counts_what_the_log_says(so8t, log):
    code, out, _ = so8t("stats", log, "--json")
    stats = json.loads(out)
    other = w.digest("other")
    assert code == 0
    assert (stats["lines"], stats["held"]) == (9, 1)
    assert (stats["first_time"], stats["last_time"]) == ("2026-11-24T05:00:01.001Z", "2026-11-24T05:00:09.009Z")
    assert stats["requests"] == [
        {"decision": "allow", "enforced": "none", "n": 2},
        {"decision": "escalate", "enforced": "released", "n": 1},
        {"decision": "refuse", "enforced": "stop", "n": 1},
    ]
    assert stats["labels"] == [
        {"part": "answer", "head": "safety", "label": "SAFE", "n": 4},
        {"part": "answer", "head": "safety", "label": "UNSAFE", "n": 1},
        {"part": "prompt", "head": "safety", "label": "SAFE", "n": 4},
    ]
    assert stats["triggers"] == [{"part": "answer", "head": "safety", "label": "UNSAFE", "n": 1}]
    assert stats["escalations"] == [
        {"status": "allowed", "reviewer": "ann", "n": 1},
        {"status": "timeout", "reviewer": "-", "n": 1},
    ]
    assert stats["models"] == [{"sha256": "-", "n": 1}, {"sha256": w.MODEL, "n": 3}]
    assert stats["policies"] == [{"sha256": w.POLICY, "mode": "enforce", "n": 4}]
    assert [(row["model"], row["n"]) for row in stats["runs"]] == sorted([(w.MODEL, 1), (other, 1)])


def test_stats_prints_tables_for_people(so8t, log):
    code, out, _ = so8t("stats", log)
    assert code == 0 and "9 lines from 2026-11-24T05:00:01.001Z to 2026-11-24T05:00:09.009Z" in out
    assert "       2  allow     none\n" in out and "1 requests were held" in out


def test_stats_keep_a_bounded_number_of_rows(so8t, path, monkeypatch):
    monkeypatch.setattr("llama_so8t.audit.statistics.MAX_ROWS", 5)
    lines = w.chain([w.request(i, request="x", enforced=f"{i:04}" * 200) for i in range(20)])
    _, out, _ = so8t("stats", w.write(path, lines), "--json")
    rows = json.loads(out)["requests"]
    assert len(rows) == 6 and rows[0] == {"decision": "(other)", "enforced": "(other)", "n": 15}
    assert all(len(row["enforced"]) <= 256 for row in rows)


# --- export ----------------------------------------------------------------------------------


def query(path: Path, sql: str) -> list[tuple]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_export_writes_a_database_that_can_be_asked(so8t, log, tmp_path):
    db = tmp_path / "log.db"
    code, out, _ = so8t("export", log, "--sqlite", db)
    assert (
        code == 0
        and f"wrote {db} (2 runs, 0 heads_files, 0 adapters, 4 requests, 0 messages, 9 verdicts, 2 escalations, 0 lost)"
        in out
    )
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name or "journal" in file.name] == []
    other = w.digest("other")
    assert query(db, "SELECT run, model_sha256, mode, policy_sha256, closed FROM runs ORDER BY run") == [
        (1, w.MODEL, "enforce", w.POLICY, "2026-11-24T05:00:06.006Z"),
        (7, other, "enforce", w.POLICY, None),
    ]
    assert json.loads(query(db, "SELECT policy FROM runs")[0][0]) == w.opening()[1]["policy"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert query(
        db, "SELECT seq, run, time, request, task, slot, mode, decision, enforced, escalation, hash FROM requests"
    ) == [
        (
            *(x["seq"], 1 if x["seq"] < 7 else 7, x["time"], x["request"], x["task"], x["slot"], "enforce"),
            *(x["decision"], x["enforced"], x.get("escalation"), x["hash"]),
        )
        for x in lines
        if x["event"] == "request"
    ]
    assert query(db, "SELECT prompt_tokens, prompt_bytes, prompt_hmac, prompt, answer FROM requests WHERE seq = 3") == [
        (2, 8, w.text("prompt 2")["hmac"], "prompt 2", "answer 2")
    ]
    assert query(db, "SELECT prompt, model_sha256, answer_hmac FROM requests WHERE seq = 8") == [(None, None, None)]
    trigger = "triggered_part, triggered_position, triggered_head, triggered_label, triggered_probability"
    assert query(db, f"SELECT {trigger} FROM requests WHERE triggered_part IS NOT NULL") == [
        ("answer", 3, "safety", "UNSAFE", 0.75)
    ]
    assert query(
        db, "SELECT number, part, position, head, label, probability, probabilities FROM verdicts WHERE seq = 3"
    ) == [
        (0, "prompt", 4, "safety", "SAFE", None, '{"SAFE": null, "UNSAFE": 0.75}'),
        (1, "answer", 0, "safety", "SAFE", None, '{"SAFE": null, "UNSAFE": 0.75}'),
        (2, "answer", 3, "safety", "UNSAFE", 0.75, '{"SAFE": null, "UNSAFE": 0.75}'),
    ]
    assert query(db, "SELECT seq, run, escalation, status, reviewer, comment FROM escalations") == [
        (4, 1, "esc-1", "allowed", "ann", "fine"),
        (9, 7, "esc-2", "timeout", None, None),
    ]
    assert query(db, "PRAGMA integrity_check") == [("ok",)] and query(db, "PRAGMA foreign_key_check") == []
    plan = query(db, "EXPLAIN QUERY PLAN SELECT * FROM requests WHERE time > '2026'")
    assert "requests_time" in str(plan)


def test_export_takes_rotated_files_and_replaces_an_older_database(so8t, path, tmp_path):
    db = tmp_path / "log.db"
    for sizes, n in (([5, 4, 3], 8), ([3], 1)):
        w.rotated(path, sizes)
        assert so8t("export", path, "--sqlite", db)[0] == 0
        assert query(db, "SELECT count(*) FROM requests") == [(n,)]
        for file in tmp_path.glob("audit.jsonl.*"):
            file.unlink()


def test_export_replaces_no_other_file(so8t, log, tmp_path):
    before = log.read_bytes()
    code, _, err = so8t("export", log, "--sqlite", log)
    assert code == 1 and "no SQLite database" in err and log.read_bytes() == before
    code, _, err = so8t("export", log, "--sqlite", tmp_path / "none" / "x.db")
    assert code == 1 and "so8t audit: error:" in err


def test_export_writes_nothing_of_a_damaged_log(so8t, log, tmp_path):
    db = tmp_path / "log.db"
    so8t("export", log, "--sqlite", db)
    before = db.read_bytes()
    lines = log.read_text().splitlines()
    for damaged in ([*lines, "junk"], [*lines, lines[2]]):
        code, _, err = so8t("export", w.write(log, damaged), "--sqlite", db)
        assert code == 1 and f"{log}:10: " in err and "verify" in err
        assert db.read_bytes() == before and not list(tmp_path.glob(".*partial*"))


def test_export_of_texts_that_are_no_unicode(so8t, path, tmp_path):
    record = {"seq": 1, "time": "2026-11-24T05:05:05.123Z", "event": "escalation", "escalation": HOSTILE}
    text = json.dumps(record | {"status": "x", "reviewer": None, "comment": "'; DROP TABLE runs", "prev": "0" * 64})[
        :-1
    ]
    w.write(path, [f'{text},"hash":"{w.digest(text)}"}}'])
    assert so8t("export", path, "--sqlite", tmp_path / "log.db")[0] == 0
    [(found, comment)] = query(tmp_path / "log.db", "SELECT escalation, comment FROM escalations")
    assert found == HOSTILE.replace("\ud800", "?") and comment == "'; DROP TABLE runs"


# --- find ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seq", "part"), [("prompt 2", 3, "prompt"), ("answer 1\n", 2, "answer")])
def test_find_knows_a_text_by_its_hmac(so8t, log, tmp_path, text, seq, part):
    Path(f"{log}.key").write_text(w.KEY.hex() + "\n")
    (tmp_path / "text").write_bytes(text.encode())
    code, out, _ = so8t("find", log, "--text", tmp_path / "text")
    assert (
        code == 0
        and out == f"{log}:{seq}: seq {seq}, 2026-11-24T05:00:0{seq}.00{seq}Z, {part} of request chatcmpl-{seq - 1}\n"
    )


@pytest.fixture
def said(path) -> Path:
    """A log of two conversations, the second longer, and of a raw prompt."""
    Path(f"{path}.key").write_text(w.KEY.hex() + "\n")
    first = [w.message("system", "be kind"), w.message("user", "hello")]
    more = [*first, w.message("assistant", "answer 1"), w.message("user", "bye")]
    raw = [w.message(None, "prompt 3")]
    requests = [
        w.request(1, messages=first), w.request(2, messages=more, messages_omitted=5), w.request(3, messages=raw),
    ]  # fmt: skip
    return w.write(path, w.chain([w.opening(), *requests, ("close", {})]))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hello", ["messages[1] of request chatcmpl-1", "messages[1] of request chatcmpl-2"]),
        ("bye\n", ["messages[3] of request chatcmpl-2"]),
        ("answer 1", ["answer of request chatcmpl-1", "messages[2] of request chatcmpl-2"]),
        ("prompt 3", ["prompt of request chatcmpl-3"]),  # a raw prompt is its own message, and is told once
        ("hell", []),
    ],
)
def test_find_knows_a_message_as_it_was_typed(so8t, said, tmp_path, text, found):
    (tmp_path / "text").write_text(text)
    code, out, err = so8t("find", said, "--text", tmp_path / "text")
    assert [line.partition("Z, ")[2] for line in out.splitlines()] == found
    assert (code, err) == ((0, "") if found else (1, "not found\n"))


def test_messages_are_shown_exported_and_no_finding(so8t, said, tmp_path):
    assert so8t("verify", said)[0] == 0
    _, out, _ = so8t("show", said, "--seq", "3:4")
    hmac = w.message("user", "bye")["hmac"]
    assert "5 messages before these were left out: the line would have been too long" in out
    assert f"messages[3]: user, 3 bytes, hmac {hmac}\n" in out and "messages[0]: no role, 8 bytes" in out
    db = tmp_path / "log.db"
    assert "3 requests, 7 messages, " in so8t("export", said, "--sqlite", db)[1]
    assert query(db, f"SELECT seq, number, role, bytes FROM messages WHERE hmac = '{hmac}'") == [(3, 3, "user", 3)]
    assert query(db, "SELECT number, role FROM messages WHERE seq = 4") == [(0, None)]
    assert query(db, "SELECT messages_omitted FROM requests ORDER BY seq") == [(0,), (5,), (0,)]


def test_find_says_that_a_text_is_not_there(so8t, log, tmp_path):
    (tmp_path / "key").write_text(w.KEY.hex())
    (tmp_path / "text").write_text("prompt")
    code, out, err = so8t("find", log, "--key", tmp_path / "key", "--text", tmp_path / "text")
    assert code == 1 and out == "" and "not found" in err
    (tmp_path / "text").write_text("prompt 2")
    (tmp_path / "key").write_text(bytes(32).hex())
    assert so8t("find", log, "--key", tmp_path / "key", "--text", tmp_path / "text")[0] == 1


@pytest.mark.parametrize("key", ["", "00" * 31, "00" * 33, "zz" * 32, "00" * 1000])
def test_other_keys_are_refused(so8t, log, tmp_path, key):
    (tmp_path / "key").write_text(key)
    code, _, err = so8t("find", log, "--key", tmp_path / "key", "--text", log)
    assert code == 1 and "expected 64 hex digits" in err


def test_show_what_was_cancelled_or_lost(so8t, path):
    lines = w.chain([w.opening(), w.request(1, cancelled=True), ("lost", {"lines": 7})])
    _, out, _ = so8t("show", w.write(path, lines))
    assert "chatcmpl-1  allow, enforced: none, cancelled\n" in out and out.endswith("lost  7 lines\n")


# --- lost ------------------------------------------------------------------------------------


@pytest.fixture
def gap(path) -> Path:
    """A log in which the server says twice that it lost records, and one request was cancelled."""
    lost = [("lost", {"lines": 1000}), ("lost", {"lines": 7})]
    cut = w.request(2, "refuse", cancelled=True, verdicts_omitted=12)
    return w.write(path, w.chain([w.opening(), w.request(1), lost[0], cut, lost[1], ("close", {})]))


def test_verify_finds_that_records_were_lost(so8t, gap):
    code, out, _ = so8t("verify", gap, "--json")
    report = json.loads(out)
    assert code == 1 and not report["ok"]
    assert [(f["kind"], f["line"], f["seq"]) for f in report["findings"]] == [("lost", 3, 3), ("lost", 5, 5)]
    assert "lost 1000 requests and decisions" in report["findings"][0]["message"]
    code, out, _ = so8t("verify", gap)
    assert code == 1 and f"lost: {gap}:5 (seq 5): " in out and out.endswith("2 findings\n")


def test_verify_names_a_bounded_number_of_losses_in_a_hostile_log(so8t, path):
    lines = w.chain([("lost", {"lines": "x" * 500})] * 300)
    _, out, _ = so8t("verify", w.write(path, lines))
    assert out.count("lost: ") == 100 and "x" * 30 not in out


def test_stats_count_what_was_lost_and_cancelled(so8t, gap):
    stats = json.loads(so8t("stats", gap, "--json")[1])
    assert (stats["lines"], stats["lost"], stats["cancelled"], stats["held"]) == (6, 1007, 1, 0)
    out = so8t("stats", gap)[1]
    assert "\n1007 more requests and decisions were lost" in out and "\n1 requests were cancelled\n" in out


def test_show_chooses_lost_lines_and_tells_what_was_omitted(so8t, gap):
    assert seqs(so8t("show", gap, "--json", "--event", "lost")[1]) == [3, 5]
    assert "12 more verdicts were left out" in so8t("show", gap)[1]


def test_export_has_a_table_of_what_was_lost(so8t, gap, tmp_path):
    db = tmp_path / "log.db"
    assert "2 requests, 0 messages, 5 verdicts, 0 escalations, 2 lost)" in so8t("export", gap, "--sqlite", db)[1]
    hashes = [json.loads(line)["hash"] for line in gap.read_text().splitlines()]
    assert query(db, "SELECT seq, run, lines, hash FROM lost ORDER BY seq") == [
        (3, 1, 1000, hashes[2]), (5, 1, 7, hashes[4]),
    ]  # fmt: skip
    assert query(db, "SELECT seq, cancelled, verdicts_omitted FROM requests ORDER BY seq") == [(2, 0, 0), (4, 1, 12)]


@pytest.mark.parametrize(
    ("event", "fields", "message"),
    [
        ("lost", {}, "field lines: found nothing, expected a whole number"),
        ("lost", {"lines": -1}, "field lines: found -1, expected a whole number from 0 on"),
        ("request", {"cancelled": 1}, "field cancelled: found 1, expected true or false"),
        ("request", {"verdicts_omitted": True}, "field verdicts_omitted: found True, expected a whole number"),
    ],
)
def test_fields_of_lost_and_cancelled_of_the_wrong_type(so8t, path, event, fields, message):
    record = w.request(1, **fields) if event == "request" else (event, fields)
    for command in ("show", "stats"):
        code, _, err = so8t(command, w.write(path, w.chain([w.opening(), record])))
        assert code == 1 and f"{path}:2: {message}" in err


# --- several logs ----------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """Logs of two models, beside files that are none."""
    first = w.write(tmp_path / "audit-first.jsonl", w.chain(records()))
    second = w.write(tmp_path / "audit-org%2Fsecond.jsonl", w.chain(records()[:3]))
    for name in ("audit-first.jsonl.key", "audit-first.jsonl.1", "audit-.jsonl", "audit-.x.jsonl", "audit-a b.jsonl"):
        (tmp_path / name).write_text("no log")
    (tmp_path / "audit-first.jsonl.1").unlink()
    return first, second


def test_a_pattern_is_each_of_its_logs(so8t, tmp_path, two):
    code, out, said = so8t("verify", tmp_path / "audit-{model}.jsonl", "--json")
    assert code == 0 and out.count('"ok": true') == 2
    assert said.splitlines()[:1] == [f"{two[0]}: model first"] and f"{two[1]}: model org/second" in said
    w.write(two[1], [*w.chain(records()[:2]), "hello"])
    assert so8t("verify", tmp_path / "audit-{model}.jsonl")[0] == 1
    assert so8t("verify", two[0])[0] == 0


def test_a_pattern_without_a_log_is_an_error(so8t, tmp_path):
    code, _, said = so8t("stats", tmp_path / "audit-{model}.jsonl")
    assert code == 1 and "no such log" in said


def test_a_pattern_in_a_directory_is_one_name(so8t, tmp_path):
    for directory, name in (("a", "a"), ("a", "b"), ("b", "b")):
        (tmp_path / directory).mkdir(exist_ok=True)
        w.write(tmp_path / directory / f"audit-{name}.jsonl", w.chain(records()))
    _, _, said = so8t("verify", tmp_path / "{model}" / "audit-{model}.jsonl")
    assert [line.rpartition(" ")[2] for line in said.splitlines() if ": model " in line] == ["a", "b"]


def test_the_checkpoint_of_a_pattern_is_a_pattern(so8t, tmp_path, two):
    code, _, said = so8t("verify", tmp_path / "audit-{model}.jsonl", "--checkpoint", tmp_path / "note")
    assert code == 1 and "found no {model} in it" in said
    code, _, said = so8t("verify", tmp_path / "audit-{model}.jsonl", "--checkpoint", tmp_path / "note-{model}")
    assert code == 1 and "note-first" in said


def test_a_database_has_one_log(so8t, tmp_path, two):
    code, _, said = so8t("export", tmp_path / "audit-{model}.jsonl", "--sqlite", tmp_path / "log.db")
    assert code == 1 and "name one FILE" in said and not (tmp_path / "log.db").exists()


def test_several_files_are_read_one_after_the_other(so8t, tmp_path, two):
    code, out, said = so8t("stats", *two, "--json")
    assert code == 0 and out.count('"requests": [') == 2 and said.splitlines() == [f"{path}:" for path in two]
    w.write(two[1], [*w.chain(records()[:2]), "hello"])
    assert so8t("verify", *two)[0] == so8t("verify", *reversed(two))[0] == 1
    code, _, said = so8t("verify", *two, "--checkpoint", tmp_path / "note")
    assert code == 1 and "--checkpoint belongs to one log" in said
