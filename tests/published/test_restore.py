"""A restored base model computes what the published model computes, through transformers; the rest is refused."""

import json

import numpy as np
import pytest
from required import package

torch = package("torch")

from upstream_gates import TOKENS, Gate, Wrapper, cayley, exact, exp_l4, logits  # noqa: E402

from llama_so8t.checkpoint import open_checkpoint  # noqa: E402
from llama_so8t.checkpoint.checks import check_tensors, normalized  # noqa: E402
from llama_so8t.checkpoint.names import base_tensors  # noqa: E402
from llama_so8t.errors import CheckpointError  # noqa: E402
from llama_so8t.files import safetensors_file  # noqa: E402
from llama_so8t.model_spec import ModelSpec  # noqa: E402
from llama_so8t.published import as_base, restore  # noqa: E402


def opened(directory, **stated):
    config = json.loads((directory / "config.json").read_text())
    return restore(directory, config, safetensors_file.read_sharded(directory), **stated)


def state(config, path):
    (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | config))


def plain_logits(restored, directory, model):
    """Logits of the restored tensors in the stock class of transformers."""
    tensors = normalized(directory, restored.tensors)
    check_tensors(directory, tensors, base_tensors(restored.config, ModelSpec.from_config(restored.config)))
    config = model.config.__class__(
        **{**model.config.to_dict(), "tie_word_embeddings": restored.config["tie_word_embeddings"]}
    )
    fresh = model.__class__(config)
    values = {name: torch.from_numpy(np.array(tensor.read())) for name, tensor in tensors.items()}
    if config.tie_word_embeddings:
        values["lm_head.weight"] = values["model.embed_tokens.weight"]
    fresh.load_state_dict(values)
    return logits(fresh)


def gated_output(model, build, theta, layers=(0, 1), **options):
    """Every attention inside a wrapper that turns its output."""
    for layer in layers:
        attention = model.model.layers[layer].self_attn
        gate = Gate(theta(model.config.hidden_size // 8, seed=layer), build)
        model.model.layers[layer].self_attn = Wrapper(attention, gate, **options)
    return model


L4 = {"inner": "base_attention", "name": "rotation_gate"}
L6C = {"inner": "attention", "name": "output_gate"}


@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2"])
@pytest.mark.parametrize("scale", [0.02, 0.3])
def test_l4_after_o_proj(make_model, save, theta, tolerance, family, scale):
    model = make_model(family)
    before = logits(model)
    directory = save(gated_output(model, exp_l4, lambda n, seed: theta(n, scale, seed), **L4), family)
    restored = opened(directory)
    assert restored.layout.id == "L4"
    assert plain_logits(restored, directory, model) == pytest.approx(logits(model), abs=tolerance.float32)
    assert (logits(model) - before).abs().max() > 100 * tolerance.float32


def test_rows_are_folded_like_the_whole(make_model, save, theta):
    """The converter reads parts, which begin and end between blocks of 8."""
    fields = {"attention_bias": True}
    model = gated_output(make_model("llama", **fields), exp_l4, theta, **L4)
    directory = save(model, "llama", **fields)
    Soul(make_model("llama"), 1.0).saved(save(make_model("llama"), "llama", name="soul"))
    tensors = opened(directory).tensors | {"soul": opened(directory.parent / "soul").tensors["lm_head.weight"]}
    for name in ("model.layers.1.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.bias", "soul"):
        tensor = tensors[name]
        parts = [tensor.read_rows(start, stop) for start, stop in ((0, 8), (8, 40), (40, len(tensor.read())))]
        assert np.concatenate(parts) == pytest.approx(tensor.read(), abs=1e-6)


def test_l4_bias_is_turned_too(make_model, save, theta, tolerance):
    fields = {"attention_bias": True, "mlp_bias": True}
    model = gated_output(make_model("llama", **fields), exp_l4, theta, **L4)
    directory = save(model, "llama", **fields)
    assert model.model.layers[0].self_attn.base_attention.o_proj.bias.abs().max() > 0.01
    assert plain_logits(opened(directory), directory, model) == pytest.approx(logits(model), abs=tolerance.float32)


def test_l4_exact_exponential_only_when_asked_for(make_model, save, theta, tolerance):
    model = gated_output(make_model(), exact, lambda n, seed: theta(n, 0.2, seed), **L4)
    directory = save(model)
    wrong = (plain_logits(opened(directory), directory, model) - logits(model)).abs().max()
    state({"so8t_layout_exact": True}, directory)
    assert plain_logits(opened(directory), directory, model) == pytest.approx(logits(model), abs=tolerance.float32)
    assert wrong > 100 * tolerance.float32


def hooked(model, theta, name, before=False, build=cayley, layers=(0, 1)):
    """Gates that a forward hook of o_proj applies, kept where ``name`` says: layouts L6a and L6b."""
    for layer in layers:
        attention = model.model.layers[layer].self_attn
        width = attention.o_proj.in_features if before else attention.o_proj.out_features
        gate = Gate(theta(width // 8, seed=layer), build)
        if before:
            attention.o_proj.register_forward_pre_hook(lambda module, args, gate=gate: (gate(args[0]),))
        else:
            attention.o_proj.register_forward_hook(lambda module, args, output, gate=gate: gate(output))
        (attention.o_proj if before else attention).add_module(name, gate)
    return model


@pytest.mark.parametrize(("build", "fields"), [(cayley, {}), (exact, {"so8t_use_cayley": False})])
def test_l6a_with_a_hook(make_model, save, theta, tolerance, build, fields):
    model = hooked(make_model(), theta, "so8t_gate", build=build)
    directory = save(model, so8t_integrated=True, **fields)
    restored = opened(directory, origin="hook")
    assert plain_logits(restored, directory, model) == pytest.approx(logits(model), abs=tolerance.float32)
    assert not [key for key in restored.config if key.startswith("so8t")]


def test_l6a_without_a_hook_is_the_base(make_model, save, theta, tolerance):
    model = make_model()
    expected = logits(model)
    directory = save(hooked(model, theta, "so8t_gate"), so8t_layout_origin="unused")
    assert plain_logits(opened(directory), directory, model) == pytest.approx(expected, abs=tolerance.float32)


def test_l6a_needs_its_story(make_model, save, theta):
    directory = save(hooked(make_model(), theta, "so8t_gate"))
    for origin in (None, "maybe"):
        with pytest.raises(CheckpointError, match=r"two meanings.*'hook' or 'unused'"):
            opened(directory, origin=origin)


@pytest.mark.parametrize("peft", [False, True])
def test_l6b_before_o_proj(make_model, save, theta, tolerance, peft):
    # the input of o_proj is wider than the hidden state in this model
    model = hooked(make_model(num_hidden_layers=3), theta, "so8t_rotation_gate", before=True, layers=(0, 1, 2))
    tensors = model.state_dict()
    if peft:
        tensors = {
            "base_model.model." + name.replace("_proj.weight", "_proj.base_layer.weight"): tensor
            for name, tensor in tensors.items()
        }
    directory = save(tensors, num_hidden_layers=3)
    restored = opened(directory)
    assert restored.layout.id == "L6b"
    assert plain_logits(restored, directory, model) == pytest.approx(logits(model), abs=tolerance.float32)


def test_l6b_in_its_three_layers(make_model, save, theta):
    model = hooked(make_model(num_hidden_layers=5), theta, "so8t_rotation_gate", before=True, layers=(0, 2, 4))
    assert opened(save(model, num_hidden_layers=5)).layout.id == "L6b"
    del model.model.layers[2].self_attn.o_proj.so8t_rotation_gate
    with pytest.raises(CheckpointError, match="gates in layers 0, 4, expected gates in layers 0, 2, 4"):
        opened(save(model, name="less", num_hidden_layers=5))
    restored = opened(save(model, name="said", num_hidden_layers=5, layer_indices=[0, 4]))
    assert "layer_indices" not in restored.config


def test_l6b_with_a_lora_is_refused(make_model, save, theta):
    model = hooked(make_model(), theta, "so8t_rotation_gate", before=True)
    tensors = model.state_dict() | {"model.layers.0.self_attn.o_proj.lora_A.default.weight": torch.zeros(4, 128)}
    with pytest.raises(CheckpointError, match="found a LoRA, expected merged weights"):
        opened(save(tensors))


def test_l6c_output_gate_alone(make_model, save, theta, tolerance):
    gates = ("query_gate", "key_gate", "value_gate")
    model = gated_output(make_model(), cayley, theta, layers=(1,), unused=gates, **L6C)
    directory = save(model)
    restored = opened(directory)
    assert restored.layout.id == "L6c"
    assert "never applied" in restored.notes[0]
    assert plain_logits(restored, directory, model) == pytest.approx(logits(model), abs=tolerance.float32)


class Soul(torch.nn.Module):
    """``lm_head(h + sigmoid(alpha) R h)``, layout L14."""

    def __init__(self, model, alpha):
        super().__init__()
        d = model.config.hidden_size
        self.model, self.alpha = model, torch.nn.Parameter(torch.tensor(alpha))
        self.rotation = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(d, d, bias=False))
        with torch.no_grad():
            self.rotation.parametrizations.weight.original.add_(0.2 * torch.randn(d, d))

    def logits(self):
        with torch.no_grad():
            hidden = self.model.model(TOKENS).last_hidden_state
            return self.model.lm_head(hidden + torch.sigmoid(self.alpha) * self.rotation(hidden))

    def saved(self, directory, name="soul.pt", **fields):
        module = "so8_rotation" if name == "soul.pt" else "rotation"
        torch.save({"alpha": self.alpha, module: self.rotation.state_dict()} | fields, directory / name)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["soul.pt", "soul_params.pt"])
def test_an_l14_soul_becomes_a_rotation_before_the_output(make_model, save, tolerance, tied, name):
    model = make_model("llama", tie_word_embeddings=tied)
    soul = Soul(model, 0.7)
    directory = save(model, "llama", tie_word_embeddings=tied)
    soul.saved(directory, name, step=500)
    restored = opened(directory)
    assert plain_logits(restored, directory, model) == pytest.approx(soul.logits(), abs=tolerance.float32)
    assert restored.config["tie_word_embeddings"] is False
    embedding = restored.tensors["model.embed_tokens.weight"].read()
    assert np.array_equal(embedding, model.model.embed_tokens.weight.detach().numpy())


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"alpha": torch.tensor(float("nan"))}, "found alpha nan"),
        ({"alpha": "1.618"}, "found no alpha"),
        ({"rotation": {}}, "found no rotation"),
    ],
)
def test_an_l14_soul_that_does_not_fit_is_refused(make_model, save, fields, why):
    directory = save(make_model("llama"), "llama")
    Soul(make_model("llama"), 1.0).saved(directory, "soul_params.pt", **fields)
    with pytest.raises(CheckpointError, match=why):
        opened(directory)


def test_l14_of_another_model(make_model, save):
    directory = save(make_model("llama"), "llama")
    Soul(make_model("llama", hidden_size=128), 1.0).saved(directory)
    with pytest.raises(CheckpointError, match="found width 128, expected 64"):
        opened(directory)


def test_l14_rotation_that_is_none(make_model, save):
    directory = save(make_model("llama"), "llama")
    soul = Soul(make_model("llama"), 1.0)
    soul.rotation.parametrizations.weight[0].base.mul_(1.01)
    soul.saved(directory)
    with pytest.raises(CheckpointError, match=r"\|R\^T R - I\|"):
        opened(directory)


def test_l14_files_that_run_code_are_refused(make_model, save, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("run").touch, ())

    directory = save(make_model("llama"), "llama")
    torch.save({"alpha": Hostile()}, directory / "soul.pt")
    with pytest.raises(CheckpointError, match="not a file of tensors and numbers alone"):
        opened(directory)
    assert not (tmp_path / "run").exists()


def test_l14_alpha_alone_is_refused(make_model, save):
    directory = save(make_model("llama"), "llama")
    torch.save({"alpha": torch.tensor(1.618)}, directory / "soul_weights.pt")
    with pytest.raises(CheckpointError, match="no rotation is in the file"):
        opened(directory)


def test_l13_angles_are_ignored(make_model, save, tolerance):
    model = make_model()
    directory = save(model)
    torch.save({"rotation_params": torch.zeros(28)}, directory / "so8t_rotation_params.pt")
    restored = opened(directory)
    assert restored.layout.id == "L13" and "ignored" in restored.notes[0]
    assert plain_logits(restored, directory, model) == pytest.approx(logits(model), abs=tolerance.float32)


def test_l6d_flags_without_tensors(make_model, save, tolerance):
    model = make_model()
    directory = save(model, so8t_integrated=True, so8t_num_blocks=8)
    with pytest.raises(CheckpointError, match="claims SO8T and the file has no rotation"):
        opened(directory)
    restored = opened(directory, origin="flags-only")
    assert plain_logits(restored, directory, model) == pytest.approx(logits(model), abs=tolerance.float32)
    assert "so8t_integrated" not in restored.config


def test_l4_without_its_rotations_is_refused(make_model, save, theta):
    model = gated_output(make_model(), exp_l4, theta, **L4)
    tensors = {name: value for name, value in model.state_dict().items() if "rotation_gate" not in name}
    with pytest.raises(CheckpointError, match="trained around a rotation that is not in the file"):
        opened(save(tensors))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (float("nan"), "NaN or infinity"),
        (float("inf"), "NaN or infinity"),
        (1e12, "not a rotation"),  # the series cannot do that, upstream's matrix is none
    ],
)
def test_gates_that_are_no_rotations_are_refused(make_model, save, theta, value, why):
    model = gated_output(make_model(), exp_l4, theta, **L4)
    with torch.no_grad():
        model.model.layers[1].self_attn.rotation_gate.theta[3, 0, 1] = value
    with pytest.raises(CheckpointError, match=rf"layers\.1\.self_attn\.rotation_gate\.theta.*{why}"):
        opened(save(model))


@pytest.mark.parametrize("shape", [(7, 8, 8), (8, 28), (8, 8)])
def test_gates_of_another_shape_are_refused(make_model, save, theta, shape):
    tensors = gated_output(make_model(), exp_l4, theta, **L4).state_dict()
    tensors["model.layers.0.self_attn.rotation_gate.theta"] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=r"expected \[8, 8, 8\]"):
        opened(save(tensors))


def test_mixed_signatures_need_a_name(make_model, save, theta, tolerance):
    model = hooked(make_model(), theta, "so8t_gate")
    expected = logits(model)
    tensors = model.state_dict()
    for layer in (0, 1):
        tensors[f"model.layers.{layer}.self_attn.so8t_rotation_gate.theta"] = theta(8)
    directory = save(tensors)
    with pytest.raises(CheckpointError, match=r"several SO8T layouts: L6a .*, L15 "):
        opened(directory)
    restored = opened(directory, layout="L6a", origin="hook")
    assert plain_logits(restored, directory, model) == pytest.approx(expected, abs=tolerance.float32)
    assert sum("left out, as stated" in note for note in restored.notes) == 2


def test_two_gates_of_one_layer_are_refused(make_model, save, theta):
    tensors = hooked(make_model(), theta, "so8t_gate").state_dict()
    tensors["module.model.layers.1.self_attn.so8t_gate.theta"] = theta(8)
    with pytest.raises(CheckpointError, match="two gates of one layer"):
        opened(save(tensors), origin="hook")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"so8t_layout": "L99"}, "found layout 'L99', expected one of"),
        ({"so8t_layout": "L4"}, "found L6a, expected layout L4 as stated"),
        ({"so8t_layout": 4}, "expected a string"),
        ({"so8t_layout_exact": "yes"}, "expected true or false"),
        ({"so8t_layout_origin": "hook", "so8t_layout_exact": True}, "one exponential only"),
    ],
)
def test_statements_that_do_not_fit(make_model, save, theta, fields, why):
    with pytest.raises(CheckpointError, match=why):
        opened(save(hooked(make_model(), theta, "so8t_gate"), **fields))


def test_a_base_model_is_left_alone(make_model, save):
    directory = save(make_model())
    assert opened(directory) is None
    config, tensors = json.loads((directory / "config.json").read_text()), safetensors_file.read_sharded(directory)
    assert as_base(directory, config, tensors) == (config, tensors)


def test_opening_a_directory_gives_the_base_model(make_model, save, theta, tolerance):
    model = gated_output(make_model(), exp_l4, theta, **L4)
    directory = save(model, so8t_integrated=True)
    opened_base = open_checkpoint(directory)
    assert not opened_base.is_so8t
    assert plain_logits(opened_base, directory, model) == pytest.approx(logits(model), abs=tolerance.float32)
    refused = save(make_model().state_dict() | {"rotation_gates.layer_0.theta": theta(8)}, name="refused")
    with pytest.raises(CheckpointError, match=r"layout L5 .* is refused"):
        open_checkpoint(refused)


def test_notes_are_logged(make_model, save, theta, caplog):
    directory = save(gated_output(make_model(), exp_l4, theta, **L4))
    config = json.loads((directory / "config.json").read_text())
    as_base(directory, config, safetensors_file.read_sharded(directory))
    assert "layout L4" in caplog.text
