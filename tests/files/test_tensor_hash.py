"""The hash of a model's tensors, against one that is computed from the arrays that were written."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from gguf_files import write_gguf

from llama_so8t.errors import CheckpointError
from llama_so8t.files.tensor_hash import base_sha256, model_sha256

TENSORS = {
    "blk.0.ffn_up.weight": (np.float32, (4, 64)),
    "token_embd.weight": (np.float16, (7, 32)),
    "output_norm.weight": (np.float32, (32,)),
    "Z.scale": (np.float32, (1,)),
    "a.rotation": (np.float32, (1, 1, 8, 8)),
    "\u00e9.weight": (np.int32, (2, 1, 3)),
}


@pytest.fixture
def arrays(rng) -> dict[str, np.ndarray]:
    return {name: rng.integers(0, 100, shape).astype(dtype) for name, (dtype, shape) in TENSORS.items()}


def write(gguf, path: Path, arrays: dict[str, np.ndarray], keys: dict[str, int] | None = None, note: str = "") -> Path:
    kinds = {"split.tensors.count": gguf.GGUFValueType.INT32}
    numbers = {
        key: gguf.GGUFValue(value, kinds.get(key, gguf.GGUFValueType.UINT16)) for key, value in (keys or {}).items()
    }
    return write_gguf(path, keys={"general.name": note} | numbers, tensors=arrays)


def expected(arrays: dict[str, np.ndarray]) -> str:
    """From the arrays themselves; they lie in the file in little endian, the last axis first in ggml's order."""
    types = {"float32": "f32", "float16": "f16", "int32": "i32"}
    digest = hashlib.sha256()
    for raw_name, values in sorted((name.encode(), values) for name, values in arrays.items()):
        shape = list(values.shape[::-1])
        while shape[-1] == 1 and len(shape) > 1:
            del shape[-1]
        digest.update(raw_name + b"\0" + types[str(values.dtype)].encode() + b"\0")
        digest.update(",".join(str(n) for n in shape).encode() + b"\0")
        digest.update(hashlib.sha256(values.tobytes()).digest())
    return digest.hexdigest()


def split(gguf, directory: Path, arrays: dict[str, np.ndarray], count: int = 3) -> list[Path]:
    items = list(arrays.items())
    return [
        write(
            gguf,
            directory / f"m-{i + 1:05}-of-{count:05}.gguf",
            dict(items[i::count]),
            {"split.no": i, "split.count": count, "split.tensors.count": len(items)},
        )
        for i in range(count)
    ]


def test_the_hash_of_a_file_is_that_of_its_arrays(gguf, tmp_path, arrays):
    assert model_sha256(write(gguf, tmp_path / "m.gguf", arrays)) == expected(arrays)


def test_metadata_and_order_in_the_file_do_not_count(gguf, tmp_path, arrays):
    turned = dict(reversed(arrays.items()))
    assert model_sha256(write(gguf, tmp_path / "m.gguf", turned, note="another name")) == expected(arrays)


def test_a_tensor_of_many_chunks(gguf, tmp_path, rng, monkeypatch):
    monkeypatch.setattr("llama_so8t.files.tensor_hash._CHUNK", 1000)
    arrays = {"w": rng.random((100, 99), np.float32)}
    assert model_sha256(write(gguf, tmp_path / "m.gguf", arrays)) == expected(arrays)


def test_heads_and_stems_are_no_part_of_a_base(gguf, tmp_path, arrays):
    more = arrays | {name: np.ones(3, np.float32) for name in ("so8t_head.a.weight", "so8t_stem.s.norm.weight")}
    file = write(gguf, tmp_path / "m.gguf", more)
    assert base_sha256([file]) == expected(arrays) and model_sha256(file) == expected(more)
    arrays |= {"so8t_out_gen.weight": np.ones(3, np.float32), "blk.0.so8t_head.weight": np.ones(3, np.float32)}
    assert base_sha256([write(gguf, file, arrays)]) == expected(arrays)
    first, *others = split(gguf, tmp_path, more)
    assert base_sha256([first]) == base_sha256([*others, first]) == base_sha256([write(gguf, file, more)])


def test_every_byte_counts(gguf, tmp_path, arrays):
    path = write(gguf, tmp_path / "m.gguf", arrays)
    at = gguf.GGUFReader(path).tensors[1].data_offset + 5
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    assert model_sha256(path) != expected(arrays)


def test_quantized_types_by_the_names_of_ggml(gguf, tmp_path, rng):
    raw = rng.integers(0, 255, (3, 144), np.uint8)
    path = write_gguf(tmp_path / "m.gguf", tensors={"w": (raw, "Q4_K")})
    digest = hashlib.sha256(b"w\0q4_k\x00256,3\0" + hashlib.sha256(raw.tobytes()).digest())
    assert model_sha256(path) == digest.hexdigest()


def test_names_of_types_are_those_of_ggml(gguf, pinned_tree):
    source = (pinned_tree / "ggml/src/ggml.c").read_text()
    names = dict(re.findall(r"\[GGML_TYPE_(\w+)\]\s*=\s*\{\s*\.type_name\s*=\s*\"(\w+)\"", source))
    for kind in gguf.GGMLQuantizationType:
        assert names[kind.name].lower() == kind.name.lower()


def test_parts_of_a_split_model(gguf, tmp_path, arrays):
    first, *_ = split(gguf, tmp_path, arrays)
    assert model_sha256(first) == expected(arrays)


def test_parts_that_do_not_fit(gguf, tmp_path, arrays):
    parts = split(gguf, tmp_path, arrays)
    with pytest.raises(CheckpointError, match="expected the first one"):
        model_sha256(parts[1])
    third = parts[2].read_bytes()
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(CheckpointError, match=r"split\.no 1, expected 2"):
        model_sha256(parts[0])
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"00003-of-00003\.gguf: this part of the model is missing"):
        model_sha256(parts[0])
    parts[2].write_bytes(third)
    keys = {"split.no": 1, "split.count": 3, "split.tensors.count": 6}
    write(gguf, parts[1], {"other": np.zeros(3, np.float32)}, keys)
    with pytest.raises(CheckpointError, match=r"5 tensors, but split\.tensors\.count is 6"):
        model_sha256(parts[0])
    write(gguf, parts[1], dict(list(arrays.items())[:2]), keys)
    with pytest.raises(CheckpointError, match="in another part too"):
        model_sha256(parts[0])


def test_a_hostile_file_is_refused(gguf, tmp_path, arrays):
    path = write(gguf, tmp_path / "m.gguf", arrays)
    raw = path.read_bytes()
    for edited in (b"", b"GGUF", raw[:100], raw[:-100], raw[:8] + b"\xff" * 8 + raw[16:]):
        path.write_bytes(edited)
        with pytest.raises(CheckpointError):
            model_sha256(path)
    with pytest.raises(CheckpointError):
        model_sha256(write(gguf, path, arrays, {"general.alignment": 64}))  # not the type that the format says
