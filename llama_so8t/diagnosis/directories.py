"""A model directory: its layout, whether it can be restored, and what its other files claim."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_so8t.checkpoint import adapter, float8, open_checkpoint
from llama_so8t.checkpoint.checks import check_tensors, normalized
from llama_so8t.checkpoint.names import base_tensors
from llama_so8t.diagnosis.checks import gate_measures, gate_notes, weight_problems
from llama_so8t.diagnosis.files import diagnose_file
from llama_so8t.diagnosis.npz_artefacts import SEED_TENSORS, diagnose_npz
from llama_so8t.diagnosis.report import Diagnosis
from llama_so8t.errors import CheckpointError, So8tError
from llama_so8t.files import safetensors_file
from llama_so8t.files.json_file import read_json
from llama_so8t.format import FAMILIES
from llama_so8t.model_spec import ModelSpec
from llama_so8t.published import Signature, identify, restore
from llama_so8t.published.restore import LAYOUT_KEY
from llama_so8t.tensors import LazyTensor

INTEGRATION_INFO = "so8t_integration_info.json"
BAKED = ("burnin_metadata.json", "burn_in_report.json")
"""Reports of upstream's fold, which computes ``W R`` where ``R^T W`` is right, or folds nothing."""

_SHOWN = 8


def diagnose_directory(path: Path) -> Diagnosis:
    """Tells what a directory is: a base model, an SO8T model or adapter, a published layout, or something else."""
    if (path / adapter.CONFIG_NAME).is_file():
        return _adapter(path)
    if not (path / "config.json").is_file() or not _has_weights(path):
        return _without_model(path)
    try:
        config = read_json(path / "config.json")
        tensors = float8.scaled(path, config, safetensors_file.read_sharded(path))
    except CheckpointError as error:
        return Diagnosis(str(path), "directory", "a model directory that cannot be read", problems=(str(error),))
    files = [file.name for file in path.iterdir() if file.is_file()]
    problems = _baked_problems(files)
    problems += weight_problems(tensors)
    try:
        stated = config.get(LAYOUT_KEY)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        found = identify(shapes, config, files, stated if isinstance(stated, str) else None, str(path))
    except CheckpointError as error:
        return Diagnosis(str(path), "directory", "an SO8T model", problems=(*problems, str(error)))
    if found is None:
        return _plain(path, config, problems)
    gates, wrong = gate_measures(found, lambda name: tensors[name].read(), config)
    notes = gate_notes(found.layout, [tensors[name].read() for name in found.parameters])
    notes += _claims(path, found, tensors)
    restored_problems, restored_notes = _restored(path, config, tensors)
    problems += [*wrong, *restored_problems]
    meaning = f"an SO8T model of {config.get('model_type')!r}: {len(found.parameters)} gates"
    return Diagnosis(
        str(path),
        "directory",
        meaning,
        found.layout,
        tuple(problems),
        (*notes, *restored_notes),
        tuple(gates),
    )


def _adapter(path: Path) -> Diagnosis:
    meaning = "an SO8T adapter of this project"
    try:
        fields = read_json(path / adapter.CONFIG_NAME)
        if fields.get("adapter_type") == adapter.TYPE:
            open_checkpoint(path)
            return Diagnosis(str(path), "adapter", meaning)
    except So8tError as error:
        return Diagnosis(str(path), "adapter", meaning, problems=(str(error),))
    kind = f"PEFT adapter ({fields.get('peft_type')!r})"
    return Diagnosis(
        str(path),
        kind,
        "an adapter for a stock model, whatever its name says",
        problems=(
            "an adapter of PEFT carries no rotations (its save leaves them out): what it was trained around is not "
            "in the file; merged into its base it is a stock model",
        ),
    )


def _has_weights(path: Path) -> bool:
    return any((path / name).is_file() for name in (safetensors_file.SINGLE_NAME, safetensors_file.INDEX_NAME))


def _without_model(path: Path) -> Diagnosis:
    if (path / SEED_TENSORS).is_file():
        return diagnose_npz(path / SEED_TENSORS)
    files = sorted(file for file in path.iterdir() if file.is_file())
    if not files:
        return Diagnosis(str(path), "directory", "a directory without files", problems=("found nothing to read",))
    known = [file for file in files if file.suffix in (".pt", ".gguf", ".safetensors", ".npz", ".bin")][:_SHOWN]
    inside = [diagnose_file(file) for file in known]
    notes = tuple(
        f"{Path(entry.path).name}: {entry.kind}{f' ({entry.layout.id})' if entry.layout else ''}, {entry.meaning}"
        for entry in inside
    )
    layouts = {entry.layout for entry in inside if entry.layout is not None}
    return Diagnosis(
        str(path),
        "directory",
        "a directory without a model in safetensors",
        layouts.pop() if len(layouts) == 1 else None,
        problems=(
            f"found no config.json with {safetensors_file.SINGLE_NAME} or {safetensors_file.INDEX_NAME}; diagnose "
            f"the files one by one",
        ),
        notes=notes,
    )


def _plain(path: Path, config: Mapping[str, Any], problems: list[str]) -> Diagnosis:
    is_so8t = config.get("model_type") == "so8t"
    meaning = "an SO8T model of this project" if is_so8t else f"a model of {config.get('model_type')!r} without SO8T"
    try:
        open_checkpoint(path)
    except So8tError as error:
        problems = [*problems, str(error)]
    return Diagnosis(str(path), "directory", meaning, problems=tuple(problems))


def _restored(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> tuple[list[str], tuple[str, ...]]:
    # what opening the directory does, so that the verdict is not only the table's
    try:
        restored = restore(path, config, tensors)
        if restored is None:
            return [], ()
        family = restored.config.get("model_type")
        if family not in FAMILIES:
            raise CheckpointError(
                f"{path / 'config.json'}: found model_type {family!r}, expected {', '.join(FAMILIES)}"
            )
        spec = ModelSpec.from_config(restored.config)
        check_tensors(path, normalized(path, restored.tensors), base_tensors(restored.config, spec))
    except So8tError as error:
        return [str(error)], ()
    return [], restored.notes[1:]


def _baked_problems(files: list[str]) -> list[str]:
    return [
        f"{name} says that rotations were folded: upstream's scripts fold on the wrong side or fold nothing; what is "
        f"in the weights cannot be told"
        for name in BAKED
        if name in files
    ]


def _claims(path: Path, found: Signature, tensors: Mapping[str, LazyTensor]) -> list[str]:
    if not (path / INTEGRATION_INFO).is_file():
        return []
    try:
        info = read_json(path / INTEGRATION_INFO)
    except CheckpointError as error:
        return [str(error)]
    numbers = sum(math.prod(tensors[name].shape) for name in found.parameters)
    pairs = (("layers_modified", len(found.parameters)), ("so8t_params", numbers))
    return [
        f"{INTEGRATION_INFO}: says {key} {info[key]!r}, the file has {count}"
        for key, count in pairs
        if key in info and info[key] != count
    ]
