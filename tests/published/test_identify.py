"""Every published layout is told from every other one by names and shapes alone."""

import itertools
import re
from pathlib import Path

import pytest
from published import TENSORS
from tiny_models import base_config

from llama_so8t.checkpoint.names import base_tensors, so8t_tensors
from llama_so8t.errors import CheckpointError
from llama_so8t.model_spec import ModelSpec
from llama_so8t.published import BY_ID, LAYOUTS, identify
from llama_so8t.published.table import ACCEPT, FOLDABLE, NEEDS_ORIGIN, REFUSE

BASE = {name: entry.shape for name, entry in base_tensors(base_config(), ModelSpec.from_config(base_config())).items()}


def test_every_layout_with_tensors_has_an_example():
    assert {*TENSORS, "L6d", "L14-alpha"} == set(BY_ID)


@pytest.mark.parametrize("layout", TENSORS)
@pytest.mark.parametrize("prefix", ["", "module.", "model_state_dict.", "model_state_dict.module."])
def test_each_layout_is_identified_inside_a_base_model(layout, prefix):
    names = {prefix + name: shape for name, shape in (TENSORS[layout] | BASE).items()}
    assert identify(names).layout.id == layout


@pytest.mark.parametrize("layout", TENSORS)
def test_parameters_have_their_layers(layout):
    found = identify(TENSORS[layout])
    for name, layer in found.parameters.items():
        assert layer is None or f".{layer}." in name or f"layer_{layer}." in name


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(TENSORS, 2)])
def test_two_layouts_are_mixed_unless_named(one, other):
    names = TENSORS[one] | TENSORS[other]
    with pytest.raises(CheckpointError, match="several SO8T layouts"):
        identify(names)
    found = identify(names, layout=other)
    assert found.layout.id == other
    assert {*found.parameters, *found.keys, *found.others} <= set(names)
    assert set(found.others) <= set(TENSORS[one])


def test_look_alikes_are_told_apart():
    def layout(name, shape=(8, 8, 8)):
        return identify({name: shape}).layout.id

    attention = "model.layers.0.self_attn."
    assert layout(attention + "o_proj.so8t_rotation_gate.theta") == "L6b"
    assert layout(attention + "so8t_rotation_gate.theta") == "L15"
    assert layout(attention + "rotation_gate.theta") == "L4"
    assert layout(attention + "so8t_gate.theta") == "L6a"
    gate = "group_structure.non_commutative_gate.R_safe.rotation_params"
    assert layout("model.layers.0." + gate, (8, 8)) == "L1"
    assert layout(gate, (8, 8)) == "L2"
    # short names need their shape
    assert layout("layer_3") == "L5"
    assert identify({"layer_3": (64,), "theta": (3,), "rotation_params": (3,)}) is None


def test_flags_alone_are_a_layout_of_their_own():
    assert identify(BASE, {"so8t_integrated": True}).layout.id == "L6d"
    assert identify(BASE, {"so8t_integrated": False}) is None
    with_gate = BASE | TENSORS["L6a"]
    assert identify(with_gate, {"so8t_integrated": True}).layout.id == "L6a"


def test_files_identify():
    assert identify(BASE, files=["soul.pt", "config.json"]).layout.id == "L14"
    with pytest.raises(CheckpointError, match="several SO8T layouts"):
        identify(BASE | TENSORS["L4"], files=["soul.pt"])


@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2"])
def test_this_project_s_own_models_are_none_of_them(family):
    heads = {"alpha_gate": {"labels": ["a", "b"], "actions": ["allow"] * 2, "thresholds": [0.5] * 2}}
    for config in (base_config(family), base_config(family) | {"model_type": "so8t", "base_model_type": family}):
        spec = ModelSpec.from_config({**config, "so8t_heads": heads})
        names = {name: entry.shape for name, entry in (base_tensors(config, spec) | so8t_tensors(spec)).items()}
        assert identify(names, config) is None


def test_every_row_says_enough():
    for row in LAYOUTS:
        assert row.verdict in (ACCEPT, REFUSE, NEEDS_ORIGIN) and row.reason and row.name
        assert (row.verdict == NEEDS_ORIGIN) == bool(row.origins)
        if row.builder is not None:
            assert row.parameter and row.side in ("xR", "Rx")
        if row.verdict != REFUSE and row.site in FOLDABLE:
            assert row.builder is not None


def test_the_page_lists_every_layout_with_its_verdict():
    page = (Path(__file__).parents[2] / "docs" / "layouts.md").read_text()
    rows = dict(re.findall(r"^\| (L[\w-]+) \| .* \| ([a-z-]+)[^|]*\|$", page, re.MULTILINE))
    assert rows == {row.id: row.verdict for row in LAYOUTS}
    for row in LAYOUTS:
        assert all(f"`{origin}`" in page for origin in row.origins)
