#!/usr/bin/env bash
# One would expect: a list that a converter writes as GGUF metadata is in the file, also when it is empty. The format
# has arrays of length 0.
# What happens: gguf-py's add_array returns without a word for an empty list, so the key is missing; add_key_value with
# the same list raises ValueError. Its reader reads a file that has an empty array, but its tool gguf-new-metadata,
# asked to copy that file under another general.name, ends with the same error and leaves a file without the key values
# behind.
# Versions: gguf 0.19.0, numpy 2.4.6.
# Why it matters: lists of an extension for which "none" and "not said" differ (token ids to suppress, layers, labels):
# a converter has no way to write "none", and files of programs in other languages that do cannot be edited.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
venv/bin/python - <<'PY'
import importlib.metadata as metadata
import struct
import subprocess

import gguf

print(*(f"{name} {metadata.version(name)}" for name in ("gguf", "numpy")))
writer = gguf.GGUFWriter("written.gguf", "llama")
writer.add_array("x.empty", [])
try:
    writer.add_key_value("x.empty", [], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    raised = False
except ValueError as error:
    raised = True
    print("add_key_value:", error)
writer = gguf.GGUFWriter("written.gguf", "llama")
writer.add_array("x.empty", [])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.close()


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def keys(path):
    found = [name for name in gguf.GGUFReader(path).fields if not name.startswith("GGUF.")]
    print(f"{path:14} {found}")
    return found


# a valid file by hand: version 3, no tensors, two keys, the second an array (9) of texts (8) of length 0
with open("valid.gguf", "wb") as file:
    file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 2))
    file.write(text("general.architecture") + struct.pack("<I", 8) + text("llama"))
    file.write(text("x.empty") + struct.pack("<IIQ", 9, 8, 0))
command = ["venv/bin/gguf-new-metadata", "--general-name", "other", "valid.gguf", "copied.gguf"]
result = subprocess.run(command, text=True, capture_output=True)
print("gguf-new-metadata: exit", result.returncode, [line for line in result.stderr.splitlines() if "ValueError" in line])
assert raised
assert keys("written.gguf") == ["general.architecture"]
assert keys("valid.gguf") == ["general.architecture", "x.empty"]
assert result.returncode == 1 and "Empty array" in result.stderr
print("as stated")
PY
