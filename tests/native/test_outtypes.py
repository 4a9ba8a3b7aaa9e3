"""Every outtype in one pass has the types and the bytes that llama-quantize makes of our F32 file."""

import subprocess

import numpy as np
import pytest

from llama_so8t import upstream
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import OUTTYPES, ConvertOptions
from llama_so8t.errors import ConversionError

NEED_IMATRIX = {"iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "q2_k_s"}
"""llama-quantize asks for an importance matrix for these, for some of them because of a few tensors only."""


@pytest.fixture(scope="module")
def model(make_model):
    # 4 layers, so that a mixture differs between them; 96 columns, which K-quants refuse, in ffn_down
    return make_model(
        "qwen3", hidden_size=256, intermediate_size=96, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exact(model, to_gguf):
    return to_gguf(model, "fold")


@pytest.fixture(scope="module")
def imatrix(exact, runtime, tmp_path_factory):
    path = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    text = path.with_suffix(".txt")
    text.write_text("A rotation keeps the length of every vector. " * 120)
    done = subprocess.run(
        [runtime / "llama-imatrix", "-m", exact, "-f", text, "-o", path, "-c", "128", "-b", "128"],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1000:]
    return path


def tensors(path):
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in upstream.gguf.GGUFReader(path).tensors}


def quantized(runtime, exact, out, outtype, *options):
    done = subprocess.run(
        [runtime / "llama-quantize", *map(str, options), exact, out, outtype.upper()],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1000:]
    return tensors(out)


def check(runtime, model, exact, tmp_path, outtype, options, **fields):
    ours = convert(
        ConvertOptions(model=model, outfile=tmp_path / "ours.gguf", outtype=outtype, progress=False, **fields)
    )
    theirs = quantized(runtime, exact, tmp_path / "theirs.gguf", outtype, *options)
    found = tensors(ours)
    assert set(found) == set(theirs)
    for name, (kind, data) in theirs.items():
        assert found[name][0] == kind, name
        assert found[name][1] == data, name
    reader, other = upstream.gguf.GGUFReader(ours), upstream.gguf.GGUFReader(tmp_path / "theirs.gguf")
    assert reader.fields["general.file_type"].contents() == other.fields["general.file_type"].contents()
    return {kind for kind, _ in found.values()}


@pytest.mark.parametrize("outtype", [t for t in OUTTYPES if t not in NEED_IMATRIX])
def test_bytes_are_those_of_llama_quantize(runtime, model, exact, tmp_path, outtype):
    kinds = check(runtime, model, exact, tmp_path, outtype, [])
    if outtype.endswith("_m"):
        assert len(kinds) >= 3, "a mixture has several types"


@pytest.mark.parametrize("outtype", [*sorted(NEED_IMATRIX), "q4_k_m", "iq4_xs", "q8_0"])
def test_an_importance_matrix_is_used_as_llama_quantize_does(runtime, model, exact, imatrix, tmp_path, outtype):
    check(runtime, model, exact, tmp_path, outtype, ["--imatrix", imatrix], imatrix=imatrix)
    if outtype == "q4_k_m":
        plain = convert(ConvertOptions(model=model, outfile=tmp_path / "plain.gguf", outtype=outtype, progress=False))
        assert tensors(plain) != tensors(tmp_path / "ours.gguf")


def test_types_of_single_tensors(runtime, model, exact, tmp_path):
    rule = r"blk\.[0-1]\.ffn_up=q6_k"
    kinds = check(runtime, model, exact, tmp_path, "q4_k_m", ["--tensor-type", rule], tensor_types=(rule,))
    assert "Q6_K" in kinds
    found = tensors(tmp_path / "ours.gguf")
    assert [found[f"blk.{i}.ffn_up.weight"][0] for i in range(4)] == ["Q6_K"] * 2 + ["Q4_K"] * 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"outtype": "iq2_xxs"}, "needs an importance matrix"),
        ({"outtype": "q4_k_m", "tensor_types": ("ffn_up=q99",)}, "llama-quantize refuses"),
        ({"outtype": "q4_k_m", "keep": ("lm_hed",)}, "found 'lm_hed', expected lm_head"),
    ],
)
def test_requests_that_cannot_be_met(model, tmp_path, fields, words):
    with pytest.raises(ConversionError, match=words):
        convert(ConvertOptions(model=model, outfile=tmp_path / "out.gguf", progress=False, **fields))
    assert not list(tmp_path.iterdir())


def test_kept_modules_stay_at_16_bit(model, tmp_path):
    keep = ("lm_head", "safety_head", "model.layers.2.mlp.gate_proj")
    path = convert(
        ConvertOptions(model=model, outfile=tmp_path / "out.gguf", outtype="q4_k_m", keep=keep, progress=False)
    )
    found = tensors(path)
    assert [name for name, (kind, _) in found.items() if kind == "F16"] == [
        "blk.2.ffn_gate.weight",
        "output.weight",
    ]
    assert found["so8t_head.safety.weight"][0] == "F32"


def test_a_matrix_for_another_model_is_refused(model, imatrix, tmp_path, make_model):
    other = make_model("qwen3", hidden_size=64)
    with pytest.raises(ConversionError, match=r"found \d+ importances, expected \d+; it belongs to another model"):
        convert(
            ConvertOptions(model=other, outfile=tmp_path / "o.gguf", outtype="q4_0", imatrix=imatrix, progress=False)
        )
    assert np.isfinite(upstream.gguf.GGUFReader(imatrix).tensors[0].data).all()
