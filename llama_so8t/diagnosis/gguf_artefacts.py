"""Files that say they are GGUF: the real ones, and what upstream scripts wrote under that name."""

import struct
from pathlib import Path

from llama_so8t.diagnosis.report import Diagnosis
from llama_so8t.errors import So8tError
from llama_so8t.files import torch_file
from llama_so8t.files.gguf_file import GgufFile, read_gguf
from llama_so8t.format import ARCH, HEADS_TYPE, Keys, unfitted_warning
from llama_so8t.inspection import inspect

_PLACEHOLDER = b"# Placeholder GGUF file"
_PATH_HOLDER_BYTES = 4096
_SHOWN = 8
_RANDOM = ("llama", 4, 512, 1000)
"""Architecture, layers, width and vocabulary of the file that upstream's converter fills with random numbers."""

_FORK_KEYS = ("so8t.group_structure", "so8t.pet_lambda", "so8t.triality_enabled", "so8t.safety_classes")


def diagnose_gguf(path: Path, head: bytes) -> Diagnosis:
    """Tells what a file named .gguf, or beginning like one, is. Nothing in it is run or unpickled.

    Args:
        path: the file, not empty.
        head: its first bytes.
    """
    if head[:4] == b"GGUF":
        return _gguf(path, head)
    if head[:2] == b"PK":
        return _zip(path)
    if head[:1] == b"\x80":
        return _no_gguf(path, "pickle", "a pickle of Python objects under the name of a GGUF file; it is not opened")
    if head.startswith(_PLACEHOLDER):
        return _no_gguf(path, "text placeholder", "a text that stands where a GGUF file should have been written")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        twin = path.with_suffix(".pkl")
        beside = f"; {twin.name} beside it is its twin" if twin.is_file() else ""
        return _no_gguf(path, "JSON", f"JSON under the name of a GGUF file{beside}")
    return _no_gguf(path, "unknown", "neither GGUF nor anything that is known to be named so")


def _gguf(path: Path, head: bytes) -> Diagnosis:
    version = struct.unpack("<I", head[4:8])[0] if len(head) >= 8 else 0
    if version == 1:
        claimed = struct.unpack("<Q", head[8:16])[0] if len(head) >= 16 else 0
        return _no_gguf(
            path,
            "hand-written GGUF version 1",
            f"written without the gguf library: {claimed} stands where the number of tensors belongs, strings have "
            f"lengths of 4 bytes, tensors have no offsets; no runtime reads it",
        )
    try:
        file = read_gguf(path)
    except So8tError as error:
        return Diagnosis(str(path), "GGUF, damaged", "a GGUF header that cannot be read", problems=(str(error),))
    arch = file.get("general.architecture")
    if not isinstance(arch, str):
        problem = "key general.architecture is missing or no string"
        return Diagnosis(str(path), "GGUF", "a GGUF file without architecture", problems=(problem,))
    n_layer, width = _count(file, f"{arch}.block_count"), _count(file, f"{arch}.embedding_length")
    vocabulary = _count(file, f"{arch}.vocab_size") or _count(file, "tokenizer.ggml.tokens")
    problems, notes = [], []
    if (arch, n_layer, width, vocabulary) == _RANDOM:
        problems.append("llama of 4 layers, width 512, 1000 tokens: upstream's script fills it with random numbers")
    if not file.tensors:
        problems.append("found no tensors")
    if found := [key for key in _FORK_KEYS if key in file.metadata]:
        notes.append(f"{', '.join(found)}: constants that upstream's fork writes into every file, no evidence of SO8T")
    if arch == ARCH and found and Keys.FORMAT_VERSION not in file.metadata:
        problems.append("architecture so8t of upstream's fork, which no llama.cpp ever had")
    elif arch == ARCH or Keys.HEADS in file.metadata:
        try:
            report = inspect(path)
            problems += report.problems
            if unfitted := report.subject.unfitted_heads:
                notes.append(unfitted_warning(unfitted).removeprefix("warning: "))
        except So8tError as error:
            problems.append(str(error))
    of = "heads without a model" if file.get("general.type") == HEADS_TYPE else f"architecture {arch}, {n_layer} layers"
    meaning = f"a correct GGUF version {version}: {of}, {len(file.tensors)} tensors"
    return Diagnosis(str(path), "GGUF", meaning, problems=tuple(problems), notes=tuple(notes))


def _count(file: GgufFile, key: str) -> int:
    value = file.get(key)
    return len(value) if isinstance(value, list) else value if isinstance(value, int) else 0


def _zip(path: Path) -> Diagnosis:
    members = torch_file.members(path)
    if members is None:
        return _no_gguf(path, "zip, damaged", "the beginning of a zip archive, cut off or damaged")
    names = [item.filename for item in members]
    shown = f"members (listed, not opened): {', '.join(names[:_SHOWN])}" + (", ..." if len(names) > _SHOWN else "")
    if not any(name.endswith("data.pkl") for name in names):
        return _no_gguf(path, "zip", "a zip archive under the name of a GGUF file", (shown,))
    if path.stat().st_size < _PATH_HOLDER_BYTES:
        meaning = "a file of torch.save too small for weights: it holds the path of a checkpoint"
        return _no_gguf(path, "torch path holder", meaning, (shown,))
    meaning = "a file of torch.save (a pickle) under the name of a GGUF file"
    return _no_gguf(path, "torch pickle", meaning, (shown,))


def _no_gguf(path: Path, kind: str, meaning: str, notes: tuple[str, ...] = ()) -> Diagnosis:
    return Diagnosis(
        str(path),
        f"no GGUF: {kind}",
        meaning,
        problems=("not a GGUF file; convert the checkpoint that it was made from with `so8t convert`",),
        notes=notes,
    )
