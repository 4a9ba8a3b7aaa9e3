"""The four files of a model: what is in them, and what the reference model is after they are loaded again."""

import json
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from safetensors.numpy import load_file, save_file
from tiny_models import TEXT, tokenizer_model, write_base
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM

from llama_so8t import __version__
from llama_so8t.checkpoint import Vocabulary, open_checkpoint
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.errors import CheckpointError, ConversionError
from llama_so8t.hf import SO8TTransformerConfig, SO8TTransformerForCausalLM
from llama_so8t.sidecars import quantization, writing
from llama_so8t.sidecars.loading import load_sidecars
from llama_so8t.sidecars.tokenizer import tokenizer_info
from llama_so8t.sidecars.writing import NAMES, write_sidecars
from tests.sidecars.conftest import BASES

TOKENS = torch.tensor([[5, 17, 230, 61, 8, 99, 4, 300]])


def weights_of(model):
    return load_file(model / "model.safetensors")


def logits_of(net):
    with torch.no_grad():
        output = net(TOKENS)
    return {"task": output.logits[0].numpy()} | {k: v[0].numpy() for k, v in output.head_logits.items()}


@pytest.mark.parametrize("name", BASES)
def test_each_weight_comes_back_within_half_a_step(models, sidecars, name):
    state = load_sidecars(sidecars[name]).state_dict()
    for key, values in weights_of(models[name]).items():
        step = np.abs(values).max() / 127
        error = np.abs(state[key].numpy() - values).max()
        assert error <= step / 2 * (1 + 1e-4), key
        assert error > 0 or not values.any(), f"{key}: no weight was rounded, so nothing was tested"


@pytest.mark.parametrize("name", BASES)
def test_the_loaded_model_computes_with_the_rounded_weights(models, sidecars, name):
    rounded = AutoModelForCausalLM.from_pretrained(models[name], dtype=torch.float32).eval()
    state = {}
    for key, values in weights_of(models[name]).items():
        step = np.abs(values).max() / 127 or 1.0
        state[key] = torch.from_numpy((np.rint(values / step) * step).astype(np.float32))
    rounded.load_state_dict(state, strict=False)
    expected = logits_of(rounded)
    for head, values in logits_of(load_sidecars(sidecars[name])).items():
        atol = 1e-5 * max(np.abs(expected[head]).max(), 1)
        np.testing.assert_allclose(values, expected[head], atol=atol, err_msg=head)


@pytest.mark.parametrize("name", BASES)
def test_logits_stay_close_to_the_model(models, sidecars, name):
    exact = logits_of(AutoModelForCausalLM.from_pretrained(models[name], dtype=torch.float32).eval())
    found = logits_of(load_sidecars(sidecars[name]))
    for head in ("task", "safety"):
        error = np.linalg.norm(found[head] - exact[head]) / np.linalg.norm(exact[head])
        assert error < 0.05, f"{head}: {error:.3f}"  # 8 bits: 0.4 % per weight, a few layers deep


@pytest.mark.parametrize("name", BASES)
def test_the_usage_of_the_first_converter_works(sidecars, name):
    directory = sidecars[name]
    metadata = json.loads((directory / "model_metadata.json").read_text())
    tensor_data = np.load(directory / "model_tensors_8bit.npz")
    quant_info = json.loads((directory / "quantization_info.json").read_text())
    config = SO8TTransformerConfig(**metadata)
    model = SO8TTransformerForCausalLM(config)
    for key, tensor in tensor_data.items():
        model.load_state_dict({key: torch.from_numpy(tensor).float() * quant_info[key]["scale"]}, strict=False)
    expected = logits_of(load_sidecars(directory))
    for head, values in logits_of(model.eval()).items():
        np.testing.assert_array_equal(values, expected[head])


def test_scales_say_what_they_are(models, sidecars):
    info = json.loads((sidecars["qwen3-tied"] / "quantization_info.json").read_text())
    data = np.load(sidecars["qwen3-tied"] / "model_tensors_8bit.npz")
    weights = weights_of(models["qwen3-tied"])
    assert list(info) == data.files and set(info) == set(weights)
    for name, entry in info.items():
        assert list(entry) == ["scale", "zero_point", "original_dtype", "quantization_type"]
        assert entry["zero_point"] == 0 and entry["quantization_type"] == "int8_per_tensor"
        assert entry["original_dtype"] == "torch.float32"
        assert data[name].dtype == np.int8 and data[name].shape == weights[name].shape
        assert entry["scale"] == (pytest.approx(np.abs(weights[name]).max() / 127) if weights[name].any() else 1.0)
        assert np.abs(data[name].astype(int)).max() == (127 if weights[name].any() else 0)
    assert info["authority_head.weight"]["scale"] == 1.0


METADATA_KEYS = [
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "attention_bias", "attention_dropout", "use_cache", "tie_word_embeddings", "so8t_rotation_dim",
    "so8t_triality_symmetry", "so8t_cross_head_interaction", "so8t_non_commutative_gates",
    "so8t_vector_representation", "so8t_spinor_plus_representation", "so8t_spinor_minus_representation",
    "quantization", "dtype", "created_at", "converter",
]  # fmt: skip


def test_metadata_are_the_27_keys(sidecars):
    found = json.loads((sidecars["qwen3-tied"] / "model_metadata.json").read_text())
    assert list(found) == METADATA_KEYS and len(METADATA_KEYS) == 27
    assert found == found | {
        "model_type": "so8t", "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "so8t_rotation_dim": 8,
        "quantization": "8bit", "dtype": "float32", "created_at": None, "converter": f"llama_so8t {__version__}",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name, keys",
    [
        ("qwen3", []),
        ("qwen2", ["base_model_type"]),
        ("llama3-shared", ["base_model_type", "mlp_bias", "rope_parameters", "so8t_shared_blocks", "so8t_heads"]),
    ],
)
def test_further_keys_are_there_where_27_would_say_another_model(sidecars, name, keys):
    found = json.loads((sidecars[name] / "model_metadata.json").read_text())
    assert list(found) == METADATA_KEYS + keys


def test_the_tokenizer_is_the_model_s_own(sidecars):
    info = json.loads((sidecars["qwen3"] / "tokenizer_info.json").read_text())
    assert list(info["vocab"].values()) == list(range(320))
    assert list(info["vocab"])[:4] == ["<unk>", "<s>", "</s>", "<0x00>"] and info["merges"] == []
    assert info["special_tokens"] == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "unk_token": "<unk>"}


def test_tokens_and_merges_of_tokenizer_json_are_those_of_its_own_library(tmp_path):
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator(TEXT * 20, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "bos_token": None, "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    info = tokenizer_info(Vocabulary(directory=tmp_path))
    assert info["vocab"] == tokenizer.get_vocab() and list(info["vocab"].values()) == list(range(121))
    rebuilt = Tokenizer(BPE(info["vocab"], [tuple(pair) for pair in info["merges"]]))
    rebuilt.pre_tokenizer = tokenizer.pre_tokenizer
    assert rebuilt.encode(TEXT[1]).ids == tokenizer.encode(TEXT[1]).ids
    assert info["special_tokens"] == {
        "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<pad>", "unk_token": None,
    }  # fmt: skip


@pytest.mark.parametrize("content", [{}, {"model": {"vocab": 3}}, {"model": {"vocab": {}, "merges": ["a"]}}])
def test_a_malformed_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        tokenizer_info(Vocabulary(directory=tmp_path))


def test_the_tokenizer_of_a_gguf_base(gguf_model, tmp_path):
    write_sidecars(open_checkpoint(gguf_model), tmp_path / "files")
    info = json.loads((tmp_path / "files" / "tokenizer_info.json").read_text())
    assert info["vocab"] == {f"t{i}": i for i in range(320)}
    assert info["merges"] == [["t1", "t2"], ["t", "3 4"]]
    assert info["special_tokens"] == {"bos_token": None, "eos_token": "t2", "pad_token": "t7", "unk_token": None}
    assert load_sidecars(tmp_path / "files").config.vocab_size == 320


@pytest.fixture
def gguf_model(pinned_tree, tmp_path):
    """An SO8T model whose tokenizer came as GGUF."""
    from llama_so8t.checkpoint import vocabulary

    model = tmp_path / "model"
    initialize(InitializeOptions(str(write_base(tmp_path / "base")), model))
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(320)],
        "tokenizer.ggml.merges": ["t1 t2", "t 3 4"],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 7,
    }
    write_gguf(model / vocabulary.NAME, "qwen3", keys)
    return model


def test_a_tied_model_has_one_matrix_for_embedding_and_output(sidecars):
    assert "lm_head.weight" not in np.load(sidecars["qwen3-tied"] / "model_tensors_8bit.npz").files
    model = load_sidecars(sidecars["qwen3-tied"])
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_files_are_the_same_bytes_every_time(models, sidecars, tmp_path):
    assert write_sidecars(open_checkpoint(models["qwen3"]), tmp_path) == tuple(tmp_path / name for name in NAMES)
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (sidecars["qwen3"] / name).read_bytes()
    with zipfile.ZipFile(tmp_path / "model_tensors_8bit.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_compression_level_is_zlib_s(models, tmp_path):
    sizes = []
    for level in (0, 9):
        write_sidecars(open_checkpoint(models["qwen3"]), tmp_path / str(level), compression_level=level)
        sizes.append((tmp_path / str(level) / "model_tensors_8bit.npz").stat().st_size)
    assert sizes[0] > 1.05 * sizes[1]
    with pytest.raises(ConversionError, match="compression_level: found 10"):
        write_sidecars(open_checkpoint(models["qwen3"]), tmp_path, compression_level=10)


def test_memory_holds_a_block_of_rows(tmp_path, monkeypatch):
    base = write_base(tmp_path / "base", dtype="BF16", hidden_size=128, intermediate_size=4096, num_hidden_layers=8)
    (base / "tokenizer.model").write_bytes(tokenizer_model())
    initialize(InitializeOptions(str(base), tmp_path / "model"))
    model = open_checkpoint(tmp_path / "model")
    largest = max(np.prod(tensor.shape) for tensor in model.tensors.values())
    monkeypatch.setattr(quantization, "_BLOCK_VALUES", largest // 32)
    tracemalloc.start()
    write_sidecars(model, tmp_path / "files", compression_level=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "files" / "model_tensors_8bit.npz").stat().st_size > 20 * largest
    assert peak < 2 * largest, "one tensor in float32 would be 4 bytes a value"


def test_a_weight_that_is_not_finite_is_refused_and_nothing_is_left(models, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for file in models["qwen3"].iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    weights = weights_of(model)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight'.*nan at \[3, 4\]"):
        write_sidecars(open_checkpoint(model), tmp_path / "files")
    assert not list((tmp_path / "files").iterdir())


def test_an_interrupted_run_keeps_the_old_files(models, sidecars, tmp_path, monkeypatch):
    write_sidecars(open_checkpoint(models["qwen3"]), tmp_path)
    (tmp_path / "note.txt").write_text("kept")

    def interrupted(tensor, scale):
        yield np.zeros(tensor.shape, np.int8)
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "quantize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_sidecars(open_checkpoint(models["qwen2"]), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {*NAMES, "note.txt"}
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (sidecars["qwen3"] / name).read_bytes()


def test_a_plain_base_model_is_refused(tmp_path):
    base = open_checkpoint(write_base(tmp_path / "base"))
    with pytest.raises(ConversionError, match="so8t init"):
        write_sidecars(base, tmp_path / "files")


def test_a_model_without_tokenizer_is_refused(tmp_path):
    initialize(InitializeOptions(str(write_base(tmp_path / "base")), tmp_path / "model"))
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        write_sidecars(open_checkpoint(tmp_path / "model"), tmp_path / "files")
