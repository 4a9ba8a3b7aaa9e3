"""The patched llama.cpp against the PyTorch reference, on random models of many shapes, at float32."""

import numpy as np
import pytest
from properties import assert_same_function

from llama_so8t.bindings import Session
from llama_so8t.bindings.session import F32

from .conftest import MARGIN, reference, tokens_for

SHAPES = {
    # family, shape; head counts that are no multiple of 8 or 3, GQA, MQA, tied, one rotation for all blocks
    "qwen3-gqa": ("qwen3", {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}),
    "qwen3-13-heads": ("qwen3", {"num_attention_heads": 13, "num_key_value_heads": 13, "head_dim": 64}),
    "qwen3-head-128": (
        "qwen3",
        {"num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 128, "tie_word_embeddings": True},
    ),
    "llama-9-heads": (
        "llama",
        {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64},
    ),
    "llama-17-heads-tied-shared": (
        "llama",
        {
            "hidden_size": 136,
            "num_attention_heads": 17,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "tie_word_embeddings": True,
            "shared_blocks": True,
        },
    ),
    "llama-head-128": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 128}),
    "qwen2-bias": ("qwen2", {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}),
    "qwen2-tied-shared": (
        "qwen2",
        {
            "hidden_size": 640,
            "num_attention_heads": 10,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "shared_blocks": True,
        },
    ),
}


@pytest.fixture(scope="module", params=SHAPES)
def model(request, make_model):
    family, fields = SHAPES[request.param]
    return make_model(family, **fields)


@pytest.fixture(scope="module")
def expected(model):
    return reference(model, tokens_for(model, 33))


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_prefill_equals_the_reference(model, expected, to_gguf, rotations):
    with Session(to_gguf(model, rotations), type_k=F32, type_v=F32, flash_attn=False) as session:
        session.decode(tokens_for(model, 33))
        check(session, expected, slice(None))


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_token_by_token_equals_the_reference(model, expected, to_gguf, rotations):
    with Session(to_gguf(model, rotations), type_k=F32, type_v=F32, flash_attn=False) as session:
        for position, token in enumerate(tokens_for(model, 33)):
            session.decode([token], position=position)
            check(session, expected, slice(position, position + 1))


def check(session, expected, rows):
    found = {"task": session.logits(), **{head.name: session.head_logits(head.name) for head in session.heads}}
    wanted = {name: values[rows] for name, values in expected.items()}
    assert list(wanted) == ["task", "safety", "authority"]
    assert_same_function(found, wanted, MARGIN, np.abs(expected["task"]).max())
    assert np.array_equal(found["task"].argmax(-1), wanted["task"].argmax(-1))


@pytest.mark.parametrize("generator", ["gate_safe", "gate_cmd", "qk", "v", "heads", "ffn"])
def test_every_site_shows_in_the_logits(make_model, to_gguf, generator):
    """A runtime that lost a site would still agree with itself: each one must matter by far more than the margin."""
    from safetensors.numpy import load_file, save_file

    model = make_model("llama", hidden_size=72, num_attention_heads=9, num_key_value_heads=3, head_dim=64, seed=3)
    with Session(to_gguf(model), type_k=F32, type_v=F32, flash_attn=False) as session:
        session.decode(tokens_for(model, 17))
        full = session.logits()

    file = model / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith(f"so8t.{generator}"):
            tensors[name] = np.zeros_like(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})
    with Session(to_gguf(model, "explicit"), type_k=F32, type_v=F32, flash_attn=False) as session:
        session.decode(tokens_for(model, 17))
        without = session.logits()
    assert np.abs(full - without).max() > 100 * MARGIN * np.abs(full).max()
