#!/usr/bin/env bash
# One would expect: 0.29 is a multiple of 0.01, and validators of JSON Schema agree on it.
# What happens: jsonschema says no for ten of the values 0.00, 0.01 ... 1.00, fastjsonschema and jsonschema-rs say yes
# to all. jsonschema divides the float64 values and asks whether the quotient is whole, and 0.29 / 0.01 is
# 28.999999999999996.
# Versions: jsonschema 4.26.0, fastjsonschema 2.22.3, jsonschema-rs 0.61.0.
# Why it matters: thresholds and scores with two decimals in tool calls and policies; a value that one service accepted
# is refused by the next, for some values only, which a test with 0.5 does not show.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check jsonschema==4.26.0 fastjsonschema==2.22.3 jsonschema-rs==0.61.0
venv/bin/python - <<'PY'
import importlib.metadata as metadata

import fastjsonschema
import jsonschema
import jsonschema_rs

print(*(f"{name} {metadata.version(name)}" for name in ("jsonschema", "fastjsonschema", "jsonschema-rs")))
schema = {"type": "number", "multipleOf": 0.01}
values = [round(i / 100, 2) for i in range(101)]
by_jsonschema = jsonschema.Draft202012Validator(schema)
refused = [value for value in values if not by_jsonschema.is_valid(value)]
compiled = fastjsonschema.compile(schema)


def fast_refuses(value):
    try:
        compiled(value)
        return False
    except fastjsonschema.JsonSchemaException:
        return True


print("refused by jsonschema    :", refused)
print("refused by fastjsonschema:", [value for value in values if fast_refuses(value)])
print("refused by jsonschema-rs :", [value for value in values if not jsonschema_rs.is_valid(schema, value)])
assert len(refused) == 10 and 0.29 in refused and 0.5 not in refused
assert not any(map(fast_refuses, values)) and all(jsonschema_rs.is_valid(schema, value) for value in values)
print("as stated")
PY
