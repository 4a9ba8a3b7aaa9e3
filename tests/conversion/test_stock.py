"""Stock files: upstream's own file of the base, byte by byte, when nothing turns; heads beside it."""

import numpy as np
import pytest
from bases import BASES

from llama_so8t import upstream
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.errors import ConversionError
from llama_so8t.files.gguf_file import read_gguf


def stock(model, outfile, **fields):
    return convert(
        ConvertOptions(model=model, outfile=outfile, arch="stock", progress=False, **{"outtype": "f32"} | fields)
    )


@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
@pytest.mark.parametrize("name", BASES)
def test_without_rotations_it_is_the_file_that_upstream_writes(models, upstream_files, tmp_path, name, outtype):
    ours = upstream.gguf.GGUFReader(stock(models[name, "zero"], tmp_path / "out.gguf", outtype=outtype))
    theirs = upstream.gguf.GGUFReader(upstream_files[name, outtype])
    expected = {tensor.name: tensor for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == set(expected)
    for tensor in ours.tensors:
        assert tensor.tensor_type == expected[tensor.name].tensor_type, tensor.name
        assert tensor.data.tobytes() == expected[tensor.name].data.tobytes(), tensor.name

    def keys(reader):
        # the name of an SO8T model is its own
        skipped = ("name", "basename", "finetune", "version", "size_label")
        skipped = ("GGUF.", *(f"general.{key}" for key in skipped))
        return {k: f.contents() for k, f in reader.fields.items() if not k.startswith(skipped)}

    assert keys(ours) == keys(theirs)


def test_heads_are_in_a_file_of_their_own(models, tmp_path):
    stock(models["tiny-llama", "zero"], tmp_path / "out.gguf")
    heads = read_gguf(tmp_path / "out.heads.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf", "out.heads.gguf"]
    assert heads.get("general.type") == "heads"
    assert heads.get("so8t.heads") == ["safety", "authority"]
    assert heads.get("so8t.embedding_length") == 64
    model = models["tiny-llama", "zero"]
    whole = read_gguf(
        convert(ConvertOptions(model=model, outfile=tmp_path / "so8t.gguf", outtype="f32", progress=False))
    )
    assert set(heads.tensors) == {name for name in whole.tensors if name.startswith(("so8t_head", "so8t_out"))}
    for name, tensor in heads.tensors.items():
        np.testing.assert_array_equal(tensor.read(), whole.tensors[name].read())
    for key in heads.metadata:
        if key.startswith("so8t.head."):
            assert heads.get(key) == whole.get(key)


def test_a_rotation_that_cannot_be_folded_is_named_and_can_be_dropped(models, tmp_path):
    model = models["Tiny-Qwen3-0.1M-Instruct", "random"]
    with pytest.raises(ConversionError, match=r"site qk cannot be folded.*so8t.qk' is not zero; .*--drop-sites qk"):
        stock(model, tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())
    stock(model, tmp_path / "out.gguf", drop_sites=("qk",))
    assert not [name for name in read_gguf(tmp_path / "out.gguf").tensors if "so8t" in name]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"drop_sites": ("gate",)}, "'gate' among the sites to drop, expected one that cannot be folded: qk"),
        ({"drop_sites": ("nose",)}, "'nose' among the sites to drop"),
        ({"arch": "so8t", "drop_sites": ("qk",)}, "only a stock file can drop sites"),
        ({"rotations": "explicit"}, "rotations 'explicit', but a stock file has them folded"),
        ({"arch": "gpt"}, "found arch 'gpt', expected one of so8t, stock"),
    ],
)
def test_requests_that_contradict_themselves(models, tmp_path, fields, words):
    model = models["Tiny-Qwen3-0.1M-Instruct", "random"]
    with pytest.raises(ConversionError, match=words):
        convert(ConvertOptions(model=model, outfile=tmp_path / "o.gguf", progress=False, **{"arch": "stock"} | fields))


def test_rows_of_the_llama_architecture_are_interleaved_after_folding(models, tmp_path):
    """q of a stock llama file is the folded q of the so8t file in upstream's row order."""
    model = models["tiny-llama", "random"]
    so8t = read_gguf(convert(ConvertOptions(model=model, outfile=tmp_path / "a.gguf", outtype="f32", progress=False)))
    plain = read_gguf(stock(model, tmp_path / "b.gguf"))
    q, n_head = so8t.tensors["blk.1.attn_q.weight"].read(), 8
    half = q.shape[0] // n_head // 2
    for head in range(n_head):
        rows = q[head * 2 * half : (head + 1) * 2 * half]
        found = plain.tensors["blk.1.attn_q.weight"].read()[head * 2 * half : (head + 1) * 2 * half]
        np.testing.assert_array_equal(found[0::2], rows[:half])
        np.testing.assert_array_equal(found[1::2], rows[half:])


def test_a_base_without_so8t_can_be_written_too(bases, upstream_files, tmp_path):
    ours = upstream.gguf.GGUFReader(stock(bases["tiny-llama"], tmp_path / "out.gguf"))
    theirs = upstream.gguf.GGUFReader(upstream_files["tiny-llama", "f32"])
    assert {t.name: t.data.tobytes() for t in ours.tensors} == {t.name: t.data.tobytes() for t in theirs.tensors}
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
