"""Heads in a model: the folding identity, and files that change where they must and nowhere else."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llama_so8t.algebra import SPINOR_MINUS, SPINOR_PLUS, random_generators, rotate_blocks, rotation
from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.errors import CheckpointError, ConfigError
from llama_so8t.format import HeadSpec, default_heads
from llama_so8t.heads import store
from llama_so8t.heads.regression import Direction
from tests.heads.conftest import WIDTH


@pytest.fixture
def directions(rng) -> dict[str, Direction]:
    return {name: Direction(rng.normal(size=WIDTH), float(rng.normal())) for name in default_heads()}


def _tuned(checkpoint):
    return {name: store.tuned(head, 0.7, 4, "prompt") for name, head in checkpoint.spec.heads.items()}


@pytest.mark.parametrize("representation", [SPINOR_PLUS, SPINOR_MINUS])
@pytest.mark.parametrize("n", [1, WIDTH // 8])
def test_the_head_on_z_is_the_direction_on_f(rng, tolerance, representation, n):
    out = rotation(random_generators(rng, (n,), 0.5), representation)
    direction = Direction(rng.normal(size=WIDTH), 0.3)
    f = rng.normal(size=(20, WIDTH))
    z = rotate_blocks(f, out)
    weight, bias = store.head_weights(direction, out)
    logits = z @ weight.T + bias
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], direction(f), atol=tolerance.float32)
    np.testing.assert_allclose(logits.sum(axis=1), 0, atol=tolerance.float32)  # symmetric rows
    unturned, _ = store.head_weights(direction, np.broadcast_to(np.eye(8), out.shape))
    assert np.abs(z @ unturned.T - z @ weight.T).max() > 0.1  # the rotation matters


def test_a_stored_head_reads_back_as_its_direction(model, directions, tolerance):
    checkpoint = open_checkpoint(model)
    store.write(checkpoint, model, directions, _tuned(checkpoint), {})
    written = open_checkpoint(model)
    for name, expected in directions.items():
        found = store.read_direction(written, written.spec.heads[name])
        np.testing.assert_allclose(found.weight, expected.weight, atol=tolerance.float32)
        assert found.bias == pytest.approx(expected.bias, abs=tolerance.float32)
        head = written.spec.heads[name]
        assert (head.thresholds, head.debounce, head.scope) == ((0.5, 0.7), 4, "prompt")


def test_only_the_heads_change(model, directions):
    before = open_checkpoint(model)
    held = {name: before.load(name).copy() for name in before.tensor_names()}
    (model / "notes.txt").write_text("kept")
    store.write(before, model, directions, _tuned(before), {"README.md": "new"})
    after = open_checkpoint(model)
    assert set(after.tensor_names()) == set(held)
    changed = {name for name in held if not np.array_equal(held[name], after.load(name))}
    assert changed == {f"{head}_head.{part}" for head in directions for part in ("weight", "bias")}
    assert {k: v for k, v in before.config.items() if k != "so8t_heads"} == {
        k: v for k, v in after.config.items() if k != "so8t_heads"
    }
    assert (model / "notes.txt").read_text() == "kept" and (model / "README.md").read_text() == "new"


def test_a_copy_leaves_the_model_as_it_was(model, directions, tmp_path):
    checkpoint = open_checkpoint(model)
    held = {file.name: file.read_bytes() for file in model.iterdir()}
    store.write(checkpoint, tmp_path / "copy", directions, _tuned(checkpoint), {})
    assert {file.name: file.read_bytes() for file in model.iterdir()} == held
    assert open_checkpoint(tmp_path / "copy").load("safety_head.weight").any()


def test_another_directory_is_not_overwritten(model, directions, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    checkpoint = open_checkpoint(model)
    with pytest.raises(CheckpointError, match="not empty"):
        store.write(checkpoint, tmp_path / "other", directions, _tuned(checkpoint), {})
    assert (tmp_path / "other" / "file").read_text() == "mine"


def test_other_forms_of_heads_are_refused():
    with pytest.raises(ConfigError, match="3 labels"):
        store.check_form(HeadSpec("risk", ("a", "b", "c"), ("allow",) * 3, (0.5,) * 3))
    with pytest.raises(ConfigError, match="a stem and 2 labels"):
        store.check_form(HeadSpec("risk", ("a", "b"), ("allow",) * 2, (0.5,) * 2, activation="gelu", stem="s"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"taps": (3, 7)}, "head 'safety': found taps 3, 7, expected -1: so8t heads fits"),
        ({"taps": (-1, 7)}, "found taps -1, 7, expected -1"),
        ({"prompt_thresholds": (0.5, 0.4)}, "found prompt_thresholds 0.5, 0.4, expected None"),
        ({"tap_norm": "rms"}, "found tap_norm rms, expected none"),
        ({"link": "sigmoid"}, "found link sigmoid, expected softmax"),
        ({"aggregation": "mean"}, "found aggregation mean, expected run"),
        ({"prompt_aggregation": ("token", "max")}, "found prompt_aggregation token, max, expected token"),
    ],
)
def test_a_head_that_is_read_in_another_way_is_refused(fields, words):
    safety = default_heads()["safety"]
    store.check_form(safety)
    with pytest.raises(ConfigError, match=words) as error:
        store.check_form(replace(safety, **fields))
    assert "\n" not in str(error.value)


def test_the_configuration_stays_valid_json_with_known_fields(model, directions):
    checkpoint = open_checkpoint(model)
    store.write(checkpoint, model, directions, _tuned(checkpoint), {})
    file = next(model / name for name in ("adapter_config.json", "config.json") if (model / name).is_file())
    heads = json.loads(file.read_text())["so8t_heads"]
    assert list(heads) == ["safety", "authority"] and heads["safety"]["actions"] == ["allow", "refuse"]
