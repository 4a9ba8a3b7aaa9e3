"""The YAML file of `so8t convert --config`: what it asks for, and every way in which it can be wrong."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_models import write_base

from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.checkpoint.fields import check_fields
from llama_so8t.errors import ConfigError
from llama_so8t.sidecars.config_yaml import MAX_BYTES, ConfigFile, read_config_yaml

REPOSITORY = Path(__file__).parents[2]
OWN = REPOSITORY / "configs" / "qwen3_so8t_8bit_gguf_config.yaml"

# keys and values of the file that the first converter came with
FIRST = {
    "model": {
        "model_path": "Qwen3-4B-Thinking-2507-FP8", "vocab_size": 151936, "hidden_size": 2560,
        "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 262144, "rms_norm_eps": 1e-6,
        "rope_theta": 5000000.0, "attention_bias": False, "attention_dropout": 0.0, "use_cache": True,
        "tie_word_embeddings": True,
    },
    "so8t": {
        "rotation_dim": 8, "safety_weight": 0.1, "cmd_weight": 0.9, "pet_lambda": 0.01, "group_monitoring": True,
        "gradient_checkpointing": True, "use_flash_attention": False, "triality_symmetry": True,
        "multihead_attention": True, "cross_head_interaction": True, "non_commutative_gates": True,
        "vector_representation": True, "spinor_plus_representation": True, "spinor_minus_representation": True,
    },
    "quantization": {
        "load_in_8bit": True, "llm_int8_enable_fp32_cpu_offload": True, "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": ["lm_head", "task_head", "safety_head", "authority_head"],
        "torch_dtype": "bfloat16", "device_map": "auto", "trust_remote_code": True, "low_cpu_mem_usage": True,
        "use_cache": True,
    },
    "gguf": {
        "model_type": "qwen3_so8t_transformer", "quantization": "8bit", "dtype": "bfloat16",
        "output_dir": "D:/models/qwen3_so8t_8bit_gguf", "filename": "qwen3_so8t_transformer_8bit.gguf",
        "include_metadata": True, "include_tokenizer": True, "include_weights": True,
        "preserve_so8t_structure": True, "preserve_triality_symmetry": True,
    },
    "memory": {
        "max_memory": "12GB", "gpu_memory_fraction": 0.9, "cpu_offload": True, "gradient_checkpointing": True,
        "use_cache": True, "offload_folder": "./offload_cache",
    },
    "logging": {
        "level": "INFO", "log_file": "logs/conversion.log", "console_output": True, "progress_bar": True,
        "tqdm_enabled": True,
    },
    "conversion": {
        "batch_size": 1, "max_sequence_length": 2048, "save_intermediate": True, "verify_so8t_structure": True,
        "verify_triality_symmetry": True, "compression_level": 6,
    },
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    """Reads a text, or groups of keys, as the file ``config.yaml``."""

    def run(content):
        path = tmp_path / "config.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return read_config_yaml(path)

    return run


def test_the_file_of_the_project_is_read():
    found = read_config_yaml(OWN)
    assert found.model == Path("models/Qwen3-4B-Thinking-2507-SO8T")
    assert found.outfile == Path("models/qwen3_so8t_transformer_8bit.gguf")
    assert (found.outtype, found.compression_level, found.without_effect) == ("q8_0", 6, ())
    assert found.keep == ("lm_head", "task_head", "safety_head", "authority_head")
    expected = {name: value for name, value in FIRST["model"].items() if name not in ("model_path", "use_cache")}
    assert found.expected == expected | {
        "so8t_rotation_dim": 8, "so8t_triality_symmetry": True, "so8t_cross_head_interaction": True,
        "so8t_non_commutative_gates": True, "so8t_vector_representation": True,
        "so8t_spinor_plus_representation": True, "so8t_spinor_minus_representation": True,
    }  # fmt: skip
    assert "rms_norm_eps: 1e-6" in OWN.read_text() and type(found.expected["rms_norm_eps"]) is float


def test_the_first_converter_s_file_is_read_but_for_its_tokenizer(read):
    found = read(FIRST)
    assert found.model == Path("Qwen3-4B-Thinking-2507-FP8") and found.outtype == "q8_0"
    assert found.outfile == Path("D:/models/qwen3_so8t_8bit_gguf/qwen3_so8t_transformer_8bit.gguf")
    assert "so8t.safety_weight" in found.without_effect and "memory.max_memory" in found.without_effect
    assert len(found.expected) == 22 and found.keep[0] == "lm_head"
    with pytest.raises(ConfigError, match=r"tokenizer_name 'Qwen/Qwen2\.5-7B-Instruct'.*wrong token ids"):
        read(FIRST | {"model": FIRST["model"] | {"tokenizer_name": "Qwen/Qwen2.5-7B-Instruct"}})


def test_a_file_that_says_nothing_asks_for_nothing(read):
    assert read({"model": {}}) == ConfigFile()


@pytest.mark.parametrize(
    "text, value",
    [("1e-6", 1e-6), ("1E-06", 1e-6), ("-2e3", -2000.0), ("1.0e-6", 1e-6), ("'1e-6'", "1e-6"), ("1e-6x", "1e-6x")],
)
def test_numbers_without_a_point_are_numbers(read, text, value):
    found = read(f"model:\n  rms_norm_eps: {text}\n").expected["rms_norm_eps"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "gguf, eight_bit, outtype",
    [
        ({"quantization": "8bit"}, None, "q8_0"),
        ({"quantization": "8bit", "dtype": "float16"}, True, "q8_0"),
        ({}, True, "q8_0"),
        ({"quantization": "4bit", "dtype": "float16"}, None, "q4_k_m"),
        ({"quantization": "none", "dtype": "float16"}, False, "f16"),
        ({"dtype": "bfloat16"}, None, "bf16"),
        ({"dtype": "float32"}, False, "f32"),
        ({}, False, None),
    ],
)
def test_the_type_of_the_weights(read, gguf, eight_bit, outtype):
    quantization = {} if eight_bit is None else {"load_in_8bit": eight_bit}
    assert read({"gguf": gguf, "quantization": quantization}).outtype == outtype


@pytest.mark.parametrize(
    "content, words",
    [
        ({"model": {"vocab": 3}}, "unknown key 'model.vocab'"),
        ({"extra": {"vocab_size": 3}}, "unknown key 'extra.vocab_size'"),
        ({"so8t": {"model_type": "so8t"}}, "unknown key 'so8t.model_type'"),
        ({"gguf": {"quantization": "Q3_K"}}, "'Q3_K'.*--outtype"),
        ({"gguf": {"quantization": "4bit"}, "quantization": {"load_in_8bit": True}}, "contradict"),
        ({"quantization": {"llm_int8_skip_modules": "lm_head"}}, "llm_int8_skip_modules 'lm_head'"),
        ({"quantization": {"llm_int8_skip_modules": [1]}}, r"llm_int8_skip_modules \[1\]"),
        ({"gguf": {"quantization": "none"}}, r"expected gguf\.dtype"),
        ({"gguf": {"quantization": "8bit"}, "quantization": {"load_in_8bit": False}}, "contradict"),
        ({"gguf": {"quantization": "none", "dtype": "float16"}, "quantization": {"load_in_8bit": True}}, "contradict"),
        ({"gguf": {"dtype": "8bit"}}, r"gguf\.dtype '8bit'"),
        ({"quantization": {"load_in_8bit": "yes"}}, "load_in_8bit 'yes'"),
        ({"gguf": {"model_type": "llama"}}, r"gguf\.model_type 'llama'"),
        ({"gguf": {"include_weights": False}}, "include_weights False.*cannot be switched off"),
        ({"conversion": {"verify_so8t_structure": False}}, "verify_so8t_structure False"),
        ({"gguf": {"output_dir": "out"}}, r"gguf\.filename None"),
        ({"gguf": {"filename": "../x.gguf"}}, r"gguf\.filename '\.\./x\.gguf'"),
        ({"conversion": {"compression_level": 10}}, "compression_level 10"),
        ({"conversion": {"compression_level": True}}, "compression_level True"),
        ({"model": {"model_path": 7}}, "model_path 7"),
        ({"model": [1]}, "expected groups of keys"),
        ("text", "expected groups of keys"),
        ("", "expected groups of keys"),
        ("model:\n  head_dim: 8\n  head_dim: 16\n", "'head_dim' appears twice"),
        ("model: {}\nmodel: {}\n", "'model' appears twice"),
        ("model: &a {head_dim: 8}\nso8t: *a\n", "references are not read"),
        ("model: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("model:\n\thead_dim: 8\n", "not valid YAML"),
        ("model: {? {a: b} : 1}\n", "not valid YAML"),
        ("[" * 20000, "not valid YAML"),
        ("model: \x00\n", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused(read, content, words):
    with pytest.raises(ConfigError, match=f"config\\.yaml.*{words}"):
        read(content)


def test_a_file_that_is_missing_too_long_or_no_text_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    with pytest.raises(ConfigError, match="no such file"):
        read_config_yaml(path)
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=f"found {MAX_BYTES + 1} bytes"):
        read_config_yaml(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_config_yaml(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_checkpoint(write_base(tmp_path_factory.mktemp("model") / "base"))


@pytest.mark.parametrize(
    "expected",
    [
        {},
        {"hidden_size": 64, "head_dim": 16, "rope_theta": 10000, "rms_norm_eps": 1e-5, "hidden_act": "silu"},
        {"rms_norm_eps": float(np.float32(1e-5))},  # as a GGUF base has it
        {"attention_bias": False, "so8t_triality_symmetry": True, "so8t_rotation_dim": 8},  # defaults
    ],
)
def test_a_model_that_is_as_expected(model, expected):
    check_fields(model, expected)


@pytest.mark.parametrize(
    "field, value",
    [
        ("hidden_size", 128), ("rms_norm_eps", 1e-6), ("rms_norm_eps", "1e-5"), ("tie_word_embeddings", True),
        ("tie_word_embeddings", 0), ("so8t_cross_head_interaction", False), ("hidden_act", "gelu"),
        ("rope_theta", 10**400), ("rope_theta", 10001), ("head_dim", None),
    ],
)  # fmt: skip
def test_a_model_that_is_not_as_expected(model, field, value):
    with pytest.raises(ConfigError, match=f"found {field} .*says {value!r}"):
        check_fields(model, {field: value})
