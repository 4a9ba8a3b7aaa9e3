"""Files and directories appear complete or not at all."""

import os
import signal

import pytest

from llama_so8t.files.atomic import new_directory, new_file


def test_a_file_appears_at_the_end(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with new_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(tmp_path, signal_number):
    before = signal.getsignal(signal.SIGTERM)
    for manager in (new_file, new_directory):
        with pytest.raises(KeyboardInterrupt), manager(tmp_path / "out") as temporary:
            (temporary if manager is new_file else temporary / "x").write_text("half")
            os.kill(os.getpid(), signal_number)
        assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_keeps_the_old_directory(tmp_path):
    out = tmp_path / "out"
    with new_directory(out) as temporary:
        (temporary / "x").write_text("old")
    with pytest.raises(RuntimeError), new_directory(out) as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert (out / "x").read_text() == "old"
    with new_directory(out) as temporary:
        (temporary / "y").write_text("new")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == ["y"]


def test_the_working_directory_can_be_named_by_a_dot(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    from pathlib import Path

    with new_directory(Path(".")) as temporary:
        (temporary / "x").write_text("new")
    assert os.listdir(tmp_path) == ["here"]
    assert os.listdir(tmp_path / "here") == ["x"]
