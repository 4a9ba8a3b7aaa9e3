#!/usr/bin/env bash
# One would expect: transformers reads a block-scaled FP8 checkpoint (weight_block_size 128 x 128, as Qwen3-FP8) with
# the blocks that the config states, the last one being smaller where a width is no multiple of 128.
# What happens: it divides the width by the number of scales. A width of 448 has 4 scales, so it is cut into blocks of
# 112 instead of 128, 128, 128 and 64, and weights near the borders get the neighbour's scale. Nothing warns. Widths
# that are multiples of 128 are right.
# Versions: transformers 5.23.0, torch 2.13.0 (on machines where pip brings the CUDA build: several GB), safetensors
# 0.8.0.
# Why it matters: whoever takes transformers as the reference for a converter "finds" an error in a correct one, and the
# model itself is damaged.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile --disable-pip-version-check transformers==5.23.0 torch==2.13.0 safetensors==0.8.0 accelerate==1.15.0 numpy==2.4.6
venv/bin/python - 2>stderr.txt <<'PY' || { cat stderr.txt >&2; exit 1; }
import importlib.metadata as metadata
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Qwen3Config, Qwen3ForCausalLM

print(*(f"{name} {metadata.version(name)}" for name in ("transformers", "torch", "safetensors")))


def largest_error(width):
    """Relative to the largest weight, over the three matrices of an MLP of this width."""
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=128, intermediate_size=width, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=64, vocab_size=64
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained("model")
    tensors, expected = load_file("model/model.safetensors"), {}
    for name, weight in list(tensors.items()):
        if "proj" not in name:
            continue
        blocks = [list(torch.arange(n).split(128)) for n in weight.shape]
        scales = torch.empty([len(b) for b in blocks])
        quantized = torch.empty(weight.shape)
        exact = torch.empty(weight.shape)
        for i, rows in enumerate(blocks[0]):
            for j, columns in enumerate(blocks[1]):
                at = (rows[:, None], columns)
                block = weight[at].float() * (1 + i + j)
                scales[i, j] = block.abs().max() / 448
                quantized[at] = block / scales[i, j]
                exact[at] = quantized[at].to(torch.float8_e4m3fn).float() * scales[i, j]
        tensors[name], tensors[name + "_scale_inv"], expected[name] = quantized.to(torch.float8_e4m3fn), scales, exact
    save_file(tensors, "model/model.safetensors", metadata={"format": "pt"})
    path = pathlib.Path("model/config.json")
    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    loaded = AutoModelForCausalLM.from_pretrained("model", quantization_config=FineGrainedFP8Config(dequantize=True)).state_dict()
    errors = [((loaded[n].float() - e).abs().max() / e.abs().max()).item() for n, e in expected.items() if "mlp" in n]
    assert len(errors) == 3
    return max(errors)


whole, ragged = largest_error(512), largest_error(448)
print(f"width 512: largest error {whole:.3f} of the largest weight (BF16 rounding)")
print(f"width 448: largest error {ragged:.3f}")
assert whole < 0.005 and ragged > 0.1
print("as stated")
PY
