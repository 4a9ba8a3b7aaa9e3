"""One file: GGUF and what only looks like it, safetensors, files of torch.save, npz."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from llama_so8t.diagnosis.checks import gate_measures, gate_notes, listed
from llama_so8t.diagnosis.gguf_artefacts import diagnose_gguf
from llama_so8t.diagnosis.npz_artefacts import diagnose_npz
from llama_so8t.diagnosis.report import Diagnosis
from llama_so8t.errors import CheckpointError
from llama_so8t.files import safetensors_file, torch_file
from llama_so8t.published import BY_ID, identify
from llama_so8t.published.soul import read_soul
from llama_so8t.tensors import LazyTensor

_HEAD = 64
_ALONE = "weights without a model; diagnose or convert the directory that they belong to"


def diagnose_file(path: Path) -> Diagnosis:
    """Tells what a file is; it is recognised by its bytes, its name only decides where bytes do not."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return Diagnosis(str(path), "empty file", "a file of 0 bytes", problems=("empty; repeat the download",))
    if head[:4] == b"GGUF" or path.suffix == ".gguf":
        return diagnose_gguf(path, head)
    if path.suffix == ".safetensors" or head[8:10] in (b'{"', b"{}"):
        return _safetensors(path)
    if head[:2] == b"PK":
        names = [item.filename for item in torch_file.members(path) or ()]
        if path.suffix == ".npz" or (names and all(name.endswith(".npy") for name in names)):
            return diagnose_npz(path)
        return diagnose_torch(path)
    if head[:1] == b"\x80":
        return Diagnosis(
            str(path),
            "pickle",
            "a pickle of Python objects, or a file of an old torch.save; it is not opened",
            problems=("not read, because unpickling can run code; save the tensors as safetensors",),
        )
    return Diagnosis(
        str(path), "unknown", "no file format of models", problems=("not recognised; nothing of SO8T is known of it",)
    )


def diagnose_torch(path: Path) -> Diagnosis:
    """A file of `torch.save`, read without running any code: what the tensors in it are."""
    try:
        diagnosis = _tensors(path, "torch file", torch_file.read(path))
    except CheckpointError as error:
        return Diagnosis(str(path), "torch file", "a file of torch.save", problems=(str(error),))
    if diagnosis.layout is None and path.name in BY_ID["L14-alpha"].files:
        return Diagnosis(str(path), "torch file", diagnosis.meaning, BY_ID["L14-alpha"], diagnosis.problems)
    if diagnosis.layout is BY_ID["L14"] or path.name in BY_ID["L14"].files:
        return _soul(path, diagnosis)
    return diagnosis


def _safetensors(path: Path) -> Diagnosis:
    try:
        return _tensors(path, "safetensors", safetensors_file.read_file(path))
    except CheckpointError as error:
        return Diagnosis(str(path), "safetensors", "a safetensors file", problems=(str(error),))


def _is_small(shape: tuple[int, ...]) -> bool:
    # gates and scalars, not weights
    return len(shape) < 2 or shape[-2:] == (8, 8)


def _tensors(path: Path, kind: str, stored: Mapping[str, LazyTensor | torch_file.Entry]) -> Diagnosis:
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    meaning = f"{len(shapes)} tensors and numbers: {listed(shapes)}"
    infinite = [
        name for name, tensor in stored.items() if _is_small(tensor.shape) and not np.isfinite(tensor.read()).all()
    ]
    problems = [f"NaN or infinity in {listed(infinite)}"] if infinite else []
    try:
        found = identify(shapes, where=str(path))
    except CheckpointError as error:
        return Diagnosis(str(path), kind, meaning, problems=(*problems, str(error)))
    if found is None:
        return Diagnosis(str(path), kind, meaning, problems=(*problems, _ALONE))
    gates, wrong = gate_measures(found, lambda name: stored[name].read(), {})
    notes = gate_notes(found.layout, [stored[name].read() for name in found.parameters])
    return Diagnosis(str(path), kind, meaning, found.layout, (*problems, *wrong, _ALONE), tuple(notes), tuple(gates))


def _soul(path: Path, diagnosis: Diagnosis) -> Diagnosis:
    found = replace(diagnosis, path=str(path), layout=BY_ID["L14"], notes=(), gates=())
    try:
        soul = read_soul(path)
    except CheckpointError as error:
        return replace(found, problems=(*diagnosis.problems, str(error)))
    note = (
        f"alpha {soul.alpha:.6g}, sigmoid(alpha) {soul.gate:.6g}, rotation of width {len(soul.rotation)}, "
        f"|R^T R - I| {soul.orthogonality_error():.3g}"
    )
    return replace(found, notes=(note,))
