"""A correct file passes; every kind of damage is found, and the tensor or key is named."""

import json

import numpy as np
import pytest
from gguf_files import copy_gguf

from llama_so8t import upstream
from llama_so8t.errors import CheckpointError, ConversionError, RuntimeLibraryError
from llama_so8t.format import Keys
from llama_so8t.verification import logits as logits_module
from llama_so8t.verification import render, verify
from llama_so8t.verification.report import FAILED, NOT_RUN, OK

WEIGHT = "blk.1.ffn_up.weight"


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_a_correct_file_passes(converted, outtype, rotations):
    report = verify(converted(outtype, rotations), logits=False)
    assert report.ok and not report.problems
    assert [check.status for check in report.checks] == [OK] * 5 + [NOT_RUN]
    tensors = {tensor.name: tensor for tensor in report.tensors}
    assert tensors[WEIGHT].type == outtype.upper()
    # the exact ones are equal, the others as far off as their type rounds
    assert all(t.max_error == 0 for t in report.tensors if t.exact or t.type == "F32")
    low, high = {"F32": (0, 0), "F16": (1e-4, 4e-4), "BF16": (1e-3, 3e-3), "Q8_0": (4e-3, 7e-3)}[tensors[WEIGHT].type]
    assert low <= tensors[WEIGHT].rms_error <= high
    assert all(t.share <= 1 for t in report.tensors)


@pytest.mark.parametrize("options", [{"arch": "stock"}, {"split_max_size": 60_000}], ids=["stock", "split"])
def test_every_form_of_file_passes(converted, options):
    plan = converted("q8_0", "fold", **options)
    assert len(plan.paths) > 1
    report = verify(plan, logits=False)
    assert report.ok and len(report.tensors) == len(plan.tensors)
    group = next(check for check in report.checks if check.name == "group")
    assert group.status == NOT_RUN and "ok, but not run: group, logits" in render(report)


def test_the_error_is_that_of_an_own_computation(converted, model):
    """RMS error of a tensor that no rotation touches, from the two files alone."""
    from safetensors.numpy import load_file

    plan = converted("q8_0", "fold")
    source = load_file(model / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].astype(np.float64)
    gguf = upstream.gguf
    tensor = next(t for t in gguf.GGUFReader(plan.paths[0]).tensors if t.name == "blk.1.ffn_down.weight")
    error = gguf.dequantize(tensor.data, tensor.tensor_type) - source
    rms = np.sqrt(np.mean(source**2))
    found = next(t for t in verify(plan, logits=False).tensors if t.name == "blk.1.ffn_down.weight")
    assert found.rms_error == pytest.approx(np.sqrt(np.mean(error**2)) / rms, rel=1e-4)
    assert found.max_error == pytest.approx(np.abs(error).max() / rms, rel=1e-4)


# --- damage ----------------------------------------------------------------------------------


def stored(path, name):
    """(offset in the file, size in bytes) of a tensor, by gguf-py."""
    tensor = next(t for t in upstream.gguf.GGUFReader(path).tensors if t.name == name)
    return int(tensor.data_offset), int(tensor.n_bytes)


def flip(path, name, at, bit):
    offset, size = stored(path, name)
    data = bytearray(path.read_bytes())
    data[offset + at % size] ^= 1 << bit
    path.write_bytes(data)


def swap(path, first, second):
    data = bytearray(path.read_bytes())
    (a, size), (b, size_b) = stored(path, first), stored(path, second)
    assert size == size_b
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    path.write_bytes(data)


def change(path, name, function):
    """Applies a function to the flat values of a float32 tensor, in place."""

    def in_place(values):
        function(values.reshape(-1))

    copy_gguf(path, path, tensors={name: in_place})


def as_float16(values):
    return values.astype(np.float16)


def failed(plan):
    """(names of the failed checks, problems) of a file that must not pass."""
    report = verify(plan)
    assert not report.ok
    assert report.checks[-1] == report.checks[-1].__class__("logits", NOT_RUN, "the file is wrong already")
    with pytest.raises(ConversionError, match="verification failed"):
        report.require_ok()
    return [check.name for check in report.checks if check.status == FAILED], report.problems


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_one_bit_in_a_weight_is_found(converted, outtype, bit):
    plan = converted(outtype)
    flip(plan.paths[0], WEIGHT, 1234, bit)
    checks, problems = failed(plan)
    assert checks == ["weights"] and len(problems) == 1
    assert problems[0].startswith(f"tensor {WEIGHT}: ")


def test_a_change_smaller_than_the_rounding_is_found(converted):
    """A value moved to the neighbour that is almost as near: within the bounds, but not what quantizing gives."""
    plan = converted("q8_0", "fold")
    gguf, tensor = upstream.gguf, next(t for t in plan.tensors if t.name == WEIGHT)
    blocks = gguf.quantize(tensor.read(), gguf.GGMLQuantizationType[tensor.dtype]).reshape(-1, 34)
    values = tensor.read().reshape(-1, 32) / blocks[:, :2].copy().view(np.float16).astype(np.float32)
    away = values - blocks[:, 2:].view(np.int8)
    block, at = np.argwhere((np.abs(away) > 0.44) & (np.abs(away) < 0.49) & (np.abs(values) < 100))[0]
    offset, _ = stored(plan.paths[0], WEIGHT)
    data = bytearray(plan.paths[0].read_bytes())
    data[offset + block * 34 + 2 + at] = (data[offset + block * 34 + 2 + at] + int(np.sign(away[block, at]))) % 256
    plan.paths[0].write_bytes(data)
    checks, problems = failed(plan)
    row = block * 32 // tensor.shape[1]
    assert checks == ["weights"]
    assert problems == (f"tensor {WEIGHT}: is not what quantizing the checkpoint to Q8_0 gives, first in row {row}",)


def test_the_place_is_named(converted):
    plan = converted("f32", "fold")
    change(plan.paths[0], WEIGHT, lambda values: values.__setitem__(5 * 64 + 7, 9.0))
    _, problems = failed(plan)
    assert "first at [5, 7]" in problems[0]


def test_a_value_that_is_not_finite_is_found(converted):
    for value in (np.nan, np.inf):
        plan = converted("f32", "fold")
        change(plan.paths[0], WEIGHT, lambda values, value=value: values.__setitem__(3, value))
        checks, problems = failed(plan)
        assert checks == ["weights"] and "first at [0, 3]" in problems[0]


@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_two_swapped_tensors_are_found(converted, outtype):
    plan = converted(outtype)
    first, second = "blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"
    swap(plan.paths[0], first, second)
    checks, problems = failed(plan)
    assert checks == ["weights"]
    assert [problem.split(":")[0] for problem in problems] == [f"tensor {second}", f"tensor {first}"]


def test_a_missing_tensor_and_one_too_many_are_found(converted):
    plan = converted()
    copy_gguf(plan.paths[0], plan.paths[0], tensors={WEIGHT: None, "blk.9.ffn_up.weight": np.zeros((2, 2), np.float32)})
    checks, problems = failed(plan)
    assert checks == ["names"]
    assert problems == (f"tensor {WEIGHT}: is missing", "tensor blk.9.ffn_up.weight: is not one of this model")


def test_a_tensor_of_another_type_is_found(converted):
    plan = converted("f32")
    copy_gguf(plan.paths[0], plan.paths[0], tensors={WEIGHT: as_float16})
    checks, problems = failed(plan)
    assert checks == ["weights"] and problems == (f"tensor {WEIGHT}: found type F16, expected F32",)


def test_a_quantized_head_is_found(converted):
    name = "so8t_head.safety.weight"
    plan = converted("f32")
    copy_gguf(plan.paths[0], plan.paths[0], tensors={name: as_float16})
    checks, problems = failed(plan)
    assert "rotations and heads" in checks
    assert problems[0] == f"tensor {name}: found type F16, expected F32"


@pytest.mark.parametrize("name", ["blk.1.so8t_gen.weight", "blk.0.so8t_gen.weight", "so8t_out_gen.weight"])
def test_a_changed_generator_is_found(converted, name):
    plan = converted()
    change(plan.paths[0], name, lambda values: values.__setitem__(2, np.nextafter(values[2], np.float32(9))))
    checks, problems = failed(plan)
    assert checks == ["rotations and heads"]
    assert problems[0].startswith(f"tensor {name}: differs from the checkpoint, first at [0, 2]")


def test_an_edited_rotation_is_found_twice(converted):
    plan = converted()
    name = "blk.1.so8t_ffn_rot.weight"
    change(plan.paths[0], name, lambda values: values.__imul__(np.float32(1.01)))
    checks, problems = failed(plan)
    assert checks == ["rotations and heads", "group"]
    assert f"tensor {name}" in problems[0] and "is not in SO(8)" in problems[1] and name in problems[1]


def test_a_turned_rotation_is_still_one_but_another(converted):
    """Two rows swapped and one negated: in SO(8), yet not exp of its generator."""

    def turn(values):
        block = values.reshape(-1, 8, 8)[0]
        block[[0, 1]] = block[[1, 0]]
        block[0] *= -1

    plan = converted()
    change(plan.paths[0], "blk.0.so8t_v_rot.weight", turn)
    checks, problems = failed(plan)
    assert checks == ["rotations and heads", "group"]
    assert "differs from exp of blk.0.so8t_gen.weight (v)" in problems[1]


@pytest.mark.parametrize("name", ["so8t_head.safety.weight", "so8t_head.authority.bias"])
def test_an_edited_head_is_found(converted, name):
    plan = converted("q8_0")
    flip(plan.paths[0], name, 0, 0)
    checks, problems = failed(plan)
    assert checks == ["rotations and heads"] and problems[0].startswith(f"tensor {name}: ")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({Keys.ROTATION_EXPLICIT: None}, "so8t.rotation.explicit: is missing"),
        ({Keys.HEAD_THRESHOLDS.format(name="safety"): [0.5, 0.75]}, "so8t.head.safety.thresholds: found [0.5, 0.75]"),
        ({Keys.BASE_ARCHITECTURE: "qwen3"}, "so8t.base_architecture: found 'qwen3', expected 'llama'"),
        ({"so8t.pooling_type": "mean"}, "so8t.pooling_type: is not one of this model"),
        ({"tokenizer.ggml.eos_token_id": 3}, "tokenizer.ggml.eos_token_id: found 3, expected 2"),
    ],
)
def test_a_wrong_key_is_found(converted, keys, words):
    plan = converted()
    copy_gguf(plan.paths[0], plan.paths[0], keys=keys)
    checks, problems = failed(plan)
    assert checks[0] == "keys" and words in problems[0]


def test_a_key_of_another_type_is_found(converted):
    plan = converted()
    data = plan.paths[0].read_bytes()
    key = b"so8t.head.safety.debounce"
    at = data.index(key) + len(key)
    assert data[at : at + 4] == b"\x04\x00\x00\x00"
    plan.paths[0].write_bytes(data[:at] + b"\x05" + data[at + 1 :])
    checks, problems = failed(plan)
    assert "keys" in checks and "found type int32, expected uint32" in problems[0]


def test_damage_in_any_part_of_a_split_file_is_found(converted):
    for part in (0, -1):
        plan = converted("q8_0", "fold", split_max_size=60_000)
        name = plan.shards[part].tensors[0].name
        flip(plan.paths[part], name, 40, 3)
        _, problems = failed(plan)
        assert len(problems) == 1 and f"tensor {name}: " in problems[0]


def test_a_truncated_file_and_a_missing_one_are_errors(converted):
    plan = converted()
    plan.paths[0].write_bytes(plan.paths[0].read_bytes()[:-4096])
    with pytest.raises(CheckpointError, match="is truncated"):
        verify(plan)
    plan.paths[0].unlink()
    with pytest.raises(OSError):
        verify(plan)


# --- logits, report --------------------------------------------------------------------------


def test_what_was_not_run_is_not_called_ok(converted, monkeypatch):
    def missing():
        raise RuntimeLibraryError("libso8t-session: not found")

    monkeypatch.setattr(logits_module.library, "load", missing)
    report = verify(converted())
    assert report.ok and report.checks[-1].status == NOT_RUN
    assert "libso8t-session: not found" in render(report)
    assert render(report).endswith("ok, but not run: logits")


def test_a_file_that_llama_cpp_refuses_fails(converted, monkeypatch):
    def refuse(path, **options):
        raise RuntimeLibraryError(f"{path}: llama.cpp did not load it: no reason given")

    monkeypatch.setattr(logits_module.library, "load", lambda: None)
    monkeypatch.setattr(logits_module, "Session", refuse)
    report = verify(converted())
    assert not report.ok and report.checks[-1].status == FAILED
    assert "did not load it" in report.problems[0]


@pytest.mark.parametrize(("available", "words"), [(1000, "1,000 are available"), (None, "an unknown amount")])
def test_a_model_that_does_not_fit_is_not_run(converted, monkeypatch, available, words):
    monkeypatch.setattr(logits_module.library, "load", lambda: None)
    monkeypatch.setattr(logits_module, "available_memory", lambda: available)
    check = verify(converted()).checks[-1]
    assert check.status == NOT_RUN and words in check.detail


def test_the_memory_of_this_machine_is_known():
    assert logits_module.available_memory() > 1 << 20


def test_the_report_is_written_beside_the_file(converted):
    plan = converted("q8_0")
    flip(plan.paths[0], WEIGHT, 1, 6)  # the scale of a block: a large error
    change(plan.paths[0], "so8t_head.safety.bias", lambda values: values.__setitem__(0, np.nan))
    report = verify(plan)
    written = report.write()
    assert written == plan.paths[0].with_name("out.gguf.verify.json")

    def refuse(value):
        raise AssertionError(f"{value} is not JSON")

    content = json.loads(written.read_text(), parse_constant=refuse)
    assert content["ok"] is False and content["files"] == ["out.gguf"]
    assert content["outtype"] == "q8_0" and content["rotations"] == "explicit"
    by_name = {tensor["name"]: tensor for tensor in content["tensors"]}
    assert len(by_name) == len(plan.tensors)
    assert by_name["so8t_head.safety.bias"]["max_error"] is None and by_name[WEIGHT]["problem"]
    assert {check["name"]: check["status"] for check in content["checks"]}["weights"] == FAILED
    assert not list(written.parent.glob(".*.partial"))
    assert WEIGHT in render(report) and "PROBLEM tensor so8t_head.safety.bias" in render(report)
