"""Tells what a file or directory is that says SO8T: published layouts, and artefacts that only look like GGUF."""

from pathlib import Path

from llama_so8t.diagnosis.directories import diagnose_directory
from llama_so8t.diagnosis.files import diagnose_file
from llama_so8t.diagnosis.report import Diagnosis, Gate, render
from llama_so8t.errors import CheckpointError

__all__ = ["Diagnosis", "Gate", "diagnose", "render"]


def diagnose(path: Path) -> Diagnosis:
    """Looks at a file or a directory; no code in it is run.

    Raises:
        CheckpointError: there is no such file or directory. What is wrong with one that is there is no error
            here: `Diagnosis.problems` says it.
    """
    if path.is_dir():
        return diagnose_directory(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or directory")
    return diagnose_file(path)
