"""What programs that are not ours find in GGUF files: run by test_readers.py, in an environment that has them.

``python readers.py FILE...`` prints a JSON object: file -> name of the reader -> what it found, or its error as a text.
"""

import contextlib
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def gguf_py(path: str) -> dict[str, Any]:
    """gguf of PyPI, which has the version of the pinned tree's and is older."""
    import gguf

    reader = gguf.GGUFReader(path)
    return {
        "architecture": reader.get_field("general.architecture").contents(),
        "file_type": gguf.LlamaFileType(reader.get_field("general.file_type").contents()).name,
        "heads": reader.get_field("so8t.heads").contents(),
        "tensors": [
            [t.name, [int(n) for n in t.shape], t.tensor_type.name, hashlib.sha256(t.data.tobytes()).hexdigest()]
            for t in reader.tensors
        ],
    }


def gguf_parser(path: str) -> dict[str, Any]:
    """gguf-parser of PyPI."""
    from gguf_parser import GGUFParser

    parser = GGUFParser(path)
    parser.parse()
    return {
        "architecture": parser.metadata["general.architecture"],
        "heads": parser.metadata["so8t.heads"],
        "tensors": [[t["name"], list(t["dimensions"]), t["offset"]] for t in parser.tensors_info],
    }


def gguf_inspect(path: str) -> dict[str, Any]:
    """gguf-inspect, as JSON."""
    found = json.loads(_printed("gguf-inspect", "--json", path))
    return {
        "architecture": found["metadata"]["general.architecture"]["value"],
        "heads": found["metadata"]["so8t.heads"]["value"],
        "warnings": found["warnings"],
        "n_tensors": found["header"]["tensor_count"],
    }


def modelinfo(path: str) -> dict[str, str]:
    """modelinfo-cli: the rows of its table."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", _printed("modelinfo", path))
    return {name.lower(): value.strip() for name, value in re.findall(r"^(\w[\w ]*?):[ ]+(.*)$", text, re.MULTILINE)}


def c4nary(path: str) -> dict[str, str]:
    """c4nary, which looks for what is dangerous in metadata and template: its counts."""
    (counts,) = re.findall(r"(\d+) fail, (\d+) warn", _printed("c4nary", "scan", path))
    return {"fail": counts[0], "warn": counts[1]}


def mlx(path: str) -> dict[str, Any]:
    """MLX on the CPU: values as float32, by name; quantized weights are three arrays."""
    import mlx.core as mx
    import numpy as np

    arrays, metadata = mx.load(path, return_metadata=True)
    return {
        "architecture": metadata["general.architecture"],
        "heads": metadata["so8t.heads"],
        "tensors": {
            name: [list(array.shape), hashlib.sha256(np.array(array.astype(mx.float32)).tobytes()).hexdigest()]
            for name, array in arrays.items()
        },
    }


def _printed(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        capture_output=True,
        text=True,
        env={"COLUMNS": "200", "TERM": "dumb", "LANG": "C.UTF-8", "PATH": ""},
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


READERS: tuple[Callable[[str], dict[str, Any]], ...] = (gguf_py, gguf_parser, gguf_inspect, modelinfo, c4nary, mlx)


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    for path in sys.argv[1:]:
        found[path] = {}
        for reader in READERS:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    found[path][reader.__name__] = reader(path)
            except Exception as error:
                found[path][reader.__name__] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
