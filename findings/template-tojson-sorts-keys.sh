#!/usr/bin/env bash
# One would expect: `tool | tojson` in a chat template keeps the order of keys ("type", then "function") and the text of
# a description.
# What happens: plain Jinja2 sorts the keys of every object and writes < > & and ' as \u003c and so on, for web pages.
# transformers brings a tojson of its own that does neither. MiniJinja keeps the order and escapes. So one template has
# three prompts, and only the one of transformers is what models were trained on.
# Versions: jinja2 3.1.6, minijinja 3.1.0, transformers 5.23.0 (without torch), @huggingface/jinja 0.5.11.
# Why it matters: programs that render a GGUF file's or a checkpoint's template with an Environment of their own tell
# the model about other tools than transformers does, and a cached or hashed prompt never matches. Needs node and npm.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check jinja2==3.1.6 minijinja==3.1.0 transformers==5.23.0 numpy==2.4.6
npm install --silent --no-audit --no-fund --prefix "$dir" @huggingface/jinja@0.5.11 >/dev/null
cat > render.mjs <<'JS'
import { Template } from "@huggingface/jinja";
const [template, tools] = JSON.parse(process.argv[2]);
process.stdout.write(new Template(template).render({ tools }));
JS
venv/bin/python - 2>stderr.txt <<'PY' || { cat stderr.txt >&2; exit 1; }
import importlib.metadata as metadata
import json, subprocess

import minijinja
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import render_jinja_template

print(*(f"{name} {metadata.version(name)}" for name in ("jinja2", "minijinja", "transformers")), "@huggingface/jinja 0.5.11")
template = "{{ tools[0] | tojson }}"
tools = [{"type": "function", "function": {"name": "f", "description": "true if a < b"}}]
argument = json.dumps([template, tools])
found = {
    "jinja2": ImmutableSandboxedEnvironment().from_string(template).render(tools=tools),
    "minijinja": minijinja.Environment().render_str(template, tools=tools),
    "transformers": render_jinja_template([[{"role": "user", "content": ""}]], tools=tools, chat_template=template)[0][0],
    "@huggingface/jinja": subprocess.run(["node", "render.mjs", argument], check=True, text=True, stdout=subprocess.PIPE).stdout,
}
for engine, text in found.items():
    print(f"{engine:20} {text}")
plain = '{"type": "function", "function": {"name": "f", "description": "true if a < b"}}'
assert found["transformers"] == found["@huggingface/jinja"] == plain
assert found["minijinja"] == plain.replace("<", r"\u003c")
assert found["jinja2"] == r'{"function": {"description": "true if a \u003c b", "name": "f"}, "type": "function"}'
print("as stated")
PY
