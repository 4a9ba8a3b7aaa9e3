#!/usr/bin/env bash
# One would expect: a library that makes a regular expression or a character automaton of a JSON schema, for constrained
# decoding, keeps to the schema or says what it leaves out.
# What happens: outlines_core and lm-format-enforcer drop minimum, maximum, uniqueItems and minProperties silently, so
# {"score": 7} passes a schema with a maximum of 1. outlines_core also refuses valid JSON whose keys come in another
# order than in the schema.
# Versions: outlines_core 0.2.14, lm-format-enforcer 0.11.3, jsonschema 4.26.0.
# Why it matters: "the output always fits the schema" is why one uses them. Validate what they produced all the same.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check outlines_core==0.2.14 lm-format-enforcer==0.11.3 jsonschema==4.26.0
venv/bin/python - <<'PY'
import importlib.metadata as metadata
import json
import re

import jsonschema
from lmformatenforcer import JsonSchemaParser
from outlines_core.json_schema import build_regex_from_schema

print(*(f"{name} {metadata.version(name)}" for name in ("outlines_core", "lm-format-enforcer", "jsonschema")))


def enforcer_accepts(schema, text):
    parser = JsonSchemaParser(schema)
    for character in text:
        if character not in parser.get_allowed_characters():
            return False
        parser = parser.add_character(character)
    return parser.can_end()


verdict = {
    "type": "object",
    "properties": {"verdict": {"enum": ["safe", "unsafe"]}, "score": {"type": "number", "minimum": 0, "maximum": 1}},
    "required": ["verdict", "score"],
}
integers = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
optional = {"type": "object", "properties": {"a": {"type": "integer"}}, "minProperties": 1}
cases = [
    (verdict, '{"verdict": "safe", "score": 0.5}', (True, True, True)),
    (verdict, '{"verdict": "safe", "score": 7}', (False, True, True)),
    (verdict, '{"score": 0.5, "verdict": "safe"}', (True, False, True)),
    (integers, "[1, 1]", (False, True, True)),
    (optional, "{}", (False, True, True)),
]
print(f"{'':36} jsonschema outlines_core lm-format-enforcer")
for schema, text, expected in cases:
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    found = valid, bool(re.fullmatch(build_regex_from_schema(json.dumps(schema)), text)), enforcer_accepts(schema, text)
    print(f"{text:36} {found[0]!s:10} {found[1]!s:13} {found[2]}")
    assert found == expected
print("as stated")
PY
