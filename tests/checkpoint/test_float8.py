"""Weights in 8-bit floats: block, row and tensor scales against torch, and what is refused."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import base_config

from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.checkpoint.names import base_tensors
from llama_so8t.errors import CheckpointError
from llama_so8t.model_spec import ModelSpec

FP8_BLOCK = {"quant_method": "fp8", "weight_block_size": [32, 16]}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized"}
CASES = {
    "block": (FP8_BLOCK, "weight_scale_inv", lambda r, c: (-(-r // 32), -(-c // 16))),
    "tensor": ({"quant_method": "fp8"}, "weight_scale", lambda r, c: ()),
    "tensor-1": (COMPRESSED, "weight_scale", lambda r, c: (1,)),
    "row": (COMPRESSED, "weight_scale", lambda r, c: (r, 1)),
    "bf16-scales": (FP8_BLOCK, "weight_scale_inv", lambda r, c: (-(-r // 32), -(-c // 16))),
}


@pytest.fixture
def make(tmp_path):
    """Writes a float8 model; ``edit`` changes its tensors first. Returns directory and expected weights."""

    def run(case="block", dtype=torch.float8_e4m3fn, edit=None, quantization=None):
        default, suffix, shape_of = CASES[case]
        config = base_config("qwen3", hidden_size=72, num_attention_heads=9, num_key_value_heads=3, head_dim=8)
        torch.manual_seed(0)
        tensors, expected = {}, {}
        for name, entry in base_tensors(config, ModelSpec.from_config(config)).items():
            value = torch.randn(entry.shape)
            if value.dim() == 2 and ".layers." in name:
                scale = torch.rand(shape_of(*value.shape)) + 0.5
                if case == "bf16-scales":
                    scale = scale.bfloat16()
                tensors[name] = (value * 100).to(dtype)
                tensors[name.replace("weight", suffix)] = scale
                wide = scale.float()
                if wide.dim() == 2 and wide.shape != (value.shape[0], 1):
                    wide = wide.repeat_interleave(32, 0).repeat_interleave(16, 1)
                    wide = wide[: value.shape[0], : value.shape[1]]
                expected[name] = (tensors[name].float() * wide).numpy()
            else:
                tensors[name] = value.bfloat16()
                expected[name] = tensors[name].float().numpy()
        if edit:
            edit(tensors)
        directory = tmp_path / "model"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config | {"quantization_config": quantization or default}))
        save_file(tensors, directory / "model.safetensors")
        return directory, expected

    return run


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_torch(make, case, dtype):
    directory, expected = make(case, dtype)
    model = open_checkpoint(directory)
    assert set(model.tensors) == set(expected)
    for name, values in expected.items():
        tensor = model.tensors[name]
        np.testing.assert_array_equal(tensor.read(), values, err_msg=name)
        if values.ndim == 2:
            cuts = sorted({min(cut, len(values)) for cut in (0, 32, 40, 41, 999)})
            parts = [tensor.read_rows(a, b) for a, b in pairwise(cuts)]
            np.testing.assert_array_equal(np.concatenate(parts), values, err_msg=name)


def test_activation_scales_are_left_out(make):
    name = "model.layers.0.mlp.up_proj.input_scale"
    directory, _ = make("tensor", edit=lambda tensors: tensors.update({name: torch.ones(())}))
    assert name not in open_checkpoint(directory).tensors


def replace(name, value):
    def edit(tensors):
        tensors[name] = value(tensors[name]) if callable(value) else value
        if tensors[name] is None:
            del tensors[name]

    return edit


UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("edit", "quantization", "words"),
    [
        (
            replace(f"{UP}.weight_scale_inv", lambda t: t[:-1].clone()), {},
            r"up_proj.weight_scale_inv': found shape \[2, 5\] for a weight of \[96, 72\], expected \[3, 5\]",
        ),
        (replace(f"{UP}.weight_scale_inv", lambda t: None), {}, r"up_proj.weight': found F8_E4M3 .* with 0 scales"),
        (replace(f"{UP}.weight_scale_inv", lambda t: t * float("nan")), {}, r"weight_scale_inv': found nan at"),
        (replace(f"{UP}.weight", lambda t: t.bfloat16()), {}, "found no 8-bit float .*up_proj.weight to scale"),
        (replace("model.norm.weight", lambda t: t.to(torch.float8_e4m3fn)), {}, "model.norm.weight': found F8_E4M3"),
        (None, {"quant_method": "gptq"}, "method 'gptq', expected fp8 or compressed-tensors"),
        (None, {"quant_method": "fp8", "weight_block_size": [0, 16]}, r"weight_block_size \[0, 16\]"),
        (None, FP8_BLOCK | {"weight_block_size": [16, 16]}, r"expected \[5, 6\] \(blocks of \[16, 16\]\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, edit, quantization, words):
    directory, _ = make(edit=edit, quantization=quantization)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(directory)


def test_nan_among_the_codes_is_found_on_reading(make):
    def spoil(tensors):
        raw = tensors[f"{UP}.weight"].view(torch.uint8)
        raw[7, 3] = 0x7F

    directory, _ = make(edit=spoil)
    assert np.isnan(open_checkpoint(directory).load(f"{UP}.weight")[7, 3])
