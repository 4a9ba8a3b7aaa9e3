"""Writes GGUF files: every core reads, folds, quantizes and writes some rows at a time."""

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llama_so8t import kernels, upstream
from llama_so8t.conversion.tensors import PlannedTensor
from llama_so8t.errors import ConversionError

_CHUNK = 1 << 19
"""Elements that a core works on at a time: its buffers stay near the cache, its memory at a few MB."""

_ROWS = 128
"""Chunks begin at a multiple: no rotation (8 rows) and no float8 scale (128 rows) is cut."""

_AHEAD = 4
"""Chunks waiting per core."""

_SYNC = 256 * 1024 * 1024
"""Bytes between two requests to write back, so that the disk works from the start."""


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
    threads = threads or len(os.sched_getaffinity(0))
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc=progress, disable=progress is None) as bar,
        ThreadPoolExecutor(threads, thread_name_prefix="so8t-convert") as pool,
    ):
        for path, shard in zip(paths, shards, strict=True):
            offsets, size = _write_header(path, shard, arch)
            with path.open("r+b", buffering=0) as file:
                file.truncate(size)
                jobs = _jobs(shard.tensors, offsets, check)
                try:
                    _run(pool, threads, file.fileno(), jobs, bar)
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise


def _write_header(path: Path, shard: Shard, arch: str) -> tuple[list[int], int]:
    """Header of a file; returns where each tensor begins, and the size of the file."""
    gguf = upstream.gguf
    writer = gguf.GGUFWriter(path, arch=arch)
    writer.kv_data[0] = dict(shard.keys)
    for tensor in shard.tensors:
        planned = tensor.planned
        writer.add_tensor_info(
            planned.name, planned.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.kind
        )
    try:
        writer.write_header_to_file()
        try:
            writer.write_kv_data_to_file()
        except (struct.error, OverflowError, UnicodeEncodeError) as error:
            raise ConversionError(f"a key does not fit its type in GGUF: {error}") from error
        writer.write_ti_data_to_file()
        end = writer.fout[0].tell()
    finally:
        writer.close()
    offsets = []
    for tensor in shard.tensors:
        end = _padded(end)
        offsets.append(end)
        end += tensor.nbytes
    return offsets, _padded(end)


@dataclass(frozen=True)
class _Job:
    """Rows ``[start, stop)`` of a tensor, and where their bytes go; the whole tensor where start is None."""

    tensor: TypedTensor
    start: int | None
    stop: int
    offset: int
    nbytes: int
    check: bool


def _jobs(tensors: Sequence[TypedTensor], offsets: Sequence[int], check: bool) -> Iterator[_Job]:
    for tensor, offset in zip(tensors, offsets, strict=True):
        planned = tensor.planned
        if planned.read_rows is None or len(planned.shape) != 2:
            yield _Job(tensor, None, 0, offset, tensor.nbytes, check)
            continue
        n_rows, n_columns = planned.shape
        step = _ROWS * max(1, _CHUNK // (_ROWS * n_columns))
        row_bytes = tensor.nbytes // n_rows
        for start in range(0, n_rows, step):
            stop = min(start + step, n_rows)
            nbytes = (stop - start) * row_bytes
            yield _Job(tensor, start, stop, offset + start * row_bytes, nbytes, check)


def _run(pool: ThreadPoolExecutor, threads: int, file: int, jobs: Iterator[_Job], bar: tqdm) -> None:
    running: set[Future[int]] = set()
    written = synced = 0
    for job in jobs:
        if len(running) >= _AHEAD * threads:
            done, running = wait(running, return_when="FIRST_COMPLETED")
            written += _finish(done, bar)
            if written - synced > _SYNC:
                running.add(pool.submit(_write_back, file))
                synced = written
        running.add(pool.submit(_work, file, job))
    while running:
        done, running = wait(running, return_when=FIRST_EXCEPTION)
        _finish(done, bar)


def _finish(done: set[Future[int]], bar: tqdm) -> int:
    count = sum(future.result() for future in done)
    bar.update(count)
    return count


def _work(file: int, job: _Job) -> int:
    planned = job.tensor.planned
    if job.start is None:
        values, shape = planned.read(), planned.shape
    else:
        values, shape = planned.read_rows(job.start, job.stop), (job.stop - job.start, planned.shape[1])
    assert values.shape == shape, f"{planned.name}: planned {shape}, found {values.shape}"
    try:
        flat = values.reshape(-1, shape[-1])
        data = kernels.quantize(flat, job.tensor.kind, job.tensor.importance, job.check)
    except ConversionError as error:
        raise ConversionError(f"tensor {planned.name!r}: {error}") from None
    assert data.nbytes == job.nbytes, f"{planned.name}: planned {job.nbytes} bytes, found {data.nbytes}"
    rest, offset = memoryview(data.reshape(-1)), job.offset
    while rest:
        count = os.pwrite(file, rest, offset)
        rest, offset = rest[count:], offset + count
    return job.nbytes


def _write_back(file: int) -> int:
    os.fdatasync(file)
    return 0


def _padded(offset: int) -> int:
    alignment = upstream.gguf.GGUF_DEFAULT_ALIGNMENT
    return -(-offset // alignment) * alignment
