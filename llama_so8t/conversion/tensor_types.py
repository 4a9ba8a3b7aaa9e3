"""The type of every tensor of a file: one rule for plain files, `llama-quantize` itself for mixtures."""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t import tools, upstream
from llama_so8t.checkpoint.names import EMBEDDING, OUTPUT, gguf_name, layer_tensor
from llama_so8t.conversion.header import Shard, n_bytes, write_header
from llama_so8t.conversion.options import PLAIN_OUTTYPES, ConvertOptions
from llama_so8t.errors import ConversionError
from llama_so8t.files.gguf_file import read_gguf
from llama_so8t.model_spec import ModelSpec
from llama_so8t.tensors import LazyTensor

_FALLBACK = "F16"
"""Type of a tensor whose rows are no multiple of the block size, as in upstream's converter."""

# [   3/  20] blk.0.attn_k.weight   - [   64,    32,     1,     1], type =    f32, size = ... MiB (q6_K)
_DRY_RUN_LINE = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[[^]]*\], type = +(\w+), size = .*?MiB(?: \((\w+)\))?$", re.M)
_NEEDS_IMATRIX = "will require an imatrix"


def file_type(outtype: str) -> int:
    """``general.file_type`` of an outtype."""
    kinds = upstream.gguf.LlamaFileType
    return int(kinds["ALL_F32" if outtype == "f32" else f"MOSTLY_{outtype.upper()}"])


def choose_types(
    tensors: Sequence[LazyTensor], keys: Mapping[str, Any], arch: str, options: ConvertOptions, spec: ModelSpec
) -> list[LazyTensor]:
    """The tensors with the types that they get in the file.

    Raises:
        ConversionError: an unknown module in ``keep``, or llama-quantize refuses the types asked for.
    """
    if options.outtype in PLAIN_OUTTYPES and not options.tensor_types:
        types = [plain_type(tensor, options.outtype) for tensor in tensors]
    else:
        types = _mixture(tensors, keys, arch, options)
    kept = _kept(tensors, options.keep, spec)
    return [
        tensor.as_type("F16" if tensor.name in kept and upstream.gguf.GGML_QUANT_SIZES[kind][0] > 1 else kind.name)
        for tensor, kind in zip(tensors, types, strict=True)
    ]


def importances(path: Path) -> dict[str, np.ndarray]:
    """Importance of every column of the matrices in a file of `llama-imatrix`, as llama-quantize reads it.

    ``sum of squares / count``, ``(columns,)`` float32 for each name; 1 where nothing was counted.

    Raises:
        ConversionError: not such a file.
    """
    file = read_gguf(path)
    found = {}
    for name, tensor in file.tensors.items():
        matrix = name.removesuffix(".in_sum2")
        if matrix == name:
            continue
        counts = file.tensors.get(f"{matrix}.counts")
        if counts is None or counts.read().size != 1:
            raise ConversionError(f"{path}: tensor {name!r}: found no single count {matrix}.counts beside it")
        count, sums = np.float32(counts.read().reshape(-1)[0]), tensor.read().reshape(-1)
        found[matrix] = sums / count if count > 0 else np.ones_like(sums)
        if not np.isfinite(found[matrix]).all():
            raise ConversionError(f"{path}: tensor {name!r}: found NaN or infinity, expected finite numbers")
    if not found:
        raise ConversionError(f"{path}: found no NAME.in_sum2, expected a GGUF file made by llama-imatrix")
    return found


def plain_type(tensor: LazyTensor, outtype: str) -> Any:
    """By the rules of upstream's converter: 1-D tensors stay F32, as all of SO8T's do."""
    types = upstream.gguf.GGMLQuantizationType
    if tensor.exact or len(tensor.shape) == 1:
        return types.F32
    wanted = types[outtype.upper()]
    block_size, _ = upstream.gguf.GGML_QUANT_SIZES[wanted]
    return wanted if tensor.shape[-1] % block_size == 0 else types[_FALLBACK]


def _mixture(tensors: Sequence[LazyTensor], keys: Mapping[str, Any], arch: str, options: ConvertOptions) -> list[Any]:
    """Asks `llama-quantize --dry-run` about a file with our header and no data: its rules are hundreds of lines."""
    gguf = upstream.gguf
    with tempfile.TemporaryDirectory(prefix="so8t-") as directory:
        path = Path(directory) / "header.gguf"
        short = {key: value for key, value in keys.items() if not key.startswith("tokenizer.")}
        plain = [tensor.as_type("F32") for tensor in tensors]
        size = write_header(path, Shard(short, plain), arch)
        # a hole where the data would be, with room to align every tensor: it takes no space
        alignment = gguf.GGUF_DEFAULT_ALIGNMENT
        os.truncate(path, size + alignment + sum(n_bytes(tensor) + alignment for tensor in plain))
        command = [tools.program("llama-quantize"), "--dry-run"]
        command += [word for rule in options.tensor_types for word in ("--tensor-type", rule)]
        command += ["--imatrix", options.imatrix] if options.imatrix else []
        result = subprocess.run(
            [*map(str, command), str(path), options.outtype.upper()],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
        )
    said = result.stdout + result.stderr
    if result.returncode != 0:
        reasons = [line for line in said.splitlines() if line.strip()]
        raise ConversionError(f"llama-quantize refuses: {reasons[-1] if reasons else 'no message'}")
    if _NEEDS_IMATRIX in said:
        raise ConversionError(
            f"{options.outtype} needs an importance matrix; make one with llama-imatrix and give it with --imatrix"
        )
    chosen = {name: after or before for name, before, after in _DRY_RUN_LINE.findall(said)}
    missing = [tensor.name for tensor in tensors if tensor.name not in chosen]
    if missing:
        raise ConversionError(f"llama-quantize --dry-run names no type for {missing[0]}; it said: {said[-200:]!r}")
    by_name = {kind.name.lower(): kind for kind in gguf.GGMLQuantizationType}
    return [by_name[chosen[tensor.name].lower()] for tensor in tensors]


def _kept(tensors: Sequence[LazyTensor], keep: Sequence[str], spec: ModelSpec) -> set[str]:
    """GGUF names of the tensors inside the modules to keep; heads are F32 in every file."""
    names = {tensor.name for tensor in tensors}
    heads = {"task_head", *(f"{name}_head" for name in spec.heads)}
    kept = set()
    for module in keep:
        if module in ("lm_head", "task_head"):
            # a tied embedding is the output matrix
            output = gguf_name(OUTPUT, spec)
            kept.add(output if output in names else gguf_name(EMBEDDING, spec))
            continue
        weight = f"{module.removesuffix('.weight')}.weight"
        weight = weight if weight.startswith("model.") else f"model.{weight}"
        if weight == EMBEDDING or layer_tensor(weight):
            try:
                found = gguf_name(weight, spec)
            except KeyError:
                found = ""
            if found in names:
                kept.add(found)
                continue
        if module not in heads and module not in spec.heads:
            raise ConversionError(
                f"keep: found {module!r}, expected lm_head, a head, or a matrix such as "
                f"model.layers.0.mlp.down_proj or model.embed_tokens"
            )
    return kept
