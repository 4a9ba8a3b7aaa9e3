"""`so8t init` from directories and GGUF files: what it writes, what it refuses, what a failure leaves."""

import json
import os

import numpy as np
import pytest
from tiny_models import FAMILIES, write_base

from llama_so8t.checkpoint import initialize as module
from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.checkpoint.names import so8t_tensors
from llama_so8t.errors import CheckpointError, ConfigError, ConversionError
from llama_so8t.files import safetensors_writer
from llama_so8t.files.gguf_file import read_gguf


def make(base, out, **options):
    initialize(InitializeOptions(base=str(base), out=out, **options))
    return open_checkpoint(out)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_zero_rotations_keep_the_base(tmp_path, family, dtype):
    base = open_checkpoint(write_base(tmp_path / "base", family, dtype))
    made = make(tmp_path / "base", tmp_path / "out")
    assert made.is_so8t
    assert made.dtype == dtype
    assert made.config["base_model_type"] == family
    assert made.config["architectures"] == ["SO8TTransformerForCausalLM"]
    added = set(so8t_tensors(made.spec))
    assert set(made.tensor_names()) == set(base.tensor_names()) | added
    for name in base.tensor_names():
        assert made.load(name).tobytes() == base.load(name).tobytes(), name
    for name in added:
        assert not made.load(name).any()
    kept = {key: value for key, value in base.config.items() if key not in ("model_type", "architectures")}
    assert kept.items() <= made.config.items()


def test_random_rotations_follow_the_seed(tmp_path):
    write_base(tmp_path / "base")
    first = make(tmp_path / "base", tmp_path / "a", rotations="random", seed=8, scale=0.3)
    again = make(tmp_path / "base", tmp_path / "b", rotations="random", seed=8, scale=0.3)
    other = make(tmp_path / "base", tmp_path / "c", rotations="random", seed=9, scale=0.3)
    generators = list(first.spec.generator_shapes())
    values = np.concatenate([first.load(name).ravel() for name in generators])
    assert abs(values.std() - 0.3) < 0.02
    assert len(np.unique(values)) == values.size
    for name in generators:
        np.testing.assert_array_equal(first.load(name), again.load(name))
        assert (first.load(name) != other.load(name)).all()
    assert not first.load("safety_head.weight").any()


def test_shared_blocks_have_one_generator(tmp_path):
    write_base(tmp_path / "base")
    made = make(tmp_path / "base", tmp_path / "out", shared_blocks=True)
    assert made.shape("model.layers.0.so8t.ffn") == (1, 28)
    assert made.shape("so8t.out") == (1, 28)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_and_full_checkpoint_are_the_same_model(tmp_path, family):
    write_base(tmp_path / "base", family, "BF16")
    options = {"rotations": "random", "seed": 1, "scale": 0.4, "compensate": True}
    full = make(tmp_path / "base", tmp_path / "full", **options)
    adapter = make(tmp_path / "base", tmp_path / "adapter", adapter=True, **options)
    assert sorted(os.listdir(tmp_path / "adapter")) == ["adapter_config.json", "adapter_model.safetensors"]
    assert full.config.pop("dtype") == "float32"
    assert adapter.config == full.config
    assert set(adapter.tensor_names()) == set(full.tensor_names())
    for name in full.tensor_names():
        assert adapter.load(name).tobytes() == full.load(name).tobytes(), name
    base = open_checkpoint(tmp_path / "base")
    name = "model.layers.0.mlp.up_proj.weight"
    assert np.abs(full.load(name) - base.load(name)).max() > 0.1
    assert full.load("model.layers.0.so8t.qk").any() == (family != "qwen3")


def test_compensation_without_rotation_changes_nothing(tmp_path):
    base = open_checkpoint(write_base(tmp_path / "base"))
    made = make(tmp_path / "base", tmp_path / "out", compensate=True)
    for name in base.tensor_names():
        assert made.load(name).tobytes() == base.load(name).tobytes()


def test_the_user_hears_that_qk_stays_zero(tmp_path):
    write_base(tmp_path / "base")
    options = InitializeOptions(str(tmp_path / "base"), tmp_path / "out", rotations="random", compensate=True)
    assert any("qk stays zero" in note for note in initialize(options).notes)


def test_an_adapter_compensated_at_qk_is_refused_on_a_base_with_norms(tmp_path):
    write_base(tmp_path / "base")
    make(tmp_path / "base", tmp_path / "out", rotations="random", adapter=True)
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    (tmp_path / "out" / "adapter_config.json").write_text(json.dumps(fields | {"so8t_compensated": True}))
    with pytest.raises(ConversionError, match="site qk"):
        open_checkpoint(tmp_path / "out").load("model.layers.0.self_attn.q_proj.weight")


def test_large_models_are_written_in_shards(tmp_path, monkeypatch):
    write_base(tmp_path / "base")
    monkeypatch.setattr(safetensors_writer, "MAX_SHARD_BYTES", 100_000)
    whole = make(tmp_path / "base", tmp_path / "whole")
    shards = sorted((tmp_path / "whole").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert all(shard.stat().st_size < 110_000 for shard in shards)
    assert whole.load("so8t.out").shape == (8, 28)


def test_tokenizer_and_licence_come_along(tmp_path):
    base = write_base(tmp_path / "base")
    kept = [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "LICENSE",
    ]
    for name in kept:
        (base / name).write_text("{}")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool.jinja").write_text("x")
    (base / "optimizer.pt").write_text("no")
    make(base, tmp_path / "out")
    found = set(os.listdir(tmp_path / "out"))
    assert found == {*kept, "additional_chat_templates", "config.json", "model.safetensors"}


def test_a_directory_in_use_is_kept(tmp_path):
    base = write_base(tmp_path / "base")
    out = tmp_path / "out"
    out.mkdir()
    make(base, out)  # empty is fine
    before = (out / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="--force"):
        make(base, out, shared_blocks=True)
    assert (out / "config.json").read_bytes() == before
    assert make(base, out, shared_blocks=True, force=True).spec.shared_blocks
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(CheckpointError, match="no model directory"):
        make(base, tmp_path / "photos", force=True)
    assert sorted(os.listdir(tmp_path)) == ["base", "out", "photos"]


def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path, monkeypatch):
    base = write_base(tmp_path / "base")
    make(base, tmp_path / "out")

    def full_disk(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors_writer, "_encoded", full_disk)
    with pytest.raises(OSError, match="no space"):
        make(base, tmp_path / "out", shared_blocks=True, force=True)
    assert sorted(os.listdir(tmp_path)) == ["base", "out"]
    assert not open_checkpoint(tmp_path / "out").spec.shared_blocks


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": -1}, ConfigError, "seed: found -1"),
        ({"scale": float("nan")}, ConfigError, "scale: found nan"),
        ({"scale": -0.1}, ConfigError, "scale"),
        ({"rotations": "wild"}, ConfigError, "rotations"),
        ({"base": "nowhere"}, CheckpointError, "nowhere: no such file or directory"),
        ({"base": "package:no_such_package/x.gguf"}, CheckpointError, "is not installed"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, error, message):
    write_base(tmp_path / "base")
    with pytest.raises(error, match=message):
        initialize(InitializeOptions(**{"base": str(tmp_path / "base"), "out": tmp_path / "out"} | options))
    assert os.listdir(tmp_path) == ["base"]


def test_an_so8t_model_is_no_base(tmp_path):
    write_base(tmp_path / "base")
    make(tmp_path / "base", tmp_path / "one")
    with pytest.raises(CheckpointError, match="SO8T model already"):
        make(tmp_path / "one", tmp_path / "two")


def test_a_width_that_is_no_multiple_of_8_is_refused(tmp_path):
    for fields in ({"hidden_size": 60}, {"head_dim": 12}):
        base = write_base(tmp_path / f"base{len(os.listdir(tmp_path))}")
        config = json.loads((base / "config.json").read_text()) | fields
        (base / "config.json").write_text(json.dumps(config))
        with pytest.raises(ConfigError, match="expected a multiple of 8"):
            make(base, tmp_path / "out")


def test_a_gguf_base_keeps_its_keys_in_vocab_gguf(write_gguf_base, tmp_path, monkeypatch):
    monkeypatch.setattr(module.vocabulary, "write_tokenizer", lambda directory: [])
    path, _, expected = write_gguf_base("qwen2", qtype="Q8_0")
    made = make(path, tmp_path / "out")
    vocab = read_gguf(tmp_path / "out" / "vocab.gguf")
    assert vocab.metadata == read_gguf(path).metadata
    assert not vocab.tensors
    assert made.vocabulary.gguf == vocab.path
    base = open_checkpoint(path)
    assert made.dtype == "F32"
    for name in expected:
        np.testing.assert_array_equal(made.load(name), base.load(name))
