"""``pytorch_model.bin``: tensors are read, code is not run."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from tiny_models import write_base

from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.errors import CheckpointError


@pytest.fixture
def model(tmp_path):
    """A base model as ``pytorch_model.bin``, and its tensors."""
    directory = write_base(tmp_path / "model")
    tensors = {name: torch.from_numpy(t.read().copy()) for name, t in open_checkpoint(directory).tensors.items()}
    (directory / "model.safetensors").unlink()
    torch.save({name: t.bfloat16() for name, t in tensors.items()}, directory / "pytorch_model.bin")
    return directory, {name: t.bfloat16().float().numpy() for name, t in tensors.items()}


def shard(directory, tensors):
    names = list(tensors)
    parts = {f"pytorch_model-0000{i}-of-00002.bin": names[i - 1 :: 2] for i in (1, 2)}
    for file, part in parts.items():
        torch.save({name: torch.from_numpy(tensors[name]) for name in part}, directory / file)
    (directory / "pytorch_model.bin").unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_tensors_are_those_that_were_saved(model):
    directory, tensors = model
    for _ in range(2):
        found = open_checkpoint(directory)
        assert set(found.tensors) == set(tensors)
        for name, values in tensors.items():
            np.testing.assert_array_equal(found.load(name), values)
        if (directory / "pytorch_model.bin").exists():
            shard(directory, tensors)


class Attack:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (self.file,)


def test_code_is_not_run(model, tmp_path):
    directory, _ = model
    target = str(tmp_path / "attacked")
    for write in (
        lambda file: torch.save({"model.norm.weight": Attack(target)}, file),
        lambda file: file.write_bytes(pickle.dumps(Attack(target))),
    ):
        write(directory / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"pytorch_model.bin: "):
            open_checkpoint(directory)
        assert not os.path.exists(target)


@pytest.mark.parametrize("name", ["../other.bin", "missing.bin", ".hidden.bin"])
def test_a_shard_elsewhere_is_refused(model, name):
    directory, tensors = model
    weight_map = shard(directory, tensors)
    first = next(iter(weight_map))
    if name != "missing.bin":
        torch.save({first: torch.from_numpy(tensors[first])}, directory / name)
    weight_map[first] = name
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="expected a file beside it"):
        open_checkpoint(directory)


def test_mistral_is_a_llama_unless_it_has_a_window(tmp_path):
    directory = write_base(tmp_path / "model", "llama", model_type="llama")
    config = json.loads((directory / "config.json").read_text())
    mistral = config | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
    (directory / "config.json").write_text(json.dumps(mistral))
    assert open_checkpoint(directory).spec.base_model_type == "llama"
    (directory / "config.json").write_text(json.dumps(mistral | {"sliding_window": 4096}))
    with pytest.raises(CheckpointError, match="sliding_window 4096"):
        open_checkpoint(directory)
