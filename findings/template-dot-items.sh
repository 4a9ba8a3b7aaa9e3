#!/usr/bin/env bash
# One would expect: in a chat template p.items of a JSON schema {"type": "array", "items": {...}} is its "items", as
# p['items'] is.
# What happens: it depends on the engine. Jinja2 (transformers, vLLM) looks for an attribute first and prints "<built-in
# method items of dict object at 0x...>" into the prompt, with an address that changes with each run; `p.items.type` is
# empty. llama.cpp also finds its method, prints nothing, and refuses `p.items.type` with an error. MiniJinja and
# @huggingface/jinja give the schema.
# Versions: jinja2 3.1.6, minijinja 3.1.0, @huggingface/jinja 0.5.11, xllamacpp 2026.10.11549 (llama.cpp b11549; 34 MB),
# gguf 0.19.0.
# Why it matters: "items" is in every tool schema with a list. One template gives three prompts, so what a guard or a
# cache saw in one engine is not what the model sees in another. p['items'] is the same everywhere. Needs node and npm.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check jinja2==3.1.6 minijinja==3.1.0 xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6
npm install --silent --no-audit --no-fund --prefix "$dir" @huggingface/jinja@0.5.11 >/dev/null
cat > render.mjs <<'JS'
import { Template } from "@huggingface/jinja";
const [template, schema] = JSON.parse(process.argv[2]);
process.stdout.write(new Template(template).render({ p: schema }));
JS
cat > llama.py <<'PY'
"""Prints what llama.cpp renders of a template, for a model of random weights with 262 tokens."""
import json, os, sys, urllib.error, urllib.request

import gguf
import numpy as np
import xllamacpp

template, schema = json.loads(sys.argv[1])
writer = gguf.GGUFWriter("model.gguf", "llama")
tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b"]
writer.add_block_count(1)
writer.add_context_length(256)
writer.add_embedding_length(32)
writer.add_feed_forward_length(32)
writer.add_head_count(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores([float(-i) for i in range(len(tokens))])
writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * 3)
# the guard is for llama.cpp, which renders a template at load without the argument
writer.add_chat_template("{% if p %}" + template + "{% endif %}{{ messages[0].content }}")
random = np.random.default_rng(0)
square = {f"blk.0.attn_{n}": (32, 32) for n in ("q", "k", "v", "output")} | {f"blk.0.ffn_{n}": (32, 32) for n in ("up", "gate", "down")}
for name, shape in ({"token_embd": (len(tokens), 32), "output": (len(tokens), 32)} | square).items():
    writer.add_tensor(name + ".weight", random.standard_normal(shape).astype(np.float32) / 8)
for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
    writer.add_tensor(name + ".weight", np.ones(32, np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

params = xllamacpp.CommonParams()
params.model.path = "model.gguf"
params.n_ctx = 256
params.warmup = False
params.use_jinja = True
server = xllamacpp.Server(params)
body = {"messages": [{"role": "user", "content": ""}], "chat_template_kwargs": {"p": schema}}
request = urllib.request.Request(server.listening_address + "/apply-template", json.dumps(body).encode(), {"Content-Type": "application/json"})
try:
    print(json.load(urllib.request.urlopen(request, timeout=30))["prompt"], end="", flush=True)
except urllib.error.HTTPError as error:
    print("HTTP", error.code, json.load(error)["error"]["message"].splitlines()[-1], end="", flush=True)
os._exit(0)
PY
venv/bin/python - <<'PY'
import importlib.metadata as metadata
import json, re, subprocess

import minijinja
from jinja2.sandbox import ImmutableSandboxedEnvironment

print(*(f"{name} {metadata.version(name)}" for name in ("jinja2", "minijinja", "xllamacpp")), "@huggingface/jinja 0.5.11")
schema = {"type": "array", "items": {"type": "string"}}


def outputs(template):
    argument = json.dumps([template, schema])

    def run(*command):
        return subprocess.run([*command, argument], check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60).stdout

    return {
        "jinja2": ImmutableSandboxedEnvironment().from_string(template).render(p=schema),
        "minijinja": minijinja.Environment().render_str(template, p=schema),
        "@huggingface/jinja": run("node", "render.mjs"),
        "llama.cpp": run("venv/bin/python", "llama.py"),
    }


found = {template: outputs(template) for template in ("{{ p.items }}", "{{ p.items.type }}", "{{ p['items'].type }}")}
for template, texts in found.items():
    print(template)
    for engine, text in texts.items():
        print(f"    {engine:20} {text!r}")
assert re.fullmatch(r"<built-in method items of dict object at 0x\w+>", found["{{ p.items }}"]["jinja2"])
assert found["{{ p.items }}"]["llama.cpp"] == ""
dotted = found["{{ p.items.type }}"]
assert dotted["jinja2"] == "" and dotted["llama.cpp"].startswith("HTTP 400")
assert dotted["minijinja"] == dotted["@huggingface/jinja"] == "string"
assert set(found["{{ p['items'].type }}"].values()) == {"string"}
print("as stated")
PY
