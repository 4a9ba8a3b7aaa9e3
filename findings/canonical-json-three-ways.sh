#!/usr/bin/env bash
# One would expect: libraries for canonical JSON (RFC 8785) give the same bytes for the same record, so that its hash
# can be checked by anyone.
# What happens: for an integer above 2^53, such as a time in nanoseconds, rfc8785 raises, jcs writes another number
# without a word, and canonicaljson (Matrix's rules) writes it as it is. A score of 1.0 is "1" in the first two and
# "1.0" in the third and in json.dumps; 1e-05 is "0.00001" or "1e-05".
# Versions: rfc8785 0.1.4, jcs 0.2.1, canonicaljson 2.0.0.
# Why it matters: hash chains and signatures of audit logs hold scores, token ids and times. What jcs wrote is not what
# was logged, and a record with a score of exactly 1.0 fails a check that all others pass.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check rfc8785==0.1.4 jcs==0.2.1 canonicaljson==2.0.0
venv/bin/python - <<'PY'
import importlib.metadata as metadata
import json

import canonicaljson
import jcs
import rfc8785

print(*(f"{name} {metadata.version(name)}" for name in ("rfc8785", "jcs", "canonicaljson")))
writers = {
    "rfc8785": rfc8785.dumps,
    "jcs": jcs.canonicalize,
    "canonicaljson": canonicaljson.encode_canonical_json,
    "json.dumps": lambda value: json.dumps(value, sort_keys=True, separators=(",", ":")).encode(),
}
found = {}
for value in (1764201600123456789, 1764201600123456800, 1.0, 1e-05):
    for name, write in writers.items():
        try:
            text = write({"x": value}).decode()
        except ValueError as error:
            text = type(error).__name__
        found[name, value] = text
        print(f"{value:<22} {name:14} {text}")
nanoseconds = 1764201600123456789
assert found["rfc8785", nanoseconds] == "IntegerDomainError"
assert found["jcs", nanoseconds] == found["jcs", 1764201600123456800] == '{"x":1764201600123456800}'
assert found["canonicaljson", nanoseconds] == found["json.dumps", nanoseconds] == '{"x":1764201600123456789}'
assert found["rfc8785", 1.0] == found["jcs", 1.0] == '{"x":1}'
assert found["canonicaljson", 1.0] == found["json.dumps", 1.0] == '{"x":1.0}'
assert found["jcs", 1e-05] == '{"x":0.00001}' and found["canonicaljson", 1e-05] == '{"x":1e-05}'
print("as stated")
PY
