"""The patched tools: where they are, and the entry points `llama-cli`, `llama-server`, ... that start them."""

import os
import shutil
import sys
from pathlib import Path

from llama_so8t.bindings.library import library_directory
from llama_so8t.errors import RuntimeLibraryError

_BIN = Path(__file__).resolve().parent / "bin"


def program(name: str) -> Path:
    """The patched tool ``name``: of the installed package, or beside the built libraries.

    Raises:
        RuntimeLibraryError: it is not built.
    """
    for directory in (_BIN, library_directory()):
        found = shutil.which(name, path=str(directory))
        if found:
            return Path(found)
    raise RuntimeLibraryError(f"{name}: not found in {_BIN} or {directory}; run `make build`")


def main() -> int:
    """Replaces this process by the tool that has the name this program was called by."""
    name = Path(sys.argv[0]).stem
    tool = _BIN / name
    if not tool.exists():
        print(f"{name}: error: {tool} is missing; install llama-so8t with `pip install .`", file=sys.stderr)
        return 1
    os.execv(tool, [str(tool), *sys.argv[1:]])
