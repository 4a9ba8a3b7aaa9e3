"""Qwen3Guard-Stream checkpoints: recognised, moved into the form of an SO8T model, or refused by name."""

import json

import numpy as np
import pytest
from guard_models import CATEGORIES, RISKS, guard_config, guard_tensors
from tiny_models import base_config, stored, write_base

from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.checkpoint.qwen3guard import is_guard
from llama_so8t.errors import So8tError
from llama_so8t.files import safetensors_file, safetensors_writer

WIDTH, INNER = 64, 24


@pytest.fixture
def guard(tmp_path, rng):
    """Writes a guard model: ``guard(edit=None, **fields)``; ``edit(tensors)`` may spoil the head tensors."""

    def write(edit=None, **fields):
        directory = write_base(tmp_path / "guard", "qwen3", tie_word_embeddings=True)
        heads = guard_tensors(rng, WIDTH, INNER)
        if edit:
            edit(heads)
        stored_base = safetensors_file.read_sharded(directory)
        arrays = {name: tensor.read().copy() for name, tensor in stored_base.items()} | heads
        safetensors_writer.write_sharded(directory, [stored(name, values) for name, values in arrays.items()])
        config = guard_config(base_config("qwen3", tie_word_embeddings=True), INNER) | fields
        config = {key: value for key, value in config.items() if value is not None}
        (directory / "config.json").write_text(json.dumps(config))
        return directory, arrays

    return write


def test_tensors_move_to_stems_and_heads(guard):
    directory, written = guard()
    model = open_checkpoint(directory)
    assert model.is_so8t and model.spec.base_model_type == "qwen3"
    assert model.spec.stem_sizes == {"query": INNER, "response": INNER}
    moved = {
        "stems.query.weight": "query_risk_level_category_pre.weight",
        "stems.query.norm.weight": "query_risk_level_category_layernorm.weight",
        "heads.query_risk.weight": "query_risk_level_head.weight",
        "heads.query_category.weight": "query_category_head.weight",
        "stems.response.weight": "risk_level_category_pre.weight",
        "stems.response.norm.weight": "risk_level_category_layernorm.weight",
        "heads.response_risk.weight": "risk_level_head.weight",
        "heads.response_category.weight": "category_head.weight",
    }
    for new, old in moved.items():
        np.testing.assert_array_equal(model.load(new), written[old])
    np.testing.assert_array_equal(model.load("model.norm.weight"), written["model.norm.weight"])
    assert not set(moved.values()) & set(model.tensor_names())


def test_every_generator_is_zero_and_absent_where_it_may_be(guard):
    model = open_checkpoint(guard()[0])
    assert model.spec.sites == ("qk", "v", "ffn")
    for name, shape in model.spec.generator_shapes().items():
        assert model.load(name).shape == shape and not model.load(name).any()


def test_heads_keep_labels_order_and_scope(guard):
    directory, _ = guard()
    heads = open_checkpoint(directory).spec.heads
    assert list(heads) == ["query_risk", "query_category", "response_risk", "response_category"]
    # the category says why, where there is a risk
    assert {name: head.depends_on for name, head in heads.items()} == {
        "query_risk": None, "query_category": "query_risk",
        "response_risk": None, "response_category": "response_risk",
    }  # fmt: skip
    for name in ("query_risk", "response_risk"):
        assert heads[name].labels == tuple(RISKS) == ("Safe", "Unsafe", "Controversial")
        assert heads[name].actions == ("allow", "refuse", "escalate")
    assert heads["response_category"].labels == tuple(CATEGORIES) and CATEGORIES[0] == '"Violent"'
    assert heads["query_category"].labels == (*CATEGORIES, "Jailbreak")
    assert all(set(heads[name].actions) == {"allow"} for name in ("query_category", "response_category"))
    assert {name: head.scope for name, head in heads.items()} == {
        "query_category": "prompt", "query_risk": "prompt",
        "response_category": "answer", "response_risk": "answer",
    }  # fmt: skip
    assert all(head.rule == "argmax" for head in heads.values())
    assert heads["response_risk"].debounce == 2 and heads["query_risk"].debounce == 1
    assert all(head.activation == "rmsnorm" and head.temperature == 1.0 for head in heads.values())


def test_actions_follow_the_labels_not_their_place(guard):
    turned = {"0": "Controversial", "1": "Safe", "2": "Unsafe"}
    directory, _ = guard(response_risk_level_map=turned)
    head = open_checkpoint(directory).spec.heads["response_risk"]
    assert (head.labels, head.actions) == (("Controversial", "Safe", "Unsafe"), ("escalate", "allow", "refuse"))


def test_rows_are_numbers_not_the_order_of_the_object(guard):
    turned = {"2": "Controversial", "0": "Safe", "1": "Unsafe"}
    assert open_checkpoint(guard(response_risk_level_map=turned)[0]).spec.heads["response_risk"].labels == tuple(RISKS)


@pytest.mark.parametrize("tokens, expected", [([{"id": 7, "content": "<|im_end|>"}], 7), ([], None)])
def test_the_prompt_token_is_the_end_of_a_turn(guard, tokens, expected):
    directory, _ = guard()
    (directory / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    heads = open_checkpoint(directory).spec.heads
    assert heads["query_risk"].prompt_token == heads["query_category"].prompt_token == expected
    assert heads["response_risk"].prompt_token is None


def test_sizes_come_from_the_file_where_the_configuration_is_silent(guard):
    counts = ("guard_inner_size", "num_risk_level", "num_category", "num_query_risk_level", "num_query_category")
    directory, _ = guard(**dict.fromkeys(counts))
    assert open_checkpoint(directory).spec.stem_sizes == {"query": INNER, "response": INNER}


def test_a_model_without_output_matrix_is_tied_even_if_its_configuration_says_otherwise(guard):
    assert open_checkpoint(guard(tie_word_embeddings=False)[0]).config["tie_word_embeddings"] is True


def test_it_is_recognised_by_its_class_or_by_its_label_maps():
    config = guard_config(base_config("qwen3"), INNER)
    assert is_guard(config)
    assert is_guard(config | {"architectures": ["Qwen3Model"]})
    assert is_guard({"architectures": ["Qwen3ForGuardModel"]})
    assert not is_guard(base_config("qwen3"))


def assert_refused(directory, words):
    with pytest.raises(So8tError) as error:
        open_checkpoint(directory)
    assert all(word in str(error.value) for word in (str(directory), *words)), str(error.value)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"model_type": "llama"}, ["model_type 'llama'", "'qwen3'"]),
        ({"query_category_map": None}, ["query_category_map None", "cannot be guessed"]),
        ({"query_risk_level_map": RISKS}, ["query_risk_level_map ["]),
        ({"query_risk_level_map": {"0": "Safe", "2": "Unsafe", "3": "Controversial"}}, ["rows 0, 2, 3", "0 to 2"]),
        ({"query_risk_level_map": {"0": "Safe", "1": "Low Risk", "2": "High Risk"}}, ["'Low Risk'", "Unsafe"]),
        ({"query_risk_level_map": {"0": "Safe", "1": "Unsafe"}, "num_query_risk_level": 2}, ["[3, 24]", "[2, 24]"]),
        ({"num_query_category": 8}, ["num_query_category 8", "9 labels", "query_category_map"]),
        ({"guard_inner_size": 32}, ["risk_level_category_pre", "[24, 64]", "[32, 64]"]),
    ],
)
def test_a_wrong_configuration_is_refused(guard, fields, words):
    assert_refused(guard(**fields)[0], words)


@pytest.mark.parametrize("name", guard_tensors(np.random.default_rng(0), 8, 8))
def test_a_missing_head_tensor_is_refused_by_its_own_name(guard, name):
    assert_refused(guard(lambda tensors: tensors.pop(name))[0], [f"tensor {name!r} is missing"])


@pytest.mark.parametrize(
    "name, shape, words",
    [
        ("category_head.weight", (9, INNER), ["found shape [9, 24]", "expected [8, 24]"]),
        ("query_category_head.weight", (9, 25), ["found shape [9, 25]", "expected [9, 24]"]),
        ("risk_level_category_layernorm.weight", (25,), ["found shape [25]", "expected [24]"]),
        ("query_risk_level_category_pre.weight", (INNER, 32), ["found shape [24, 32]", "expected [24, 64]"]),
        ("query_risk_level_category_pre.weight", (INNER,), ["found shape [24]", "expected [24, 64]"]),
        ("other_head.weight", (2, INNER), ["not expected"]),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_its_own_name(guard, name, shape, words):
    directory, _ = guard(lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))
    assert_refused(directory, [repr(name), *words])
