"""Writes the patches anew from an edited tree: `python ggml-patches/regenerate.py [TREE]`.

Compares TREE (default build/llama.cpp) with the pinned sdist and writes one patch per part of llama.cpp,
with one line of context, so that a hunk conflicts only where its own neighbours change.
"""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PARTS = {
    "001-ggml-so8-hint.patch": (
        *("ggml/include", "ggml/src/ggml-backend.cpp"),
        *("ggml/src/ggml-cpu", "ggml/src/ggml-cuda", "ggml/src/ggml-vulkan"),
    ),
    "002-llama-so8t.patch": ("src",),
    "003-tools-so8t.patch": ("common", "tools"),
    "004-tests-so8t.patch": ("tests",),
    "005-ggml-rpc-lost-server.patch": ("ggml/src/ggml-rpc",),
    "006-httplib-threads.patch": ("vendor",),
}


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    tree = Path(sys.argv[1] if len(sys.argv) > 1 else root / "build" / "llama.cpp").resolve()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llama_so8t"
    cache = Path(os.environ.get("SO8T_CACHE_DIR", cache))
    package, version = (root / "LLAMA_CPP_VERSION").read_text().split()[:2]
    sdist = cache / f"{package.replace('-', '_')}-{version}.tar.gz"
    if not sdist.exists():
        print(f"regenerate: {sdist} is missing; run `make source` first", file=sys.stderr)
        return 1

    with tempfile.TemporaryDirectory() as temporary:
        with tarfile.open(sdist) as archive:
            archive.extractall(temporary, filter="data")
        pristine = next(Path(temporary).glob("*/vendor/llama.cpp"))
        for name, folders in PARTS.items():
            text = "".join(difference(pristine, tree, folder) for folder in folders)
            (root / "ggml-patches" / name).write_text(text)
            print(f"{name}: {len(re.findall(r'^[+](?![+])', text, re.M))} lines added")
    if tree == root / "build" / "llama.cpp":
        # the tree already is what the new patches make of it: spare it the next unpacking
        files = [sdist, *sorted((root / "ggml-patches").glob("*.patch"))]
        stamp = " ".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
        tree.with_name("llama.cpp.stamp").write_text(stamp)
    return 0


def difference(pristine: Path, tree: Path, folder: str) -> str:
    """``git diff`` of one folder of the two trees, with paths a/... and b/..., without index lines."""
    command = ["git", "diff", "--no-index", "-U1", "--no-color", str(pristine / folder), str(tree / folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    text = text.replace(f"a{pristine}", "a").replace(f"b{tree}", "b")
    return re.sub(r"^index .*\n", "", text, flags=re.M)


if __name__ == "__main__":
    sys.exit(main())
