"""Checkpoint, reference model and folded weights compute one function."""

import shutil

import numpy as np
import pytest
from bases import BASES
from properties import assert_same_function
from required import package

from llama_so8t import folding
from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.checkpoint.names import layer_tensor

torch = package("torch")

NAMES = ["Tiny-Qwen3-0.1M-Instruct", "llama3-rope-v3.1", "odd-qwen2-yarn"]
TOKENS = torch.arange(2, 40)[None]


@pytest.fixture
def load(models):
    """Loads a directory with the model class that its config.json names, in float32."""
    package("llama_so8t.hf")
    from transformers import AutoModelForCausalLM

    return lambda directory: AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_config_loads_and_zero_rotations_are_the_base(load, bases, models, name):
    model = load(models[name, "zero"])
    assert type(model).__name__ == "SO8TTransformerForCausalLM"
    assert model.config.base_model_type == BASES[name]["family"]
    expected = load(bases[name])(TOKENS).logits
    assert_same_function(model(TOKENS).logits, expected, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_folded_weights_compute_what_the_graph_computes(load, bases, models, name):
    directory = models[name, "random"]
    checkpoint, model = open_checkpoint(directory), load(directory)
    expected = model(TOKENS).logits
    assert (expected - load(bases[name])(TOKENS).logits).abs().max() > 0.1
    sites = folding.foldable_sites(checkpoint.spec)
    state = {}
    for tensor in checkpoint.tensor_names():
        values, found = np.array(checkpoint.load(tensor)), layer_tensor(tensor)
        if found and folding.is_rotated(found[1]):
            values = folding.fold(found[1], values, checkpoint.layer_rotations(found[0]), sites)
        if ".so8t." in tensor and not (tensor.endswith(".qk") and "qk" not in sites):
            values = np.zeros_like(values)
        state[tensor] = torch.from_numpy(values)
    model.load_state_dict(state, strict=False)
    assert_same_function(model(TOKENS).logits, expected, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_compensated_model_computes_the_base(load, bases, tmp_path, name):
    out = tmp_path / "compensated"
    initialize(InitializeOptions(str(bases[name]), out, rotations="random", scale=0.5, compensate=True))
    expected = load(bases[name])(TOKENS).logits
    assert_same_function(load(out)(TOKENS).logits, expected, 1e-4)


def test_a_model_saved_by_transformers_converts_to_the_same_file(load, models, tmp_path, convert_to):
    source = models["Tiny-Qwen3-0.1M-Instruct", "random"]
    saved = tmp_path / source.name
    load(source).save_pretrained(saved)
    for file in source.iterdir():
        if not (saved / file.name).exists() or file.name == "generation_config.json":
            shutil.copyfile(file, saved / file.name)
    assert convert_to(saved, name="saved.gguf").read_bytes() == convert_to(source, name="source.gguf").read_bytes()


@torch.no_grad()
def test_a_gguf_base_becomes_a_model_of_transformers(load, bases, upstream_files, tmp_path, monkeypatch):
    monkeypatch.setattr("llama_so8t.checkpoint.vocabulary.write_tokenizer", lambda directory: [])
    name = "tiny-llama"
    initialize(InitializeOptions(str(upstream_files[name, "f32"]), tmp_path / "model"))
    expected = load(bases[name])(TOKENS).logits
    assert_same_function(load(tmp_path / "model")(TOKENS).logits, expected, 1e-5)
