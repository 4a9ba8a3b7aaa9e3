"""A GGUF base has to look exactly like the Hugging Face directory it was made from."""

import numpy as np
import pytest
from tiny_models import FAMILIES

from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.checkpoint.gguf_base import llama3_factors
from llama_so8t.checkpoint.row_order import interleave_halves, split_halves
from llama_so8t.errors import CheckpointError, ConfigError

FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
    "tie_word_embeddings", "model_type", "architectures",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_base_is_the_directory_it_came_from(write_gguf_base, family, tied):
    path, config, expected = write_gguf_base(family, tie_word_embeddings=tied)
    base = open_checkpoint(path)
    assert {key: base.config[key] for key in FIELDS} == {key: config[key] for key in FIELDS}
    assert base.config["eos_token_id"] == 2
    assert not base.is_so8t
    assert base.vocabulary.gguf == path
    assert set(base.tensor_names()) == set(expected)
    for name, values in expected.items():
        assert base.shape(name) == values.shape
        np.testing.assert_array_equal(base.load(name), values, err_msg=name)


def test_biases_are_seen(write_gguf_base):
    path, _, expected = write_gguf_base("llama", attention_bias=True, mlp_bias=True)
    base = open_checkpoint(path)
    assert base.config["attention_bias"] is True
    assert base.config["mlp_bias"] is True
    for name in expected:
        np.testing.assert_array_equal(base.load(name), expected[name], err_msg=name)


def test_quantized_weights_are_read_as_floats(gguf, write_gguf_base):
    path, _, expected = write_gguf_base("llama", qtype="Q8_0")
    base = open_checkpoint(path)
    assert base.dtype == "Q8_0"
    name = "model.layers.1.self_attn.q_proj.weight"
    kind = gguf.GGMLQuantizationType.Q8_0
    np.testing.assert_array_equal(base.load(name), gguf.dequantize(gguf.quantize(expected[name], kind), kind))


def test_the_two_row_orders_are_inverse(rng):
    for n_head, head_dim, rest in ((1, 8, (3,)), (3, 16, ()), (5, 24, (2,))):
        weight = rng.normal(size=(n_head * head_dim, *rest))
        np.testing.assert_array_equal(split_halves(interleave_halves(weight, n_head), n_head), weight)


def test_llama_3_scaling_is_recognised_by_its_factors(write_gguf_base):
    parameters = {
        "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    factors = llama3_factors(parameters, 500000.0, 128)
    assert factors[0] == 1
    assert factors[-1] == 32
    assert ((factors > 1) & (factors < 32)).any()

    def add(keys, tensors):
        tensors["rope_freqs.weight"] = factors

    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    path, _, _ = write_gguf_base("llama", add, head_dim=128, **theta)
    found = open_checkpoint(path).config["rope_parameters"]
    assert found == parameters | {"rope_type": "llama3", "rope_theta": 500000.0}
    factors[20] *= 1.01
    path, _, _ = write_gguf_base("llama", add, head_dim=128, **theta)
    with pytest.raises(CheckpointError, match=r"'rope_freqs.weight'.*not those of Llama 3"):
        open_checkpoint(path)


def test_scaling_is_read_from_new_and_from_old_keys(write_gguf_base):
    def linear(keys, tensors):
        keys |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}

    def old(keys, tensors):
        keys["llama.rope.scale_linear"] = 4.0

    def yarn(keys, tensors):
        scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 32.5}
        keys |= {f"llama.rope.scaling.{name}": value for name, value in scaling.items()}

    theta = {"rope_theta": 10000.0, "factor": 4.0}
    for edit in (linear, old):
        path, _, _ = write_gguf_base("llama", edit)
        assert open_checkpoint(path).config["rope_parameters"] == {"rope_type": "linear", **theta}
    path, _, _ = write_gguf_base("llama", yarn)
    expected = {"rope_type": "yarn", "original_max_position_embeddings": 64, "beta_fast": 32.5, **theta}
    assert open_checkpoint(path).config["rope_parameters"] == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.expert_count", 8, "llama.expert_count"),
        ("llama.attention.sliding_window", 64, "llama.attention.sliding_window"),
        ("llama.rope.dimension_count", 4, "llama.rope.dimension_count 4, expected the head size 16"),
        ("llama.attention.value_length", 32, "llama.attention.value_length 32"),
        ("llama.rope.scaling.type", "longrope", "scaling.type 'longrope'"),
        ("llama.block_count", 100_000, "100000 layers"),
        ("llama.attention.causal", False, "llama.attention.causal false"),
    ],
)
def test_features_without_an_so8t_graph_are_refused(write_gguf_base, key, value, message):
    path, _, _ = write_gguf_base("llama", lambda keys, tensors: keys.update({key: value}))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        open_checkpoint(path)


def test_metadata_of_the_wrong_kind_is_refused(write_gguf_base):
    wrong = {
        "general.architecture": ["llama"],
        "llama.embedding_length": "64",
        "llama.attention.head_count": 8.0,
        "llama.attention.head_count_kv": [2, 2],
        "llama.rope.freq_base": "fast",
        "llama.attention.layer_norm_rms_epsilon": True,
        "llama.attention.key_length": -16,
        "llama.rope.scaling.type": 3,
        "split.count": "many",
    }

    for key, value in wrong.items():
        path, _, _ = write_gguf_base("llama", lambda keys, tensors, key=key, value=value: keys.update({key: value}))
        with pytest.raises((CheckpointError, ConfigError)):
            open_checkpoint(path)


def test_other_architectures_and_tensors_are_refused(write_gguf_base, tmp_path):
    path, _, _ = write_gguf_base("llama", lambda keys, t: keys.update({"general.architecture": "gemma3"}))
    with pytest.raises(CheckpointError, match="architecture 'gemma3', expected qwen3, llama, qwen2"):
        open_checkpoint(path)
    path, _, _ = write_gguf_base("llama", lambda keys, t: keys.update({"general.architecture": "so8t"}))
    with pytest.raises(CheckpointError, match="converted model already"):
        open_checkpoint(path)
    path, _, _ = write_gguf_base("llama", lambda keys, t: t.update({"blk.0.ssm_a": np.ones(4, np.float32)}))
    with pytest.raises(CheckpointError, match=r"'blk.0.ssm_a' is not one of a dense llama model"):
        open_checkpoint(path)
    path, _, _ = write_gguf_base("llama", lambda keys, t: t.pop("blk.1.ffn_up.weight"))
    with pytest.raises(CheckpointError, match=r"'model.layers.1.mlp.up_proj.weight' is missing"):
        open_checkpoint(path)
    path, _, _ = write_gguf_base("llama", lambda keys, t: t.pop("token_embd.weight"))
    with pytest.raises(CheckpointError, match=r"'token_embd.weight' is missing"):
        open_checkpoint(path)
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    with pytest.raises(CheckpointError, match="no GGUF magic"):
        open_checkpoint(text)
