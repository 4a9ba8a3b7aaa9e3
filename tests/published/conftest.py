"""Tiny models in the published layouts, as upstream's scripts save them."""

import json

import pytest
from required import package
from tiny_models import base_config, make_base

torch = package("torch")
transformers = package("transformers")


@pytest.fixture
def make_model(tmp_path):
    """Factory: a tiny base model of transformers, in float32."""
    package("sentencepiece")

    def make(family="qwen3", **fields):
        made = make_base(tmp_path / f"base-{family}-{len(list(tmp_path.iterdir()))}", family, **fields)
        return transformers.AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).eval()

    return make


@pytest.fixture
def save(tmp_path):
    """Writes the raw state dict of a model with a config.json, as a directory."""
    from safetensors.torch import save_file

    def write(tensors, family="qwen3", name="model", **fields):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(base_config(family, **fields)))
        if not isinstance(tensors, dict):
            tensors = tensors.state_dict()
            if fields.get("tie_word_embeddings"):
                tensors.pop("lm_head.weight", None)
        save_file({key: value.clone().contiguous() for key, value in tensors.items()}, directory / "model.safetensors")
        return directory

    return write


@pytest.fixture
def theta():
    """Factory: random gate parameters (blocks, 8, 8)."""

    def make(blocks, scale=0.3, seed=0):
        return torch.randn(blocks, 8, 8, generator=torch.Generator().manual_seed(seed)) * scale

    return make
