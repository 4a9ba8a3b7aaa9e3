"""Writes a trace in the form that the suffix of the file asks for."""

import json
import os
from pathlib import Path

from llama_so8t.errors import ConfigError
from llama_so8t.files.atomic import new_file
from llama_so8t.tracing.trace import Trace

SUFFIXES = (".html", ".png", ".json")


def check_out(path: Path) -> None:
    """Whether a trace can be written to ``path``: asked before the model is run.

    Raises:
        ConfigError: unknown suffix, no such directory, or not writable.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {path}: found suffix {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise ConfigError(f"--out {path}: is a directory, expected a file")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--out {path}: the directory {path.parent} cannot be written")
    if path.suffix.lower() == ".png":
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise ConfigError(f"--out {path}: a picture needs matplotlib; install llama-so8t[plot]") from None


def write(trace: Trace, path: Path) -> None:
    """Writes the file, complete or not at all."""
    with new_file(path) as temporary:
        if path.suffix.lower() == ".png":
            from llama_so8t.tracing.picture import draw

            draw(trace, temporary)
        elif path.suffix.lower() == ".html":
            from llama_so8t.tracing.page import render

            temporary.write_text(render(trace), encoding="utf-8")
        else:
            from llama_so8t.tracing.document import to_dict

            text = json.dumps(to_dict(trace), indent=1, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
