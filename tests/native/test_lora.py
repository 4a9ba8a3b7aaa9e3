"""LoRA adapters: converted for each form of a file they compute what PEFT does; on another form they are refused."""

import subprocess

import numpy as np
import pytest
from gguf_files import copy_gguf, write_gguf
from lora_adapters import apply_lora, write_lora
from properties import assert_same_function
from required import package
from safetensors.numpy import load_file

from llama_so8t.bindings import Session
from llama_so8t.bindings.session import F32
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.lora import plan_lora, run_lora
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.errors import RuntimeLibraryError

from .conftest import MARGIN, randomize_heads, reference, tokens_for

N = 24
PATTERNS = {
    "use_rslora": True,
    "rank_pattern": {"layers.1.self_attn.q_proj": 3, "down_proj": 6},
    "alpha_pattern": {"v_proj": 5, r"^model\.layers\.0\.mlp.*": 16},
}
MODELS = {
    "qwen3": {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64},
    "llama": {"attention_bias": True},
    "qwen2": {},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, make_model):
    return make_model(request.param, **MODELS[request.param])


@pytest.fixture(scope="module")
def lora(model, tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("lora") / "lora", model, **PATTERNS)


@pytest.fixture(scope="module")
def expected(model, lora, tmp_path_factory):
    """Of the reference model whose weights were changed by numpy."""
    changed = apply_lora(model, lora, tmp_path_factory.mktemp("changed") / "model")
    return reference(changed, tokens_for(model, N))


def values(file, adapter=None, scale=1.0, seed_of=None):
    with Session(file, type_k=F32, type_v=F32, flash_attn=False) as session:
        if adapter:
            session.apply_lora(adapter, scale)
        session.decode(np.random.default_rng(1).integers(3, 300, N).tolist())
        return {"task": session.logits(), **{head.name: session.head_logits(head.name) for head in session.heads}}


def assert_same(found, expected, margin=MARGIN):
    for name in found:
        assert_same_function(found[name], expected[name], margin, np.abs(expected[name]).max())


def adapter_for(model, lora, out, **options):
    return run_lora(plan_lora(ConvertOptions(model=model, outfile=out, **{"outtype": "f32"} | options), lora))


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_an_adapter_for_a_form_changes_it_as_the_reference_model_is_changed(
    model, lora, expected, to_gguf, tmp_path, rotations
):
    file = to_gguf(model, rotations)
    adapter = adapter_for(model, lora, tmp_path / "lora.gguf", rotations=rotations)
    assert_same(values(file, adapter), expected)
    plain = values(file)
    assert np.abs(plain["task"] - expected["task"]).max() > 0.05 * np.abs(expected["task"]).max()
    assert_same(values(file, adapter, scale=0.0), plain, 1e-6)


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_a_merged_adapter_is_the_same(model, lora, expected, tmp_path, rotations):
    options = {"outtype": "f32", "rotations": rotations, "merge_lora": lora, "progress": False}
    assert_same(values(convert(ConvertOptions(model=model, outfile=tmp_path / "m.gguf", **options))), expected)


def test_a_stock_file_takes_an_adapter_in_the_order_of_its_rows(make_model, tmp_path):
    model = make_model("llama", attention_bias=True)
    lora = write_lora(tmp_path / "lora", model, **PATTERNS)
    file = convert(ConvertOptions(model, tmp_path / "stock.gguf", "f32", arch="stock", progress=False))
    adapter = adapter_for(model, lora, tmp_path / "lora.gguf", arch="stock")
    expected = reference(apply_lora(model, lora, tmp_path / "changed"), tokens_for(model, N))
    assert_same(values(file, adapter), expected)
    unturned = copy_gguf(adapter, tmp_path / "unturned.gguf", keys={"so8t.lora.folded": None})
    with pytest.raises(RuntimeLibraryError, match=r"rotations in them: none; this file has: \w+"):
        values(file, unturned)


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])
def test_an_adapter_has_other_types(make_model, to_gguf, tmp_path, outtype):
    model = make_model("qwen2")
    lora = write_lora(tmp_path / "lora", model, r=32)
    expected = reference(apply_lora(model, lora, tmp_path / "changed"), tokens_for(model, N))
    adapter = adapter_for(model, lora, tmp_path / "lora.gguf", outtype=outtype)
    found = values(to_gguf(model, "fold"), adapter)
    assert_same(found, expected, {"f16": 2e-3, "bf16": 1e-2, "q8_0": 2e-2}[outtype])


@pytest.mark.parametrize("family", MODELS)
def test_adapters_that_peft_has_made_compute_what_peft_does(make_model, to_gguf, tmp_path, family):
    import torch
    from transformers import AutoModelForCausalLM

    import llama_so8t.hf  # noqa: F401

    peft = package("peft")
    model = make_model(family, **MODELS[family])
    torch.manual_seed(3)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, init_lora_weights=False, exclude_modules=".*_head|heads.*",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
        **PATTERNS,
    )  # fmt: skip
    net = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config).eval()
    net.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    with torch.no_grad():
        output = net(torch.tensor([tokens_for(model, N)]))
    expected = {"task": output.logits[0].numpy()} | {k: v[0].numpy() for k, v in output.head_logits.items()}
    for rotations in ("fold", "explicit"):
        adapter = adapter_for(model, tmp_path / "lora", tmp_path / f"{rotations}.gguf", rotations=rotations)
        assert_same(values(to_gguf(model, rotations), adapter), expected)
    options = {"outtype": "f32", "merge_lora": tmp_path / "lora", "progress": False}
    assert_same(values(convert(ConvertOptions(model=model, outfile=tmp_path / "m.gguf", **options))), expected)


def test_heads_and_generators_that_peft_has_trained_are_merged(make_model, tmp_path):
    """all-linear has the heads as well; modules_to_save has every module whose name ends so."""
    import torch
    from transformers import AutoModelForCausalLM

    import llama_so8t.hf  # noqa: F401

    peft = package("peft")
    model = make_model("llama")
    torch.manual_seed(3)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules=["q_proj", "safety_head"],
        modules_to_save=["norm", "authority_head", "so8t"],
    )  # fmt: skip
    net = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
        output = net(torch.tensor([tokens_for(model, N)]))
    net.save_pretrained(tmp_path / "lora")
    assert "base_model.model.model.layers.0.input_layernorm.weight" in load_file(
        tmp_path / "lora" / "adapter_model.safetensors"
    )
    expected = {"task": output.logits[0].numpy()} | {k: v[0].numpy() for k, v in output.head_logits.items()}
    for rotations in ("fold", "explicit"):
        options = {"outtype": "f32", "rotations": rotations, "merge_lora": tmp_path / "lora", "progress": False}
        assert_same(values(convert(ConvertOptions(model=model, outfile=tmp_path / "m.gguf", **options))), expected)


# --- what the loader refuses ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(make_model):
    return make_model("llama")


@pytest.fixture(scope="module")
def pairs(llama, tmp_path_factory):
    """form -> adapter for it."""
    root = tmp_path_factory.mktemp("pairs")
    lora = write_lora(root / "lora", llama)
    return {form: adapter_for(llama, lora, root / f"{form}.gguf", rotations=form) for form in ("fold", "explicit")}


def test_an_adapter_for_the_other_form_is_refused(llama, pairs, to_gguf):
    with pytest.raises(RuntimeLibraryError, match=r"rotations in them: none; this file has: \w+.*so8t convert --lora"):
        values(to_gguf(llama, "fold"), pairs["explicit"])
    with pytest.raises(RuntimeLibraryError, match=r"rotations in them: \w+.*; this file has: none"):
        values(to_gguf(llama, "explicit"), pairs["fold"])


def test_an_unmarked_adapter_is_refused_only_where_it_touches_what_is_turned(llama, pairs, to_gguf, tmp_path):
    def only(*weights):
        kept = {f"blk.{layer}.{weight}.weight.lora_{x}" for layer in (0, 1) for weight in weights for x in "ab"}
        from llama_so8t.files.gguf_file import read_gguf

        gone = dict.fromkeys(set(read_gguf(pairs["explicit"]).tensors) - kept)
        return copy_gguf(pairs["explicit"], tmp_path / "part.gguf", tensors=gone)

    file = to_gguf(llama, "fold")
    for weight, sites in {"attn_q": "gate, qk", "attn_k": "gate, qk", "attn_v": "gate, v", "attn_output": "heads",
                          "ffn_gate": "ffn", "ffn_up": "ffn"}.items():  # fmt: skip
        with pytest.raises(RuntimeLibraryError, match=rf"blk\.0\.{weight}\..*this file has: {sites};"):
            values(file, only("ffn_down", weight))
    assert np.isfinite(values(file, only("ffn_down"))["task"]).all()


def test_rotations_by_zero_turn_nothing(tmp_path, make_model):
    from llama_so8t.checkpoint.initialize import InitializeOptions, initialize

    model = make_model("llama")
    initialize(InitializeOptions(str(model.parent / "base"), tmp_path / "zero"))
    randomize_heads(tmp_path / "zero", 0)
    lora = write_lora(tmp_path / "lora", tmp_path / "zero")
    options = {"outtype": "f32", "progress": False}
    file = convert(ConvertOptions(model=tmp_path / "zero", outfile=tmp_path / "zero.gguf", **options))
    found = values(file, adapter_for(tmp_path / "zero", lora, tmp_path / "lora.gguf", rotations="explicit"))
    assert_same(found, reference(apply_lora(tmp_path / "zero", lora, tmp_path / "changed"), tokens_for(model, N)))


def test_tensors_of_heads_and_rotations_take_no_adapter(llama, to_gguf, tmp_path, runtime):
    ones = np.ones((2, 64), np.float32)
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0}
    wrong = {
        "so8t_head.safety.weight": (ones, ones[:, :2]),
        "so8t_head.safety.bias": (ones, ones[:, :2]),
        "so8t_stem.s.weight": (ones, ones[:, :2]),
        "blk.0.so8t_v_rot.weight": (ones[:, :8], ones[:, :2]),
        "so8t_out_gen.weight": (ones, ones[:, :2]),
    }
    for name, (a, b) in wrong.items():
        tensors = {f"{name}.lora_a": a, f"{name}.lora_b": b}
        adapter = write_gguf(tmp_path / "lora.gguf", keys=keys, tensors=tensors)
        for form in ("fold", "explicit"):
            file = to_gguf(llama, form)
            with pytest.raises(RuntimeLibraryError, match=rf"the adapter has the tensor '{name}\.lora_a'"):
                values(file, adapter)
    command = [runtime / "llama-completion", "-m", file, "--lora", adapter, "-p", "x", "-n", "1", "-no-cnv"]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 1
    assert "so8t: the adapter has the tensor 'so8t_out_gen.weight.lora_a'" in result.stderr


HOSTILE_KEYS = {
    "general.type": 3, "adapter.type": ["lora"], "adapter.lora.alpha": "four", "so8t.lora.folded": "gate",
}  # fmt: skip


def test_hostile_adapters_are_errors(llama, to_gguf, tmp_path, pairs):
    ones = np.ones((4, 64), np.float32)
    file = to_gguf(llama, "fold")
    for key, value in HOSTILE_KEYS.items():
        keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0, key: value}
        adapter = write_gguf(tmp_path / "lora.gguf", keys=keys, tensors={})
        with pytest.raises(RuntimeLibraryError, match=key):
            values(file, adapter)
    for sites in (["gate", "gate"], ["out"], ["g\x01te"]):
        with pytest.raises(RuntimeLibraryError, match=r"'so8t\.lora\.folded' names the site"):
            values(file, copy_gguf(pairs["fold"], tmp_path / "lora.gguf", keys={"so8t.lora.folded": sites}))
    tensors = {
        "blk.0.ffn_down.weight.lora_a": np.ones((3, 4, 96), np.float32),
        "blk.0.ffn_down.weight.lora_b": np.ones((64, 4), np.float32),
    }
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0}
    with pytest.raises(RuntimeLibraryError, match=r"'blk\.0\.ffn_down\.weight\.lora_a' is no matrix"):
        values(file, write_gguf(tmp_path / "lora.gguf", keys=keys, tensors=tensors))
    tensors = {"token_embd.weight.lora_a": np.ones((320, 4), np.float32), "token_embd.weight.lora_b": ones[:, :5].T}
    with pytest.raises(RuntimeLibraryError, match="have the ranks"):
        tensors["token_embd.weight.lora_b"] = np.ones((64, 5), np.float32)
        values(file, write_gguf(tmp_path / "lora.gguf", keys=keys, tensors=tensors))


def test_the_embedding_takes_an_adapter_where_it_is_not_the_output(make_model, to_gguf, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    import llama_so8t.hf  # noqa: F401

    peft = package("peft")
    model = make_model("llama")
    torch.manual_seed(3)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules=["embed_tokens", "lm_head"]
    )
    net = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config).eval()
    net.save_pretrained(tmp_path / "lora")
    with torch.no_grad():
        output = net(torch.tensor([tokens_for(model, N)]))
    expected = {"task": output.logits[0].numpy()} | {k: v[0].numpy() for k, v in output.head_logits.items()}
    adapter = adapter_for(model, tmp_path / "lora", tmp_path / "lora.gguf")
    assert_same(values(to_gguf(model, "fold"), adapter), expected)
    options = {"outtype": "f32", "merge_lora": tmp_path / "lora", "progress": False}
    assert_same(values(convert(ConvertOptions(model=model, outfile=tmp_path / "m.gguf", **options))), expected)
    tied = make_model("llama", tie_word_embeddings=True)
    embedding = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    tensors = {
        f"token_embd.weight.lora_{x}": np.ascontiguousarray(values)
        for x, values in {
            "a": embedding["base_model.model.model.embed_tokens.lora_embedding_A"].T,
            "b": embedding["base_model.model.model.embed_tokens.lora_embedding_B"],
        }.items()
    }
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0}
    with pytest.raises(RuntimeLibraryError, match="the output matrix of this model is its embedding"):
        values(to_gguf(tied, "fold"), write_gguf(tmp_path / "tied.gguf", keys=keys, tensors=tensors))
