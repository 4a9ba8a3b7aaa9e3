"""The checks of a converted file, from the smallest part to the whole."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from llama_so8t.conversion.convert import Plan, bound_heads
from llama_so8t.conversion.header import Shard
from llama_so8t.errors import So8tError
from llama_so8t.files.gguf_file import GgufFile, read_gguf
from llama_so8t.format import ARCH
from llama_so8t.inspection import inspect
from llama_so8t.tensors import LazyTensor
from llama_so8t.verification.keys import key_problems
from llama_so8t.verification.logits import compare_logits
from llama_so8t.verification.report import FAILED, NOT_RUN, OK, Check, VerifyReport
from llama_so8t.verification.tensors import TensorMeasure, measure_tensor


def verify(plan: Plan, *, logits: bool = True) -> VerifyReport:
    """Reads the files of a conversion again and compares them with its checkpoint.

    Args:
        plan: what `conversion.convert.plan` decided; `conversion.convert.run` has written it.
        logits: whether to run the model too.

    Returns:
        The report. What is wrong with the files is in it, and no error.

    Raises:
        CheckpointError: a file is no GGUF file or is truncated, or the checkpoint cannot be read.
        OSError: a file is missing.
    """
    files = [read_gguf(path) for path in plan.paths]
    keys, names, pairs = [], [], []
    shards = list(plan.shards)
    if plan.heads is not None:
        shards.append(bound_heads(plan.heads, plan.paths[: len(shards)]))
    for file, shard in zip(files, shards, strict=True):
        where = f"{file.path.name}: " if len(files) > 1 else ""
        keys += [where + problem for problem in key_problems(file, shard.keys)]
        names += [where + problem for problem in _name_problems(file, shard)]
        pairs += _comparable(file, shard)
    measures = _measure(pairs, plan)
    n_keys = sum(len(shard.keys) for shard in shards)
    checks = [
        _check("keys", keys, f"{n_keys} keys"),
        _check("names", names, f"{len(plan.tensors)} tensors, no other"),
        _value_check("weights", [m for m in measures if not m.exact]),
        _value_check("rotations and heads", [m for m in measures if m.exact]),
        _group_check(plan),
    ]
    if not logits:
        checks.append(Check("logits", NOT_RUN, "not asked for"))
    elif any(check.status == FAILED for check in checks):
        checks.append(Check("logits", NOT_RUN, "the file is wrong already"))
    else:
        tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
        checks.append(compare_logits(plan, tensors))
    options = plan.options
    return VerifyReport(
        plan.paths, plan.checkpoint.path, plan.arch, options.outtype, options.rotations, tuple(measures), tuple(checks)
    )


def _check(name: str, problems: Iterable[str], detail: str) -> Check:
    found = tuple(problems)
    return Check(name, FAILED if found else OK, f"{len(found)} wrong" if found else detail, found)


def _value_check(name: str, measures: Sequence[TensorMeasure]) -> Check:
    problems = (f"tensor {m.name}: {m.problem}" for m in measures if m.problem)
    return _check(name, problems, f"{len(measures)} tensors, {sum(m.n for m in measures):,} values")


def _name_problems(file: GgufFile, shard: Shard) -> Iterator[str]:
    planned = {tensor.name: tensor.shape for tensor in shard.tensors}
    for name, shape in planned.items():
        if name not in file.tensors:
            yield f"tensor {name}: is missing"
        elif file.tensors[name].shape != shape:
            yield f"tensor {name}: found shape {list(file.tensors[name].shape)}, expected {list(shape)}"
    yield from (f"tensor {name}: is not one of this model" for name in file.tensors if name not in planned)


def _comparable(file: GgufFile, shard: Shard) -> list[tuple[LazyTensor, LazyTensor]]:
    return [
        (file.tensors[name], tensor)
        for tensor in shard.tensors
        if (name := tensor.name) in file.tensors and file.tensors[name].shape == tensor.shape
    ]


def _measure(pairs: Sequence[tuple[LazyTensor, LazyTensor]], plan: Plan) -> list[TensorMeasure]:
    with ThreadPoolExecutor(plan.options.threads, thread_name_prefix="so8t-verify") as pool:
        done = pool.map(lambda pair: measure_tensor(pair[0], pair[1], plan.importances.get(pair[1].name)), pairs)
        return list(tqdm(done, total=len(pairs), unit="tensor", desc="verify", disable=not plan.options.progress))


def _group_check(plan: Plan) -> Check:
    """SO(8): rotations orthogonal, of determinant 1, and the exponential of their generators."""
    if plan.arch != ARCH or len(plan.paths) > 1:
        reason = "a split file" if plan.arch == ARCH else f"architecture {plan.arch} has no rotations"
        return Check("group", NOT_RUN, reason)
    try:
        report = inspect(Path(plan.paths[0]))
    except So8tError as error:
        return Check("group", FAILED, "not readable", (str(error),))
    return _check("group", report.problems, f"{sum(site.n for site in report.sites)} generators, in SO(8)")
