#!/usr/bin/env bash
# One would expect: two libraries that convert float32 to float8 e4m3fn (largest value 448) agree on what is too large.
# What happens: ml_dtypes gives NaN from 465 on, MLX gives 448. Between 448 and 464 both round down to 448, so a test
# with values just past the limit sees no difference. Neither warns.
# Versions: ml_dtypes 0.6.0, mlx 0.32.4 (CPU), numpy 2.4.6.
# Why it matters: float8 weights are made with scales that put the largest weight near 448. A scale that was itself
# rounded down makes one NaN per row with one library and a clipped weight with the other.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check 'mlx[cpu]==0.32.4' ml_dtypes==0.6.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata as metadata

import ml_dtypes
import mlx.core as mx
import numpy as np

print(*(f"{name} {metadata.version(name)}" for name in ("ml_dtypes", "mlx", "numpy")))
values = np.array([448, 460, 464, 465, 500, 10000], np.float32)
by_ml_dtypes = values.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
by_mlx = np.array(mx.from_fp8(mx.to_fp8(mx.array(values)), mx.float32))
print("values   ", values)
print("ml_dtypes", by_ml_dtypes)
print("mlx      ", by_mlx)
assert (by_ml_dtypes[:3] == 448).all() and np.isnan(by_ml_dtypes[3:]).all()
assert (by_mlx == 448).all()
print("as stated")
PY
