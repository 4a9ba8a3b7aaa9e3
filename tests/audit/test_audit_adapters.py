"""LoRA adapters in a log: with a run, where their scales are changed, and where a request has chosen them."""

import sqlite3
from contextlib import closing

import audit_writer as w
import pytest

from llama_so8t import cli
from llama_so8t.audit import verify

SHA = w.digest("adapter")


def adapter(scale: float, path: str = "/models/a.gguf") -> dict:
    return {"path": path, "sha256": SHA, "scale": scale}


def opened(*adapters: dict) -> tuple[str, dict]:
    event, fields = w.opening()
    return event, fields | {"model": fields["model"] | {"adapters": list(adapters)}}


@pytest.fixture
def log(tmp_path):
    records = [
        opened(adapter(1.0), adapter(0.0, "b\x1b[31m.gguf")),
        w.request(1),
        ("adapters", {"adapters": [adapter(0.5), adapter(0.0, "b")]}),
        w.request(2, lora=[{"id": 1, "scale": -2.5}]),
        ("adapters", {"adapters": [adapter(0), adapter(0, "b")]}),
        ("close", {}),
    ]
    return w.write(tmp_path / "audit.jsonl", w.chain(records))


def run(*args) -> int:
    return cli.main(["audit", *map(str, args)])


def test_verify_notes_each_adapter_that_changes_the_model(log):
    report = verify(log)
    assert report.ok
    noted = [note for note in report.notes if "LoRA" in note]
    assert noted == [
        f"{log}:1 (seq 1): the LoRA adapter /models/a.gguf ({SHA}) is part of the model from here on, scale 1",
        f"{log}:3 (seq 3): the LoRA adapter /models/a.gguf ({SHA}) is part of the model from here on, scale 0.5",
    ]


def test_show_has_all_of_them(log, capsys):
    assert run("show", log) == 0
    shown = capsys.readouterr().out
    assert f"adapter /models/a.gguf  {SHA}, scale 1\n" in shown and "\x1b" not in shown
    assert "adapters chosen by the request: 1 at scale -2.5" in shown
    assert run("show", log, "--event", "adapters") == 0
    only = capsys.readouterr().out
    assert only.count("  adapters\n") == 2 and "scale 0.5" in only and "chatcmpl" not in only


def test_export_has_a_row_for_each_adapter_of_each_line(log, tmp_path, capsys):
    database = tmp_path / "log.db"
    assert run("export", log, "--sqlite", database) == 0
    assert "6 adapters, " in capsys.readouterr().out
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT seq, number, run, path, scale FROM adapters ORDER BY seq, number").fetchall()
        chosen = connection.execute("SELECT seq, lora FROM requests ORDER BY seq").fetchall()
    assert rows[0] == (1, 0, 1, "/models/a.gguf", 1.0) and [row[4] for row in rows] == [1, 0, 0.5, 0, 0, 0]
    assert chosen == [(2, None), (4, "[[1, -2.5]]")]


def test_stats_take_them(log):
    assert run("stats", log) == 0


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"adapters": [{"path": 3, "sha256": SHA, "scale": 1}]}, r"adapters\[0\]\.path"),
        ({"adapters": [adapter("1")]}, r"adapters\[0\]\.scale"),
        ({"adapters": [adapter(10**400)]}, r"adapters\[0\]\.scale"),
        ({"adapters": "all"}, "adapters"),
        ({}, "adapters"),
    ],
)
def test_wrong_fields_are_named_and_no_finding(tmp_path, capsys, fields, field):
    log = w.write(tmp_path / "audit.jsonl", w.chain([w.opening(), ("adapters", fields), ("close", {})]))
    assert verify(log).ok
    assert run("show", log) == 1
    assert f"field {field}".replace("\\", "") in capsys.readouterr().err
