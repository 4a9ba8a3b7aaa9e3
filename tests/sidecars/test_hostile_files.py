"""Sidecar files that lie, are damaged, or carry code: refused by name, before memory or code is spent on them."""

import io
import json
import pickle
import shutil
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from llama_so8t.errors import So8tError
from llama_so8t.sidecars.loading import load_sidecars

NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def files(sidecars, tmp_path):
    """A copy of good files, to be spoiled."""
    return shutil.copytree(sidecars["qwen3"], tmp_path / "files")


def npy(array, **options):
    raw = io.BytesIO()
    np.lib.format.write_array(raw, array, **options)
    return raw.getvalue()


def rewrite(files, replace):
    """Writes the archive anew with members replaced (name -> bytes), added, or left out (None)."""
    path = files / "model_tensors_8bit.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | replace
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def assert_refused(files, *words):
    with pytest.raises(So8tError) as error:
        load_sidecars(files)
    assert all(word in str(error.value) for word in (str(files), *words)), str(error.value)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_a_pickled_array_is_refused_and_not_run(files, tmp_path):
    marker = tmp_path / "ran"
    rewrite(files, {f"{NORM}.npy": npy(np.array([Payload(marker)] * 64), allow_pickle=True)})
    assert_refused(files, NORM, "object", "expected int8")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists(), "the payload would not have shown"


def good():
    return np.zeros(64, np.int8)


@pytest.mark.parametrize(
    "replace, words",
    [
        ({f"{NORM}.npy": None}, [NORM, "missing"]),
        ({"../evil.npy": npy(good())}, ["'../evil.npy'"]),
        ({"/model.norm.weight.npy": npy(good())}, ["'/model.norm.weight.npy'"]),
        ({"run.sh": b"#!/bin/sh"}, ["'run.sh'"]),
        ({f"{NORM}.npy": npy(np.zeros(72, np.int8))}, [NORM, "[72]", "[64]"]),
        ({f"{NORM}.npy": npy(np.zeros(64, np.float32))}, [NORM, "float32", "int8"]),
        ({f"{NORM}.npy": npy(np.zeros(64, np.uint8))}, [NORM, "uint8", "int8"]),
        ({f"{NORM}.npy": npy(np.zeros((8, 8), np.int8))}, [NORM, "[8, 8]", "[64]"]),
        ({f"{GATE}.npy": npy(np.zeros((96, 64), np.int8, order="F"))}, [GATE, "Fortran order"]),
        ({f"{NORM}.npy": npy(np.zeros(0, np.int8))}, [NORM, "shape [0]"]),
        ({f"{NORM}.npy": npy(good()) + b"x"}, [NORM, "193 bytes", "192"]),
        ({f"{NORM}.npy": npy(good())[:-1]}, [NORM, "191 bytes", "192"]),
        ({f"{NORM}.npy": b"\x93NUMPY\x03\x00" + npy(good())[8:]}, [NORM, "version (3, 0)"]),
        ({f"{NORM}.npy": npy(good()).replace(b"(64,), }", b"(-64,),}")}, [NORM, "-64"]),
        ({f"{NORM}.npy": npy(good()).replace(b"(64,), }", b"([64],)}")}, [NORM, "no array of numpy"]),
        ({f"{NORM}.npy": npy(good()).replace(b"'shape'", b"9**99.0")}, [NORM, "no array of numpy"]),
        ({f"{NORM}.npy": b""}, [NORM, "no array of numpy"]),
        ({f"{NORM}.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535}, [NORM, "no array of numpy"]),
    ],
)
def test_a_wrong_member_is_refused(files, replace, words):
    rewrite(files, replace)
    assert_refused(files, *words)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_appears_twice_is_refused(files):
    with zipfile.ZipFile(files / "model_tensors_8bit.npz", "a") as archive:
        archive.writestr(f"{NORM}.npy", npy(good()))
    assert_refused(files, NORM, "twice")


def test_a_bomb_is_refused_before_it_unfolds(files):
    n = 1 << 28
    hidden = json.loads((files / "model_metadata.json").read_text())["hidden_size"]
    member = io.BytesIO()
    shape = (n // hidden, hidden)
    np.lib.format.write_array_header_1_0(member, {"descr": "|i1", "fortran_order": False, "shape": shape})
    path = files / "model_tensors_8bit.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(f"{EMBEDDING}.npy", "w") as file:
            file.write(member.getvalue())
            for _ in range(n >> 22):
                file.write(bytes(1 << 22))
    assert path.stat().st_size < n / 500
    # the rest of the set agrees: a model of a huge vocabulary
    edit(files / "model_metadata.json", lambda c: c.update(vocab_size=n // hidden))
    tracemalloc.start()
    assert_refused(files, EMBEDDING, "do not shrink that much")
    assert tracemalloc.get_traced_memory()[1] < n / 10
    tracemalloc.stop()


def test_metadata_that_ask_for_a_huge_model_are_refused_by_the_weights(files):
    edit(files / "model_metadata.json", lambda c: c.update(intermediate_size=1 << 40))
    assert_refused(files, "mlp.gate_proj.weight", "[96, 64]")


@pytest.mark.parametrize("where", ["member", "directory"])
def test_a_size_that_does_not_hold_is_refused(files, where):
    path = files / "model_tensors_8bit.npz"
    raw = bytearray(path.read_bytes())
    if where == "directory":  # uncompressed size of the first entry
        struct.pack_into("<I", raw, raw.index(b"PK\x01\x02") + 24, 100)
    else:  # data of the first member
        raw[200] ^= 0xFF
    path.write_bytes(raw)
    assert_refused(files, "model.embed_tokens.weight")


def test_a_member_that_is_shorter_than_its_size_is_refused(files):
    name = f"{GATE}.npy"
    rewrite(files, {name: npy(np.zeros((96, 64), np.int8))[:-1]})
    path = files / "model_tensors_8bit.npz"
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(name.encode()) - 46  # in the directory at the end
    struct.pack_into("<I", raw, entry + 24, struct.unpack_from("<I", raw, entry + 24)[0] + 1)
    path.write_bytes(raw)
    assert_refused(files, GATE, "another size")


@pytest.mark.parametrize("keep", [0, 3, 1000, -10])
def test_a_cut_archive_is_refused(files, keep):
    path = files / "model_tensors_8bit.npz"
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(files, "not a readable npz file")


def test_an_encrypted_member_is_refused(files):
    path = files / "model_tensors_8bit.npz"
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    assert_refused(files, "encrypted")


@pytest.mark.parametrize("name", ["model_metadata.json", "quantization_info.json", "model_tensors_8bit.npz"])
def test_a_missing_file_is_refused(files, name):
    (files / name).unlink()
    assert_refused(files, name, "no such file")


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), 1e38, "1", None, True])
def test_a_scale_that_is_no_scale_is_refused(files, scale):
    edit(files / "quantization_info.json", lambda c: c[NORM].update(scale=scale))
    assert_refused(files, NORM, "scale")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c[NORM].update(quantization_type="Q8_0"), [NORM, "'Q8_0'", "'int8_per_tensor'"]),
        (lambda c: c[NORM].update(zero_point=3), [NORM, "zero_point 3"]),
        (lambda c: c.update({NORM: [1.0]}), [NORM]),
        (lambda c: c.pop(NORM), [NORM]),
        (lambda c: c.update({"other": c[NORM]}), ["'other'"]),
    ],
)
def test_scales_that_do_not_fit_are_refused(files, change, words):
    edit(files / "quantization_info.json", change)
    assert_refused(files, *words)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c.pop("rope_theta"), ["'rope_theta'"]),
        (lambda c: c.update(auto_map={"AutoModel": "evil.Model"}), ["'auto_map'"]),
        (lambda c: c.update(model_type="qwen3_so8t_transformer"), ["'qwen3_so8t_transformer'", "'so8t'"]),
        (lambda c: c.update(num_hidden_layers=10**15), ["num_hidden_layers"]),
        (lambda c: c.update(num_attention_heads=10**15), ["num_attention_heads"]),
        (lambda c: c.update(num_hidden_layers=3), ["model.layers.2", "missing"]),
        (lambda c: c.update(hidden_act="run"), ["'run'"]),
        (lambda c: c.update(rms_norm_eps="1e-6"), ["rms_norm_eps"]),
    ],
)
def test_metadata_that_do_not_fit_are_refused(files, change, words):
    edit(files / "model_metadata.json", change)
    with pytest.raises(So8tError) as error:
        load_sidecars(files)
    assert all(word in str(error.value) for word in words), str(error.value)
