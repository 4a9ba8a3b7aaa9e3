"""Writes GGUF files: every core reads, folds, quantizes and writes some rows at a time."""

import errno
import fcntl
import math
import mmap
import os
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llama_so8t import kernels, upstream
from llama_so8t.conversion.tensors import PlannedTensor
from llama_so8t.errors import ConversionError

_CHUNK = 1 << 21
"""Elements that a core works on at a time: fewer, and the threads wait for Python's lock more than they compute."""

_ROWS = 8
"""Chunks begin at a multiple, so that no rotation of rows is cut."""

_AHEAD = 4
"""Chunks under way or waiting per core."""

_BUFFER = 8 << 20
"""Bytes of one write: a multiple of the block size of any disk."""

_BLOCK = 4096

_DIRECT = getattr(os, "O_DIRECT", 0)
"""Past the page cache; some systems have no such flag."""


@dataclass(frozen=True)
class TypedTensor:
    """A tensor with the type that it gets in the file, and the importance of its columns for that type."""

    planned: PlannedTensor
    kind: Any
    importance: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        block_size, type_size = upstream.gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.planned.shape) // block_size * type_size


@dataclass(frozen=True)
class Shard:
    """One file: its keys and its tensors."""

    keys: Mapping[str, Any]
    tensors: Sequence[TypedTensor]


def split(keys: Mapping[str, Any], tensors: Sequence[TypedTensor], max_bytes: int | None) -> list[Shard]:
    """One shard, or several of at most ``max_bytes`` of tensors, with the keys of llama.cpp's split files."""
    groups: list[list[TypedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if max_bytes is not None and groups[-1] and filled + tensor.nbytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    if len(groups) == 1:
        return [Shard(keys, tensors)]
    gguf = upstream.gguf
    kinds = gguf.GGUFValueType
    return [
        Shard(
            # only the first file has the model's keys, as in upstream's split files
            (dict(keys) if number == 0 else {})
            | {
                gguf.Keys.Split.LLM_KV_SPLIT_NO: gguf.GGUFValue(number, kinds.UINT16),
                gguf.Keys.Split.LLM_KV_SPLIT_COUNT: gguf.GGUFValue(len(groups), kinds.UINT16),
                gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT: gguf.GGUFValue(len(tensors), kinds.INT32),
            },
            group,
        )
        for number, group in enumerate(groups)
    ]


def write(
    paths: Sequence[Path],
    shards: Sequence[Shard],
    arch: str,
    threads: int | None,
    check: bool,
    progress: str | None,
) -> None:
    """Writes the files.

    Args:
        paths: one per shard.
        shards: what to write.
        arch: architecture for the writer.
        threads: workers; None means one per core.
        check: whether a value that does not fit its type is an error.
        progress: title of the progress bar, None for no bar.

    Raises:
        ConversionError: a key or a value does not fit its type.
        OSError: the disk is full, or another failure of the file system.
    """
    threads = threads or _cores()
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc=progress, disable=progress is None) as bar,
        ThreadPoolExecutor(threads, thread_name_prefix="so8t-convert") as pool,
    ):
        for path, shard in zip(paths, shards, strict=True):
            start = write_header(path, shard, arch)
            with _Stream(path, start) as stream:
                _run(pool, threads, _jobs(shard.tensors, check), stream, bar)


def _cores() -> int:
    # the cores of this process; only some systems tell them from those of the machine
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_header(path: Path, shard: Shard, arch: str) -> int:
    """Keys and tensor infos of a file, without data.

    Returns:
        Its size: the data begins at the next multiple of the alignment.
    """
    gguf = upstream.gguf
    writer = gguf.GGUFWriter(path, arch=arch)
    writer.kv_data[0] = dict(shard.keys)
    for tensor in shard.tensors:
        planned = tensor.planned
        writer.add_tensor_info(planned.name, planned.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.kind)
    try:
        writer.write_header_to_file()
        try:
            writer.write_kv_data_to_file()
        except (struct.error, OverflowError, UnicodeEncodeError) as error:
            raise ConversionError(f"a key does not fit its type in GGUF: {error}") from error
        writer.write_ti_data_to_file()
        return writer.fout[0].tell()
    finally:
        writer.close()


@dataclass(frozen=True)
class _Job:
    """Rows ``[start, stop)`` of a tensor, or the whole tensor where start is None."""

    tensor: TypedTensor
    start: int | None
    stop: int
    nbytes: int
    check: bool
    is_last: bool


def _jobs(tensors: Sequence[TypedTensor], check: bool) -> Iterator[_Job]:
    for tensor in tensors:
        planned = tensor.planned
        if planned.read_rows is None or len(planned.shape) != 2:
            yield _Job(tensor, None, 0, tensor.nbytes, check, True)
            continue
        n_rows, n_columns = planned.shape
        step = _ROWS * max(1, _CHUNK // (_ROWS * n_columns))
        row_bytes = tensor.nbytes // n_rows
        for start in range(0, n_rows, step):
            stop = min(start + step, n_rows)
            yield _Job(tensor, start, stop, (stop - start) * row_bytes, check, stop == n_rows)


def _run(pool: ThreadPoolExecutor, threads: int, jobs: Iterator[_Job], stream: "_Stream", bar: tqdm) -> None:
    running: deque[tuple[_Job, Future[np.ndarray]]] = deque()

    def finish() -> None:
        job, future = running.popleft()
        stream.put(future.result())
        if job.is_last:
            stream.pad()
        bar.update(job.nbytes)

    try:
        for job in jobs:
            if len(running) >= _AHEAD * threads:
                finish()
            running.append((job, pool.submit(_work, job)))
        while running:
            finish()
    finally:
        for _, future in running:
            future.cancel()


def _work(job: _Job) -> np.ndarray:
    planned = job.tensor.planned
    if job.start is None:
        values, shape = planned.read(), planned.shape
    else:
        values, shape = planned.read_rows(job.start, job.stop), (job.stop - job.start, planned.shape[1])
    assert values.shape == shape, f"{planned.name}: planned {shape}, found {values.shape}"
    flat = values.reshape(-1, shape[-1])
    try:
        data = kernels.quantize(flat, job.tensor.kind, job.tensor.importance, job.check)
    except ConversionError as error:
        raise ConversionError(f"tensor {planned.name!r}: {error}") from None
    assert data.nbytes == job.nbytes, f"{planned.name}: planned {job.nbytes} bytes, found {data.nbytes}"
    return data.reshape(-1)


class _Stream:
    """Appends to a file in large aligned blocks, past the page cache where the file system can: a copy of a few GB
    into the cache would cost as much processor time as the conversion. One thread writes while others compute."""

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self._file = path.open("r+b", buffering=0)
        try:
            self._direct = os.open(path, os.O_WRONLY | _DIRECT)
        except OSError:
            self._direct = os.dup(self._file.fileno())
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="so8t-write")
        # anonymous maps begin at a page, as direct writes ask for
        self._buffers = [np.frombuffer(mmap.mmap(-1, _BUFFER), dtype=np.uint8) for _ in range(3)]
        self._writes: deque[Future[None]] = deque()
        self._offset = start // _BLOCK * _BLOCK
        self._filled = start - self._offset
        os.fsync(self._file.fileno())
        head = os.pread(self._file.fileno(), self._filled, self._offset)
        self._buffers[0][: self._filled] = np.frombuffer(head, dtype=np.uint8)
        self.pad()

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._thread.shutdown(cancel_futures=True)
            os.close(self._direct)
            self._file.close()

    def put(self, data: np.ndarray) -> None:
        """Appends bytes."""
        while len(data):
            count = min(len(data), _BUFFER - self._filled)
            self._buffers[0][self._filled : self._filled + count] = data[:count]
            data = data[count:]
            self._filled += count
            if self._filled == _BUFFER:
                self._flush()

    def pad(self) -> None:
        """Appends zeros up to where the next tensor may begin."""
        alignment = upstream.gguf.GGUF_DEFAULT_ALIGNMENT
        self.put(np.zeros(-(self._offset + self._filled) % alignment, dtype=np.uint8))

    def _flush(self) -> None:
        self._writes.append(self._thread.submit(_write, self._direct, self._buffers[0], self._offset))
        self._offset += _BUFFER
        self._filled = 0
        self._buffers.append(self._buffers.pop(0))
        if len(self._writes) == len(self._buffers):
            self._writes.popleft().result()

    def _finish(self) -> None:
        while self._writes:
            self._writes.popleft().result()
        # the rest is no whole number of blocks
        _write(self._file.fileno(), self._buffers[0][: self._filled], self._offset)


def _write(file: int, data: np.ndarray, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        try:
            count = os.pwrite(file, rest, offset)
        except OSError as error:
            # some file systems open for direct writes and refuse them then; so does the rest of a short one
            flags = fcntl.fcntl(file, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & _DIRECT:
                raise
            fcntl.fcntl(file, fcntl.F_SETFL, flags & ~_DIRECT)
            continue
        rest, offset = rest[count:], offset + count
