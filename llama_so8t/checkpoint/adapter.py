"""SO8T adapters: a few kB of generators and heads that name their base model and its sha256."""

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from llama_so8t.errors import CheckpointError
from llama_so8t.files import safetensors_file
from llama_so8t.files.json_file import read_json

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
TYPE = "so8t"
PACKAGE_PREFIX = "package:"

_CHUNK = 1 << 20


def read_fields(path: Path) -> dict[str, Any]:
    """``adapter_config.json`` of an adapter directory.

    Raises:
        CheckpointError: missing, malformed, or an adapter of another kind.
    """
    file = path / CONFIG_NAME
    fields = read_json(file)
    if fields.get("adapter_type") != TYPE:
        raise CheckpointError(f"{file}: found adapter_type {fields.get('adapter_type')!r}, expected {TYPE!r}")
    if not isinstance(fields.get("so8t_compensated", False), bool):
        raise CheckpointError(f"{file}: found so8t_compensated {fields['so8t_compensated']!r}, expected true or false")
    for key in ("base_model_name_or_path", "base_model_sha256"):
        if not isinstance(fields.get(key), str):
            raise CheckpointError(f"{file}: found {key} {fields.get(key)!r}, expected a string")
    return fields


def merged_config(base: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of the SO8T model that base and adapter make together."""
    added = {key: value for key, value in fields.items() if key.startswith("so8t_") and key != "so8t_compensated"}
    return so8t_config(base, added)


def so8t_config(base: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the base under ``model_type`` so8t, followed by the ``so8t_*`` fields."""
    config = {key: value for key, value in base.items() if key != "auto_map"}
    config |= {
        "architectures": ["SO8TTransformerForCausalLM"],
        "model_type": "so8t",
        "base_model_type": base["model_type"],
    }
    return config | dict(added)


def find_base(path: Path, fields: Mapping[str, Any], base: str | Path | None) -> Path:
    """The base model: ``base`` if given, else what the adapter names, relative to its own directory.

    Raises:
        CheckpointError: it is not there.
    """
    if base is not None:
        found = resolve(str(base), Path())
        if not found.exists():
            raise CheckpointError(f"{found}: no such base model")
        return found
    name = fields["base_model_name_or_path"]
    found = resolve(name, path)
    if not found.exists():
        raise CheckpointError(f"{path / CONFIG_NAME}: base model {name!r} is not at {found}; name it with --base")
    return found


def resolve(name: str, directory: Path) -> Path:
    """A path, relative to ``directory``, or ``package:NAME/FILE``: a file of an installed Python package.

    Raises:
        CheckpointError: the package is not installed, or the file would be outside it.
    """
    if not name.startswith(PACKAGE_PREFIX):
        return directory / name
    package, _, inner = name.removeprefix(PACKAGE_PREFIX).partition("/")
    relative = PurePosixPath(inner)
    if not package.isidentifier() or not inner or relative.is_absolute() or ".." in relative.parts:
        raise CheckpointError(f"{name!r}: expected {PACKAGE_PREFIX}NAME/FILE with a file inside the package")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"{name!r}: Python package {package!r} is not installed; install it with pip")
    found = Path(spec.submodule_search_locations[0]) / relative
    if not found.exists():
        raise CheckpointError(f"{name!r}: package {package!r} has no file {inner!r}")
    return found


def check_base(path: Path, fields: Mapping[str, Any], base: Path) -> None:
    """Compares the sha256 of the base with the one that the adapter was made for.

    Raises:
        CheckpointError: they differ: rotations made for other weights would damage the model without a sign.
    """
    found, expected = weights_sha256(base), fields["base_model_sha256"]
    if found != expected:
        raise CheckpointError(
            f"{base}: found sha256 {found}, expected {expected} by {path / CONFIG_NAME}; "
            f"name the right base with --base, or make the adapter anew with `so8t init --adapter`"
        )


def weights_sha256(path: Path) -> str:
    """Sha256 of the weight file of a model; of the ``sha256sum`` lines of all shards where there are several.

    Raises:
        CheckpointError: a directory without weights.
    """
    if path.is_file():
        return _sha256(path)
    if not any((path / name).is_file() for name in (safetensors_file.SINGLE_NAME, safetensors_file.INDEX_NAME)):
        raise CheckpointError(f"{path}: found no {safetensors_file.SINGLE_NAME} and no index of shards")
    shards = safetensors_file.shard_names(path)
    if len(shards) == 1:
        return _sha256(path / shards[0])
    lines = "".join(f"{_sha256(path / shard)}  {shard}\n" for shard in shards)
    return hashlib.sha256(lines.encode()).hexdigest()


def recorded_base(base: str, out: Path) -> str:
    """How an adapter in directory ``out`` names its base: as given, but relative paths from ``out``."""
    if base.startswith(PACKAGE_PREFIX) or os.path.isabs(base):
        return base
    return os.path.relpath(base, out)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
