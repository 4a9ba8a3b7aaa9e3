#!/usr/bin/env bash
# One would expect: a program that reads GGUF metadata knows all thirteen value types, or skips what it does not know
# (each has a known size).
# What happens: model-fingerprint ends with "unknown metadata value type" for a file that has one key of type uint64,
# int64 or float64 (10, 11, 12). gguf-py reads all of them.
# Versions: model-fingerprint 0.1.1, gguf 0.19.0, numpy 2.4.6.
# Why it matters: parameter counts (general.parameter_count) are uint64 by habit, and thresholds that must not lose
# digits are float64; a file with one such key, used or not, has no fingerprint.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check model-fingerprint==0.1.1 gguf==0.19.0 numpy==2.4.6
venv/bin/python - <<'PY'
import importlib.metadata as metadata
import subprocess

import gguf
import numpy as np

print(*(f"{name} {metadata.version(name)}" for name in ("model-fingerprint", "gguf", "numpy")))
outcomes = {}
for kind in ("uint32", "int32", "float32", "uint64", "int64", "float64"):
    writer = gguf.GGUFWriter(f"{kind}.gguf", "llama")
    getattr(writer, f"add_{kind}")("x.value", 1)
    writer.add_tensor("w", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf.GGUFReader(f"{kind}.gguf").fields["x.value"].contents() == 1
    result = subprocess.run(["venv/bin/model-fingerprint", f"{kind}.gguf"], text=True, capture_output=True)
    outcomes[kind] = result.returncode
    print(f"{kind:8} exit {result.returncode} {result.stderr.strip()}")
assert outcomes == {"uint32": 0, "int32": 0, "float32": 0, "uint64": 1, "int64": 1, "float64": 1}
print("as stated")
PY
