#!/usr/bin/env bash
# One would expect: a Ray Data job with a checkpoint that failed and is started again completes its output, also when it
# writes with mode="overwrite".
# What happens: overwrite empties the folder of what the first run wrote, and the checkpoint skips those rows because
# they are done. The job ends well, exit code 0, with 5 of 40 rows. With the default mode (append) all 40 are there
# once. After success the checkpoint is deleted, so a third run appends all rows again.
# Versions: ray 2.60.0, pyarrow 26.0.1, pandas 3.1.1, numpy 2.4.6. 168 MB to download; about 3 minutes on two busy
# cores.
# Why it matters: long batches of prompts are run again until they succeed; "overwrite" is what one picks to avoid
# doubled rows.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile --disable-pip-version-check 'ray[data]==2.60.0' pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
RAY_TMPDIR="$dir" RAY_USAGE_STATS_ENABLED=0 venv/bin/python - 2>stderr.txt <<'PY' || { cat stderr.txt >&2; exit 1; }
import importlib.metadata as metadata
import json
import pathlib
import shutil
import time

import ray
from ray.data import SaveMode
from ray.data.checkpoint import CheckpointConfig

print(*(f"{name} {metadata.version(name)}" for name in ("ray", "pyarrow", "pandas")))
ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
context = ray.data.DataContext.get_current()
context.enable_progress_bars = False
context.execution_options.preserve_order = True
context.checkpoint_config = CheckpointConfig(id_column="id", checkpoint_path=str(pathlib.Path("checkpoint").resolve()))
pathlib.Path("in").mkdir()
for i in range(8):
    pathlib.Path(f"in/{i}.jsonl").write_text("".join(json.dumps({"id": f"row {i}-{j}"}) + "\n" for j in range(5)))


def run(mode, fail=False):
    def judge(row):
        if fail and row["id"] == "row 7-4":
            time.sleep(6)  # let the other files be written first
            raise RuntimeError("a worker failed")
        return row

    try:
        ray.data.read_json("in", override_num_blocks=8).map(judge, num_cpus=1).write_json("out", mode=mode)
        outcome = "succeeded"
    except Exception as error:
        outcome = "failed"
    ids = [json.loads(line)["id"] for path in pathlib.Path("out").iterdir() for line in path.read_text().splitlines()]
    print(f"    {mode.name.lower():9} {outcome:9} rows in the output: {len(ids)}, distinct: {len(set(ids))}", flush=True)
    return outcome, len(ids), len(set(ids))


results = {}
for mode in (SaveMode.APPEND, SaveMode.OVERWRITE):
    for folder in ("out", "checkpoint"):
        shutil.rmtree(folder, ignore_errors=True)
    print("fails, then started again with", mode.name.lower())
    first = run(SaveMode.APPEND, fail=True)
    assert first[0] == "failed" and 0 < first[1] < 40
    results[mode] = first, run(mode)
assert results[SaveMode.APPEND][1] == ("succeeded", 40, 40)
(_, written, _), (outcome, rows, _) = results[SaveMode.OVERWRITE]
assert outcome == "succeeded" and rows == 40 - written
print("a third run, with append")
again = run(SaveMode.APPEND)
assert again == ("succeeded", rows + 40, 40)
print("as stated")
PY
