#!/usr/bin/env bash
# One would expect: in affine quantization w = scale * q + bias with unsigned q, the bias is the smallest weight of the
# group and the scale is positive.
# What happens: in MLX the bias is whichever end of the group is larger in magnitude. Where that is the largest weight,
# the scale is negative. In weights around zero these are about half of all groups.
# Versions: mlx 0.32.4 (CPU), numpy 2.4.6.
# Why it matters: readers of MLX checkpoints (config.json with "quantization", tensors .scales and .biases) that check
# "scale above 0", take a logarithm of scales, or store them unsigned, refuse or break valid files.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check 'mlx[cpu]==0.32.4' numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata as metadata

import mlx.core as mx
import numpy as np

print(*(f"{name} {metadata.version(name)}" for name in ("mlx", "numpy")))
weights = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
groups = weights.reshape(64, 4, 64)
low, high = groups.min(-1), groups.max(-1)
for bits in (8, 4):
    packed, scales, biases = mx.quantize(mx.array(weights), group_size=64, bits=bits)
    error = np.abs(np.array(mx.dequantize(packed, scales, biases, 64, bits)) - weights).max()
    scales, biases = np.array(scales), np.array(biases)
    negative = scales < 0
    print(f"{bits} bits: {negative.mean():.1%} of the scales negative; largest error {error:.3f}")
    # the sign says which end is larger in magnitude (4 bits move the bias a little)
    assert (negative == (np.abs(high) > np.abs(low))).all()
    assert 0.3 < negative.mean() < 0.7
    nearer_high = np.abs(biases - high) < np.abs(biases - low)
    assert (nearer_high == negative).all()
print("as stated")
PY
