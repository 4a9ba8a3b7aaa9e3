#!/usr/bin/env bash
# One would expect: a reader of JSON lines keeps every field, or says that it cannot.
# What happens: polars makes its schema of the first 100 lines. A key that first occurs behind them is dropped without a
# word, in read_ndjson and scan_ndjson, at the top and inside of objects; the elements of a list that was empty until
# then become null. A value of another type than before is an error, so only missing ones are silent. With
# infer_schema_length=None all is read. duckdb, which looks at more lines, raises an error that names the key; pyarrow
# and pandas keep it.
# Versions: polars 2.1.0, duckdb 2.0.1, pyarrow 26.0.1, pandas 3.1.1.
# Why it matters: logs have their rare fields in rare lines. Of an audit log with one escalation in a thousand answers the
# escalation is the part that is missing.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check polars==2.1.0 duckdb==2.0.1 pyarrow==26.0.1 pandas==3.1.1
venv/bin/python - <<'PY'
import importlib.metadata as metadata
import json
from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow.json

print(*(f"{name} {metadata.version(name)}" for name in ("polars", "duckdb", "pyarrow", "pandas")))


def write(n):
    lines = [{"seq": i, "verdict": {"action": "allow"}, "turns": []} for i in range(n)]
    lines.append({"seq": n, "verdict": {"action": "refuse", "label": "unsafe"}, "turns": ["alone"], "reviewer": "kim"})
    Path("log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def last_of_polars(frame):
    return json.loads(frame[-1].write_ndjson())


whole = {"action": "refuse", "label": "unsafe"}
for n in (99, 100, 30000):
    write(n)
    read = last_of_polars(polars.read_ndjson("log.jsonl"))
    scanned = last_of_polars(polars.scan_ndjson("log.jsonl").collect())
    print(f"{n:5} lines before, polars: {read}")
    assert read == scanned
    if n < 100:
        assert read["verdict"] == whole and read["turns"] == ["alone"] and read["reviewer"] == "kim"
    else:
        assert read == {"seq": n, "verdict": {"action": "refuse"}, "turns": [None]}
everything = last_of_polars(polars.read_ndjson("log.jsonl", infer_schema_length=None))
print("infer_schema_length=None:", everything)
assert everything["verdict"] == whole and everything["turns"] == ["alone"] and everything["reviewer"] == "kim"
assert pyarrow.json.read_json("log.jsonl").column("reviewer")[-1].as_py() == "kim"
assert pandas.read_json("log.jsonl", lines=True)["reviewer"].iloc[-1] == "kim"
try:
    duckdb.sql("select * from 'log.jsonl'").fetchall()
    raise AssertionError("duckdb has read the file")
except duckdb.InvalidInputException as error:
    print("duckdb:", str(error).splitlines()[0][:60], "...")
    assert "unknown key" in str(error)
print("as stated")
PY
