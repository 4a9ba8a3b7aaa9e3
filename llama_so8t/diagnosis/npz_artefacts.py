"""The npz and JSON files of the seed: int8 tensors that were quantised from random numbers."""

import zipfile
from pathlib import Path

import numpy as np

from llama_so8t.diagnosis.checks import is_flat, listed
from llama_so8t.diagnosis.report import Diagnosis
from llama_so8t.errors import CheckpointError
from llama_so8t.files.json_file import read_json
from llama_so8t.published import identify

SEED_TENSORS, SEED_INFO = "model_tensors_8bit.npz", "quantization_info.json"

_SAMPLE = 1 << 20
"""Bytes read of each member: enough for its statistics, and a bound for hostile archives."""

_SAMPLED = 32
_MIN_VALUES = 4096


def diagnose_npz(path: Path) -> Diagnosis:
    """Tells what an npz archive of tensors is. Headers and samples are read, objects never."""
    problems = ["no model of this project; convert the checkpoint that the tensors were made from"]
    notes: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            linear = [name for name in names if name.endswith("_proj.weight")][:_SAMPLED]
            flat = [name for name in linear if _is_flat(archive, f"{name}.npy")]
    except Exception as error:  # zip, zlib and the parser of numpy's headers each have their own
        problem = f"{type(error).__name__}: {error}"
        return Diagnosis(str(path), "npz, damaged", "an npz archive that cannot be read", problems=(problem,))
    # shapes are not needed: the keys of the seed's layout are names of its own
    try:
        found = identify(dict.fromkeys(names, ()), where=str(path))
    except CheckpointError as error:
        problems.append(str(error))
        found = None
    if flat and 2 * len(flat) >= len(linear):
        problems.append(f"{len(flat)} of {len(linear)} linear maps are uniform: random numbers, never trained")
    info = path.parent / SEED_INFO
    if info.is_file():
        problems += _scale_problems(info)
        if _is_sidecar(info):
            notes.append(f"{info.name}: int8 with one scale per tensor, as `so8t convert --sidecars` writes")
            problems[0] = "weights beside a GGUF file, in int8; convert the checkpoint that they were made from"
        else:
            notes.append(f"{info.name}: one scale for a whole tensor, labelled Q8_0, which it is not")
    meaning = f"an archive of {len(names)} numpy tensors"
    return Diagnosis(
        str(path), "npz", meaning, found.layout if found else None, problems=tuple(problems), notes=tuple(notes)
    )


def _is_sidecar(info: Path) -> bool:
    try:
        entries = read_json(info).values()
    except CheckpointError:
        return False
    return any(isinstance(e, dict) and e.get("quantization_type") == "int8_per_tensor" for e in entries)


def _is_flat(archive: zipfile.ZipFile, member: str) -> bool:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = reader(file)
        if dtype.hasobject or dtype.kind not in "if":
            return False
        raw = file.read(_SAMPLE // dtype.itemsize * dtype.itemsize)
    values = np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype=dtype).astype(np.float32)
    return values.size >= _MIN_VALUES and is_flat(values)


def _scale_problems(info: Path) -> list[str]:
    try:
        entries = read_json(info)
    except CheckpointError as error:
        return [str(error)]
    zero = [name for name, entry in entries.items() if isinstance(entry, dict) and entry.get("scale") == 0]
    return [f"{info.name}: scale 0 (0 / 0 on reading) for {listed(zero)}"] if zero else []
