"""Verification with the built llama.cpp: logits, quantized types, and the bounds of every type."""

import numpy as np
import pytest

from llama_so8t import folding, kernels, upstream
from llama_so8t.conversion.convert import plan, run
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.verification import verify
from llama_so8t.verification.bounds import BOUNDS, HALF_STEP_F16
from llama_so8t.verification.report import FAILED, OK
from llama_so8t.verification.tensors import of_allowed


@pytest.fixture(scope="module", params=["qwen3", "llama", "qwen2"])
def model(request, make_model):
    """Rows of 256, which k-quants need."""
    shape = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
    head_dim = {} if request.param == "qwen2" else {"head_dim": 32}
    return make_model(request.param, tie_word_embeddings=request.param == "llama", **shape, **head_dim)


@pytest.fixture
def converted(model, tmp_path):
    def convert(outtype, rotations="fold", **options):
        out = tmp_path / f"{outtype}-{rotations}.gguf"
        fields = {"model": model, "outfile": out, "outtype": outtype, "rotations": rotations, "progress": False}
        made = plan(ConvertOptions(**fields | options))
        run(made)
        return made

    return convert


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
@pytest.mark.parametrize("outtype", ["f32", "bf16", "q8_0", "q4_0", "q4_k_m"])
def test_a_correct_file_passes_with_its_logits(converted, outtype, rotations):
    report = verify(converted(outtype, rotations))
    assert report.ok, report.problems
    assert [check.status for check in report.checks] == [OK] * 6
    assert {"f32": "the checkpoint's weights"}.get(outtype, "the weights of the file") in report.checks[-1].detail


@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_a_stock_file_passes_with_its_logits(converted, model, outtype):
    drop = ("qk",) if '"qwen3"' in (model / "config.json").read_text() else ()
    report = verify(converted(outtype, arch="stock", drop_sites=drop))
    assert report.ok and report.checks[-1].status == OK, report.problems


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_a_wrong_fold_shows_in_the_logits_alone(converted, monkeypatch, rotations):
    """Writer and comparison share the folding; the reference model does not."""
    if rotations == "fold":
        monkeypatch.setattr(folding, "fold_step", lambda *arguments: None)
    else:
        monkeypatch.setattr(folding, "rotate_columns", lambda weight, rotation: weight)
    report = verify(converted("f32", rotations))
    assert [check.name for check in report.checks if check.status == FAILED] == ["logits"]
    names = {problem.split(":")[0] for problem in report.problems}
    wrong = ["task", "safety", "authority"] if rotations == "fold" else ["safety", "authority"]
    assert names == {f"logits of {name}" for name in wrong}


@pytest.mark.parametrize("bit", range(8))
def test_one_bit_in_a_k_quant_is_found(converted, bit):
    made = converted("q4_k_m")
    name = "blk.0.ffn_up.weight"
    tensor = next(t for t in upstream.gguf.GGUFReader(made.paths[0]).tensors if t.name == name)
    assert tensor.tensor_type.name == "Q4_K"
    data = bytearray(made.paths[0].read_bytes())
    data[int(tensor.data_offset) + 144 * 5 + 100] ^= 1 << bit  # quants of the sixth block
    made.paths[0].write_bytes(data)
    report = verify(made, logits=False)
    assert [problem.split(":")[0] for problem in report.problems] == [f"tensor {name}"]


# --- bounds ----------------------------------------------------------------------------------

NEED_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")
WITHOUT_IMPORTANCE = ("F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0")
KINDS = [(name, False) for name in BOUNDS if name not in NEED_IMPORTANCE]
KINDS += [(name, True) for name in BOUNDS if name not in WITHOUT_IMPORTANCE]
"""(type, whether with importance)"""


def hard_values(rng):
    """Matrices (32, 512) that are hard to quantize, all within what float16 holds."""

    def normal():
        return rng.normal(size=(32, 512))

    yield from (normal() * scale for scale in (1e-6, 1e-3, 1.0, 1e3))
    yield from (rng.uniform(low, 1, (32, 512)) for low in (-1, 0))
    yield from (normal() + 5, 0.1 * normal() - 5, np.sign(normal()), np.full((32, 512), 0.3), np.zeros((32, 512)))
    yield from (normal() ** 3, np.clip(rng.standard_t(2, size=(32, 512)), -1e4, 1e4), np.exp(2 * normal()))
    yield normal() * (rng.random((32, 512)) < 0.1)
    yield np.eye(32, 512) * 7
    yield normal() * np.repeat(10.0 ** rng.uniform(-4, 0, (32, 16)), 32, axis=1)
    for outlier in (3, 10, 30, 100, 1000):
        values = normal()
        values[rng.random(values.shape) < 1 / 128] *= outlier
        yield values


@pytest.mark.parametrize(("name", "weighted"), KINDS, ids=str)
def test_what_libggml_quantizes_is_within_the_bound(rng, name, weighted):
    gguf = upstream.gguf
    kind = gguf.GGMLQuantizationType[name]
    bound = BOUNDS[name].weighted() if weighted else BOUNDS[name]
    worst = worst_rms = 0.0
    for values in hard_values(rng):
        values = values.astype(np.float32)
        importance = (10 * rng.random(values.shape[1]) ** 4 + 1e-6).astype(np.float32) if weighted else None
        error = np.abs(gguf.dequantize(kernels.quantize(values, kind, importance), kind) - values)
        worst = max(worst, of_allowed(error, values, name, bound).max())
        allowed = bound.rms * np.sqrt(np.mean(values**2)) + bound.levels * HALF_STEP_F16
        worst_rms = max(worst_rms, np.sqrt(np.mean(error**2)) / allowed if error.any() else 0.0)
    assert worst <= 1 and worst_rms <= 1
    if name != "F32" and not weighted:
        assert worst > 0.3 and worst_rms > 0.3, "the bound is too wide to find anything"
