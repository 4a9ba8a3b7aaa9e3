#!/usr/bin/env bash
# One would expect: llm_int8_skip_modules of BitsAndBytesConfig names further modules to leave alone, beside the output
# layer, which transformers never quantizes by itself.
# What happens: the list takes the place of the built-in one. Without it lm_head stays in 16 bits; with ["q_proj"]
# q_proj stays, and lm_head becomes int8.
# Versions: bitsandbytes 0.50.2, transformers 5.23.0, torch 2.13.0 (on machines where pip brings the CUDA build: several
# GB).
# Why it matters: naming one module to protect it (a classification head, say) quantizes the most sensitive matrix of
# the model; and a reader of such checkpoints cannot know from "load_in_8bit" which tensors are int8, only from the SCB
# tensor beside each.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile --disable-pip-version-check bitsandbytes==0.50.2 transformers==5.23.0 torch==2.13.0 accelerate==1.15.0 numpy==2.4.6
venv/bin/python - 2>stderr.txt <<'PY' || { cat stderr.txt >&2; exit 1; }
import importlib.metadata as metadata

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen3Config, Qwen3ForCausalLM

print(*(f"{name} {metadata.version(name)}" for name in ("bitsandbytes", "transformers", "torch")))
config = Qwen3Config(
    hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=64, vocab_size=64, tie_word_embeddings=False
)
Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained("model")
found = {}
for skipped in (None, ["q_proj"]):
    quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    model = AutoModelForCausalLM.from_pretrained("model", quantization_config=quantization)
    attention = model.model.layers[0].self_attn
    dtypes = {n: str(m.weight.dtype) for n, m in (("q_proj", attention.q_proj), ("k_proj", attention.k_proj), ("lm_head", model.lm_head))}
    found[str(skipped)] = dtypes
    print(f"llm_int8_skip_modules={skipped}: {dtypes}")
assert found["None"] == {"q_proj": "torch.int8", "k_proj": "torch.int8", "lm_head": "torch.bfloat16"}
assert found["['q_proj']"] == {"q_proj": "torch.bfloat16", "k_proj": "torch.int8", "lm_head": "torch.int8"}
print("as stated")
PY
