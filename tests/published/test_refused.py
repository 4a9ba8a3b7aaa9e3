"""Layouts without a meaning are refused, in opening and in the diagnosis, with their reason."""

import json

import numpy as np
import pytest
from published import TENSORS
from tiny_models import base_config, stored

from llama_so8t.checkpoint.names import base_tensors
from llama_so8t.diagnosis import diagnose
from llama_so8t.errors import CheckpointError
from llama_so8t.files import safetensors_file, safetensors_writer
from llama_so8t.model_spec import ModelSpec
from llama_so8t.published import BY_ID, restore
from llama_so8t.published.table import REFUSE

REFUSED = [id for id, row in BY_ID.items() if row.verdict == REFUSE and id in TENSORS]


@pytest.fixture
def write(tmp_path, rng):
    """Writes a base model with the tensors of a layout beside it."""

    def make(layout):
        config = base_config()
        shapes = {name: entry.shape for name, entry in base_tensors(config, ModelSpec.from_config(config)).items()}
        shapes |= TENSORS[layout]
        directory = tmp_path / layout
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        tensors = [stored(name, rng.normal(0, 0.3, shape).astype(np.float32)) for name, shape in shapes.items()]
        safetensors_writer.write_sharded(directory, tensors)
        return directory, config

    return make


@pytest.mark.parametrize("layout", REFUSED)
def test_refused_with_its_reason(write, layout):
    directory, config = write(layout)
    with pytest.raises(CheckpointError) as raised:
        restore(directory, config, safetensors_file.read_sharded(directory))
    assert BY_ID[layout].reason in str(raised.value)
    assert str(directory) in str(raised.value)
    found = diagnose(directory)
    assert found.layout is BY_ID[layout]
    assert not found.usable
    assert any(BY_ID[layout].reason in problem for problem in found.problems)


@pytest.mark.parametrize("layout", ["L1", "L2"])
def test_gates_that_are_no_rotations_are_measured(write, layout):
    gates = diagnose(write(layout)[0]).gates
    assert gates and all(gate.orthogonality_error > 0.5 for gate in gates)


@pytest.mark.parametrize("layout", ["L7", "L9", "L11", "L12"])
def test_gates_that_are_rotations_are_measured(write, layout):
    gates = diagnose(write(layout)[0]).gates
    assert gates and all(gate.orthogonality_error < 1e-12 and gate.determinant_error < 1e-12 for gate in gates)
