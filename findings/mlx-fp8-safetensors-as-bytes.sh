#!/usr/bin/env bash
# One would expect: a safetensors file with a float8 tensor (F8_E4M3) is read as numbers, or refused. MLX refuses
# F8_E5M2.
# What happens: mx.load gives F8_E4M3 as uint8, the raw bytes, without a word: 1.0 becomes 56 and -2.0 becomes 192. The
# scales (F8_E8M0) of MX formats are read as bytes too. Any code that multiplies "weight" by "weight_scale" computes
# nonsense of a plausible size. mx.from_fp8 turns the bytes into numbers, if one knows.
# Versions: mlx 0.32.4 (CPU), safetensors 0.8.0, ml_dtypes 0.6.0, numpy 2.4.6.
# Why it matters: FP8 checkpoints (Qwen3-FP8, compressed-tensors, modelopt) are the common form of large models.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check 'mlx[cpu]==0.32.4' safetensors==0.8.0 ml_dtypes==0.6.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata as metadata

import ml_dtypes
import mlx.core as mx
import numpy as np
from safetensors import TensorSpec, serialize_file

print(*(f"{name} {metadata.version(name)}" for name in ("mlx", "safetensors", "ml_dtypes")))
values = np.array([1.0, 0.5, -2.0, 448.0], np.float32)


def write(path, dtype, data):
    array = np.frombuffer(data, np.uint8)
    serialize_file({"w": TensorSpec(dtype=dtype, shape=[4], data_ptr=array.ctypes.data, data_len=array.nbytes)}, path)


write("e4m3.safetensors", "float8_e4m3fn", values.astype(ml_dtypes.float8_e4m3fn).tobytes())
write("e5m2.safetensors", "float8_e5m2", values.astype(ml_dtypes.float8_e5m2).tobytes())
loaded = mx.load("e4m3.safetensors")["w"]
print("written as F8_E4M3:", values.tolist())
print("mx.load gives     :", loaded.dtype, loaded.tolist())
print("mx.from_fp8 gives :", mx.from_fp8(loaded, mx.float32).tolist())
try:
    mx.load("e5m2.safetensors")
    refused = False
except RuntimeError as error:
    refused = True
    print("F8_E5M2           :", error)
assert loaded.dtype == mx.uint8 and loaded.tolist() == [56, 48, 192, 126]
assert mx.from_fp8(loaded, mx.float32).tolist() == values.tolist()
assert refused
print("as stated")
PY
