"""Logs of several servers: ``{model}`` in the name that they were started with is the name of the model of each."""

import re
from pathlib import Path
from urllib.parse import unquote

from llama_so8t.audit.log import AuditError

MODEL = "{model}"
"""As in ``--so8t-audit`` of llama-server."""

_NAME = r"[A-Za-z0-9_%-][A-Za-z0-9._%-]*"
"""What llama-server puts there (csrc/audit/so8t-audit-pattern.h): letters, digits, "-", "_", dots, and %XX."""


def logs(pattern: Path) -> dict[str, Path]:
    """The logs that a pattern means, by the names of their models, in their order.

    Args:
        pattern: path with ``{model}`` in one of its parts, or more than once as the same name.

    Raises:
        AuditError: there is none.
    """
    parts = pattern.parts
    found = {"": Path()}
    for part in parts:
        found = {name or new: path / entry for name, path in found.items() for new, entry in _entries(path, part, name)}
    existing = {unquote(name): path for name, path in sorted(found.items()) if path.is_file()}
    if not existing:
        raise AuditError(f"{pattern}: there is no such log, with the name of a model in the place of {MODEL}")
    return existing


def of_model(pattern: Path, log_pattern: Path, log: Path) -> Path:
    """The file beside one of the `logs` of a pattern, such as its checkpoint.

    Args:
        pattern: path of that file, with ``{model}`` in it.
        log_pattern: pattern of the log.
        log: the log.

    Raises:
        AuditError: several logs would have the same file.
    """
    if MODEL not in str(pattern):
        raise AuditError(f"{pattern}: found no {MODEL} in it, but the logs {log_pattern} have one each")
    found = re.fullmatch(_regex(str(log_pattern)), str(log))
    if not found:
        raise AuditError(f"{log}: found another name than {log_pattern}")
    return Path(str(pattern).replace(MODEL, found["model"]))


def _regex(pattern: str) -> str:
    first, *others = (re.escape(piece) for piece in pattern.split(MODEL))
    return first + "".join(
        (f"(?P<model>{_NAME})" if i == 0 else "(?P=model)") + piece for i, piece in enumerate(others)
    )


def _entries(directory: Path, part: str, name: str) -> list[tuple[str, str]]:
    """Entries of a directory that a part of the pattern means, with the name of the model in them."""
    if name or MODEL not in part:
        return [(name, part.replace(MODEL, name))]
    matches = [re.fullmatch(_regex(part), entry.name) for entry in directory.iterdir()] if directory.is_dir() else []
    return [(match["model"], match[0]) for match in matches if match]
