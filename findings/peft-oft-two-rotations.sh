#!/usr/bin/env bash
# One would expect: OFT adapters of PEFT hold a rotation, and use_cayley_neumann says only how it is computed: by a
# series or by solving, nearly the same result.
# What happens: the two are inverse to each other. With the default (the series) the numbers mean R = I + 2Q + 2Q^2 +
# ..., with the flag off they mean R = (I - Q)(I + Q)^-1, which is R transposed. The same adapter weights merged both
# ways turn the weights in opposite directions.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (on machines where pip brings the CUDA build: several GB).
# Why it matters: a loader that ignores the flag, or an adapter_config.json in which it was changed to "the exact one",
# applies the inverse of what was trained.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile --disable-pip-version-check peft==0.21.2 transformers==5.23.0 torch==2.13.0 accelerate==1.15.0 numpy==2.4.6
venv/bin/python - 2>stderr.txt <<'PY' || { cat stderr.txt >&2; exit 1; }
import copy
import importlib.metadata as metadata

import torch
from peft import OFTConfig, get_peft_model

print(*(f"{name} {metadata.version(name)}" for name in ("peft", "torch")))
torch.manual_seed(0)
base = torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False))
before = base[0].weight.detach().double()
rotations = {}
for series in (True, False):
    config = OFTConfig(target_modules=["0"], oft_block_size=8, r=0, use_cayley_neumann=series)
    model = get_peft_model(copy.deepcopy(base), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "oft_R" in name:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    after = model.merge_and_unload()[0].weight.detach().double()
    rotations[series] = torch.linalg.solve(before, after)
identity = torch.eye(16).double()
distance = {
    "each from the identity": (rotations[True] - identity).abs().max(),
    "from each other": (rotations[True] - rotations[False]).abs().max(),
    "of their product from the identity": (rotations[True] @ rotations[False] - identity).abs().max(),
}
for name, value in distance.items():
    print(f"largest distance {name}: {value:.5f}")
each, apart, product = distance.values()
assert apart > 1.5 * each and product < 0.001
print("as stated")
PY
