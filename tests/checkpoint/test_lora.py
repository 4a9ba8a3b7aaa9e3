"""Adapters of PEFT as they are read: what is not supported is one line that names it."""

import json

import numpy as np
import pytest
from lora_adapters import apply_lora, write_lora
from safetensors.numpy import load_file, save_file
from tiny_models import write_base

from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.checkpoint.lora import merged, read_lora
from llama_so8t.errors import CheckpointError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("lora")
    write_base(root / "base", "llama")
    initialize(InitializeOptions(str(root / "base"), root / "model", rotations="random", seed=1))
    return root / "model"


@pytest.fixture
def lora(model, tmp_path):
    return write_lora(tmp_path / "lora", model, ["q_proj", "down_proj"])


def edit_config(lora, **fields):
    file = lora / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return lora


def edit_tensors(lora, **changes):
    """``changes``: name without the prefix, with "__" for ".", -> new values, or None to remove the tensor."""
    file = lora / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, values in changes.items():
        full = "base_model.model." + name.replace("__", ".")
        tensors.pop(full, None)
        if values is not None:
            tensors[full] = np.ascontiguousarray(values, dtype=np.float32)
    save_file(tensors, file)
    return lora


def read(model, lora):
    return read_lora(lora, open_checkpoint(model))


FIELDS = [
    ({"peft_type": "IA3"}, "found peft_type 'IA3', expected 'LORA'"),
    ({"peft_type": ["LORA"]}, "found peft_type"),
    ({"use_dora": True}, "found 'use_dora' True, which is not supported; merge it with PEFT"),
    ({"lora_bias": True}, "found 'lora_bias' True"),
    ({"fan_in_fan_out": True}, "found 'fan_in_fan_out' True"),
    ({"alora_invocation_tokens": [1, 2]}, "found 'alora_invocation_tokens'"),
    ({"layer_replication": [[0, 2]]}, "found 'layer_replication'"),
    ({"trainable_token_indices": [1]}, "found 'trainable_token_indices'"),
    ({"target_parameters": ["so8t.v"]}, "found 'target_parameters'"),
    ({"something_new": 0.5}, "found 'something_new' 0.5"),
    ({"init_lora_weights": "pissa"}, "found init_lora_weights 'pissa', which changes the weights of the base as well"),
    ({"init_lora_weights": 3}, "found init_lora_weights 3"),
    ({"lora_alpha": 0}, "found lora_alpha 0, expected a finite number other than 0"),
    ({"lora_alpha": "8"}, "found lora_alpha '8'"),
    ({"lora_alpha": 10**400}, "found lora_alpha"),
    ({"use_rslora": "yes"}, "found use_rslora 'yes'"),
    ({"alpha_pattern": ["q_proj"]}, "found alpha_pattern"),
    ({"alpha_pattern": {"q_proj": "8"}}, "found alpha_pattern"),
    (
        {"alpha_pattern": {"(a+)+$": 8}},
        "found alpha_pattern for '\\(a\\+\\)\\+\\$', expected the end of a module's name",
    ),
    ({"alpha_pattern": {"a*a*a*a*": 8}}, "found alpha_pattern for"),
    ({"alpha_pattern": {"[q": 8}}, "found alpha_pattern for '\\[q': "),
]


@pytest.mark.parametrize(("fields", "message"), FIELDS)
def test_what_is_not_supported_is_named(model, lora, fields, message):
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: {message}"):
        read(model, edit_config(lora, **fields))


Q = "model__layers__0__self_attn__q_proj"
TENSORS = [
    ({f"{Q}__lora_B__weight": None}, r"tensor B of 'model\.layers\.0\.self_attn\.q_proj' is missing"),
    ({f"{Q}__lora_A__weight": np.ones((4, 63))}, r"found A \[4, 63\] and B \[128, 4\]"),
    ({f"{Q}__lora_B__weight": np.ones((128, 5))}, r"expected \[r, 64\] and \[128, r\]"),
    ({f"{Q}__lora_A__weight": np.ones(64)}, r"found A \[64\]"),
    ({f"{Q}__lora_A__weight": np.full((4, 64), np.nan)}, "found nan at"),
    ({"model__layers__9__self_attn__q_proj__lora_A__weight": np.ones((4, 64))}, "which the model .* has not"),
    ({"model__layers__0__so8t__lora_A__weight": np.ones((4, 28))}, "which the model .* has not"),
    ({f"{Q}__lora_magnitude_vector": np.ones(128)}, "found tensor .*lora_magnitude_vector"),
    ({"model__norm__weight": np.ones(63)}, r"found shape \[63\], which the model has not"),
    ({f"{Q}__base_layer__weight": np.ones((2, 2))}, "was made for another vocabulary"),
]


@pytest.mark.parametrize(("changes", "message"), TENSORS)
def test_what_does_not_fit_is_named(model, lora, changes, message):
    with pytest.raises(CheckpointError, match=message):
        read(model, edit_tensors(lora, **changes))


def test_other_files_are_named(model, lora):
    weights = lora / "adapter_model.safetensors"
    weights.rename(lora / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"found adapter_model\.bin, expected adapter_model\.safetensors"):
        read(model, lora)
    save_file({}, weights)
    with pytest.raises(CheckpointError, match="found no tensor, expected A and B"):
        read(model, lora)
    (lora / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: no such file"):
        read(model, lora)


def test_merging_reads_rows_as_it_reads_a_whole_tensor(model, tmp_path):
    lora = write_lora(tmp_path / "lora", model, use_rslora=True, alpha_pattern={"mlp.down_proj": 3})
    checkpoint = open_checkpoint(model)
    found = merged(checkpoint, read_lora(lora, checkpoint))
    expected = load_file(apply_lora(model, lora, tmp_path / "changed") / "model.safetensors")
    assert set(found.tensors) == set(expected)
    for name, tensor in found.tensors.items():
        np.testing.assert_allclose(tensor.read(), expected[name], rtol=0, atol=2e-6 * np.abs(expected[name]).max())
        if tensor.read_rows is not None and tensor.shape[0] >= 16:
            np.testing.assert_allclose(tensor.read_rows(8, 16), tensor.read()[8:16], rtol=1e-6, atol=1e-6)
    with np.errstate(over="ignore"), pytest.raises(CheckpointError, match=r"q_proj\.weight'"):
        huge = edit_tensors(lora, **{f"{Q}__lora_A__weight": np.full((4, 64), 3e38)})
        changed = merged(checkpoint, read_lora(huge, checkpoint))
        changed.load("model.layers.0.self_attn.q_proj.weight")


def test_tied_embeddings_are_refused(tmp_path):
    write_base(tmp_path / "base", "llama", tie_word_embeddings=True)
    initialize(InitializeOptions(str(tmp_path / "base"), tmp_path / "model"))
    for module, shapes in {"lm_head": ((4, 64), (320, 4)), "model.embed_tokens": ((4, 320), (64, 4))}.items():
        lora = write_lora(tmp_path / f"lora-{module}", tmp_path / "model", ["q_proj"])
        parts = ("lora_A.weight", "lora_B.weight") if module == "lm_head" else ("lora_embedding_A", "lora_embedding_B")
        tensors = {f"{module}.{part}".replace(".", "__"): np.ones(s) for part, s in zip(parts, shapes, strict=True)}
        with pytest.raises(CheckpointError, match=r"ties its embeddings|the output matrix of .* is its embedding"):
            read(tmp_path / "model", edit_tensors(lora, **tensors))
