"""What a base file can do in llama.cpp, an SO8T file with rotations in the graph can do too."""

import ctypes
import json
import shutil

import numpy as np
import pytest
from gguf_files import write_gguf
from properties import assert_same_function

from llama_so8t.bindings import Session
from llama_so8t.bindings.library import library_directory
from llama_so8t.bindings.session import F16, F32, Q8_0

from .conftest import MARGIN, reference, tokens_for

N = 40


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("qwen3", num_attention_heads=9, num_key_value_heads=3, head_dim=64)


@pytest.fixture(scope="module", params=["fold", "explicit"])
def file(request, model, to_gguf):
    return to_gguf(model, request.param)


@pytest.fixture(scope="module")
def plain(file, model):
    """Values of one prefill with a float32 cache and no flash attention."""
    return values(file, tokens_for(model, N))


def open_session(file, **options):
    return Session(file, **{"type_k": F32, "type_v": F32, "flash_attn": False} | options)


def read(session):
    return {"task": session.logits(), **{head.name: session.head_logits(head.name) for head in session.heads}}


def values(file, tokens, **options):
    with open_session(file, **options) as session:
        session.decode(tokens)
        return read(session)


def assert_same(found, expected, margin):
    """Each within its own scale: logits are larger than head values."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_same_function({name: found[name]}, {name: value}, margin, np.abs(value).max())


@pytest.mark.parametrize(
    ("options", "margin"),
    [
        ({"flash_attn": True}, 2e-3),  # half precision inside
        ({"type_k": F16, "type_v": F16}, 2e-3),
        ({"flash_attn": True, "type_k": Q8_0, "type_v": Q8_0}, 5e-2),
        ({"n_ubatch": 7}, 2e-5),
        ({"n_threads": 1}, 2e-5),
    ],
    ids=["flash-attention", "f16-cache", "q8-cache", "small-ubatch", "one-thread"],
)
def test_context_options_give_the_same_values(file, model, plain, options, margin):
    assert_same(values(file, tokens_for(model, N), **options), plain, margin)


def fast_rotations():
    """Rotations that ggml-cpu computed with its own kernel, and those it fused, since the program began."""
    library = ctypes.CDLL(str(library_directory() / "libggml-cpu.so"))
    counts = ctypes.c_int64(), ctypes.c_int64()
    library.ggml_so8t_cpu_counts(*map(ctypes.byref, counts))
    return np.array([count.value for count in counts])


@pytest.mark.parametrize("flash_attn", [False, True])
@pytest.mark.parametrize("n_tokens", [1, N])
def test_every_rotation_takes_the_fast_path(file, model, request, flash_attn, n_tokens):
    # gate twice, q, k, v, heads and ffn; heads are mixed in one pass. Norms of q and k keep qk from being folded.
    per_layer = {"fold": [2, 0], "explicit": [7, 1]}[request.node.callspec.params["file"]]
    n_layer = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    with open_session(file, flash_attn=flash_attn) as session:
        before = fast_rotations()
        session.decode(tokens_for(model, n_tokens))
        assert (fast_rotations() - before).tolist() == [n_layer * n for n in per_layer]


def test_parallel_sequences_do_not_mix(file, model):
    first, second = tokens_for(model, 12, seed=5), tokens_for(model, 12, seed=6)
    alone = [values(file, first), values(file, second)]
    mixed = [token for pair in zip(first, second, strict=True) for token in pair]
    with open_session(file, n_seq_max=2) as session:
        session.decode(mixed, positions=[i // 2 for i in range(24)], sequence=[0, 1] * 12)
        together = read(session)
    for sequence in (0, 1):
        assert_same({name: v[sequence::2] for name, v in together.items()}, alone[sequence], 2e-5)


def test_state_goes_on_where_it_was_saved(file, model, plain):
    tokens = tokens_for(model, N)
    with open_session(file) as session:
        session.decode(tokens[:20])
        state = session.save_state()
    with open_session(file) as session:
        session.load_state(state)
        session.decode(tokens[20:], position=20)
        assert_same(read(session), {name: v[20:] for name, v in plain.items()}, 2e-5)


def test_context_shift_keeps_working(file, model):
    """After the shift, every layer still sees the old keys and values: the same in fold and explicit."""
    tokens = tokens_for(model, N)
    with open_session(file) as session:
        session.decode(tokens[:30])
        session.forget(start=4, stop=14, shift=-10)
        session.decode(tokens[30:], position=20)
        shifted = read(session)
    with open_session(file) as session:
        session.decode(tokens[:30])
        session.forget(start=4, stop=14, shift=-10)
        for offset, token in enumerate(tokens[30:]):
            session.decode([token], position=20 + offset)
        last = read(session)
    assert_same({name: v[-1:] for name, v in shifted.items()}, last, 2e-5)


def test_embedding_mode_has_head_values_for_every_token(file, model, plain):
    with open_session(file, embeddings=True) as session:
        session.decode(tokens_for(model, N))
        assert_same(read(session), plain, 2e-5)
        assert session.embeddings().shape == (N, session.n_embd)
        assert np.isfinite(session.embeddings()).all()


def test_heads_read_the_hidden_state_that_embedding_mode_shows(model, file):
    """Head value = W R f + b with the stored checkpoint weights and the file's own final hidden state f."""
    from safetensors.numpy import load_file

    from llama_so8t import algebra

    tensors = load_file(model / "model.safetensors")
    with open_session(file, embeddings=True) as session:
        session.decode(tokens_for(model, N))
        hidden = session.embeddings().astype(np.float64)
        for name, representation in (("safety", 1), ("authority", 2)):
            rotations = algebra.rotation(tensors["so8t.out"], representation)
            turned = algebra.rotate_blocks(hidden, rotations)
            expected = turned @ tensors[f"{name}_head.weight"].T + tensors[f"{name}_head.bias"]
            assert np.abs(session.head_logits(name) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_lora_applies_to_the_projections(file, model, tmp_path, plain):
    """A LoRA on o_proj changes the logits as the same change of the weights does."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"  # stands next to no site: the same weight in fold and explicit
    rng = np.random.default_rng(0)
    b = rng.normal(0, 0.3, (tensors[name].shape[0], 4)).astype(np.float32)
    a = rng.normal(0, 0.3, (4, tensors[name].shape[1])).astype(np.float32)
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0}
    deltas = {"blk.0.ffn_down.weight.lora_a": a, "blk.0.ffn_down.weight.lora_b": b}
    lora = write_gguf(tmp_path / "lora.gguf", keys=keys, tensors=deltas)
    changed = shutil.copytree(model, tmp_path / "changed")
    tensors[name] = tensors[name] + b @ a
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    expected = reference(changed, tokens_for(model, N))
    assert np.abs(expected["task"] - plain["task"]).max() > 1e-2 * np.abs(plain["task"]).max()
    with open_session(file) as session:
        session.apply_lora(lora)
        session.decode(tokens_for(model, N))
        assert_same_function(read(session), expected, MARGIN, np.abs(expected["task"]).max())
