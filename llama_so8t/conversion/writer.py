"""Writes GGUF files: every core reads, folds, quantizes and writes some rows at a time."""

import errno
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llama_so8t import kernels, upstream
from llama_so8t.conversion.header import Shard, ggml_type, n_bytes, write_header
from llama_so8t.errors import ConversionError
from llama_so8t.machine import n_cores
from llama_so8t.tensors import LazyTensor

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


def write(
    paths: Sequence[Path],
    shards: Sequence[Shard],
    arch: str,
    importances: Mapping[str, np.ndarray],
    threads: int | None,
    check: bool,
    progress: str | None,
) -> None:
    """Writes the files.

    Args:
        paths: one per shard.
        shards: what to write.
        arch: architecture for the writer.
        importances: name of a tensor ``(rows, columns)`` -> importance ``(columns,)`` float32 for its quantization.
        threads: workers; None means one per core.
        check: whether a value that does not fit its type is an error.
        progress: title of the progress bar, None for no bar.

    Raises:
        ConversionError: a key or a value does not fit its type.
        OSError: the disk is full, or another failure of the file system.
    """
    threads = threads or n_cores()
    total = sum(n_bytes(tensor) for shard in shards for tensor in shard.tensors)
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc=progress, disable=progress is None) as bar,
        ThreadPoolExecutor(threads, thread_name_prefix="so8t-convert") as pool,
    ):
        for path, shard in zip(paths, shards, strict=True):
            start = write_header(path, shard, arch)
            with _Stream(path, start) as stream:
                _run(pool, threads, _jobs(shard.tensors, importances, check), stream, bar)


@dataclass(frozen=True)
class _Job:
    """Rows ``[start, stop)`` of a tensor, or the whole tensor where start is None."""

    tensor: LazyTensor
    importance: np.ndarray | None
    start: int | None
    stop: int
    nbytes: int
    check: bool
    is_last: bool


def _jobs(tensors: Sequence[LazyTensor], importances: Mapping[str, np.ndarray], check: bool) -> Iterator[_Job]:
    for tensor in tensors:
        size, importance = n_bytes(tensor), importances.get(tensor.name)
        if tensor.read_rows is None or len(tensor.shape) != 2:
            yield _Job(tensor, importance, None, 0, size, check, True)
            continue
        n_rows, n_columns = tensor.shape
        step = _ROWS * max(1, _CHUNK // (_ROWS * n_columns))
        row_bytes = size // n_rows
        for start in range(0, n_rows, step):
            stop = min(start + step, n_rows)
            yield _Job(tensor, importance, start, stop, (stop - start) * row_bytes, check, stop == n_rows)


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
    tensor = job.tensor
    if job.start is None or tensor.read_rows is None:
        values, shape = tensor.read(), tensor.shape
    else:
        values, shape = tensor.read_rows(job.start, job.stop), (job.stop - job.start, tensor.shape[1])
    assert values.shape == shape, f"{tensor.name}: planned {shape}, found {values.shape}"
    flat = values.reshape(-1, shape[-1])
    try:
        data = kernels.quantize(flat, ggml_type(tensor), job.importance, job.check)
    except ConversionError as error:
        raise ConversionError(f"tensor {tensor.name!r}: {error}") from None
    assert data.nbytes == job.nbytes, f"{tensor.name}: planned {job.nbytes} bytes, found {data.nbytes}"
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
    rest = data.data
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
