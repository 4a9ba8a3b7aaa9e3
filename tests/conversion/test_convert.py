"""What an so8t file holds: folded weights, rotations, heads; and when there is no file at all."""

import json
import os
import time

import numpy as np
import pytest
from bases import BASES
from properties import assert_in_so8, assert_same_function
from tiny_models import stored

from llama_so8t import folding
from llama_so8t.algebra import rotation
from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.checkpoint.names import gguf_name, layer_tensor
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.errors import CheckpointError, ConfigError, ConversionError
from llama_so8t.files import safetensors_file, safetensors_writer
from llama_so8t.files.gguf_file import read_gguf
from llama_so8t.format import SITES, default_heads, generator_name

NAMES = ["Tiny-Qwen3-0.1M-Instruct", "tiny-llama", "odd-qwen2-yarn"]
FOLD_ONLY = {"gate", "v", "heads", "ffn"}
GENERATORS = ("gate_safe", "gate_cmd", "qk", "v", "heads", "ffn")


def rewrite(model, edit):
    """Changes the tensors (a dict) of a copied checkpoint."""
    tensors = safetensors_file.read_sharded(model)
    edit(tensors)
    safetensors_writer.write_file(model / "new", list(tensors.values()))
    os.replace(model / "new", model / "model.safetensors")
    return model


def edit_config(model, **fields):
    config = json.loads((model / "config.json").read_text()) | fields
    (model / "config.json").write_text(json.dumps(config))
    return model


def random_heads(tensors):
    rng = np.random.default_rng(3)
    for name in list(tensors):
        if name.split(".")[0] in ("safety_head", "authority_head"):
            tensors[name] = stored(name, rng.normal(size=tensors[name].shape).astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_weights_are_the_folded_ones(models, convert_to, name, rotations):
    model = open_checkpoint(models[name, "random"])
    file = read_gguf(convert_to(models[name, "random"], rotations=rotations))
    has_norm = model.spec.base_model_type == "qwen3"
    folded = (FOLD_ONLY if has_norm else {*FOLD_ONLY, "qk"}) if rotations == "fold" else set()
    assert set(file.get("so8t.rotation.folded", [])) == folded
    assert set(file.get("so8t.rotation.explicit", [])) == {*FOLD_ONLY, "qk"} - folded
    turned = 0
    for tensor in model.tensor_names():
        found = layer_tensor(tensor)
        if "so8t." in tensor or tensor.startswith(("safety_head.", "authority_head.")):
            continue
        expected = model.load(tensor)
        if found is not None:
            expected = folding.fold(found[1], expected, model.layer_rotations(found[0]), folded)
            turned += not np.array_equal(expected, model.load(tensor))
        np.testing.assert_array_equal(file.tensors[gguf_name(tensor, model.spec)].read(), expected, err_msg=tensor)
    assert turned == (0 if rotations == "explicit" else model.spec.n_layer * (9 if "qwen2" in name else 6))


@pytest.mark.parametrize("name", NAMES)
def test_quantized_weights_are_within_half_a_step(models, convert_to, name):
    exact = read_gguf(convert_to(models[name, "random"], "f32", name="exact.gguf"))
    small = read_gguf(convert_to(models[name, "random"], "q8_0", name="small.gguf"))
    quantized = 0
    for tensor in small.tensors.values():
        expected, found = exact.tensors[tensor.name].read(), tensor.read()
        if tensor.dtype == "F32":
            np.testing.assert_array_equal(found, expected)
        elif tensor.dtype == "F16":
            np.testing.assert_allclose(found, expected, rtol=2**-11, atol=1e-7)
        else:
            quantized += 1
            largest = np.abs(expected.reshape(-1, 32)).max(axis=1, keepdims=True)
            # half a step of largest / 127, and the rounding of that step to float16
            limit = largest / 127 * (0.5 + 127 * 2**-11)
            assert (np.abs(found - expected).reshape(-1, 32) <= limit).all(), tensor.name
    assert quantized >= 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_generators_and_rotations_are_kept_exactly(models, convert_to, name, outtype, rotations):
    model = open_checkpoint(models[name, "random"])
    spec = model.spec
    file = read_gguf(convert_to(models[name, "random"], outtype, rotations))
    so8t = {key: tensor for key, tensor in file.tensors.items() if "so8t_" in key}
    assert {tensor.dtype for tensor in so8t.values()} == {"F32"}
    np.testing.assert_array_equal(so8t.pop("so8t_out_gen.weight").read(), model.load("so8t.out"))
    for layer in range(spec.n_layer):
        generators = {}
        for generator in (g for site in spec.sites for g in SITES[site].generator_names):
            generators[generator] = model.load(generator_name(layer, generator))
        # the order of docs/format.md, whatever the order of the checkpoint
        in_order = [generators[name] for name in GENERATORS if name in generators]
        assert len(in_order) == len(generators)
        np.testing.assert_array_equal(so8t.pop(f"blk.{layer}.so8t_gen.weight").read(), np.concatenate(in_order))
        expected = {}
        if rotations == "explicit":
            for part in ("gate_safe", "gate_cmd", "heads", "ffn"):
                expected[part] = rotation(generators[part])
            expected["v"] = [rotation(generators["v"][0], t) for t in spec.head_kv_representation]
        if rotations == "explicit" or spec.has_qk_norm:
            expected["q"] = [rotation(generators["qk"][0], t) for t in spec.head_representation]
            expected["k"] = [rotation(generators["qk"][0], t) for t in spec.head_kv_representation]
        for part, matrices in expected.items():
            found = so8t.pop(f"blk.{layer}.so8t_{part}_rot.weight").read()
            np.testing.assert_array_equal(found, np.asarray(matrices).astype(np.float32))
            assert_in_so8(found, 1e-6)
    assert sorted(so8t) == sorted(
        f"so8t_head.{head}.{part}" for head in ("safety", "authority") for part in ("weight", "bias")
    )


def test_element_order_is_that_of_ggml(gguf, models, convert_to):
    path = convert_to(models["tiny-llama", "random"], rotations="explicit")
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.so8t_q_rot.weight")
    model = open_checkpoint(models["tiny-llama", "random"])
    assert tensor.shape.tolist() == [8, 8, 8]  # ne: j, i, head
    flat = tensor.data.reshape(-1)
    expected = rotation(model.load("model.layers.0.so8t.qk")[0], 1)
    j, i, head = 5, 2, 1
    assert flat[j + 8 * i + 64 * head] == np.float32(expected[i, j])


def test_heads_read_the_rotated_state(models, copied, convert_to, rng):
    directory = rewrite(copied(models["tiny-llama", "random"]), random_heads)
    model = open_checkpoint(directory)
    f = rng.normal(size=64)
    for outtype in ("f32", "q8_0"):
        file = read_gguf(convert_to(directory, outtype, name=f"{outtype}.gguf"))
        for name, t in (("safety", 1), ("authority", 2)):
            blocks = rotation(model.load("so8t.out"), t)
            z = np.concatenate([blocks[b] @ f[8 * b : 8 * b + 8] for b in range(8)])
            expected = model.load(f"{name}_head.weight") @ z
            found = file.tensors[f"so8t_head.{name}.weight"].read() @ f
            np.testing.assert_allclose(found, expected, atol=1e-5)
            bias = file.tensors[f"so8t_head.{name}.bias"].read()
            np.testing.assert_array_equal(bias, model.load(f"{name}_head.bias"))
            assert file.get(f"so8t.head.{name}.representation") == t


def test_stems_read_the_rotated_state_and_their_heads_do_not(models, copied, convert_to, rng):
    directory = copied(models["tiny-llama", "random"])
    common = {
        "actions": ["allow"] * 3,
        "thresholds": [0, 1, 0.5],
        "activation": "rmsnorm",
        "stem": "response",
    }
    heads = {
        "response_risk": {"labels": ["Safe", "Unsafe", "Controversial"], "representation": 2, **common},
        "response_category": {
            "labels": ["A", "B", "C"], "representation": 2, "scope": "answer", "prompt_token": 151645, **common,
        },
    }  # fmt: skip
    values = {
        "stems.response.weight": (24, 64), "stems.response.norm.weight": (24,),
        "heads.response_risk.weight": (3, 24), "heads.response_category.weight": (3, 24),
    }  # fmt: skip
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in values.items()}

    def edit(tensors):
        for name in list(tensors):
            if name.startswith(("safety_head", "authority_head")):
                del tensors[name]
        tensors.update({name: stored(name, array) for name, array in values.items()})

    rewrite(edit_config(directory, so8t_heads=heads), edit)
    file = read_gguf(convert_to(directory))
    generator = open_checkpoint(directory).load("so8t.out")
    turned = folding.rotate_columns(values["stems.response.weight"], rotation(generator, 2))
    np.testing.assert_array_equal(file.tensors["so8t_stem.response.weight"].read(), turned)
    np.testing.assert_array_equal(
        file.tensors["so8t_stem.response.norm.weight"].read(), values["stems.response.norm.weight"]
    )
    np.testing.assert_array_equal(
        file.tensors["so8t_head.response_category.weight"].read(), values["heads.response_category.weight"]
    )
    assert file.get("so8t.heads") == ["response_risk", "response_category"]
    assert file.get("so8t.head.response_risk.stem") == "response"
    assert file.get("so8t.head.response_risk.thresholds") == [0.0, 1.0, 0.5]
    assert file.get("so8t.head.response_category.prompt_token") == 151645
    assert file.get("so8t.head.response_category.scope") == "answer"
    assert "so8t.head.response_risk.prompt_token" not in file.metadata


@pytest.mark.parametrize("shared_blocks", [False, True])
def test_what_reads_in_an_attention_stem_reads_the_rotated_taps(models, copied, convert_to, rng, shared_blocks):
    directory = copied(models["tiny-llama", "random"])
    entry = {
        "labels": ["a", "b"], "actions": ["allow", "refuse"], "thresholds": [0.5, 0.5], "representation": 1,
        "taps": [1, 0], "tap_norm": "rms", "activation": "attention", "stem": "p", "sliding_window": 9,
    }  # fmt: skip
    shapes = {"attn_q": (24, 128), "attn_k": (8, 128), "attn_v": (8, 128), "attn_output": (24, 24), "norm": (24,)}
    shapes = {f"stems.p.{name}.weight": shape for name, shape in shapes.items()} | {"heads.h.weight": (2, 24)}
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def edit(tensors):
        for name in list(tensors):
            if name.startswith(("safety_head", "authority_head")):
                del tensors[name]
            elif shared_blocks and (name.endswith((".gate_safe", ".gate_cmd", ".ffn")) or name == "so8t.out"):
                tensors[name] = stored(name, tensors[name].read()[:1].copy())
        tensors.update({name: stored(name, array) for name, array in values.items()})

    rewrite(edit_config(directory, so8t_heads={"h": entry}, so8t_shared_blocks=shared_blocks), edit)
    file, checkpoint = read_gguf(convert_to(directory)), open_checkpoint(directory)
    assert checkpoint.stem_fields == {"so8t_stem_sizes": {"p": 24}, "so8t_stem_head_dims": {"p": 8}}
    blocks = rotation(checkpoint.load("so8t.out"), 1)
    z = rng.normal(size=128)
    turned = np.concatenate([blocks[b % 8 % len(blocks)] @ z[8 * b : 8 * b + 8] for b in range(16)])
    for name, weight in values.items():
        found = file.tensors[name.replace("stems.", "so8t_stem.").replace("heads.", "so8t_head.")].read()
        if name.endswith(("attn_q.weight", "attn_k.weight", "attn_v.weight")):
            np.testing.assert_allclose(found @ z, weight @ turned, atol=1e-4)
            assert not np.allclose(found, weight)
        else:
            np.testing.assert_array_equal(found, weight)
    keys = {"form": "attention", "activation": "attention", "stem": "p", "taps": [1, 0], "sliding_window": 9}
    assert {key: file.get(f"so8t.head.h.{key}") for key in keys} == keys


def test_so8t_keys_say_what_the_model_is(models, convert_to):
    file = read_gguf(convert_to(models["Tiny-Qwen3-0.1M-Instruct", "random"], "q8_0"))
    expected = {
        "so8t.format_version": (2, 4),
        "so8t.base_architecture": ("qwen3", 8),
        "so8t.rotation.dimension": (8, 4),
        "so8t.rotation.explicit": (["qk"], 9),
        "so8t.rotation.folded": (["gate", "v", "heads", "ffn"], 9),
        "so8t.attention.head_representation": ([0, 1, 2, 0, 1, 2, 0, 1], 9),
        "so8t.attention.head_kv_representation": ([0, 1], 9),
        "so8t.heads": (["safety", "authority"], 9),
        "so8t.head.safety.labels": (["safe", "unsafe"], 9),
        "so8t.head.safety.actions": (["allow", "refuse"], 9),
        "so8t.head.safety.thresholds": ([0.5, 0.5], 9),
        "so8t.head.safety.temperature": (1.0, 6),
        "so8t.head.safety.debounce": (1, 4),
        "so8t.head.safety.representation": (1, 5),
        "so8t.head.safety.activation": ("none", 8),
        "so8t.head.safety.scope": ("both", 8),
        "so8t.head.safety.rule": ("threshold", 8),
        "so8t.head.safety.taps": ([-1], 9),
        "so8t.head.safety.tap_norm": ("none", 8),
        "so8t.head.safety.form": ("linear", 8),
        "so8t.head.safety.link": ("softmax", 8),
        "so8t.head.authority.actions": (["allow", "escalate"], 9),
        "so8t.vocab_size": (320, 4),
        "so8t.rope.dimension_count": (16, 4),
        "so8t.attention.key_length": (16, 4),
        "so8t.attention.value_length": (16, 4),
        "general.file_type": (7, 4),
        "general.quantization_version": (2, 4),
    }
    for key, (value, kind) in expected.items():
        assert (file.get(key), file.metadata[key].type) == (value, kind), key
    sub_types = {"so8t.attention.head_representation": 5, "so8t.head.safety.thresholds": 6, "so8t.heads": 8}
    for key, sub_type in sub_types.items():
        assert file.metadata[key].sub_type == sub_type


def test_sites_that_are_switched_off_leave_no_trace(models, copied, convert_to):
    directory = copied(models["tiny-llama", "random"])
    edit_config(directory, so8t_non_commutative_gates=False, so8t_cross_head_interaction=False)

    def drop(tensors):
        for name in [name for name in tensors if name.endswith((".gate_safe", ".gate_cmd", ".heads"))]:
            del tensors[name]

    rewrite(directory, drop)
    file = read_gguf(convert_to(directory, rotations="explicit"))
    assert file.get("so8t.rotation.explicit") == ["qk", "v", "ffn"]
    assert not any("gate_safe" in name or "so8t_heads" in name for name in file.tensors)


def test_a_model_without_heads_has_no_list_of_heads(models, copied, convert_to):
    directory = edit_config(copied(models["tiny-llama", "random"]), so8t_heads={})

    def drop(tensors):
        for name in [name for name in tensors if name.startswith(("safety_head", "authority_head"))]:
            del tensors[name]

    assert "so8t.heads" not in read_gguf(convert_to(rewrite(directory, drop))).metadata


@pytest.mark.parametrize("name", BASES)
def test_an_adapter_converts_to_the_file_of_its_full_checkpoint(bases, tmp_path, name, convert_to):
    options = {"rotations": "random", "seed": 5, "scale": 0.3, "compensate": True}
    for kind in ("full", "adapter"):
        initialize(InitializeOptions(str(bases[name]), tmp_path / kind / name, adapter=kind == "adapter", **options))
    outtype = "q8_0" if name.startswith("odd") else "f32"
    full = convert_to(tmp_path / "full" / name, outtype, name="full.gguf")
    adapter = convert_to(tmp_path / "adapter" / name, outtype, name="adapter.gguf")
    assert full.read_bytes() == adapter.read_bytes()
    # and folded again it is the base
    base, file = open_checkpoint(bases[name]), read_gguf(full)
    if outtype == "f32":
        for tensor in base.tensor_names():
            found = file.tensors[gguf_name(tensor, base.spec)].read()
            assert_same_function({tensor: found}, {tensor: base.load(tensor)}, 1e-6)


def test_the_same_model_gives_the_same_bytes(models, convert_to, tmp_path):
    first = convert_to(models["tied-qwen3", "random"], "q8_0", name="a.gguf").read_bytes()
    time.sleep(1.1)
    assert convert_to(models["tied-qwen3", "random"], "q8_0", name="b.gguf").read_bytes() == first


def test_the_default_name_is_that_of_the_directory(models, copied):
    directory = copied(models["tiny-llama", "zero"])
    made = convert(ConvertOptions(model=directory, outtype="f16", progress=False))
    assert made == directory / "tiny-llama-so8t-f16.gguf"
    assert ConvertOptions(model=directory).outtype == "q8_0"
    renamed = convert(ConvertOptions(model=directory, outtype="f16", model_name="Other", progress=False))
    assert read_gguf(renamed).get("general.name") == "Other"


def test_task_head_is_another_name_of_the_output(models, copied, convert_to):
    directory = copied(models["tiny-llama", "random"])

    def rename(tensors):
        tensors["task_head.weight"] = tensors.pop("lm_head.weight").renamed("task_head.weight")

    expected = convert_to(directory, name="a.gguf").read_bytes()
    assert convert_to(rewrite(directory, rename), name="b.gguf").read_bytes() == expected


def test_tied_embeddings_have_no_output(models, copied, convert_to, monkeypatch):
    monkeypatch.setattr("llama_so8t.conversion.convert._ROWS", 100)  # several parts, the last one shorter
    directory = copied(models["tied-qwen3", "random"])
    expected = convert_to(directory, name="a.gguf")
    assert "output.weight" not in read_gguf(expected).tensors

    def repeat(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].renamed("lm_head.weight")

    assert convert_to(rewrite(directory, repeat), name="b.gguf").read_bytes() == expected.read_bytes()

    def differ(tensors):
        values = tensors["lm_head.weight"].read().copy()
        values[-1, -1] += 1
        tensors["lm_head.weight"] = stored("lm_head.weight", values)

    with pytest.raises(ConversionError, match=r"ties the embeddings, but lm_head.weight differs"):
        convert_to(rewrite(directory, differ), name="c.gguf")


def spoil_generator(value, name="model.layers.1.so8t.heads"):
    def edit(tensors):
        values = tensors[name].read().copy()
        values[0, 3] = value
        tensors[name] = stored(name, values)

    return edit


def heads(**fields):
    """The default heads with fields of the safety head replaced."""
    entries = {name: head.to_dict() for name, head in default_heads().items()}
    entries["safety"] |= fields
    return entries


@pytest.mark.parametrize(
    ("edit", "fields", "error", "message"),
    [
        (spoil_generator(np.nan), {}, CheckpointError, r"'model.layers.1.so8t.heads': found nan at \[0, 3\]"),
        (spoil_generator(-np.inf, "so8t.out"), {}, CheckpointError, r"'so8t.out': found -inf"),
        (spoil_generator(3e38), {}, CheckpointError, r"'model.layers.1.so8t.heads': found a coefficient of 3e\+38"),
        (
            spoil_generator(np.nan, "safety_head.weight"),
            {},
            CheckpointError,
            r"'safety_head.weight': found nan",
        ),
        (lambda t: t.pop("so8t.out"), {}, CheckpointError, r"'so8t.out' is missing"),
        (
            lambda t: t.update(x=stored("x", np.ones(3, np.float32))),
            {},
            CheckpointError,
            "'x' is not expected",
        ),
        (None, {"hidden_act": "gelu"}, ConversionError, "hidden_act 'gelu', expected 'silu'"),
        (None, {"use_sliding_window": True}, ConversionError, "attends to all positions"),
        (None, {"head_dim": 12}, ConfigError, "expected a multiple of 8"),
        (
            None,
            {"so8t_heads": {"safety": {"labels": ["a", "b"], "actions": ["allow"], "thresholds": [1, 1]}}},
            ConfigError,
            "found 1 actions for 2 labels",
        ),
        (
            None,
            {"so8t_heads": heads(thresholds=[1, 1e300])},
            ConversionError,
            "safety.thresholds.*fits float32",
        ),
        (None, {"so8t_heads": heads(debounce=2**32)}, ConfigError, "debounce 4294967296, expected 1 to 65536"),
        (None, {"so8t_heads": heads(debounce=1.5)}, ConversionError, "safety.debounce: found 1.5"),
        (None, {"so8t_heads": heads(prompt_token=2**31)}, ConversionError, "prompt_token.*whole number"),
        (None, {"model_type": ["so8t"]}, CheckpointError, r"found model_type \['so8t'\]"),
        (None, {"base_model_type": {}}, ConfigError, "found base model type {}"),
        (None, {"num_attention_heads": 10**9}, ConfigError, "num_attention_heads 1000000000, expected at most 1048576"),
        (None, {"tie_word_embeddings": "no"}, ConfigError, "tie_word_embeddings 'no', expected true or false"),
        (None, {"rope_parameters": [1]}, ConfigError, r"rope_parameters \[1\], expected an object"),
        (None, {"quantization_config": {"quant_method": []}}, CheckpointError, r"method \[\]"),
        (None, {"so8t_heads": heads(labels="safe")}, ConfigError, "found labels 'safe', expected different ones"),
        (None, {"so8t_heads": heads(labels=["a", ""])}, ConfigError, r"found labels \['a', ''\]"),
        (None, {"so8t_heads": heads(actions=[[], "allow"])}, ConfigError, r"found actions \[\[\], 'allow'\]"),
        (None, {"so8t_heads": heads(thresholds=[True, 10**400])}, ConfigError, "found thresholds"),
        (None, {"so8t_heads": heads(representation=True)}, ConfigError, "found representation True, expected 0, 1"),
        (None, {"so8t_heads": heads(activation=[])}, ConfigError, r"found activation \[\]"),
        (None, {"so8t_heads": heads(stem="a\nb", activation="gelu")}, ConfigError, "found stem 'a"),
        (None, {"so8t_heads": heads(temperature="1")}, ConfigError, "found temperature '1'"),
        (None, {"so8t_heads": heads(scope=3)}, ConfigError, "found scope 3, expected one of"),
        (None, {"so8t_heads": heads(prompt_token="a")}, ConfigError, "found prompt_token 'a'"),
        (None, {"vocab_size": 319}, CheckpointError, r"expected \[319, 64\]"),
        (None, {"max_position_embeddings": 2**40}, ConversionError, "does not fit its type"),
    ],
)
def test_a_bad_model_gives_one_line_and_no_file(models, copied, convert_to, tmp_path, edit, fields, error, message):
    directory = edit_config(copied(models["tiny-llama", "random"]), **fields)
    if edit:
        rewrite(directory, edit)
    with pytest.raises(error, match=message) as caught:
        convert_to(directory)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["copied"]


def test_a_model_without_tokenizer_is_refused(models, copied, convert_to, tmp_path):
    directory = copied(models["tiny-llama", "random"])
    (directory / "tokenizer.model").unlink()
    with pytest.raises(ConversionError, match="refuses the configuration or the tokenizer"):
        convert_to(directory)
    assert os.listdir(tmp_path) == ["copied"]


def test_a_base_model_is_sent_to_init(bases, convert_to, upstream_files):
    for model in (bases["tiny-qwen2"], upstream_files["tiny-qwen2", "f32"]):
        with pytest.raises(ConversionError, match=r"is a plain qwen2 model .*so8t init --base"):
            convert_to(model)


@pytest.mark.parametrize("options", [{"outtype": "q9_9"}, {"rotations": "sideways"}, {"name": "no/such/dir.gguf"}])
def test_bad_options_are_refused(models, convert_to, options):
    with pytest.raises(ConversionError, match="expected"):
        convert_to(models["tiny-llama", "zero"], **options)


def test_a_model_named_reranker_is_still_a_language_model(models, tmp_path, bases, convert_to):
    directory = tmp_path / "Tiny-Qwen3-Reranker"
    initialize(InitializeOptions(str(bases["Tiny-Qwen3-0.1M-Instruct"]), directory))
    assert not any("pooling" in key for key in read_gguf(convert_to(directory)).metadata)


def test_a_failure_in_the_middle_leaves_the_old_file(models, convert_to, tmp_path, monkeypatch):
    path = convert_to(models["tiny-llama", "zero"])
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("llama_so8t.folding.fold_step", fail)
    with pytest.raises(OSError, match="no space"):
        convert_to(models["tiny-llama", "random"])
    assert os.listdir(tmp_path) == ["out.gguf"]
    assert path.read_bytes() == before


def test_a_changed_config_beside_vocab_gguf_is_noticed(upstream_files, tmp_path, convert_to, monkeypatch):
    monkeypatch.setattr("llama_so8t.checkpoint.vocabulary.write_tokenizer", lambda directory: [])
    model = tmp_path / "model"
    initialize(InitializeOptions(str(upstream_files["tiny-llama", "f32"]), model))
    convert_to(model)
    for field, value in (
        ("max_position_embeddings", 512),
        ("rms_norm_eps", 1e-6),
        ("rope_parameters", {"rope_theta": 5}),
    ):
        config = (model / "config.json").read_text()
        edit_config(model, **{field: value})
        with pytest.raises(ConversionError, match=r"in config.json, but .*vocab.gguf"):
            convert_to(model)
        (model / "config.json").write_text(config)
