"""Runs convert_hf_to_gguf.py of the pinned tree."""

import json
import subprocess
import sys
from pathlib import Path

UPSTREAM = """
import json, runpy, sys
for arguments in json.loads(sys.argv.pop()):
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    runpy.run_path("convert_hf_to_gguf.py", run_name="__main__")
"""


def run_upstream(tree: Path, jobs: dict) -> dict:
    """Runs upstream's converter once per job (key -> directory, outfile); the key's last part is the outtype."""
    arguments = [
        [str(directory), "--outfile", str(outfile), "--outtype", key[-1]] for key, (directory, outfile) in jobs.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", UPSTREAM, json.dumps(arguments)], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {key: outfile for key, (_, outfile) in jobs.items()}
