"""Where gguf and conversion come from, in processes of their own because modules are loaded once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama_so8t import upstream
from llama_so8t.errors import So8tError

REPOSITORY = Path(__file__).parents[2]


def python(code, tree, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"LLAMA_CPP_SOURCE": str(tree)} | environment,
    )


def test_gguf_is_the_one_of_the_tree_and_needs_no_torch(pinned_tree):
    code = """
import sys
path = list(sys.path)
from llama_so8t import upstream
print(upstream.gguf.__file__)
print(sys.path == path, "torch" in sys.modules, "transformers" in sys.modules, "conversion" in sys.modules)
"""
    done = python(code, pinned_tree)
    assert done.stdout.split() == [str(pinned_tree / "gguf-py/gguf/__init__.py"), "True", *["False"] * 3], done.stderr


def test_another_gguf_is_not_mixed_in(pinned_tree, tmp_path):
    (tmp_path / "gguf.py").write_text("")
    code = "import gguf\nfrom llama_so8t import upstream\nupstream.gguf"
    done = python(code, pinned_tree, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert "module 'gguf' is already imported from" in message
    assert str(tmp_path / "gguf.py") in message
    assert str(pinned_tree) in message


def test_a_wrong_variable_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMA_CPP_SOURCE", str(tmp_path))
    with pytest.raises(So8tError, match=r"LLAMA_CPP_SOURCE=.*found no gguf-py/gguf/__init__.py"):
        upstream.source()


def test_a_missing_tree_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.delenv("LLAMA_CPP_SOURCE", raising=False)
    monkeypatch.setattr(upstream, "_BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(upstream, "_BUILT", tmp_path / "built")
    with pytest.raises(So8tError, match="run `make source`, or set LLAMA_CPP_SOURCE"):
        upstream.source()


def test_the_search_goes_from_variable_to_wheel_to_clone(monkeypatch, tmp_path):
    trees = [tmp_path / name for name in ("variable", "bundled", "built")]
    for tree in trees:
        for part in upstream._PARTS:
            (tree / part).parent.mkdir(parents=True)
            (tree / part).write_text("")
    monkeypatch.setattr(upstream, "_BUNDLED", trees[1])
    monkeypatch.setattr(upstream, "_BUILT", trees[2])
    monkeypatch.setenv("LLAMA_CPP_SOURCE", str(trees[0]))
    assert upstream.source() == trees[0]
    monkeypatch.delenv("LLAMA_CPP_SOURCE")
    assert upstream.source() == trees[1]
    (trees[1] / "conversion" / "__init__.py").unlink()  # half a copy is none
    assert upstream.source() == trees[2]


def test_a_tree_that_cannot_be_imported_says_so(tmp_path, pinned_tree):
    for part in upstream._PARTS:
        (tmp_path / part).parent.mkdir(parents=True)
        (tmp_path / part).write_text("import no_such_module")
    code = """
import sys
from llama_so8t import upstream
from llama_so8t.errors import So8tError
for _ in range(2):
    try:
        upstream.gguf
    except So8tError as error:
        print(error)
print("gguf" in sys.modules)
"""
    lines = python(code, tmp_path).stdout.splitlines()
    assert len(lines) == 3
    assert lines[0] == lines[1]
    assert "cannot be imported: No module named 'no_such_module'; install" in lines[0]
    assert lines[2] == "False"
