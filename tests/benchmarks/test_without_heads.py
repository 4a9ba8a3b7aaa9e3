"""The model that the guard is measured against: the same, without heads."""

import pytest
from scripted_model import Head, scripted_gguf

from llama_so8t.benchmarks.guard import GuardOptions, measure_guard, without_heads
from llama_so8t.errors import So8tError
from llama_so8t.files.gguf_file import read_gguf

HEADS = {"safety": Head(["safe", "unsafe"], ["allow", "refuse"], [0.5, 0.9])}


def test_all_but_the_heads_stays(tmp_path):
    model = scripted_gguf(tmp_path / "model", {"start": ["one "]}, HEADS)
    bare = without_heads(model, tmp_path / "bare.gguf")
    before, after = read_gguf(model), read_gguf(bare)
    assert set(before.metadata) - set(after.metadata) == {
        "so8t.heads",
        *(key for key in before.metadata if key.startswith("so8t.head.")),
    }
    gone = set(before.tensors) - set(after.tensors)
    assert gone and gone <= {"so8t_head.safety.weight", "so8t_head.safety.bias"}
    assert all(after.metadata[key] == before.metadata[key] for key in after.metadata)
    for name, tensor in after.tensors.items():
        assert (tensor.read() == before.tensors[name].read()).all(), name


def test_a_model_without_heads_is_refused(tmp_path):
    bare = without_heads(scripted_gguf(tmp_path / "model", {"start": ["one "]}, HEADS), tmp_path / "bare.gguf")
    with pytest.raises(So8tError, match=r"found no heads \(key so8t\.heads\)"):
        without_heads(bare, tmp_path / "again.gguf")


@pytest.mark.parametrize("policies", [(), ("monitor", "on")])
def test_a_policy_that_there_is_not_is_an_error(tmp_path, policies):
    with pytest.raises(So8tError, match="expected some of off,monitor,enforce"):
        measure_guard(GuardOptions(tmp_path / "m.gguf", tmp_path / "out", 8, 8, 1, 1, policies), print)
    assert not (tmp_path / "out").exists()
