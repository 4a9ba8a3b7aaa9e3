"""Folding against the definition: rotations applied to vectors, one site at a time."""

import numpy as np
import pytest
from properties import assert_same_function
from tiny_models import base_config

from llama_so8t import folding
from llama_so8t.algebra import DIM, random_generators, rotate_blocks, rotation
from llama_so8t.errors import AlgebraError, ConversionError
from llama_so8t.format import SITES, n_generators
from llama_so8t.model_spec import ModelSpec

# hidden size, heads, key-value heads, head size, shared blocks: one group of heads, none, two, one and a rest
SHAPES = [
    (64, 8, 2, 16, False),
    (32, 4, 4, 8, False),
    (48, 16, 4, 24, True),
    (72, 9, 3, 8, False),
    (80, 10, 5, 32, True),
]
ROUNDING = 2.0**-22
"""Two roundings to float32, relative to the largest entry of a result of size 1 to 10."""


def make_spec(family, shape):
    hidden, n_head, n_head_kv, head_dim, shared = shape
    return ModelSpec.from_config(
        base_config(
            family,
            hidden_size=hidden,
            num_attention_heads=n_head,
            num_key_value_heads=n_head_kv,
            head_dim=head_dim,
            so8t_shared_blocks=shared,
        )
    )


def make_generators(spec, rng, scale=0.5):
    return {
        name: random_generators(rng, (n_generators(name, spec.hidden_size, spec.n_head, spec.shared_blocks),), scale)
        for site in spec.sites
        for name in SITES[site].generator_names
    }


def shape_of(suffix, spec):
    q, kv = spec.n_head * spec.head_dim, spec.n_head_kv * spec.head_dim
    return {
        "self_attn.q_proj.weight": (q, spec.hidden_size),
        "self_attn.k_proj.weight": (kv, spec.hidden_size),
        "self_attn.v_proj.weight": (kv, spec.hidden_size),
        "self_attn.q_proj.bias": (q,),
        "self_attn.k_proj.bias": (kv,),
        "self_attn.v_proj.bias": (kv,),
        "self_attn.o_proj.weight": (spec.hidden_size, q),
        "mlp.gate_proj.weight": (40, spec.hidden_size),
        "mlp.up_proj.weight": (40, spec.hidden_size),
    }[suffix]


def before(suffix, x, generators, spec):
    """What section 2 of the format does to the input of a linear map, written down once more."""
    if suffix.startswith("self_attn.o_proj"):
        if "heads" not in generators:
            return x
        o = x.reshape(spec.n_head, spec.head_dim)
        mixed = o.copy()
        for g, generator in enumerate(generators["heads"]):
            c = rotation(generator)
            for i in range(DIM):
                mixed[8 * g + i] = sum(c[i, k] * o[8 * g + k] for k in range(DIM))
        return mixed.reshape(-1)
    if suffix.startswith("mlp"):
        return rotate_blocks(x, rotation(generators["ffn"]))
    return rotate_blocks(rotate_blocks(x, rotation(generators["gate_safe"])), rotation(generators["gate_cmd"]))


def after(suffix, y, generators, spec):
    """The same for the output: one generator per layer, in the representation of each head."""
    part = suffix.split(".")[1]
    if part not in ("q_proj", "k_proj", "v_proj"):
        return y
    generator = generators["v" if part == "v_proj" else "qk"][0]
    representations = spec.head_representation if part == "q_proj" else spec.head_kv_representation
    heads = y.reshape(len(representations), spec.head_dim)
    turned = [rotate_blocks(head, rotation(generator, t)[None]) for head, t in zip(heads, representations, strict=True)]
    return np.concatenate(turned)


SUFFIXES = [
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folded_weight_does_what_the_rotations_do(shape, suffix, rng):
    spec = make_spec("llama", shape)
    generators = make_generators(spec, rng)
    rotations = folding.layer_rotations(spec, generators.__getitem__)
    weight = rng.normal(size=shape_of(suffix, spec)).astype(np.float32)
    x = rng.normal(size=weight.shape[1])
    folded = folding.fold(suffix, weight, rotations, spec.sites)
    explicit = after(suffix, weight.astype(np.float64) @ before(suffix, x, generators, spec), generators, spec)
    assert folded.dtype == np.float32
    assert_same_function(folded @ x, explicit, weight.shape[1] * ROUNDING)


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_a_bias_turns_with_the_output(part, rng):
    spec = make_spec("qwen2", SHAPES[3])
    generators = make_generators(spec, rng)
    rotations = folding.layer_rotations(spec, generators.__getitem__)
    suffix = f"self_attn.{part}.bias"
    bias = rng.normal(size=shape_of(suffix, spec)).astype(np.float32)
    folded = folding.fold(suffix, bias, rotations, spec.sites)
    assert_same_function(folded, after(suffix, bias.astype(np.float64), generators, spec), 2 * ROUNDING)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("shape", SHAPES)
def test_folding_undoes_compensation(family, shape, rng):
    spec = make_spec(family, shape)
    generators = make_generators(spec, rng)
    if spec.has_qk_norm:
        generators["qk"][:] = 0
    rotations = folding.layer_rotations(spec, generators.__getitem__)
    for suffix in SUFFIXES:
        weight = rng.normal(size=shape_of(suffix, spec)).astype(np.float32)
        compensated = folding.compensate(suffix, weight, rotations, spec)
        back = folding.fold(suffix, compensated, rotations, folding.foldable_sites(spec))
        assert_same_function(back, weight, 4 * ROUNDING)
        if suffix != "self_attn.o_proj.weight" or "heads" in spec.sites:
            assert np.abs(compensated - weight).max() > 0.1


def test_a_base_with_qk_norms_cannot_be_compensated_at_qk(rng):
    spec = make_spec("qwen3", SHAPES[0])
    rotations = folding.layer_rotations(spec, make_generators(spec, rng).__getitem__)
    with pytest.raises(ConversionError, match="site qk"):
        folding.compensate("self_attn.q_proj.weight", np.ones((128, 64), np.float32), rotations, spec)
    assert "qk" not in folding.foldable_sites(spec)
    assert "qk" in folding.foldable_sites(make_spec("llama", SHAPES[0]))


def test_only_the_named_sites_are_folded(rng):
    spec = make_spec("llama", SHAPES[0])
    generators = make_generators(spec, rng)
    rotations = folding.layer_rotations(spec, generators.__getitem__)
    weight = rng.normal(size=(128, 64)).astype(np.float32)
    suffix = "self_attn.q_proj.weight"
    assert folding.fold(suffix, weight, rotations, ()) is weight
    gate_only = folding.fold(suffix, weight, rotations, ("gate",))
    np.testing.assert_array_equal(
        gate_only, folding.rotate_columns(weight, rotations["gate_cmd"] @ rotations["gate_safe"])
    )
    qk_only = folding.fold(suffix, weight, rotations, ("qk", "ffn", "v"))
    np.testing.assert_array_equal(qk_only, folding.rotate_rows(weight, rotations["q"]))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_zero_generators_keep_every_bit(suffix):
    spec = make_spec("llama", SHAPES[0])
    zeros = {
        name: np.zeros((n_generators(name, 64, 8, False), 28))
        for site in spec.sites
        for name in SITES[site].generator_names
    }
    rotations = folding.layer_rotations(spec, zeros.__getitem__)
    weight = np.zeros(shape_of(suffix, spec), np.float32)
    weight[0, :3] = -0.0, np.inf, 1e-45
    assert folding.fold(suffix, weight, rotations, spec.sites).tobytes() == weight.tobytes()
    assert folding.compensate(suffix, weight, rotations, spec).tobytes() == weight.tobytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_size_of_a_step_does_not_show(suffix, rng):
    spec = make_spec("llama", SHAPES[3])
    rotations = folding.layer_rotations(spec, make_generators(spec, rng).__getitem__)
    weight = rng.normal(size=shape_of(suffix, spec)).astype(np.float32)
    whole = folding.fold(suffix, weight, rotations, spec.sites)
    step = folding.fold_step(suffix, weight.shape, rotations, spec.sites)
    parts = [step(weight[start : start + 8], start) for start in range(0, len(weight), 8)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_sites_that_a_model_lacks_fold_nothing(rng):
    fields = base_config("llama", so8t_non_commutative_gates=False, so8t_cross_head_interaction=False)
    spec = ModelSpec.from_config(fields)
    generators = make_generators(spec, rng)
    assert set(generators) == {"qk", "v", "ffn"}
    rotations = folding.layer_rotations(spec, generators.__getitem__)
    weight = rng.normal(size=(64, 128)).astype(np.float32)
    assert folding.fold("self_attn.o_proj.weight", weight, rotations, spec.sites) is weight


@pytest.mark.parametrize(
    ("function", "shape", "n", "rest"),
    [
        (folding.rotate_columns, (4, 20), 1, ()),
        (folding.rotate_columns, (4, 24), 2, ()),
        (folding.rotate_rows, (20, 4), 2, ()),
        (folding.mix_heads, (4, 64), 2, (8,)),
        (folding.mix_heads, (4, 60), 1, (8,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(function, shape, n, rest, rng):
    with pytest.raises(AlgebraError, match="found"):
        function(np.ones(shape, np.float32), rotation(random_generators(rng, (n,), 0.3)), *rest)
