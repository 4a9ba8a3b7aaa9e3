"""All generators zero: the transformers model of the base family, bit for bit."""

import pytest
from properties import assert_same_function
from required import package

torch = package("torch")
transformers = package("transformers")

from llama_so8t.hf import SO8TTransformerConfig, SO8TTransformerForCausalLM  # noqa: E402

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


def base_and_so8t(base_config, dtype=torch.float32, attention="sdpa"):
    base_config._attn_implementation = attention
    base = transformers.AutoModelForCausalLM.from_config(base_config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)  # biases and norms as well
    config = SO8TTransformerConfig.from_base(base_config)
    so8t = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    assert isinstance(so8t, SO8TTransformerForCausalLM)
    found = so8t.load_state_dict(base.state_dict(), strict=False)
    assert not found.unexpected_keys  # the tensor names are the base's
    assert all("so8t." in name or "_head." in name for name in found.missing_keys)
    return base, so8t


@torch.no_grad()
def assert_bit_for_bit(base, so8t, tokens):
    expected, found = base(tokens), so8t(tokens)
    assert_same_function(found.logits, expected.logits, 0)
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True}
    options["return_dict_in_generate"] = True
    expected, found = base.generate(tokens, **options), so8t.generate(tokens, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert_same_function(torch.stack(found.logits), torch.stack(expected.logits), 0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2"])
def test_zero_generators_give_the_base_model_bit_for_bit(base_config, tokens, family, dtype, tied):
    assert_bit_for_bit(*base_and_so8t(base_config(family, tie_word_embeddings=tied), dtype), tokens)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("llama", {"num_key_value_heads": 10}),
        ("qwen3", {"attention_bias": True, "num_key_value_heads": 1}),
        ("qwen3", {"rope_parameters": YARN_ROPE}),
        ("qwen3", SLIDING),
        ("qwen2", SLIDING),
        ("qwen2", {"num_attention_heads": 5}),  # no heads site
    ],
)
def test_zero_generators_give_the_base_model_in_its_variants(base_config, tokens, family, fields):
    assert_bit_for_bit(*base_and_so8t(base_config(family, **fields)), tokens)


@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2"])
def test_zero_generators_give_the_base_model_with_eager_attention_and_padding(base_config, tokens, family):
    base, so8t = base_and_so8t(base_config(family), attention="eager")
    assert so8t.config._attn_implementation == "eager"
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        expected, found = base(tokens, **options), so8t(tokens, **options)
    assert torch.equal(found.logits, expected.logits)
    for key in ("attentions", "hidden_states"):
        assert len(found[key]) == len(expected[key]) > 0
        assert all(torch.equal(a, b) for a, b in zip(found[key], expected[key], strict=True))


def test_loss_and_gradients_of_the_base_weights_are_those_of_the_base(base_config, tokens):
    base, so8t = base_and_so8t(base_config())
    expected, found = base(tokens, labels=tokens).loss, so8t(tokens, labels=tokens).loss
    assert torch.equal(found, expected)
    expected.backward()
    found.backward()
    gradients = dict(so8t.named_parameters())
    for name, parameter in base.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_base_checkpoint_loads_as_its_own_so8t_model(base_config, tokens, tmp_path):
    base, _ = base_and_so8t(base_config(tie_word_embeddings=True))
    base.save_pretrained(tmp_path)
    config = SO8TTransformerConfig.from_base(transformers.AutoConfig.from_pretrained(tmp_path))
    so8t = SO8TTransformerForCausalLM.from_pretrained(tmp_path, config=config).eval()
    assert all(not p.any() for name, p in so8t.named_parameters() if "so8t." in name)
    assert_bit_for_bit(base, so8t, tokens)
