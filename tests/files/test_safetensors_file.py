"""Safetensors files, good and hostile: every refusal names file and tensor."""

import json

import numpy as np
import pytest
from required import package
from tiny_models import stored

from llama_so8t.errors import CheckpointError
from llama_so8t.files import safetensors_file, safetensors_writer


def raw_file(path, header, data=b"", header_bytes=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if header_bytes is None else header_bytes).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_values_survive_in_every_float_type(tmp_path):
    values = np.array([[1.0, -2.5, 0.0], [1e-3, 3.0, -0.0]], np.float32)
    for dtype in ("F32", "F16", "BF16"):
        tensor = stored("w", values.copy(), dtype)
        safetensors_writer.write_file(tmp_path / dtype, [tensor])
        found = safetensors_file.read_file(tmp_path / dtype)["w"]
        assert (found.dtype, found.shape) == (dtype, (2, 3))
        expected = values.astype(np.float16).astype(np.float32) if dtype == "F16" else tensor.read()
        assert found.read().tobytes() == expected.tobytes()
    doubles = raw_file(tmp_path / "F64", {"w": entry("F64", (1,), (0, 8))}, np.float64(0.1).tobytes())
    assert safetensors_file.read_file(doubles)["w"].read()[0] == np.float32(0.1)


def test_the_library_reads_what_we_write_and_we_read_what_it_writes(tmp_path, rng):
    library = package("safetensors.numpy")
    values = {"b": rng.normal(size=(3, 5)).astype(np.float32), "a": np.zeros((0, 4), np.float32)}
    library.save_file(values, tmp_path / "theirs")
    safetensors_writer.write_file(tmp_path / "ours", [stored(name, array) for name, array in values.items()])
    theirs, ours = safetensors_file.read_file(tmp_path / "theirs"), library.load_file(tmp_path / "ours")
    for name, array in values.items():
        np.testing.assert_array_equal(theirs[name].read(), array)
        np.testing.assert_array_equal(ours[name], array)


GOOD = {"a": entry(), "b": entry(offsets=(8, 16))}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(offsets=(0, 8)), "b": entry(offsets=(4, 12))}, 12, "'b'.*overlaps 'a'"),
        ({"a": entry(offsets=(0, 8)), "b": entry(offsets=(12, 20))}, 20, "'b'.*no holes"),
        ({"a": entry(offsets=(0, 800))}, 8, "'a'.*inside 8 bytes"),
        ({"a": entry(offsets=(8, 0))}, 8, "'a'.*inside 8 bytes"),
        ({"a": entry(offsets=(0, -8))}, 8, "'a'.*data_offsets"),
        ({"a": entry(offsets=(0, 8, 16))}, 8, "'a'.*data_offsets"),
        ({"a": entry(shape=(3,))}, 8, r"'a'.*found 8 bytes, expected 12 for F32 \[3\]"),
        ({"a": entry(shape=(2, 2**62))}, 8, "'a'.*found 8 bytes"),
        ({"a": entry(shape=(-2,))}, 8, "'a'.*shape"),
        ({"a": entry(shape=(True, 2))}, 8, "'a'.*shape"),
        ({"a": entry(dtype="F13")}, 8, "'a'.*F13"),
        ({"a": entry(dtype=["F32"])}, 8, r"'a'.*found dtype \['F32'\]"),
        ({"a": entry(dtype={})}, 8, "'a'.*found dtype {}"),
        ({"a": entry(shape=[0] * 100, offsets=(0, 0))}, 0, "'a'.*found 100 dimensions, expected at most 32"),
        (b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', 8, "half of a surrogate pair"),
        ({"a": entry() | {"evil": 1}}, 8, "'a'.*expected dtype, shape and data_offsets"),
        ({"a": 7}, 8, "'a'.*expected dtype"),
        (GOOD, 24, "24 bytes of data, expected 16"),
        (GOOD, 12, "'b'.*inside 12 bytes"),
        (b"[1, 2]", 0, "JSON list, expected an object"),
        (b'{"a": ', 0, "is not valid JSON"),
        (b"\xff\xfe", 0, "is not valid JSON"),
        (b"[" * 100_000, 0, "is not valid JSON"),
        (b'{"a": 1, "a": 2}', 0, "'a' appears twice"),
    ],
)
def test_a_bad_header_is_refused(tmp_path, header, data, message):
    path = raw_file(tmp_path / "bad.safetensors", header, bytes(data))
    with pytest.raises(CheckpointError, match=message) as caught:
        safetensors_file.read_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [0, 7, 2**63, 101_000_000])
def test_a_header_longer_than_the_file_is_refused(tmp_path, length):
    path = tmp_path / "short.safetensors"
    path.write_bytes(length.to_bytes(8, "little")[: 4 if length == 7 else 8] + b"{}"[: 2 if length > 7 else 0])
    with pytest.raises(CheckpointError, match=r"truncated or of another kind|JSON"):
        safetensors_file.read_file(path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "whole"
    safetensors_writer.write_file(path, [stored("a", np.ones((2, 3), np.float32)), stored("b", np.ones(4, np.float32))])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            safetensors_file.read_file(path)


def test_integers_are_refused_when_read(tmp_path):
    path = raw_file(tmp_path / "i", {"ids": entry("I64", (1,), (0, 8))}, bytes(8))
    tensor = safetensors_file.read_file(path)["ids"]
    with pytest.raises(CheckpointError, match=r"'ids'.*found dtype I64"):
        tensor.read()


def sharded(tmp_path, n=3):
    tensors = [stored(f"t{i}", np.full((4,), i, np.float32)) for i in range(n)]
    safetensors_writer.write_sharded(tmp_path, tensors, max_bytes=16)
    return json.loads((tmp_path / "model.safetensors.index.json").read_text())


def test_shards_are_read_as_one(tmp_path):
    index = sharded(tmp_path)
    assert set(index["weight_map"].values()) == {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert index["metadata"]["total_size"] == 48
    tensors = safetensors_file.read_sharded(tmp_path)
    assert [tensors[f"t{i}"].read()[0] for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../secret.safetensors", "plain file name"),
        ("/etc/secret.safetensors", "plain file name"),
        ("sub/secret.safetensors", "plain file name"),
        ("..\\secret.safetensors", "plain file name"),
        (".hidden.safetensors", "plain file name"),
        ("weights.bin", "plain file name"),
        ("model-00009-of-00003.safetensors", "is missing"),
        ("model-00001-of-00003.safetensors", "'t1' is in .* but not in the shard|the index says"),
        (7, "weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, shard, message):
    index = sharded(tmp_path)
    (tmp_path.parent / "secret.safetensors").write_bytes(b"x")
    index["weight_map"]["t1"] = shard
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        safetensors_file.read_sharded(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    index = sharded(tmp_path, 2)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(
        (tmp_path / "model-00001-of-00002.safetensors").read_bytes()
    )
    index["weight_map"]["t1"] = "model-00002-of-00002.safetensors"
    with pytest.raises(CheckpointError, match="earlier shard"):
        safetensors_file.read_sharded(tmp_path)
