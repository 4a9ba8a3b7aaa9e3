"""A LoRA adapter of PEFT becomes a GGUF adapter for one form of an SO8T model."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t import upstream
from llama_so8t.checkpoint import Checkpoint, open_checkpoint
from llama_so8t.checkpoint.lora import Lora, LoraPair, read_lora
from llama_so8t.checkpoint.names import gguf_name, layer_tensor, so8t_tensors
from llama_so8t.checkpoint.row_order import to_gguf
from llama_so8t.conversion.header import Shard
from llama_so8t.conversion.options import PLAIN_OUTTYPES, ConvertOptions
from llama_so8t.conversion.tensor_types import file_type, plain_type
from llama_so8t.conversion.writer import write
from llama_so8t.errors import ConversionError
from llama_so8t.files.atomic import new_file
from llama_so8t.folding import fold_pair, foldable_sites
from llama_so8t.format import ARCH, Keys
from llama_so8t.tensors import LazyTensor

OUTTYPE = "f32"
"""Type of the adapter's matrices unless another one is asked for, as of upstream's convert_lora_to_gguf.py."""


@dataclass(frozen=True)
class LoraPlan:
    """What will be written: one file. ``folded``: sites whose rotations get into A and B."""

    options: ConvertOptions
    arch: str
    folded: tuple[str, ...]
    path: Path
    shard: Shard


def plan_lora(options: ConvertOptions, directory: Path) -> LoraPlan:
    """Reads the adapter, and decides what to write: ``A' = A R_before``, ``B' = R_after B`` for folded sites.

    Args:
        options: those of the conversion of the model that the adapter is to be used with.
        directory: of the adapter.

    Raises:
        CheckpointError: model or adapter cannot be read, or do not fit each other.
        ConversionError: the adapter cannot be written in the form asked for.
    """
    _check_options(options)
    checkpoint = open_checkpoint(options.model, options.base)
    lora = read_lora(directory, checkpoint, options.lora_trained_on)
    _check_tensors(checkpoint, lora)
    stock = options.arch == "stock"
    if not stock and not checkpoint.is_so8t:
        raise ConversionError(f"{checkpoint.path}: is no SO8T model; an adapter for its own architecture: --arch stock")
    is_folded = checkpoint.is_so8t and (stock or options.rotations == "fold")
    folded = foldable_sites(checkpoint.spec) if is_folded else ()
    arch = checkpoint.spec.base_model_type if stock else ARCH
    tensors = [tensor for pair in lora.pairs.values() for tensor in _tensors(checkpoint, lora, pair, folded, stock)]
    typed = [tensor.as_type(plain_type(tensor, options.outtype).name) for tensor in tensors]
    path = options.outfile or _default_outfile(options, directory)
    if not path.parent.is_dir() or path.is_dir():
        raise ConversionError(f"{path}: expected a file name in an existing directory")
    return LoraPlan(options, arch, folded, path, Shard(_keys(options, lora, directory, arch, folded), typed))


def run_lora(planned: LoraPlan) -> Path:
    """Writes what `plan_lora` decided; the file appears complete or not at all.

    Raises:
        ConversionError: a value does not fit its type.
    """
    with new_file(planned.path) as temporary:
        threads = planned.options.threads
        write([temporary], [planned.shard], planned.arch, {}, threads, check=True, progress=None)
    return planned.path


def _check_options(options: ConvertOptions) -> None:
    if options.outtype not in PLAIN_OUTTYPES:
        raise ConversionError(
            f"found outtype {options.outtype!r}, expected one of {', '.join(PLAIN_OUTTYPES)} for an adapter"
        )
    for field in ("merge_lora", "drop_sites", "keep", "tensor_types", "imatrix", "split_max_size"):
        if getattr(options, field):
            raise ConversionError(
                f"found --{field.replace('_', '-').removesuffix('s')}, which an adapter does not have"
            )


def _check_tensors(checkpoint: Checkpoint, lora: Lora) -> None:
    """Refuses what a GGUF adapter has no place for."""
    merge = "fold it into the model with --merge-lora"
    added = so8t_tensors(checkpoint.spec) if checkpoint.is_so8t else {}
    for name in (*lora.replaced, *lora.pairs):
        if name in added:
            raise ConversionError(f"{lora.path}: found tensor {name!r}: heads and rotations take no adapter; {merge}")
    for name in lora.replaced:
        raise ConversionError(f"{lora.path}: found tensor {name!r} as a whole, expected A and B only; {merge}")


def _tensors(
    checkpoint: Checkpoint, lora: Lora, pair: LoraPair, folded: tuple[str, ...], stock: bool
) -> Iterator[LazyTensor]:
    """``NAME.lora_a`` and ``NAME.lora_b`` as llama.cpp reads them: ``W + alpha / r B A``, of an embedding A^T."""
    a, b = pair.a, pair.b
    found = layer_tensor(pair.name)
    if found is not None and folded:
        layer, suffix = found
        a, b = fold_pair(suffix, a, b, checkpoint.layer_rotations(layer), folded)
    if pair.is_embedding:
        a = np.ascontiguousarray(a.T)
    elif stock:
        b = to_gguf(LazyTensor.of(pair.name, b), checkpoint.spec).read()
    # llama.cpp has one alpha for all
    factor = pair.scale * pair.b.shape[1] / lora.alpha
    name = gguf_name(pair.name, checkpoint.spec)
    yield LazyTensor.of(f"{name}.lora_a", a)
    yield LazyTensor.of(f"{name}.lora_b", (b * np.float32(factor)).astype(np.float32))


def _keys(options: ConvertOptions, lora: Lora, directory: Path, arch: str, folded: tuple[str, ...]) -> dict[str, Any]:
    gguf = upstream.gguf
    text, number = gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT32
    keys = {
        gguf.Keys.General.ARCHITECTURE: gguf.GGUFValue(arch, text),
        gguf.Keys.General.TYPE: gguf.GGUFValue(gguf.GGUFType.ADAPTER, text),
        gguf.Keys.General.NAME: gguf.GGUFValue(options.model_name or _name(directory), text),
        gguf.Keys.General.FILE_TYPE: gguf.GGUFValue(file_type(options.outtype), number),
        gguf.Keys.General.QUANTIZATION_VERSION: gguf.GGUFValue(gguf.GGML_QUANT_VERSION, number),
        gguf.Keys.Adapter.TYPE: gguf.GGUFValue("lora", text),
        gguf.Keys.Adapter.LORA_ALPHA: gguf.GGUFValue(lora.alpha, gguf.GGUFValueType.FLOAT32),
    }
    if folded:
        keys[Keys.LORA_FOLDED] = gguf.GGUFValue(list(folded), gguf.GGUFValueType.ARRAY, text)
    return keys


def _name(directory: Path) -> str:
    return Path(os.path.abspath(directory)).name


def _default_outfile(options: ConvertOptions, directory: Path) -> Path:
    """``LORA/NAME-ARCH-lora-OUTTYPE.gguf`` with the name of the adapter's directory."""
    return directory / f"{_name(directory)}-{options.arch}-lora-{options.outtype}.gguf"
