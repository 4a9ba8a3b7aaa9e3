"""GGUF files against gguf-py, cut files, and headers that lie."""

import struct

import numpy as np
import pytest
from gguf_files import write_gguf

from llama_so8t.errors import CheckpointError
from llama_so8t.files.gguf_file import read_gguf


@pytest.fixture
def write(gguf, tmp_path):
    """Writes a file with one value of every kind and ``more`` keys."""

    def make(more=None):
        kinds = gguf.GGUFValueType
        whole = ("UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64")
        keys = {f"number.{kind.lower()}": gguf.GGUFValue(7, kinds[kind]) for kind in whole}
        keys |= {
            "number.float32": 0.1,
            "number.float64": gguf.GGUFValue(0.1, kinds.FLOAT64),
            "flag": True,
            "text": "na\u00efve",
            "texts": ["a", "", "\u6771"],
            "numbers": [1, -2, 3],
            "bytes": gguf.GGUFValue([b"\xff\xfe", b"ok"], kinds.ARRAY, kinds.STRING),
        }
        rng = np.random.default_rng(0)
        tensors = {"f32": rng.normal(size=(3, 64)).astype(np.float32)}
        for kind in ("F16", "BF16", "Q8_0", "Q4_1"):
            tensors[kind.lower()] = rng.normal(size=(3, 64)).astype(np.float32), kind
        return write_gguf(tmp_path / "file.gguf", "llama", keys | (more or {}), tensors)

    return make


def test_keys_and_tensors_are_those_of_gguf_py(gguf, write):
    path = write()
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    for key, field in theirs.fields.items():
        if key.startswith("GGUF.") or key == "bytes":
            continue
        assert ours.get(key) == field.contents(), key
        assert ours.metadata[key].type == field.types[0]
    assert ours.metadata["bytes"].value == [b"\xff\xfe", b"ok"]
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.shape == (3, 64)
        assert found.dtype == tensor.tensor_type.name
        np.testing.assert_array_equal(found.read(), gguf.dequantize(tensor.data, tensor.tensor_type))


def test_a_copied_key_is_the_same_bytes(gguf, write, tmp_path):
    file = read_gguf(write())
    keys = {key: value.for_writer() for key, value in file.metadata.items() if key != "general.architecture"}
    whole = file.path.read_bytes()
    copied = write_gguf(tmp_path / "copy.gguf", "llama", keys).read_bytes()[24:].rstrip(b"\0")
    assert len(copied) > 500 and copied in whole


def test_a_file_cut_anywhere_is_refused(write):
    path = write()
    whole = path.read_bytes()
    assert len(whole) > 2000
    for length in [*range(0, len(whole) - 32, 13), len(whole) - 33]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            read_gguf(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"GGML", "no GGUF magic"),
        (4, struct.pack("<I", 1), "GGUF version 1"),
        (4, struct.pack(">I", 3), "GGUF version 50331648"),
        (8, struct.pack("<Q", 2**40), "tensors and"),
        (16, struct.pack("<Q", 2**40), "keys, expected at most"),
        (24, struct.pack("<Q", 2**62), "truncated"),
        (32, b"\xff", "key that is not UTF-8"),
    ],
)
def test_a_header_that_lies_is_refused(write, offset, value, message):
    path = write()
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(value)] = value
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        read_gguf(path)


def test_a_tensor_type_that_is_unknown_is_refused(gguf, write):
    path = write()
    raw = bytearray(path.read_bytes())
    info = raw.index(b"q8_0") + 4 + 4 + 16
    raw[info : info + 4] = struct.pack("<I", 9999)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"'q8_0'.*9999"):
        read_gguf(path)


def test_a_row_that_does_not_fit_its_blocks_is_refused(write):
    path = write()
    raw = bytearray(path.read_bytes())
    dims = raw.index(b"q8_0") + 4 + 4
    raw[dims : dims + 8] = struct.pack("<Q", 63)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"'q8_0'.*rows of 63"):
        read_gguf(path)


@pytest.mark.parametrize("alignment", [0, 3, 48])
def test_a_strange_alignment_is_refused(write, alignment):
    path = write({"general.alignment": alignment})
    with pytest.raises(CheckpointError, match=r"general\.alignment"):
        read_gguf(path)


def test_names_appear_once(write):
    path = write()
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"number.uint16", b"number.uint32"))
    with pytest.raises(CheckpointError, match=r"'number.uint32' appears twice"):
        read_gguf(path)
    path.write_bytes(raw.replace(b"q4_1", b"q8_0"))
    with pytest.raises(CheckpointError, match="'q8_0' appears twice"):
        read_gguf(path)


def test_a_string_longer_than_the_file_ends_the_reading_at_once(write):
    path = write()
    raw = bytearray(path.read_bytes())
    string = raw.index(struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 0))
    raw[string : string + 8] = struct.pack("<Q", 2**40)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"expected {string + 8 + 2**40} or more"):
        read_gguf(path)


@pytest.mark.parametrize("shape", [(0, 32), (3, 0), (0,)])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_tensor_without_values_is_read(gguf, tmp_path, shape, kind):
    path = write_gguf(tmp_path / "file.gguf", "llama", tensors={"empty": np.zeros(shape, np.float32)})
    raw = bytearray(path.read_bytes())
    at = raw.index(b"empty") + 5 + 4 + 8 * len(shape)
    raw[at : at + 4] = struct.pack("<I", gguf.GGMLQuantizationType[kind])
    path.write_bytes(raw)
    (tensor,) = read_gguf(path).tensors.values()
    assert tensor.read().shape == tensor.shape == shape
