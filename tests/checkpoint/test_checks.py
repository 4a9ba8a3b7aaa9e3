"""Directories whose tensors are not those of their configuration."""

import json

import numpy as np
import pytest
from tiny_models import stored, write_base

from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.errors import CheckpointError, ConfigError
from llama_so8t.files import safetensors_writer
from llama_so8t.files.finite import finite

STEM_HEADS = {
    "risk": {
        "labels": ["a", "b", "c"], "actions": ["allow"] * 3, "thresholds": [0.5] * 3,
        "activation": "rmsnorm", "stem": "response",
    },
    "tone": {
        "labels": ["x", "y"], "actions": ["allow"] * 2, "thresholds": [0.5] * 2, "activation": "gelu", "stem": "t",
    },
}  # fmt: skip


@pytest.fixture
def model(tmp_path):
    """An SO8T checkpoint; ``model(edit)`` rewrites its tensors (a dict) and opens it."""
    write_base(tmp_path / "base", "llama")
    initialize(InitializeOptions(base=str(tmp_path / "base"), out=tmp_path / "model"))
    tensors = dict(open_checkpoint(tmp_path / "model").tensors)

    def rewrite(edit=lambda tensors: None, **fields):
        copy = dict(tensors)
        edit(copy)
        directory = tmp_path / "copy"
        directory.mkdir(exist_ok=True)
        config = json.loads((tmp_path / "model" / "config.json").read_text()) | fields
        (directory / "config.json").write_text(json.dumps(config))
        safetensors_writer.write_file(directory / "model.safetensors", list(copy.values()))
        return open_checkpoint(directory)

    return rewrite


def put(name, *shape):
    return lambda tensors: tensors.update({name: stored(name, np.ones(shape, np.float32))})


def test_the_untouched_model_opens(model):
    assert model().tensor_names()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.layers.1.so8t.ffn"), r"'model.layers.1.so8t.ffn' is missing"),
        (lambda t: t.pop("safety_head.weight"), r"'safety_head.weight' is missing"),
        (lambda t: t.pop("lm_head.weight"), r"'lm_head.weight' is missing"),
        (lambda t: [t.pop(n) for n in list(t) if "q_proj" in n or "up_proj" in n], r"tensors .* are missing"),
        (put("model.layers.2.so8t.ffn", 8, 28), r"'model.layers.2.so8t.ffn' is not expected"),
        (put("model.layers.0.self_attn.q_proj.bias", 128), "q_proj.bias' is not expected"),
        (put("heads.tone.weight", 2, 64), r"'heads.tone.weight' is not expected"),
        (put("model.layers.0.so8t.gate_cmd", 8, 27), r"gate_cmd'.*found shape \[8, 27\], expected \[8, 28\]"),
        (put("authority_head.weight", 3, 64), r"found shape \[3, 64\], expected \[2, 64\]"),
        (put("model.norm.weight", 64, 1), r"found shape \[64, 1\], expected \[64\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(model, edit, message):
    with pytest.raises(CheckpointError, match=message):
        model(edit)


def test_the_output_matrix_has_two_names_but_is_one(model):
    def rename(tensors):
        tensors["task_head.weight"] = tensors.pop("lm_head.weight").renamed("task_head.weight")

    renamed = model(rename)
    assert "task_head.weight" not in renamed.tensor_names()
    assert renamed.load("lm_head.weight").shape == (320, 64)
    with pytest.raises(CheckpointError, match=r"both task_head.weight and lm_head.weight"):
        model(put("task_head.weight", 320, 64))


def test_buffers_of_old_checkpoints_are_ignored(model):
    assert model(put("model.layers.0.self_attn.rotary_emb.inv_freq", 8)).tensor_names()


def test_biases_of_heads_are_optional(model):
    def drop(tensors):
        del tensors["safety_head.bias"], tensors["authority_head.bias"]

    assert "safety_head.bias" not in model(drop).tensor_names()


def with_stems(tensors, inner=24, tone_inner=12):
    for name in ("safety_head", "authority_head"):
        del tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    for name, shape in {
        "stems.response.weight": (inner, 64), "stems.response.norm.weight": (24,), "heads.risk.weight": (3, 24),
        "stems.t.weight": (12, 64), "stems.t.bias": (12,), "heads.tone.weight": (2, tone_inner),
    }.items():  # fmt: skip
        put(name, *shape)(tensors)


def test_stems_decide_their_width(model):
    opened = model(with_stems, so8t_heads=STEM_HEADS)
    assert opened.shape("stems.response.weight") == (24, 64)
    model(with_stems, so8t_heads=STEM_HEADS, so8t_stem_sizes={"response": 24, "t": 12})
    with pytest.raises(CheckpointError, match=r"'stems.response.weight'.*expected \[25, 64\]"):
        model(with_stems, so8t_heads=STEM_HEADS, so8t_stem_sizes={"response": 25, "t": 12})
    with pytest.raises(CheckpointError, match=r"'stems.response.norm.weight'.*expected 23 on axis 0"):
        model(lambda tensors: with_stems(tensors, inner=23), so8t_heads=STEM_HEADS)
    with pytest.raises(CheckpointError, match=r"'heads.tone.weight'.*expected 12 on axis 1"):
        model(lambda tensors: with_stems(tensors, tone_inner=13), so8t_heads=STEM_HEADS)


ATTENTION_HEADS = {
    "h": {
        "labels": ["a", "b"], "actions": ["allow", "refuse"], "thresholds": [0.5, 0.5], "taps": [0, 1],
        "activation": "attention", "stem": "p",
    }
}  # fmt: skip


def with_attention(tensors, **changed):
    for name in ("safety_head", "authority_head"):
        del tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    shapes = {"attn_q": (24, 128), "attn_k": (8, 128), "attn_v": (8, 128), "attn_output": (24, 24), "norm": (24,)}
    for name, shape in (shapes | changed).items():
        if shape is not None:
            put(f"stems.p.{name}.weight", *shape)(tensors)
    put("heads.h.weight", 2, 24)(tensors)


def test_an_attention_stem_has_its_tensors_and_no_other(model):
    opened = model(with_attention, so8t_heads=ATTENTION_HEADS)
    assert opened.stem_fields == {"so8t_stem_sizes": {"p": 24}, "so8t_stem_head_dims": {"p": 8}}
    model(with_attention, so8t_heads=ATTENTION_HEADS, **opened.stem_fields)
    for changed, message in (
        ({"attn_v": None}, r"tensor 'stems.p.attn_v.weight' is missing"),
        ({"attn_k": (8, 64)}, r"'stems.p.attn_k.weight': found shape \[8, 64\], expected \[any, 128\]"),
        ({"attn_v": (9, 128)}, r"'stems.p.attn_v.weight'.*expected 8 on axis 0, the size of a key of its stem"),
        ({"attn_output": (24, 16)}, r"'stems.p.attn_output.weight'.*expected 24 on axis 1, the width of its stem"),
        ({"norm": (16,)}, r"'stems.p.norm.weight'.*expected 24 on axis 0, the width of its stem"),
        ({"attn_k": (9, 128), "attn_v": (9, 128)}, r"stem 'p': found the width 24 and keys of 9, expected a multiple"),
        ({"attn_k": (0, 128), "attn_v": (0, 128)}, r"stem 'p': found the width 24 and keys of 0, expected a multiple"),
    ):
        with pytest.raises(CheckpointError, match=message):
            model(lambda tensors, changed=changed: with_attention(tensors, **changed), so8t_heads=ATTENTION_HEADS)
    with pytest.raises(CheckpointError, match=r"'stems.p.weight' is not expected"):
        model(lambda t: (with_attention(t), put("stems.p.weight", 24, 128)(t)), so8t_heads=ATTENTION_HEADS)
    with pytest.raises(CheckpointError, match=r"'stems.p.attn_k.weight'.*expected \[4, 128\]"):
        model(with_attention, so8t_heads=ATTENTION_HEADS, so8t_stem_head_dims={"p": 4})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gemma3"}, "model_type 'gemma3'"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"vocab_size": "many"}, "vocab_size 'many'"),
        ({"num_hidden_layers": 2_000_000_000}, "2000000000 layers"),
        ({"head_dim": 12}, "expected a multiple of 8"),
        (
            {"so8t_heads": {"safety": {"labels": ["a", "b"], "actions": ["allow"], "thresholds": [0, 0]}}},
            "1 actions",
        ),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(model, fields, message):
    with pytest.raises((CheckpointError, ConfigError), match=message):
        model(**fields)


def test_nan_is_named_with_its_place(model):
    values = np.zeros((8, 28), np.float32)
    values[3, 5] = np.nan
    opened = model(lambda t: t.update({"so8t.out": stored("so8t.out", values)}))
    with pytest.raises(CheckpointError, match=r"copy: tensor 'so8t.out': found nan at \[3, 5\]"):
        finite(opened.path, opened.tensors["so8t.out"])
    values = np.full((1, 28), np.inf, np.float32)
    opened = model(lambda t: t.update({"model.layers.1.so8t.qk": stored("model.layers.1.so8t.qk", values)}))
    with pytest.raises(CheckpointError, match=r"'model.layers.1.so8t.qk': found inf"):
        opened.layer_rotations(1)


def test_what_is_no_model_is_refused(tmp_path):
    for name, content, message in (
        ("empty", None, "config.json: no such file"),
        ("text", "{", "is not valid JSON"),
        ("list", "[]", "expected an object"),
        ("twice", '{"model_type": "qwen3", "model_type": "llama"}', "'model_type' appears twice"),
        ("bare", "{}", "model_type None"),
    ):
        directory = tmp_path / name
        directory.mkdir()
        if content is not None:
            (directory / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            open_checkpoint(directory)
        assert str(directory) in str(caught.value)
    with pytest.raises(CheckpointError, match="no such file or directory"):
        open_checkpoint(tmp_path / "nowhere")
