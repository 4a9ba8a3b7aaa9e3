"""Qwen3Guard-Stream through the patched llama.cpp, against transformers' Qwen3Model and the original formula."""

import json

import numpy as np
import pytest
from guard_models import CATEGORIES, RISKS, guard_config, guard_tensors
from properties import assert_same_function
from tiny_models import make_base

from llama_so8t.bindings import Session
from llama_so8t.bindings.session import F32

from .conftest import MARGIN, scale_weights, tokens_for

WIDTH = 64
HEADS = {
    "query_category": ("query_", "query_category_head", [*CATEGORIES, "Jailbreak"]),
    "query_risk": ("query_", "query_risk_level_head", RISKS),
    "response_category": ("", "category_head", CATEGORIES),
    "response_risk": ("", "risk_level_head", RISKS),
}
"""Head -> prefix of its path, its matrix, its labels."""


def make_guard(directory, inner, dtype):
    """A random guard model as transformers saves its base, heads in the same dtype."""
    import torch
    from safetensors.torch import load_file, save_file

    make_base(directory, "qwen3", hidden_size=WIDTH, tie_word_embeddings=True)
    scale_weights(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(guard_config(config, inner) | {"dtype": dtype}))
    heads = guard_tensors(np.random.default_rng(inner), WIDTH, inner)
    tensors = load_file(directory / "model.safetensors") | {k: torch.from_numpy(v) for k, v in heads.items()}
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def original(directory, tokens):
    """Risk and category logits as the original computes them: Qwen3Model, then two small classifiers."""
    import torch
    from safetensors.torch import load_file as load_torch
    from transformers import Qwen3Model

    net = Qwen3Model.from_pretrained(directory, dtype=torch.float32).eval()
    tensors = {name: tensor.float() for name, tensor in load_torch(directory / "model.safetensors").items()}
    with torch.no_grad():
        h = net(torch.tensor([tokens])).last_hidden_state[0]
        result = {}
        for name, (prefix, matrix, _) in HEADS.items():
            x = h @ tensors[f"{prefix}risk_level_category_pre.weight"].T
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + net.config.rms_norm_eps)
            x = x * tensors[f"{prefix}risk_level_category_layernorm.weight"]
            result[name] = (x @ tensors[f"{matrix}.weight"].T).numpy()
    return result


def softmax(values):
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.fixture(scope="module", params=[(24, "float32"), (512, "float32"), (24, "bfloat16")], ids=str)
def guard(request, tmp_path_factory):
    inner, dtype = request.param
    return make_guard(tmp_path_factory.mktemp("guard") / "tiny-guard", inner, dtype)


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_every_position_has_risk_and_category_of_the_original(guard, to_gguf, rotations):
    tokens = tokens_for(guard, 33)
    expected = original(guard, tokens)
    with Session(to_gguf(guard, rotations), type_k=F32, type_v=F32, flash_attn=False) as session:
        assert {head.name: list(head.labels) for head in session.heads} == {
            name: labels for name, (_, _, labels) in HEADS.items()
        }
        session.decode(tokens)
        check(session, expected, slice(None))
        session.forget()
        for position, token in enumerate(tokens):
            session.decode([token], position=position)
            check(session, expected, slice(position, position + 1))


def check(session, expected, rows):
    for name, values in expected.items():
        found = session.head_logits(name)
        assert_same_function({name: found}, {name: values[rows]}, MARGIN, np.abs(values).max())
        assert_same_function({name: softmax(found)}, {name: softmax(values[rows])}, MARGIN)
        assert np.array_equal(found.argmax(-1), values[rows].argmax(-1))


def test_the_positions_of_the_random_model_differ(guard):
    """Otherwise the comparison could not see a row in the wrong place."""
    for name, values in original(guard, tokens_for(guard, 33)).items():
        assert (np.ptp(values, axis=0) > 1e-2 * np.abs(values).max()).all(), name
