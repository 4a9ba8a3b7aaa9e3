#!/usr/bin/env bash
# One would expect: the sum of a thousand ones in bfloat16 is near 1000. numpy's own float16, no wider, gives exactly
# 1000.
# What happens: 256, and the mean of a thousand ones is 0.256. numpy adds float16 pairwise in float32, but the bfloat16
# of ml_dtypes is a user type: its sum keeps a bfloat16 accumulator, where 256 + 1 rounds back to 256. A matrix product
# of the same type is right.
# Versions: ml_dtypes 0.6.0, numpy 2.4.6.
# Why it matters: checksums, norms and "mean weight" of BF16 checkpoints in numpy come out small by any factor, without
# a warning. Convert to float32 first.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import ml_dtypes
import numpy as np

print("ml_dtypes", ml_dtypes.__version__, "numpy", np.__version__)
ones = np.ones(1000, ml_dtypes.bfloat16)
found = {
    "bfloat16 sum": float(ones.sum()),
    "bfloat16 mean": float(ones.mean()),
    "bfloat16 dot": float(ones @ ones),
    "float16 sum": float(ones.astype(np.float16).sum()),
    "bfloat16 sum, dtype=float32": float(ones.sum(dtype=np.float32)),
}
for name, value in found.items():
    print(f"{name:28} {value}")
assert found["bfloat16 sum"] == 256.0 and found["bfloat16 mean"] < 0.26, "the sum has changed"
assert found["bfloat16 dot"] == found["float16 sum"] == found["bfloat16 sum, dtype=float32"] == 1000.0
print("as stated")
PY
