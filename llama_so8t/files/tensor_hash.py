"""One hash of all tensors of a GGUF model: the same for a whole file and for its parts, whatever the metadata."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from llama_so8t import upstream
from llama_so8t.errors import CheckpointError
from llama_so8t.files.gguf_file import read_gguf
from llama_so8t.format import HEAD_TENSORS
from llama_so8t.tensors import DataFile

_CHUNK = 8 << 20
"""Bytes of a tensor that a thread has in memory."""


def model_sha256(path: Path, progress: str | None = None) -> str:
    """SHA-256 over the tensors in the order of their names, bytewise.

    Each gives ``name 0 type 0 dims 0 SHA-256(data)``: the type as ggml prints it, in lower case; dims in ggml order,
    joined by commas, without 1s at the end (but at least one); the digest as 32 raw bytes.

    Args:
        path: GGUF file; of a split model its first part, beside the others.
        progress: title of a progress bar, which is drawn if stderr is a terminal.

    Returns:
        64 hex digits.

    Raises:
        CheckpointError: not GGUF, damaged, or a part is missing or of another model.
    """
    return _sha256(list(_parts(path)), lambda name: True, progress)


def base_sha256(parts: Sequence[Path], progress: str | None = None) -> str:
    """The same hash without the tensors of heads and stems, which are not what a head was fitted on.

    Args:
        parts: GGUF files of one model, in any order and of any name; a split model in one path is its first part.
        progress: as in `model_sha256`.

    Raises:
        CheckpointError: as `model_sha256`.
    """
    files = list(_parts(parts[0])) if len(parts) == 1 else list(parts)
    return _sha256(files, lambda name: not name.startswith(HEAD_TENSORS), progress)


def is_sha256(text: str) -> bool:
    """Whether a text is such a hash: 64 hex digits in lower case."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _sha256(parts: Sequence[Path], counts: Callable[[str], bool], progress: str | None) -> str:
    tensors = {}
    for part in parts:
        data = DataFile(part)
        for tensor in _reader(part).tensors:
            name = tensor.name.encode("utf-8")
            if name in tensors:
                raise CheckpointError(f"{part}: tensor {tensor.name!r} is in another part too")
            if counts(tensor.name):
                tensors[name] = (data, tensor)
    total = sum(int(tensor.n_bytes) for _, tensor in tensors.values())
    ordered = [tensors[name] for name in sorted(tensors)]
    digest = hashlib.sha256()
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc=progress, disable=None if progress else True, delay=2) as bar,
        ThreadPoolExecutor(thread_name_prefix="so8t-hash") as pool,
    ):
        for (_, tensor), sha256 in zip(ordered, pool.map(_data_sha256, ordered), strict=True):
            dims = [int(n) for n in tensor.shape]
            while len(dims) > 1 and dims[-1] == 1:
                dims.pop()
            fields = (tensor.name, tensor.tensor_type.name.lower(), ",".join(map(str, dims)), "")
            digest.update("\0".join(fields).encode("utf-8") + sha256)
            bar.update(int(tensor.n_bytes))
    return digest.hexdigest()


def _parts(path: Path) -> Iterator[Path]:
    """The files of a model; each has been read by the reader that trusts nothing."""
    file = read_gguf(path)
    count = file.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        yield path
        return
    found = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", path.name, re.DOTALL | re.ASCII)
    if found is None or int(found[2]) != count:
        raise CheckpointError(
            f"{path}: is one of {count} parts, expected the first one, whose name ends in -00001-of-{count:05}.gguf"
        )
    n_tensors = 0
    for number in range(count):
        part = path.with_name(f"{found[1]}-{number + 1:05}-of-{count:05}.gguf")
        if not part.is_file():
            raise CheckpointError(f"{part}: this part of the model is missing")
        other = read_gguf(part)
        for key, expected in (("split.no", number), ("split.count", count)):
            if other.get(key) != expected:
                raise CheckpointError(f"{part}: found {key} {other.get(key)!r}, expected {expected}")
        n_tensors += len(other.tensors)
        yield part
    expected = file.get("split.tensors.count")
    if n_tensors != expected:
        raise CheckpointError(f"{path}: the parts have {n_tensors} tensors, but split.tensors.count is {expected!r}")


def _reader(path: Path) -> "upstream.gguf.GGUFReader":
    # upstream's reader knows where the bytes of a tensor lie
    try:
        return upstream.gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path}: cannot be read by gguf-py: {error}") from None


def _data_sha256(located: tuple[DataFile, "upstream.gguf.ReaderTensor"]) -> bytes:
    data, tensor = located
    digest = hashlib.sha256()
    start, end = int(tensor.data_offset), int(tensor.data_offset) + int(tensor.n_bytes)
    for offset in range(start, end, _CHUNK):
        digest.update(data.bytes(offset, min(_CHUNK, end - offset)).data)
    return digest.digest()
