"""Probes of the published shapes in the reference model, against a token-by-token computation of what they read."""

import numpy as np
import pytest
from probe_models import HIDDEN, ROWS, SHAPES, features, probe_logits, random_tensors, write_probe
from required import package

torch = package("torch")

MARGIN = 2e-4
"""Largest difference, as a part of the largest value of a head."""


@pytest.fixture
def probed(config, tmp_path):
    """A reference model of the width 1024 with the heads of a probe, and the tensors of the probe."""
    from llama_so8t.checkpoint.singprobe import open_probe
    from llama_so8t.hf import SO8TTransformerForCausalLM

    def make(name):
        shape = SHAPES[name]
        tensors = random_tensors(shape)
        probe = open_probe(write_probe(tmp_path / name, shape, tensors))
        inner = shape.inner if shape.form == "mlp" else shape.n_head * shape.head_dim
        fields = {
            "so8t_heads": {head.name: head for head in probe.heads},
            "so8t_stem_sizes": {"singprobe": inner},
            "so8t_stem_head_dims": {"singprobe": shape.head_dim} if shape.form == "attn" else None,
        }
        torch.manual_seed(5)
        sizes = {"num_hidden_layers": 5, "hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2}
        model = SO8TTransformerForCausalLM(config("qwen3", **sizes, **fields, max_position_embeddings=4096)).eval()
        names = {"so8t_stem.": "stems.", "so8t_head.": "heads."}
        loaded = {}
        for tensor in probe.tensors:
            prefix = next(prefix for prefix in names if tensor.name.startswith(prefix))
            loaded[tensor.name.replace(prefix, names[prefix])] = torch.from_numpy(np.array(tensor.read()))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name in loaded:
                    parameter.copy_(loaded.pop(parameter_name))
                elif "so8t" not in parameter_name and parameter.ndim == 2:
                    parameter.normal_(0.0, 2 * parameter.shape[1] ** -0.5)
        assert not loaded
        return model, shape, tensors

    return make


def streams(model, tokens):
    """What enters each layer, by hooks: ``(n, hidden)``."""
    found = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, index=index: found.__setitem__(index, args[0][0]))
        for index, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        model.model(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    return found


def expected(model, shape, tensors, tokens):
    logits = probe_logits(shape, tensors, features(streams(model, tokens), shape.layers))
    return {name: logits[:, rows] for name, rows in ROWS.items()}


def tokens_of(seed, n):
    return torch.randint(2, 61, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_values(found, values, rows=slice(None)):
    assert list(found) == list(values)
    for name, wanted in values.items():
        assert found[name].shape == wanted[rows].shape
        difference = (found[name].double() - wanted[rows]).abs().max()
        assert difference <= MARGIN * wanted.abs().max(), name


@pytest.mark.parametrize("name", SHAPES)
def test_every_token_has_the_logits_of_the_report(probed, name):
    model, shape, tensors = probed(name)
    tokens = tokens_of(1, 2100 if name == "attn-2048" else 70)
    with torch.no_grad():
        found = model(torch.tensor([tokens])).head_logits
    values = expected(model, shape, tensors, tokens)
    assert_values({head: logits[0] for head, logits in found.items()}, values)
    assert values["query"].std(0).min() > 0.02  # the positions differ, so a wrong one would be seen


def test_a_window_is_seen_in_the_values(probed):
    """Otherwise a window that nobody applies would pass."""
    model, shape, tensors = probed("attn-5")
    tokens = tokens_of(1, 30)
    windowed, whole = (expected(model, s, tensors, tokens)["query"] for s in (shape, SHAPES["attn-4"]))
    assert torch.equal(windowed[:5], whole[:5])
    assert (windowed[6:] - whole[6:]).abs().max() > 0.01


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["attn-4", "attn-5"])
def test_padding_changes_no_value(probed, name, side):
    model, shape, tensors = probed(name)
    texts = [tokens_of(2, 25), tokens_of(3, 11)]
    pad = [0] * 14
    batch = torch.tensor([texts[0], pad + texts[1] if side == "left" else texts[1] + pad])
    mask = torch.ones_like(batch)
    mask[1, slice(14) if side == "left" else slice(11, None)] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        found = model(batch, attention_mask=mask, position_ids=positions).head_logits
    assert all(torch.isfinite(values).all() for values in found.values())
    kept = slice(14, None) if side == "left" else slice(11)
    for row, text, part in ((0, texts[0], slice(None)), (1, texts[1], kept)):
        values = expected(model, shape, tensors, text)
        assert_values({head: logits[row, part] for head, logits in found.items()}, values)


@pytest.mark.parametrize("step", [1, 7])
@pytest.mark.parametrize("name", ["attn-4", "attn-5", "mlp"])
def test_a_cache_changes_no_value(probed, name, step):
    from transformers.cache_utils import DynamicCache

    model, shape, tensors = probed(name)
    tokens = tokens_of(4, 21)
    values = expected(model, shape, tensors, tokens)
    cache = DynamicCache(config=model.config)
    for start in range(0, 21, step):
        part = torch.tensor([tokens[start : start + step]])
        with torch.no_grad():
            found = model(part, past_key_values=cache, use_cache=True).head_logits
        assert_values({head: logits[0] for head, logits in found.items()}, values, slice(start, start + step))


def test_what_is_cropped_from_the_cache_is_not_seen(probed):
    model, shape, tensors = probed("attn-4")
    tokens, wrong = tokens_of(4, 21), tokens_of(9, 6)
    with torch.no_grad():
        cache = model(torch.tensor([tokens[:15] + wrong]), use_cache=True).past_key_values
        cache.crop(-6)
        found = model(torch.tensor([tokens[15:]]), past_key_values=cache, use_cache=True).head_logits
    values = expected(model, shape, tensors, tokens)
    assert_values({head: logits[0] for head, logits in found.items()}, values, slice(15, None))


def test_generation_runs_with_the_heads(probed):
    model = probed("attn-4")[0]
    prompts = torch.tensor([[0, 0, *tokens_of(5, 6)], tokens_of(6, 8)])
    mask = torch.ones_like(prompts)
    mask[0, :2] = 0
    one = model.generate(prompts, attention_mask=mask, max_new_tokens=5, do_sample=False)
    beams = model.generate(prompts, attention_mask=mask, max_new_tokens=5, do_sample=False, num_beams=3)
    assert one.shape == beams.shape == (2, 13)
    with pytest.raises(ValueError, match="generate with a dynamic cache"):
        model.generate(prompts, attention_mask=mask, max_new_tokens=5, cache_implementation="static")


def test_gradients_reach_every_tensor_of_the_stem(probed):
    model = probed("attn-5")[0]
    found = model(torch.tensor([tokens_of(7, 12)])).head_logits
    sum(values.square().sum() for values in found.values()).backward()
    for name, parameter in model.stems.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_the_sizes_of_an_attention_stem_are_whole_heads(config):
    from llama_so8t.errors import ConfigError

    labels = {"labels": ["a", "b"], "actions": ["allow", "refuse"], "thresholds": [0.5, 0.5]}
    heads = {"probe": labels | {"taps": [0, 1], "stem": "p", "activation": "attention"}}
    config(so8t_heads=heads, so8t_stem_sizes={"p": 24}, so8t_stem_head_dims={"p": 8})
    for sizes in (None, {"p": 7}):
        with pytest.raises(ConfigError, match=r"the stem 'p' has the width 24; found .* the size of a key"):
            config(so8t_heads=heads, so8t_stem_sizes={"p": 24}, so8t_stem_head_dims=sizes)
    with pytest.raises(ConfigError, match=r"found so8t_stem_head_dims .*, expected an object with the stems"):
        config(so8t_stem_head_dims={"ghost": 8})
