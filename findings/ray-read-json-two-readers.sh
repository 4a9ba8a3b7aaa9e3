#!/usr/bin/env bash
# One would expect: ray.data.read_json reads JSON: texts stay texts. `lines=True` says what is true already of a .jsonl
# file, and changes nothing.
# What happens: each way damages another column, without a warning. Without `lines` a text "2026-11-27" becomes a
# datetime, which no JSON encoder takes back; with `lines=True` it stays, and the id "0012" becomes the number 12.
# Versions: ray 2.60.0, pyarrow 26.0.1, pandas 3.1.1, numpy 2.4.6. 168 MB to download; about 2 minutes on two busy
# cores.
# Why it matters: batches of prompts for a model. Ids no longer match those of the input, and a prompt that is a date is
# no text.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile --disable-pip-version-check 'ray[data]==2.60.0' pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
RAY_TMPDIR="$dir" RAY_USAGE_STATS_ENABLED=0 venv/bin/python - 2>stderr.txt <<'PY' || { cat stderr.txt >&2; exit 1; }
import datetime
import importlib.metadata as metadata
import json

import ray

print(*(f"{name} {metadata.version(name)}" for name in ("ray", "pyarrow", "pandas")))
ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
ray.data.DataContext.get_current().enable_progress_bars = False
rows = [{"id": "0012", "prompt": "2026-11-27"}, {"id": "0013", "prompt": "2026-11-28"}]
with open("batch.jsonl", "w") as file:
    file.write("".join(json.dumps(row) + "\n" for row in rows))
plain = ray.data.read_json("batch.jsonl").take_all()
lines = ray.data.read_json("batch.jsonl", lines=True).take_all()
print("file      ", rows[0])
print("plain     ", plain[0])
print("lines=True", lines[0])
assert plain[0] == {"id": "0012", "prompt": datetime.datetime(2026, 11, 27)}
assert lines[0] == {"id": 12, "prompt": "2026-11-27"}
print("as stated")
PY
