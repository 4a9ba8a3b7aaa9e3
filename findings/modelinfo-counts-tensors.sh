#!/usr/bin/env bash
# One would expect: a program that prints the "dtype" of a GGUF file names the type of most of its weights, or
# general.file_type.
# What happens: modelinfo-cli counts tensors. A Q8_0 file with twelve small F32 vectors beside seven matrices in each
# block is "F32", although 99 % of its parameters are Q8_0 and general.file_type says so.
# Versions: modelinfo-cli 1.4.4, gguf 0.19.0, numpy 2.4.6.
# Why it matters: norms, biases, scales and adapters keep small tensors in F32; models with many of them (q and k norms,
# LoRA-like parameters) are shown as unquantized, and lists sorted by type are wrong.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check modelinfo-cli==1.4.4 gguf==0.19.0 numpy==2.4.6
cat > write.py <<'PY'
import gguf
import numpy as np

random = np.random.default_rng(0)
for path, n_vectors in (("few.gguf", 2), ("many.gguf", 12)):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    sizes = {"Q8_0": 0, "F32": 0}
    for block in range(2):
        tensors = {n: ("Q8_0", (64, 64)) for n in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down")}
        tensors |= {f"vector{i}": ("F32", (28,)) for i in range(n_vectors)}
        for name, (kind, shape) in tensors.items():
            kind_ = gguf.GGMLQuantizationType[kind]
            weights = random.standard_normal(shape).astype(np.float32)
            writer.add_tensor(f"blk.{block}.{name}.weight", gguf.quants.quantize(weights, kind_), raw_dtype=kind_)
            sizes[kind] += weights.size
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{path}: {sizes['Q8_0'] / sum(sizes.values()):.1%} of the parameters are Q8_0")
PY
venv/bin/pip list 2>/dev/null | grep -E '^(modelinfo-cli|gguf|numpy) '
venv/bin/python write.py
for file in few many; do
    venv/bin/modelinfo $file.gguf > $file.txt 2>&1
    grep -E '^(Dtype|Tensors):' $file.txt
done
grep -qiE '^Dtype: +q8_0 *$' few.txt
grep -qE '^Dtype: +F32 *$' many.txt
echo "as stated"
