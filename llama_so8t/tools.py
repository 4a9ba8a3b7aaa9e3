"""Entry points `llama-cli`, `llama-server`, ...: replace this process by the tool inside the package."""

import os
import sys
from pathlib import Path


def main() -> int:
    """Runs the tool that has the name this program was called by."""
    name = Path(sys.argv[0]).stem
    program = Path(__file__).resolve().parent / "bin" / name
    if not program.exists():
        print(f"{name}: error: {program} is missing; install llama-so8t with `pip install .`", file=sys.stderr)
        return 1
    os.execv(program, [str(program), *sys.argv[1:]])
