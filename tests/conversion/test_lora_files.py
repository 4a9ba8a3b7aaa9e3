"""`so8t convert --lora` and `--merge-lora`: the files, without a runtime."""

import json

import numpy as np
import pytest
from lora_adapters import apply_lora, write_lora
from safetensors.numpy import load_file

from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.checkpoint.lora import TRAINED_ON
from llama_so8t.cli import main
from llama_so8t.conversion.lora import plan_lora
from llama_so8t.conversion.options import LORA_TRAINED_ON, ConvertOptions
from llama_so8t.errors import CheckpointError, ConversionError
from llama_so8t.files.gguf_file import read_gguf


@pytest.fixture
def model(models):
    return models["llama3-rope-v3.1", "random"]


@pytest.fixture
def lora(model, tmp_path):
    return write_lora(tmp_path / "lora", model, alpha_pattern={"o_proj": 2})


def product(file, name):
    """``alpha / r B A`` as llama.cpp computes it."""
    a, b = (file.tensors[f"{name}.lora_{part}"].read() for part in "ab")
    return file.get("adapter.lora.alpha") / len(a) * (b.astype(np.float64) @ a)


@pytest.mark.parametrize(("arch", "rotations"), [("so8t", "fold"), ("so8t", "explicit"), ("stock", "fold")])
def test_a_product_is_the_difference_of_two_conversions(model, lora, convert_to, tmp_path, rotations, arch, capsys):
    options = ["--arch", arch, "--rotations", rotations]
    assert main(["convert", str(model), "--lora", str(lora), "--outfile", str(tmp_path / "lora.gguf"), *options]) == 0
    file = read_gguf(tmp_path / "lora.gguf")
    assert ("so8t.lora.folded" in file.metadata) == (rotations == "fold")
    before = read_gguf(convert_to(model, rotations=rotations, arch=arch))
    changed = apply_lora(model, lora, tmp_path / "changed")
    after = read_gguf(convert_to(changed, rotations=rotations, arch=arch, name="after.gguf"))
    merged = read_gguf(convert_to(model, rotations=rotations, arch=arch, name="merged.gguf", merge_lora=lora))
    names = {name.rsplit(".", 1)[0] for name in file.tensors}
    assert len(names) == 7 * 2
    for name in before.tensors:
        expected = after.tensors[name].read()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(merged.tensors[name].read(), expected, rtol=0, atol=3e-6 * scale)
        change = product(file, name) if name in names else 0
        np.testing.assert_allclose(before.tensors[name].read() + change, expected, rtol=0, atol=3e-6 * scale)
    said = capsys.readouterr().out
    assert "lora.gguf" in said and "for files with folded: " in said


def test_the_default_name_and_a_dry_run(model, lora, capsys):
    assert main(["convert", str(model), "--lora", str(lora), "--dry-run"]) == 0
    assert "would write" in capsys.readouterr().out
    assert not list(lora.glob("*.gguf"))
    assert main(["convert", str(model), "--lora", str(lora), "--outtype", "f16"]) == 0
    file = read_gguf(lora / "lora-so8t-lora-f16.gguf")
    assert file.get("general.type") == "adapter" and file.get("general.file_type") == 1
    assert {tensor.dtype for tensor in file.tensors.values()} == {"F16"}


def test_what_an_adapter_does_not_have_is_refused(model, lora, tmp_path, capsys):
    for options, message in (
        (["--outtype", "q4_k_m"], "found outtype 'q4_k_m'"),
        (["--keep", "lm_head"], "found --keep, which an adapter does not have"),
        (["--tensor-type", "attn=f16"], "found --tensor-type, which"),
        (["--verify"], "found --verify beside --lora"),
        (["--sidecars", "x"], "found --sidecars beside --lora"),
        (["--outfile", str(tmp_path / "no" / "x.gguf")], "expected a file name in an existing directory"),
    ):
        assert main(["convert", str(model), "--lora", str(lora), *options]) == 1
        assert message in capsys.readouterr().err
    assert not list(lora.glob("*.gguf"))


def test_heads_and_whole_tensors_are_for_merging(model, tmp_path):
    heads = write_lora(tmp_path / "heads", model, ["q_proj", "safety_head"])
    with pytest.raises(ConversionError, match=r"'safety_head\.weight': heads and rotations take no .* --merge-lora"):
        plan_lora(ConvertOptions(model, outtype="f32"), heads)
    from safetensors.numpy import save_file

    whole = write_lora(tmp_path / "whole", model, ["q_proj"])
    file = whole / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.model.norm.weight": np.ones(64, np.float32)}, file)
    with pytest.raises(ConversionError, match=r"'model\.norm\.weight' as a whole, expected A and B only"):
        plan_lora(ConvertOptions(model, outtype="f32"), whole)


def test_a_base_needs_the_stock_architecture(bases, tmp_path):
    lora = write_lora(tmp_path / "lora", bases["tiny-llama"])
    with pytest.raises(ConversionError, match="is no SO8T model"):
        plan_lora(ConvertOptions(bases["tiny-llama"], outtype="f32"), lora)
    planned = plan_lora(ConvertOptions(bases["tiny-llama"], outtype="f32", arch="stock"), lora)
    assert planned.arch == "llama" and not planned.folded
    assert json.loads((lora / "adapter_config.json").read_text())["peft_type"] == "LORA"


@pytest.fixture(scope="module")
def compensated(bases, tmp_path_factory):
    """An SO8T adapter whose rotations leave the function of its base as it was."""
    out = tmp_path_factory.mktemp("compensated") / "adapter"
    base = str(bases["tiny-llama"])
    initialize(InitializeOptions(base, out, rotations="random", seed=3, scale=0.3, compensate=True, adapter=True))
    return out


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_an_adapter_for_the_base_serves_a_compensated_model(bases, compensated, convert_to, tmp_path, rotations):
    """Folding undoes the compensation: what is left is the adapter for the base, as it was."""
    lora = write_lora(tmp_path / "lora", bases["tiny-llama"], alpha_pattern={"o_proj": 2})
    of_base = {"lora_trained_on": "base"}
    planned = plan_lora(ConvertOptions(compensated, outtype="f32", rotations=rotations, **of_base), lora)
    found = {tensor.name: tensor.read() for tensor in planned.shard.tensors}
    changed = apply_lora(bases["tiny-llama"], lora, tmp_path / "changed")
    expected = read_gguf(convert_to(changed, arch="stock", name="changed.gguf"))
    merged = read_gguf(convert_to(compensated, arch="stock", name="merged.gguf", merge_lora=lora, **of_base))
    for name, tensor in expected.tensors.items():
        values = tensor.read()
        np.testing.assert_allclose(merged.tensors[name].read(), values, rtol=0, atol=5e-6 * np.abs(values).max())
    plain = plan_lora(ConvertOptions(bases["tiny-llama"], outtype="f32", arch="stock"), lora)
    same = [tensor.name for tensor in plain.shard.tensors if np.allclose(tensor.read(), found[tensor.name], atol=1e-5)]
    turned = {"blk.0.ffn_gate.weight.lora_a", "blk.1.attn_v.weight.lora_b", "blk.0.attn_output.weight.lora_a"}
    if rotations == "fold":  # rows of q and k stand in another order in a file of arch llama
        assert set(found) - set(same) == {f"blk.{layer}.attn_{x}.weight.lora_b" for layer in (0, 1) for x in "qk"}
    else:
        assert not turned & set(same) and "blk.0.ffn_down.weight.lora_b" in same


def test_what_an_adapter_was_trained_on_is_said_where_both_are_possible(bases, compensated, model, lora, tmp_path):
    on_base = write_lora(tmp_path / "on-base", bases["tiny-llama"])
    with pytest.raises(CheckpointError, match="say --lora-trained-on model or --lora-trained-on base"):
        plan_lora(ConvertOptions(compensated, outtype="f32"), on_base)
    assert plan_lora(ConvertOptions(compensated, outtype="f32", lora_trained_on="model"), on_base).folded
    with pytest.raises(CheckpointError, match="fits an SO8T adapter that is compensated"):
        plan_lora(ConvertOptions(model, outtype="f32", lora_trained_on="base"), lora)
    assert LORA_TRAINED_ON == TRAINED_ON
