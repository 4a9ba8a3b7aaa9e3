#!/usr/bin/env bash
# One would expect: a Q8_0 tensor of a GGUF file is the same numbers in every reader. Each weight is an integer times a
# float16 scale; float32 holds the product without rounding.
# What happens: mx.load turns Q8_0, Q4_0 and Q4_1 into MLX's own affine form: unsigned integers, a float16 scale and a
# float16 bias of -128 (or -8) scales for each group of 32. Its dequantization then rounds to float16, so 9 of 10
# weights of Q8_0 differ from gguf-py, by up to 0.002 for weights of standard deviation 1. F32 tensors of the same file
# are equal to the bit.
# Versions: mlx 0.32.4 (CPU), gguf 0.19.0, numpy 2.4.6.
# Why it matters: a hash or an "equal to the bit" check of dequantized weights fails in MLX for a file that is intact.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check 'mlx[cpu]==0.32.4' gguf==0.19.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata as metadata

import gguf
import mlx.core as mx
import numpy as np

print(*(f"{name} {metadata.version(name)}" for name in ("mlx", "gguf", "numpy")))
weights = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
types = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4, "F32": None}
writer = gguf.GGUFWriter("model.gguf", "llama")
for name in types:
    kind = gguf.GGMLQuantizationType[name]
    writer.add_tensor(name + ".weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

loaded = mx.load("model.gguf")
different = {}
for tensor in gguf.GGUFReader("model.gguf").tensors:
    name = tensor.name.removesuffix(".weight")
    expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    found = loaded[tensor.name]
    if types[name]:
        found = mx.dequantize(found, loaded[name + ".scales"], loaded[name + ".biases"], 32, types[name])
    found = np.array(found.astype(mx.float32))
    different[name] = float((found != expected).mean())
    print(f"{name:5} different {different[name]:6.1%}, by up to {np.abs(found - expected).max():.6f}")
    if types[name]:
        assert loaded[name + ".scales"].dtype == mx.float16
assert different["F32"] == 0 and different["Q8_0"] > 0.9 and different["Q4_0"] > 0.5 and different["Q4_1"] > 0.5
print("as stated")
PY
