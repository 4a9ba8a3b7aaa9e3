#!/usr/bin/env bash
# One would expect: safetensors.numpy.save writes the numbers of an array, as it did up to 0.7.0, or says that it cannot.
# What happens: since 0.8.0 it writes the memory behind the array in its old order, under the new shape. A transposed
# matrix, one in Fortran order and every second column are read back with other numbers, without a warning. The docstring
# asks for contiguous arrays; nothing checks it. numpy.ascontiguousarray before the call helps. (The issue is known:
# safetensors 825.)
# Versions: safetensors 0.8.0 and 0.7.0, numpy 2.4.6.
# Why it matters: x.T is the usual way from the weights of one library to those of another. The file loads, the shapes
# fit, the hash is stable, and the model is wrong.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
cat > save.py <<'PY'
import importlib.metadata as metadata
import json

import numpy as np
from safetensors.numpy import load, save

square = np.arange(6, dtype=np.float32).reshape(2, 3)
arrays = {"plain": square, "x.T": square.T, "Fortran": np.asfortranarray(square), "x[:, ::2]": square[:, ::2]}
found = {}
for name, array in arrays.items():
    read = load(save({"x": array}))["x"]
    assert (read.shape, read.dtype) == (array.shape, array.dtype)
    found[name] = np.array_equal(read, array)
    print(f"safetensors {metadata.version('safetensors')} {name:10} {array.tolist()} is read as {read.tolist()}")
    assert np.array_equal(load(save({"x": np.ascontiguousarray(array)}))["x"], array)
with open("found.json", "w") as file:
    json.dump(found, file)
PY
for version in 0.7.0 0.8.0; do
    venv/bin/pip install --quiet --disable-pip-version-check safetensors==$version numpy==2.4.6
    venv/bin/python save.py
    mv found.json $version.json
done
venv/bin/python - <<'PY'
import json

old, new = (json.load(open(f"{version}.json")) for version in ("0.7.0", "0.8.0"))
assert all(old.values())
assert new == {"plain": True, "x.T": False, "Fortran": False, "x[:, ::2]": False}
print("as stated")
PY
