"""An SO8T checkpoint or adapter becomes a GGUF file, one tensor at a time."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llama_so8t import upstream
from llama_so8t.checkpoint import Checkpoint, open_checkpoint
from llama_so8t.checkpoint.atomic import new_file
from llama_so8t.checkpoint.checkpoint import finite
from llama_so8t.checkpoint.names import EMBEDDING, OUTPUT, so8t_tensors
from llama_so8t.conversion.metadata import base_metadata
from llama_so8t.conversion.options import OUTTYPES, ROTATION_MODES, ConvertOptions
from llama_so8t.conversion.so8t_keys import so8t_keys
from llama_so8t.conversion.tensors import PlannedTensor, plan_tensors
from llama_so8t.errors import ConversionError
from llama_so8t.folding import foldable_sites
from llama_so8t.layout import ARCH

_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_FALLBACK = "F16"
"""Type of a tensor whose rows are no multiple of the block size, as in upstream's converter."""


def convert(options: ConvertOptions) -> Path:
    """Writes the GGUF file of an SO8T model; the file appears complete or not at all.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: the model cannot be read or is not complete.
        ConversionError: the model cannot be written in the form asked for.
    """
    if options.outtype not in OUTTYPES or options.rotations not in ROTATION_MODES:
        raise ConversionError(
            f"found outtype {options.outtype!r} and rotations {options.rotations!r}, expected one of "
            f"{', '.join(OUTTYPES)} and one of {', '.join(ROTATION_MODES)}"
        )
    checkpoint = open_checkpoint(options.model, options.base)
    _check_model(checkpoint)
    folded = foldable_sites(checkpoint.spec) if options.rotations == "fold" else ()
    explicit = tuple(site for site in checkpoint.spec.sites if site not in folded)
    outfile = options.outfile or default_outfile(options)
    if not outfile.parent.is_dir() or outfile.is_dir():
        raise ConversionError(f"{outfile}: expected a file name in an existing directory")
    tensors = list(plan_tensors(checkpoint, folded, explicit))
    file_type = int(upstream.gguf.LlamaFileType[_FILE_TYPES[options.outtype]])
    metadata = base_metadata(
        checkpoint, file_type, [tensor.shape for tensor in tensors if not tensor.exact], options.model_name
    )
    extra = [
        PlannedTensor(name, values.shape, lambda values=values: values)
        for name, values in metadata.tensors.items()
    ]
    keys = metadata.keys | so8t_keys(checkpoint.spec, explicit, folded)
    with new_file(outfile) as temporary:
        _write(temporary, keys, [*extra, *tensors], options)
    return outfile


def default_outfile(options: ConvertOptions) -> Path:
    """``MODEL/NAME-so8t-OUTTYPE.gguf`` with the name of the directory."""
    name = Path(os.path.abspath(options.model)).name
    return options.model / f"{name}-so8t-{options.outtype}.gguf"


def tensor_type(tensor: PlannedTensor, outtype: str) -> Any:
    """Type of a tensor by the rules of upstream's converter: 1-D tensors stay F32, as all of SO8T's do."""
    types = upstream.gguf.GGMLQuantizationType
    if tensor.exact or len(tensor.shape) == 1:
        return types.F32
    wanted = types[outtype.upper()]
    block_size, _ = upstream.gguf.GGML_QUANT_SIZES[wanted]
    return wanted if tensor.shape[-1] % block_size == 0 else types[_FALLBACK]


def _check_model(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    if not checkpoint.is_so8t:
        raise ConversionError(
            f"{checkpoint.path}: is a plain {config.get('model_type')} model without rotations and heads; "
            f"make an SO8T model of it first: so8t init --base {checkpoint.path} --out DIR"
        )
    for name in so8t_tensors(checkpoint.spec):
        # small, so before any work: NaN in one generator would spoil every weight beside it
        if name in checkpoint.tensors:
            finite(checkpoint.path, checkpoint.tensors[name])
    if config.get("hidden_act", "silu") != "silu":
        raise ConversionError(
            f"{checkpoint.path}: found hidden_act {config['hidden_act']!r}, expected 'silu'"
        )
    if config.get("use_sliding_window"):
        raise ConversionError(
            f"{checkpoint.path}: found use_sliding_window true, but so8t attends to all positions"
        )
    if config.get("tie_word_embeddings") and OUTPUT in checkpoint.tensors:
        if not np.array_equal(checkpoint.load(OUTPUT), checkpoint.load(EMBEDDING)):
            raise ConversionError(
                f"{checkpoint.path}: config.json ties the embeddings, but {OUTPUT} differs from {EMBEDDING}; "
                f"set tie_word_embeddings to false, or remove the tensor"
            )


def _write(path: Path, keys: dict[str, Any], tensors: list[PlannedTensor], options: ConvertOptions) -> None:
    gguf = upstream.gguf
    writer = gguf.GGUFWriter(path, arch=ARCH)
    writer.kv_data[0] = keys
    types = [tensor_type(tensor, options.outtype) for tensor in tensors]
    sizes = []
    for tensor, kind in zip(tensors, types, strict=True):
        block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
        sizes.append(int(np.prod(tensor.shape, dtype=object)) // block_size * type_size)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), sizes[-1], raw_dtype=kind)
    try:
        writer.write_header_to_file()
        try:
            writer.write_kv_data_to_file()
        except (struct.error, OverflowError, UnicodeEncodeError) as error:
            raise ConversionError(f"{options.model}: a key does not fit its type in GGUF: {error}") from error
        writer.write_ti_data_to_file()
        with tqdm(
            total=sum(sizes), unit="B", unit_scale=True, desc=options.outtype, disable=not options.progress
        ) as bar:
            for tensor, kind, size in zip(tensors, types, sizes, strict=True):
                values = tensor.read()
                assert values.shape == tensor.shape, (
                    f"{tensor.name}: planned {tensor.shape}, found {values.shape}"
                )
                data = gguf.quantize(values, kind)
                assert data.nbytes == size, f"{tensor.name}: planned {size} bytes, found {data.nbytes}"
                writer.write_tensor_data(data)
                bar.update(size)
    finally:
        writer.close()
