"""With zero rotations an so8t file holds what upstream's converter writes for the base: keys and bytes."""

import numpy as np
import pytest
from bases import BASES, COMPARED, QWEN3, qwen3_tokenizer
from required import absent

from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.checkpoint.row_order import split_halves
from llama_so8t.files.gguf_file import read_gguf

ADDED_KEYS = {
    "so8t.vocab_size",
    "so8t.attention.key_length",
    "so8t.attention.value_length",
    "so8t.rope.dimension_count",
}
"""Keys that llama.cpp derives for the base architectures where a file has none."""

SO8T_KEYS = {
    "so8t.format_version", "so8t.base_architecture", "so8t.rotation.dimension", "so8t.rotation.folded",
    "so8t.attention.head_representation", "so8t.attention.head_kv_representation", "so8t.heads",
    *(f"so8t.head.{name}.{key}" for name in ("safety", "authority") for key in (
        "labels", "actions", "thresholds", "temperature", "debounce", "representation", "activation", "scope", "rule",
        "taps", "tap_norm", "form", "link", "sliding_window", "aggregation", "prompt_aggregation")),
}  # fmt: skip


@pytest.mark.parametrize(("name", "outtype"), COMPARED)
def test_every_key_of_the_base_is_there_with_its_value(upstream_files, models, convert_to, name, outtype):
    theirs = read_gguf(upstream_files[name, outtype]).metadata
    ours = read_gguf(convert_to(models[name, "zero"], outtype)).metadata
    family = BASES[name]["family"]
    renamed = {key.replace(f"{family}.", "so8t.", 1) if key.startswith(family) else key: value
               for key, value in theirs.items()}  # fmt: skip
    assert renamed.pop("general.architecture").text() == family
    assert ours["general.architecture"].text() == "so8t"
    assert {key: ours.get(key) for key in renamed} == renamed
    added = set(ours) - set(renamed) - {"general.architecture"}
    explicit = {"so8t.rotation.explicit"} if family == "qwen3" else set()
    assert added - ADDED_KEYS == SO8T_KEYS | explicit
    assert not any("pooling" in key for key in ours)


def test_the_comparison_covers_what_matters(upstream_files):
    keys = set()
    for file in upstream_files.values():
        keys |= set(read_gguf(file).metadata)
    assert {
        "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.chat_template", "general.name",
        "general.size_label", "general.license", "general.sampling.temp", "general.finetune",
        "qwen3.attention.key_length", "qwen3.rope.freq_base", "llama.rope.dimension_count", "llama.vocab_size",
        "qwen2.rope.scaling.type", "qwen2.rope.scaling.factor", "qwen2.rope.scaling.original_context_length",
    } <= keys  # fmt: skip


@pytest.mark.parametrize(("name", "outtype"), COMPARED)
def test_every_tensor_of_the_base_is_there_byte_for_byte(gguf, upstream_files, models, convert_to, name, outtype):
    theirs = gguf.GGUFReader(upstream_files[name, outtype])
    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(convert_to(models[name, "zero"], outtype)).tensors}
    spec = open_checkpoint(models[name, "zero"]).spec
    kinds = set()
    for tensor in theirs.tensors:
        found = ours.pop(tensor.name)
        data = tensor.data
        if spec.base_model_type == "llama" and ".attn_q." in tensor.name:
            data = split_halves(data, spec.n_head)
        elif spec.base_model_type == "llama" and ".attn_k." in tensor.name:
            data = split_halves(data, spec.n_head_kv)
        assert found.tensor_type == tensor.tensor_type, tensor.name
        assert found.shape.tolist() == tensor.shape.tolist(), tensor.name
        assert found.data.tobytes() == data.tobytes(), tensor.name
        kinds.add(found.tensor_type.name)
    assert all(tensor_name.split(".", 2)[-1].startswith("so8t_") or tensor_name.startswith("so8t_")
               for tensor_name in ours), list(ours)  # fmt: skip
    if outtype == "q8_0":
        assert kinds == ({"F32", "F16", "Q8_0"} if name.startswith("odd") else {"F32", "Q8_0"})
    assert ("rope_freqs.weight" in {tensor.name for tensor in theirs.tensors}) == name.startswith("llama3")


@pytest.mark.parametrize("name", BASES)
def test_a_gguf_base_is_the_directory_it_was_made_from(upstream_files, bases, name, monkeypatch):
    from llama_so8t.checkpoint import gguf_base

    if name.startswith("llama3"):  # positions of a real model; the tiny one has 64
        monkeypatch.setattr(gguf_base, "LLAMA3_POSITIONS", 64)
    ours, theirs = open_checkpoint(bases[name]), open_checkpoint(upstream_files[name, "f32"])
    assert theirs.spec == ours.spec
    assert set(theirs.tensor_names()) == set(ours.tensor_names())
    for tensor in ours.tensor_names():
        np.testing.assert_array_equal(theirs.load(tensor), ours.load(tensor), err_msg=tensor)
    for key in ("rms_norm_eps", "max_position_embeddings", "vocab_size", "tie_word_embeddings"):
        assert theirs.config[key] == ours.config[key]
    expected = dict(ours.config["rope_parameters"])
    assert {key: expected.get(key) for key in theirs.config["rope_parameters"]} == theirs.config["rope_parameters"]


def test_the_tokenizer_of_qwen3_is_written_as_upstream_does(upstream_files, bases, tmp_path, convert_to):
    if QWEN3 not in bases:
        absent("tokenizer", qwen3_tokenizer())
    initialize(InitializeOptions(str(bases[QWEN3]), tmp_path / QWEN3))
    theirs = read_gguf(upstream_files[QWEN3, "f16"])
    ours = read_gguf(convert_to(tmp_path / QWEN3, "f16"))
    for key, value in theirs.metadata.items():
        if key != "general.architecture":
            assert ours.metadata[key.replace("qwen3.", "so8t.", 1)] == value, key
    assert theirs.get("tokenizer.ggml.pre") == "qwen2"
    assert theirs.get("tokenizer.ggml.tokens")[151645] == "<|im_end|>"
    assert "enable_thinking" in ours.get("tokenizer.chat_template")
    embedding = "token_embd.weight"
    assert ours.tensors[embedding].read().tobytes() == theirs.tensors[embedding].read().tobytes()
