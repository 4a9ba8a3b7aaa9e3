"""Looks into SO8T models: the mathematics of every rotation, the heads, a table, JSON and a picture."""

from pathlib import Path

import numpy as np

from llama_so8t.errors import CheckpointError
from llama_so8t.inspection.measure import Report, SiteMeasure, measure
from llama_so8t.inspection.table import render

__all__ = ["Report", "SiteMeasure", "inspect", "render"]


def inspect(path: Path, base: str | None = None) -> Report:
    """Measures a GGUF file, a checkpoint directory or an adapter directory.

    Args:
        path: the model.
        base: for an adapter, the base to use instead of the one that it names.

    Raises:
        CheckpointError: the path is missing, damaged or no SO8T model. Rotations outside SO(8) are no
            error here: `Report.problems` lists them.
        ConfigError: a configuration that contradicts itself.
    """
    with np.errstate(all="ignore"):  # absurd numbers of a damaged file are problems of the report, not warnings
        return _inspect(path, base)


def _inspect(path: Path, base: str | None) -> Report:
    if path.is_dir():
        from llama_so8t.inspection.checkpoint_subject import open_directory

        return measure(open_directory(path, base))
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or directory")
    from llama_so8t.inspection.gguf_subject import open_gguf

    return measure(open_gguf(path))
