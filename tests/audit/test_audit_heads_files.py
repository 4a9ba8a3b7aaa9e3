"""Heads files in a log: with each run that judges by them."""

import sqlite3
from contextlib import closing

import audit_writer as w
import pytest

from llama_so8t import cli
from llama_so8t.audit import verify

FILES = [{"path": "/models/a.heads.gguf", "sha256": w.digest("a")}, {"path": "b\x1b[31m", "sha256": w.digest("b")}]


def opened(files: object) -> tuple[str, dict]:
    event, fields = w.opening()
    return event, fields | {"model": fields["model"] | {"heads_files": files}}


@pytest.fixture
def log(tmp_path):
    records = [opened(FILES), w.request(1), ("close", {}), w.opening(), w.request(2), ("close", {})]
    return w.write(tmp_path / "audit.jsonl", w.chain(records))


def run(*args) -> int:
    return cli.main(["audit", *map(str, args)])


def test_verify_notes_each_of_them(log):
    report = verify(log)
    assert report.ok
    assert [note for note in report.notes if "heads of the file" in note] == [
        f"{log}:1 (seq 1): the heads of the file {file['path']} ({file['sha256']}) judge from here on" for file in FILES
    ]


def test_show_and_export_have_them(log, tmp_path, capsys):
    assert run("show", log) == 0
    shown = capsys.readouterr().out
    assert f"heads file /models/a.heads.gguf  {w.digest('a')}\n" in shown and "\x1b" not in shown
    assert shown.count("heads file") == 2
    assert run("export", log, "--sqlite", tmp_path / "log.db") == 0
    assert "2 heads_files, " in capsys.readouterr().out
    with closing(sqlite3.connect(tmp_path / "log.db")) as connection:
        rows = connection.execute("SELECT run, number, path, sha256 FROM heads_files ORDER BY run, number").fetchall()
    assert rows == [(1, i, file["path"], file["sha256"]) for i, file in enumerate(FILES)]
    assert run("stats", log) == 0


def test_show_says_what_heads_read(tmp_path, capsys):
    event, fields = w.opening()
    heads = {"safety": {"form": "mlp", "taps": [1, -1], "rule": "argmax", "depends_on": None, "link": "\x1b"}}
    log = w.write(tmp_path / "audit.jsonl", w.chain([(event, fields | {"model": fields["model"] | {"heads": heads}})]))
    assert run("show", log) == 0
    shown = capsys.readouterr().out
    assert 'head safety  form "mlp", taps [1, -1], link "\\u001b", rule "argmax"\n' in shown
    for wrong in ("all", {"safety": 3}):
        w.write(log, w.chain([(event, fields | {"model": fields["model"] | {"heads": wrong}})]))
        assert run("show", log) == 1 and "field model.heads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "field"),
    [
        ([{"path": 3, "sha256": "0"}], "heads_files[0].path"),
        ([{"path": "a"}], "heads_files[0].sha256"),
        ("all", "heads_files"),
    ],
)
def test_wrong_fields_are_named_and_no_finding(tmp_path, capsys, files, field):
    log = w.write(tmp_path / "audit.jsonl", w.chain([opened(files), ("close", {})]))
    assert verify(log).ok
    assert run("show", log) == 1
    assert f"field model.{field}" in capsys.readouterr().err
