"""Behaviour of the model: sites, heads, training, generation, checkpoints."""

import copy
import subprocess
import sys

import pytest
from properties import assert_in_so8, assert_same_function
from required import package

torch = package("torch")
transformers = package("transformers")

from torch.func import functional_call  # noqa: E402
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm  # noqa: E402
from transformers.quantizers.base import HfQuantizer  # noqa: E402
from transformers.quantizers.quantizers_utils import should_convert_module  # noqa: E402

from llama_so8t.hf import (  # noqa: E402
    SO8TMultiHeadAttention,
    SO8TTransformerConfig,
    SO8TTransformerForCausalLM,
    SO8TTransformerModel,
)
from llama_so8t.hf.torch_rotation import rotate_blocks, rotation  # noqa: E402

FAMILIES = ("qwen3", "llama", "qwen2")
SITES = ("gate_safe", "gate_cmd", "qk", "v", "heads", "ffn")


def generators(model):
    return {name: parameter for name, parameter in model.named_parameters() if "so8t." in name}


# --- tensors -------------------------------------------------------------------------------------


def test_generators_are_named_and_shaped_as_the_specification_says(model):
    for shared in (False, True):
        m = model(so8t_shared_blocks=shared)
        found = {name: tuple(parameter.shape) for name, parameter in generators(m).items()}
        assert found == m.config.model_spec().generator_shapes()
        assert found["model.layers.1.so8t.gate_safe"] == ((1, 28) if shared else (4, 28))
        assert all(parameter.dtype == torch.float32 for parameter in generators(m).values())


def test_tensors_of_heads_and_stems_have_the_names_of_the_format(model, head_forms):
    m = model(**head_forms)
    names = {name for name in m.state_dict() if not name.startswith(("model.", "so8t.", "lm_head."))}
    assert names == {
        "safety_head.weight", "safety_head.bias", "authority_head.weight", "authority_head.bias",
        "stems.response.weight", "stems.response.norm.weight", "heads.risk.weight", "heads.category.weight",
        "stems.tone.weight", "stems.tone.bias", "heads.tone.weight", "heads.tone.bias",
        "stems.topic.weight", "stems.topic.bias", "heads.topic.weight", "heads.topic.bias",
        "heads.plain.weight", "heads.plain.bias",
        *(f"stems.look.{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "attn_output", "norm")),
        "heads.look.weight", "heads.look.bias", "heads.back.weight", "heads.back.bias",
    }  # fmt: skip


def test_sites_that_are_switched_off_have_no_generator_and_act_as_zero(model, tokens):
    m = model(so8t_non_commutative_gates=False, so8t_cross_head_interaction=False)
    assert {name.rpartition(".")[2] for name in generators(m)} == {"qk", "v", "ffn", "out"}
    full = model(scale=0)
    full.load_state_dict(m.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(m(tokens).logits, full(tokens).logits)


# --- sites ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_each_site_alone_changes_the_logits_in_each_layer(model, tokens, family, site):
    m = model(family, scale=0)
    before = m(tokens).logits
    for layer in m.model.layers:
        generator = getattr(layer.so8t, site)
        generator.normal_(0.0, 0.3)
        change = (m(tokens).logits - before).abs()
        # one token attends to itself only, so that qk acts from the second token on
        assert (change[:, 1:].amax(-1) > 1e-3).all()
        generator.zero_()


@torch.no_grad()
def test_out_site_turns_the_heads_and_leaves_the_task(model, tokens):
    m = model(scale=0)
    before = m(tokens)
    m.so8t.out.normal_(0.0, 0.3)
    after = m(tokens)
    assert torch.equal(before.logits, after.logits)
    for name in ("safety", "authority"):
        assert ((before.head_logits[name] - after.head_logits[name]).abs().amax(-1) > 1e-3).all()


@torch.no_grad()
def test_gate_applies_safe_first_and_cmd_second(model, tokens):
    m = model()
    layer, seen = m.model.layers[0], {}
    layer.input_layernorm.register_forward_hook(lambda module, args, output: seen.update(normed=output))
    layer.self_attn.q_proj.register_forward_pre_hook(lambda module, args: seen.update(gated=args[0]))
    first = m(tokens).logits
    safe, cmd = rotation(layer.so8t.gate_safe), rotation(layer.so8t.gate_cmd)
    torch.testing.assert_close(seen["gated"], rotate_blocks(rotate_blocks(seen["normed"], safe), cmd))
    assert (seen["gated"] - rotate_blocks(rotate_blocks(seen["normed"], cmd), safe)).abs().max() > 0.1

    layer.so8t.gate_safe.data, layer.so8t.gate_cmd.data = layer.so8t.gate_cmd.data, layer.so8t.gate_safe.data
    assert (m(tokens).logits - first).abs().max() > 0.01


@torch.no_grad()
def test_shared_blocks_equal_the_same_generator_in_every_block(model, tokens):
    shared = model(so8t_shared_blocks=True)
    blocks = model(so8t_shared_blocks=False)
    state = shared.state_dict()
    for name, parameter in generators(blocks).items():
        state[name] = state[name].expand_as(parameter) if len(state[name]) == 1 else state[name]
    blocks.load_state_dict(state)
    assert_same_function(blocks(tokens).logits, shared(tokens).logits, 1e-5)
    blocks.model.layers[0].so8t.ffn[1] += 0.1
    assert (blocks(tokens).logits - shared(tokens).logits).abs().max() > 1e-3


@torch.no_grad()
def test_representation_switched_off_acts_as_vector(model, tokens):
    m = model()
    before = m(tokens)
    outputs = {}
    for name, fields in {
        "off": {"so8t_triality_symmetry": False},
        "explicit": {"so8t_head_representation": [0] * 10, "so8t_head_kv_representation": [0] * 5},
        "minus": {"so8t_spinor_minus_representation": False},
        "one_head": {"so8t_head_representation": [0, 1, 2, 0, 1, 2, 0, 1, 0, 0]},
    }.items():
        other = model(**fields)
        other.load_state_dict(m.state_dict())
        outputs[name] = other(tokens)
        assert (outputs[name].logits - before.logits).abs().max() > 1e-3, name
    assert torch.equal(outputs["off"].logits, outputs["explicit"].logits)
    # the heads fall back too
    assert not torch.equal(outputs["off"].safety_logits, outputs["explicit"].safety_logits)
    assert not torch.equal(outputs["off"].logits, outputs["minus"].logits)


# --- training ------------------------------------------------------------------------------------


def float64_norm(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


@pytest.mark.parametrize("scale", [0.0, 0.4])
def test_gradient_through_every_site_is_exact(model, monkeypatch, scale):
    # the norms of transformers round to float32, too coarse for numerical derivatives
    monkeypatch.setattr(Qwen3RMSNorm, "forward", float64_norm)
    fields = {"hidden_size": 16, "head_dim": 8, "num_attention_heads": 9, "num_key_value_heads": 3}
    m = model(scale=scale, num_hidden_layers=1, vocab_size=5, so8t_shared_blocks=True, **fields).double()
    names = list(generators(m))
    assert len(names) == len(SITES) + 1
    tokens = torch.tensor([[1, 3, 2]])

    def outputs(*values):
        found = functional_call(m, dict(zip(names, values, strict=True)), (tokens,))
        return found.logits[:, -1], found.safety_logits[:, -1], found.authority_logits[:, -1]

    assert torch.autograd.gradcheck(outputs, tuple(generators(m).values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_generator_learns_from_zero(config, tokens, dtype):
    m = SO8TTransformerForCausalLM._from_config(config(initializer_range=0.2), dtype=dtype)
    assert all(not parameter.any() for parameter in generators(m).values())
    output = m(tokens, labels=tokens)
    (output.loss + output.safety_logits[..., 0].sum() + output.authority_logits[..., 0].sum()).backward()
    for name, parameter in generators(m).items():
        assert parameter.dtype == torch.float32
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 1e-5, name


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_gives_equal_gradients(model, tokens):
    m = model().train()
    checkpointed = copy.deepcopy(m)
    checkpointed.gradient_checkpointing_enable()
    assert checkpointed.model.layers[0].gradient_checkpointing
    for each in (m, checkpointed):
        output = each(tokens, labels=tokens)
        (output.loss + output.safety_logits.square().mean()).backward()
    expected = dict(m.named_parameters())
    for name, parameter in checkpointed.named_parameters():
        if name.startswith("authority_head"):
            assert parameter.grad is None
        else:
            assert torch.equal(parameter.grad, expected[name].grad), name


def test_a_training_step_keeps_every_rotation_in_so8(model, tokens):
    m = model().train()
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = m(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for parameter in generators(m).values():
        assert_in_so8(rotation(parameter.detach()), 1e-12)


# --- outputs -------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_position_has_verdicts_and_the_task_follows_logits_to_keep(model, tokens, head_forms):
    m = model(**head_forms)
    full = m(tokens)
    assert full.logits.shape == (2, 11, 61)
    assert list(full.head_logits) == [
        "safety",
        "authority",
        "risk",
        "category",
        "tone",
        "topic",
        "plain",
        "look",
        "back",
    ]
    assert {values.shape for values in full.head_logits.values()} == {(2, 11, 2), (2, 11, 3)}
    assert full.safety_logits is full.head_logits["safety"]
    assert full.authority_logits is full.head_logits["authority"]
    kept = m(tokens, logits_to_keep=2)
    assert_same_function(kept.logits, full.logits[:, -2:], 1e-5)
    assert all(torch.equal(kept.head_logits[name], values) for name, values in full.head_logits.items())


@torch.no_grad()
def test_model_without_heads_has_none(model, tokens):
    output = model(so8t_heads={})(tokens)
    assert output.head_logits == {} and output.safety_logits is None and output.authority_logits is None


@torch.no_grad()
def test_verdicts_are_causal(model, tokens):
    m = model()
    other = tokens.clone()
    other[:, 7:] = 5
    change = (m(tokens).safety_logits - m(other).safety_logits).abs()
    assert change[:, :7].max() < 1e-5
    assert change[:, 7:].max() > 1e-3


@torch.no_grad()
def test_eager_and_sdpa_attention_agree_and_eager_returns_weights(model, tokens):
    m = model()
    expected = m(tokens)
    m.set_attn_implementation("eager")
    found = m(tokens, output_attentions=True, output_hidden_states=True)
    assert_same_function(found.logits, expected.logits, 1e-5)
    assert [weights.shape for weights in found.attentions] == [(2, 10, 11, 11)] * 2
    assert [states.shape for states in found.hidden_states] == [(2, 11, 32)] * 3


@torch.no_grad()
def test_outputs_come_as_a_tuple_on_request(model, tokens):
    output = model()(tokens, return_dict=False, use_cache=False)
    assert isinstance(output, tuple)
    assert output[0].shape == (2, 11, 61) and set(output[1]) == {"safety", "authority"}


# --- generation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_generation_with_a_cache_equals_the_full_forward(model, tokens, family):
    m = model(family)
    options = {"max_new_tokens": 8, "do_sample": False, "output_logits": True}
    options["return_dict_in_generate"] = True
    found = m.generate(tokens, **options)
    full = m(found.sequences).logits[:, 10:-1]
    assert_same_function(torch.stack(found.logits, dim=1), full, 1e-5)
    assert torch.equal(found.sequences, m.generate(tokens, **options, use_cache=False).sequences)


@torch.no_grad()
def test_verdicts_with_a_cache_equal_the_full_forward(model, tokens):
    m = model()
    full, past, steps = m(tokens), None, []
    for chunk in (tokens[:, :4], tokens[:, 4:5], tokens[:, 5:]):
        output = m(chunk, past_key_values=past, use_cache=True)
        past = output.past_key_values
        steps.append(output.head_logits)
    for name, values in full.head_logits.items():
        found = torch.cat([step[name] for step in steps], dim=1)
        assert_same_function(found, values, 1e-5)


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(model, tokens):
    m = model()
    padded = torch.cat((torch.zeros_like(tokens[:, :3]), tokens), dim=1)
    mask = (padded != 0).long()
    found = m(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    assert_same_function(found.logits[:, 3:], m(tokens).logits, 1e-5)


@torch.no_grad()
def test_embeddings_may_replace_tokens(model, tokens):
    m = model()
    assert torch.equal(m(inputs_embeds=m.get_input_embeddings()(tokens)).logits, m(tokens).logits)
    for both in ({}, {"input_ids": tokens, "inputs_embeds": m.get_input_embeddings()(tokens)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            m(**both)


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_save_and_load_give_the_same_model(model, tokens, tmp_path, head_forms, family, tied):
    m = model(family, tie_word_embeddings=tied, **head_forms)
    m.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is SO8TTransformerForCausalLM
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert loaded.config.model_spec() == m.config.model_spec()
    expected, found = m(tokens), loaded(tokens)
    assert torch.equal(found.logits, expected.logits)
    assert list(found.head_logits) == list(expected.head_logits)
    assert all(torch.equal(values, expected.head_logits[name]) for name, values in found.head_logits.items())


def test_auto_classes_know_so8t(config, model, tmp_path):
    assert isinstance(transformers.AutoConfig.for_model("so8t"), SO8TTransformerConfig)
    assert type(transformers.AutoModel.from_config(config())) is SO8TTransformerModel
    m = transformers.AutoModelForCausalLM.from_config(config())
    assert type(m) is SO8TTransformerForCausalLM
    assert type(m.model.layers[0].self_attn) is SO8TMultiHeadAttention
    model().save_pretrained(tmp_path)
    assert type(transformers.AutoModel.from_pretrained(tmp_path)) is SO8TTransformerModel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_low_precision_keeps_generators_and_heads_in_float32(model, tokens, tmp_path, head_forms, dtype):
    m = model(**head_forms)
    m.save_pretrained(tmp_path)
    low = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    for name, parameter in low.named_parameters():
        kept = not name.startswith("model.") or "so8t." in name
        assert parameter.dtype == (torch.float32 if kept and name != "lm_head.weight" else dtype), name
        if kept and name != "lm_head.weight":
            assert torch.equal(parameter, m.get_parameter(name))
    expected, found = m(tokens), low(tokens)
    assert found.logits.dtype == dtype and found.safety_logits.dtype == torch.float32
    assert (found.logits.float() - expected.logits).abs().max() < 0.2
    assert (found.safety_logits - expected.safety_logits).abs().max() < 0.2
    assert low.generate(tokens, max_new_tokens=4, do_sample=False).shape == (2, 15)
    low.save_pretrained(tmp_path / "low")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "low", dtype="auto")
    assert again.dtype == dtype and torch.equal(again(tokens).logits, found.logits)


def test_quantizers_leave_heads_and_generators_alone(model, head_forms):
    m = model(**head_forms)
    skipped = HfQuantizer.get_modules_to_not_convert(m, None, m._keep_in_fp32_modules)
    linear = {name for name, module in m.named_modules() if isinstance(module, torch.nn.Linear)}
    converted = {name for name in linear if should_convert_module(name, skipped)}
    assert len(converted) == 2 * 7 and all(name.startswith("model.layers.") for name in converted)


@torch.no_grad()
def test_model_cast_as_a_whole_still_runs(model, tokens, head_forms):
    m = model(**head_forms)
    expected = m(tokens)
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, 0.3)):
        found = copy.deepcopy(m).to(dtype)(tokens)
        assert found.safety_logits.dtype == dtype
        assert (found.logits - expected.logits).abs().max() < tolerance


# --- imports -------------------------------------------------------------------------------------


def test_the_package_without_hf_imports_no_torch():
    code = (
        "import sys, llama_so8t, llama_so8t.algebra, llama_so8t.format, llama_so8t.model_spec; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
