#!/usr/bin/env bash
# One would expect: a big-endian GGUF is one format. gguf-py's GGUFWriter(endianess=BIG) and its own tool
# gguf-convert-endian give the same bytes, and its reader gives the same numbers back.
# What happens: both swap metadata and F32 tensors. A quantized tensor is bytes to the writer, so the float16 scales in
# its blocks stay little-endian; the tool swaps them. The reader does not swap inside blocks either: it reads the
# writer's mixed file right and the tool's consistent file wrong, with an error as large as the largest weight, and no
# warning.
# Versions: gguf 0.19.0, numpy 2.4.6.
# Why it matters: files for s390x and other big-endian machines. Nothing in the file says which of the two forms it is.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
venv/bin/python - <<'PY'
import importlib.metadata as metadata
import subprocess

import gguf
import numpy as np

print(*(f"{name} {metadata.version(name)}" for name in ("gguf", "numpy")))
weights = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)


def write(path, endian):
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    for name in ("F32", "Q8_0"):
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path):
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        is_f32 = tensor.tensor_type == gguf.GGMLQuantizationType.F32
        values = tensor.data if is_f32 else gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        error = float(np.abs(values - weights).max())
        found[tensor.name] = tensor.data.tobytes()[: 4 if is_f32 else 2].hex(), error
        print(f"    {tensor.name:5} first value {found[tensor.name][0]:8} largest error {error:.4f}")
    return found


write("little.gguf", gguf.GGUFEndian.LITTLE)
write("written.gguf", gguf.GGUFEndian.BIG)
write("converted.gguf", gguf.GGUFEndian.LITTLE)
subprocess.run(["venv/bin/gguf-convert-endian", "converted.gguf", "big"], input="YES\n", text=True, check=True, capture_output=True)
files = {}
for path in ("little.gguf", "written.gguf", "converted.gguf"):
    print(path)
    files[path] = read(path)
little, written, converted = files.values()
assert little["F32"][1] == written["F32"][1] == converted["F32"][1] == 0
assert written["F32"][0] == converted["F32"][0] != little["F32"][0]
assert written["Q8_0"] == little["Q8_0"] and little["Q8_0"][1] < 0.01
assert converted["Q8_0"][0] == "2008" and converted["Q8_0"][1] > 0.9
print("as stated")
PY
