"""Heads put into a copy of a model stay behind when the copy is quantized, and come out of it again."""

import subprocess

import numpy as np
import pytest

from llama_so8t.bindings import Session
from llama_so8t.conversion.convert import convert, heads_file
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.files.gguf_file import read_gguf
from llama_so8t.files.tensor_hash import model_sha256
from llama_so8t.format import Keys
from llama_so8t.heads_file import attach, detach

from .conftest import MARGIN


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("llama", hidden_size=256, intermediate_size=256, head_dim=32)


@pytest.fixture(scope="module")
def stock(model, tmp_path_factory):
    """The model as a plain llama, beside its heads file."""
    out = tmp_path_factory.mktemp("stock") / "stock.gguf"
    convert(ConvertOptions(model=model, outfile=out, outtype="f16", arch="stock", progress=False))
    return out


@pytest.fixture
def quantize(runtime, tmp_path):
    def run(source, outtype):
        out = tmp_path / f"{source.stem}-{outtype}.gguf"
        subprocess.run([runtime / "llama-quantize", source, out, outtype], check=True, capture_output=True)
        return out

    return run


@pytest.mark.parametrize("outtype", ["Q8_0", "Q4_K_M", "Q4_0"])
def test_a_quantized_copy_is_detached_to_the_bytes_of_the_quantized_model(stock, quantize, tmp_path, outtype):
    full = tmp_path / "full.gguf"
    attach(stock, [heads_file(stock)], full)
    quantized, bare, taken = quantize(full, outtype), tmp_path / "bare.gguf", tmp_path / "taken.gguf"
    assert detach(quantized, bare, taken) == ("safety", "authority")
    plain = quantize(stock, outtype)
    assert bare.read_bytes() == plain.read_bytes()

    old, new = read_gguf(heads_file(stock)), read_gguf(taken)
    assert new.get(Keys.BASE_SHA256) == model_sha256(plain) != model_sha256(stock)
    of_heads = [key for key in old.metadata if key.startswith(Keys.HEAD_PREFIX) or key == Keys.HEADS]
    assert len(of_heads) > 20 and {key: old.metadata[key] for key in of_heads} == {
        key: value for key, value in new.metadata.items() if key in of_heads
    }
    weights = {name: tensor.read() for name, tensor in old.tensors.items() if name != "so8t_out_gen.weight"}
    assert set(weights) == set(new.tensors)
    for name, values in weights.items():
        np.testing.assert_array_equal(new.tensors[name].read(), values)

    again = tmp_path / "again.gguf"
    attach(plain, [taken], again)
    tokens = list(range(3, 20))
    with Session(quantized) as one, Session(again) as other:
        for session in (one, other):
            session.decode(tokens)
        np.testing.assert_array_equal(other.logits(), one.logits())
        for head in ("safety", "authority"):
            found, expected = other.head_logits(head), one.head_logits(head)
            assert np.abs(found - expected).max() <= MARGIN * np.abs(expected).max()


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_a_quantized_model_with_rotations_keeps_them_and_gives_its_heads(model, to_gguf, quantize, tmp_path, rotations):
    source = to_gguf(model, rotations, "f32")
    bare, taken = tmp_path / "bare.gguf", tmp_path / "taken.gguf"
    quantized = quantize(source, "Q8_0")
    assert detach(quantized, bare, taken) == ("safety", "authority")
    without = tmp_path / "without.gguf"
    detach(source, without)
    assert bare.read_bytes() == quantize(without, "Q8_0").read_bytes()
    with Session(quantized) as one, Session(bare, heads=[taken]) as other:
        for session in (one, other):
            session.decode([5, 6, 7])
        np.testing.assert_array_equal(other.logits(), one.logits())
        np.testing.assert_array_equal(other.head_logits("safety"), one.head_logits("safety"))
