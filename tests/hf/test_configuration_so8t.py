"""Configuration: every field of the base survives, contradictions are named."""

import json

import pytest
from required import package

transformers = package("transformers")

from llama_so8t.errors import ConfigError  # noqa: E402
from llama_so8t.format import HeadSpec  # noqa: E402
from llama_so8t.hf import SO8TTransformerConfig  # noqa: E402
from llama_so8t.model_spec import ModelSpec  # noqa: E402

ROPE = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 2.0, "original_max_position_embeddings": 32}
LABELS = {"labels": ["no", "yes"], "actions": ["allow", "refuse"], "thresholds": [0.5, 0.9]}


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("qwen3", {"attention_bias": True, "attention_dropout": 0.1}),
        ("llama", {"mlp_bias": True, "head_dim": 24, "pretraining_tp": 2}),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}),
    ],
)
def test_every_field_of_the_base_survives_save_and_load(base_config, tmp_path, family, fields):
    base = base_config(
        family,
        **fields,
        rope_parameters=dict(ROPE),
        tie_word_embeddings=True,
        eos_token_id=[2, 3],
        rms_norm_eps=1e-5,
        dtype="bfloat16",
        hidden_act="gelu",
        a_field_of_the_future={"kept": 1},
    )
    config = SO8TTransformerConfig.from_base(base, so8t_shared_blocks=True)
    config.save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, SO8TTransformerConfig)
    assert loaded.to_diff_dict() == config.to_diff_dict()  # all but the path it was loaded from
    assert loaded.so8t_shared_blocks is True
    assert loaded.architectures == ["SO8TTransformerForCausalLM"]

    back = loaded.base_config()
    assert type(back) is type(base)
    base.architectures = [type(base).__name__.replace("Config", "ForCausalLM")]
    assert back.to_diff_dict() == base.to_diff_dict()


def test_config_json_is_flat_and_says_what_it_is(config, tmp_path):
    config("llama").save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields["model_type"], fields["base_model_type"]) == ("so8t", "llama")
    assert (fields["hidden_size"], fields["so8t_rotation_dim"]) == (80, 8)
    assert fields["so8t_heads"]["safety"]["labels"] == ["safe", "unsafe"]  # a default, written out
    assert fields["so8t_heads"]["authority"]["representation"] == 2
    assert ModelSpec.from_config(fields) == config("llama").model_spec()


def test_heads_keep_their_order_in_config_json(config, tmp_path):
    # the order of heads is the order of verdicts; transformers would sort the names
    names = ["zeta", "safety", "alpha"]
    config(so8t_heads=dict.fromkeys(names, LABELS)).save_pretrained(tmp_path)
    assert list(json.loads((tmp_path / "config.json").read_text())["so8t_heads"]) == names
    assert list(transformers.AutoConfig.from_pretrained(tmp_path).model_spec().heads) == names


def test_rope_fields_of_old_configurations_are_understood():
    old = {"base_model_type": "llama", "rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    config = SO8TTransformerConfig(**old)
    assert config.rope_parameters["rope_theta"] == 777.0
    assert config.rope_parameters["rope_type"] == "linear"
    assert config.base_config().rope_parameters == config.rope_parameters


def test_attention_implementation_passes_from_base_and_back(base_config):
    base = base_config()
    base._attn_implementation = "eager"
    config = SO8TTransformerConfig.from_base(base)
    assert config._attn_implementation == "eager"
    assert config.base_config()._attn_implementation == "eager"


def test_from_base_copies_and_does_not_share(base_config):
    base = base_config(rope_parameters=dict(ROPE))
    config = SO8TTransformerConfig.from_base(base)
    config.rope_parameters["factor"] = 99.0
    assert base.rope_parameters["factor"] == 2.0


def test_heads_may_be_specs_and_may_be_absent(config):
    spec = HeadSpec(name="risk", **LABELS)
    assert config(so8t_heads={"risk": spec}).model_spec().heads == {"risk": spec}
    assert config(so8t_heads={}).model_spec().heads == {}


def test_representation_switched_off_falls_back_to_vector_everywhere(config):
    spec = config(so8t_spinor_plus_representation=False).model_spec()
    assert spec.head_representation[:6] == (0, 0, 2, 0, 0, 2)
    assert spec.head_kv_representation == (0, 0, 2, 0, 0)
    assert [head.representation for head in spec.heads.values()] == [0, 2]
    spec = config(so8t_triality_symmetry=False).model_spec()
    assert set(spec.head_representation + spec.head_kv_representation) == {0}
    assert {head.representation for head in spec.heads.values()} == {0}


def test_fallback_leaves_the_stored_representation_of_a_head_alone(config):
    assert config(so8t_triality_symmetry=False).so8t_heads["authority"]["representation"] == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"so8t_shared_block": True}, "found unknown so8t_shared_block, expected only so8t_cross_head"),
        ({"so8t_rotation_dim": 4}, "found so8t_rotation_dim 4, expected 8"),
        ({"so8t_shared_blocks": "yes"}, "found so8t_shared_blocks 'yes', expected true or false"),
        ({"hidden_size": 36}, "found hidden_size 36, expected a multiple of 8"),
        ({"head_dim": 12}, "found head_dim 12, expected a multiple of 8"),
        ({"num_key_value_heads": 3}, "found 10 heads and 3 key-value heads, expected a multiple"),
        ({"so8t_head_representation": [0, 1]}, r"so8t_head_representation \[0, 1\], expected 10 entries"),
        ({"so8t_heads": ["safety"]}, r"found so8t_heads \['safety'\], expected an object"),
        ({"so8t_heads": {"x": {"labels": ["a"]}}}, r"so8t_heads\['x'\]: found keys \['labels'\]"),
        ({"so8t_stem_sizes": {"ghost": 8}}, "so8t_stem_sizes .*, expected an object with the stems .*: none"),
    ],
)
def test_wrong_fields_are_refused_by_name(config, fields, message):
    with pytest.raises(ConfigError, match=message):
        config(**fields)


def test_stem_without_a_width_is_refused(config):
    heads = {"risk": {**LABELS, "stem": "s", "activation": "gelu"}}
    with pytest.raises(ConfigError, match="head 'risk' uses the stem 's', which has no width"):
        config(so8t_heads=heads)
    with pytest.raises(ConfigError, match="found s 0, expected a whole number above 0"):
        config(so8t_heads=heads, so8t_stem_sizes={"s": 0})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"activation": "tanh"}, "found activation 'gelu' and 'tanh'"),
        ({"representation": 1}, "found representation 0 and 1"),
    ],
)
def test_heads_of_one_stem_must_agree(config, second, message):
    first = {**LABELS, "stem": "s", "activation": "gelu"}
    heads = {"one": first, "two": {**first, **second}}
    with pytest.raises(ConfigError, match=f"heads 'one' and 'two' share the stem 's': {message}, expected"):
        config(so8t_heads=heads, so8t_stem_sizes={"s": 8})


def test_unsupported_base_family_is_refused():
    with pytest.raises(ConfigError, match="found base_model_type 'gpt2', expected qwen3, llama, qwen2"):
        SO8TTransformerConfig.from_base(transformers.GPT2Config())


def test_configuration_of_a_base_model_is_not_taken_for_so8t(base_config, tmp_path):
    base_config("llama").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="found model_type 'llama', expected 'so8t', or from_base"):
        SO8TTransformerConfig.from_pretrained(tmp_path)
