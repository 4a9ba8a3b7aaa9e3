"""Heads put into copies of models and taken out again, on files of upstream's converter and of our own."""

import re
import subprocess
import sys
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from tiny_models import make_base

from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.conversion.convert import convert, heads_file
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.errors import So8tError
from llama_so8t.files.gguf_file import read_gguf
from llama_so8t.files.tensor_hash import model_sha256
from llama_so8t.format import Keys
from llama_so8t.heads_file import attach, detach
from llama_so8t.inspection import inspect, render

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def stock(tmp_path_factory, pinned_tree):
    """A llama file without SO8T, as `so8t convert` writes it, beside a heads file."""
    root = tmp_path_factory.mktemp("stock")
    base = make_base(root / "base", "llama")
    model = initialize(InitializeOptions(str(base), root / "model", rotations="random", seed=2, scale=0.3))
    out = root / "stock.gguf"
    convert(ConvertOptions(model=root / "model", outfile=out, outtype="q8_0", arch="stock", progress=False))
    assert model is None or model
    return out


@pytest.fixture
def heads(stock):
    return heads_file(stock)


def test_what_is_attached_is_detached_to_the_byte(stock, heads, tmp_path):
    full, again, taken = tmp_path / "full.gguf", tmp_path / "again.gguf", tmp_path / "taken.gguf"
    assert attach(stock, [heads], full) == ("safety", "authority")
    subject = inspect(full).subject
    assert [head.spec.name for head in subject.heads] == ["safety", "authority"]
    assert subject.architecture == "llama"
    assert detach(full, again, taken) == ("safety", "authority")
    assert again.read_bytes() == stock.read_bytes()
    assert read_gguf(heads).get(Keys.BASE_SHA256) == read_gguf(taken).get(Keys.BASE_SHA256) == model_sha256(stock)
    attach(stock, [taken], tmp_path / "once-more.gguf")
    assert (tmp_path / "once-more.gguf").read_bytes() == full.read_bytes()


def test_everything_else_is_as_it_was(stock, heads, tmp_path, gguf):
    full = tmp_path / "full.gguf"
    attach(stock, [heads], full)
    old, new = gguf.GGUFReader(stock), gguf.GGUFReader(full)
    assert new.tensors[0].name.startswith("so8t_head.")  # what belongs to no layer stands first
    kept = {t.name: (t.tensor_type, t.data.tobytes()) for t in new.tensors if not t.name.startswith("so8t_")}
    assert kept == {t.name: (t.tensor_type, t.data.tobytes()) for t in old.tensors}
    metadata = read_gguf(full).metadata
    added = {Keys.FORMAT_VERSION, Keys.HEADS} | {key for key in metadata if key.startswith(Keys.HEAD_PREFIX)}
    assert {key: value for key, value in metadata.items() if key not in added} == read_gguf(stock).metadata


def renamed(heads, path, names, keys=None, tensors=None):
    """A copy of a heads file whose heads have other names."""
    from llama_so8t.upstream import gguf

    old = read_gguf(heads)
    new_keys = {key: None for key in old.metadata if key.startswith(Keys.HEAD_PREFIX)}
    new_tensors = {}
    for before, after in names.items():
        for key, value in old.metadata.items():
            if key.startswith(f"{Keys.HEAD_PREFIX}{before}."):
                new_keys[key.replace(before, after, 1)] = value.for_writer()
        for tensor in gguf.GGUFReader(heads).tensors:
            if tensor.name.startswith(f"so8t_head.{before}."):
                new_tensors[tensor.name] = None
                new_tensors[tensor.name.replace(before, after, 1)] = np.array(tensor.data)
    new_keys[Keys.HEADS] = gguf.GGUFValue(list(names.values()), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
    return gguf_files.copy_gguf(heads, path, new_keys | (keys or {}), new_tensors | (tensors or {}))


def test_several_files_give_their_heads_in_order(stock, heads, tmp_path):
    other = renamed(heads, tmp_path / "other.gguf", {"safety": "tone", "authority": "topic"})
    full = tmp_path / "full.gguf"
    assert attach(stock, [other, heads], full) == ("tone", "topic", "safety", "authority")
    assert read_gguf(full).get(Keys.HEADS) == ["tone", "topic", "safety", "authority"]
    more = tmp_path / "more.gguf"
    third = renamed(heads, tmp_path / "third.gguf", {"safety": "a", "authority": "b"})
    assert attach(full, [third], more) == ("a", "b")
    assert [head.spec.name for head in inspect(more).subject.heads] == [
        "tone",
        "topic",
        "safety",
        "authority",
        "a",
        "b",
    ]


@pytest.mark.parametrize(("version", "family"), [(1, "qwen3"), (2, "llama")])
def test_heads_of_each_version_go_into_a_file_of_version_2(tmp_path, pinned_tree, version, family):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "head_dim": 8, "tie_word_embeddings": True}
    base = make_base(tmp_path / "base", family, **sizes)
    stock = tmp_path / "stock.gguf"
    convert(ConvertOptions(model=base, outfile=stock, outtype="f32", arch="stock", progress=False))
    heads = GOLDEN / f"format-{version}.heads.gguf"
    old = {head.spec.name: head.spec for head in inspect(GOLDEN / f"format-{version}.gguf").subject.heads}
    assert attach(stock, [heads], tmp_path / "full.gguf") == tuple(old) and len(old) == 4
    report = inspect(tmp_path / "full.gguf")
    assert {head.spec.name: head.spec for head in report.subject.heads} == old
    assert read_gguf(tmp_path / "full.gguf").get(Keys.FORMAT_VERSION) == 2 and not report.problems


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (Keys.BASE_ARCHITECTURE, "qwen3", "belong to a base with so8t.base_architecture 'qwen3', .* has 'llama'"),
        ("so8t.embedding_length", 72, "so8t.embedding_length 72, .* has 64"),
        ("so8t.block_count", 3, "so8t.block_count 3, .* has 2"),
        (Keys.BASE_SHA256, "0" * 64, "whose tensors have the hash 0000"),
        ("general.type", "model", "is no heads file"),
        (Keys.FORMAT_VERSION, 3, "this program reads 1 to 2"),
        (Keys.HEADS, None, "so8t.heads is missing"),
        ("so8t.head.safety.rule", "majority", "found rule 'majority'"),
        ("so8t.head.safety.labels", None, "so8t.head.safety.labels is missing"),
    ],
)
def test_another_base_is_refused_with_what_differs(stock, heads, tmp_path, key, value, words):
    other = gguf_files.copy_gguf(heads, tmp_path / "other.gguf", {key: value})
    out = tmp_path / "out.gguf"
    with pytest.raises(So8tError, match=words) as error:
        attach(stock, [other], out)
    assert "\n" not in str(error.value) and not out.exists()


def test_what_cannot_be_put_together_is_refused(stock, heads, tmp_path):
    full, out = tmp_path / "full.gguf", tmp_path / "out.gguf"
    attach(stock, [heads], full)
    for model, files, words in (
        (full, [heads], "head 'safety' is there already"),
        (stock, [heads, heads], "head 'safety' is there already"),
        (heads, [heads], "is a heads file, expected a model"),
        (stock, [stock], "is no heads file"),
    ):
        with pytest.raises(So8tError, match=words):
            attach(model, files, out)
    with pytest.raises(So8tError, match="found no heads"):
        detach(stock, out)
    assert not out.exists()


def test_rotations_of_version_1_get_no_heads_of_version_2(tmp_path):
    """The copy would say version 2, in which the generators of a layer are one tensor."""
    out = tmp_path / "out.gguf"
    with pytest.raises(So8tError, match=r"format-1.gguf: is of format version 1, .* convert its checkpoint again"):
        attach(GOLDEN / "format-1.gguf", [GOLDEN / "format-1.heads.gguf"], out)
    assert not out.exists()
    bare, taken = tmp_path / "bare.gguf", tmp_path / "taken.gguf"
    assert len(detach(GOLDEN / "format-1.gguf", bare, taken)) == 4
    for path, kept in ((bare, "so8t_out_gen.weight"), (taken, "so8t_head.safety.weight")):
        file = read_gguf(path)
        assert file.get(Keys.FORMAT_VERSION) == 1 and kept in file.tensors
    assert not inspect(bare).problems


def test_the_commands_say_what_they_wrote(stock, heads, tmp_path):
    full, bare = tmp_path / "full.gguf", tmp_path / "bare.gguf"

    def so8t(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "llama_so8t", *map(str, arguments)], capture_output=True, text=True, check=False
        )

    assert so8t("attach", stock, heads, "--out", full).stdout == f"wrote {full} with the heads safety, authority\n"
    done = so8t("detach", full, "--out", bare, "--heads", tmp_path / "taken.heads.gguf")
    assert done.stdout == f"wrote {bare} without the heads safety, authority\n"
    refused = so8t("attach", full, heads, "--out", full)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "is there already" in refused.stderr


def test_a_heads_file_is_shown_with_the_hash_of_its_base(stock, heads):
    report = inspect(heads)
    assert not report.problems and report.to_dict()["base_sha256"] == model_sha256(stock)
    assert f"tensors of the base: {model_sha256(stock)}\n" in render(report)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({Keys.BASE_SHA256: "latest"}, "so8t.base_sha256 is 'latest', expected 64 hex digits"),
        ({Keys.BASE_SHA256: 7}, "so8t.base_sha256 is 7"),
        ({"so8t.embedding_length": 0}, "so8t.embedding_length 0"),
        ({"so8t.embedding_length": 72}, "weight has shape"),
        ({Keys.HEADS: None}, "is a heads file without heads|unknown|does not name"),
        ({"so8t.head.safety.mood": "good"}, "unknown key 'so8t.head.safety.mood'"),
    ],
)
def test_a_spoiled_heads_file_is_told(heads, tmp_path, keys, words):
    if keys.get(Keys.BASE_SHA256) == 7:
        keys = {Keys.BASE_SHA256: gguf_value(7)}
    file = gguf_files.copy_gguf(heads, tmp_path / "spoiled.gguf", keys)
    try:
        found = " ".join(inspect(file).problems)
    except So8tError as error:
        found = str(error)
    assert re.search(words, found)


def gguf_value(number):
    from llama_so8t.upstream import gguf

    return gguf.GGUFValue(number, gguf.GGUFValueType.UINT32)
