"""An SO8T checkpoint or adapter becomes a GGUF file, some rows at a time."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from llama_so8t import upstream
from llama_so8t.checkpoint import Checkpoint, open_checkpoint
from llama_so8t.checkpoint.lora import merged, read_lora
from llama_so8t.checkpoint.names import EMBEDDING, OUTPUT, so8t_tensors
from llama_so8t.conversion.header import Shard, ggml_type, split
from llama_so8t.conversion.metadata import base_metadata
from llama_so8t.conversion.options import ARCHITECTURES, OUTTYPES, ROTATION_MODES, ConvertOptions
from llama_so8t.conversion.so8t_keys import so8t_keys, stock_keys
from llama_so8t.conversion.tensor_types import choose_types, file_type, importances
from llama_so8t.conversion.tensors import plan_heads, plan_stock_tensors, plan_tensors
from llama_so8t.conversion.writer import write
from llama_so8t.errors import ConversionError
from llama_so8t.files.atomic import new_files
from llama_so8t.files.tensor_hash import base_sha256
from llama_so8t.folding import foldable_sites
from llama_so8t.format import ARCH, HEADS_TYPE, SITES, Keys, generator_name
from llama_so8t.tensors import LazyTensor

_ROWS = 1024


@dataclass(frozen=True)
class Plan:
    """What a conversion will write: one shard per path. ``heads`` of a stock file have a path of their own behind them.

    ``importances``: name of a tensor -> importance of its columns, float32, for those that are quantized by it.
    """

    options: ConvertOptions
    checkpoint: Checkpoint
    arch: str
    folded: tuple[str, ...]
    explicit: tuple[str, ...]
    paths: tuple[Path, ...]
    shards: tuple[Shard, ...]
    importances: Mapping[str, np.ndarray]
    heads: Shard | None

    @property
    def is_split(self) -> bool:
        """Whether the model is cut into several files."""
        return upstream.gguf.Keys.Split.LLM_KV_SPLIT_COUNT in self.shards[0].keys

    @property
    def tensors(self) -> list[LazyTensor]:
        """All tensors of all files."""
        heads = [] if self.heads is None else [self.heads]
        return [tensor for shard in (*self.shards, *heads) for tensor in shard.tensors]


def convert(options: ConvertOptions) -> Path:
    """Writes the GGUF file of an SO8T model; the file appears complete or not at all.

    Returns:
        The path of the file, or of the first one of a split.

    Raises:
        CheckpointError: the model cannot be read or is not complete.
        ConversionError: the model cannot be written in the form asked for.
    """
    return run(plan(options))


def plan(options: ConvertOptions) -> Plan:
    """Reads headers and small tensors, checks all that can be checked early, and decides what to write.

    Raises:
        CheckpointError, ConversionError: as `convert`.
    """
    for field, allowed in (("outtype", OUTTYPES), ("rotations", ROTATION_MODES), ("arch", ARCHITECTURES)):
        if getattr(options, field) not in allowed:
            raise ConversionError(f"found {field} {getattr(options, field)!r}, expected one of {', '.join(allowed)}")
    checkpoint = open_checkpoint(options.model, options.base)
    if options.merge_lora is not None:
        checkpoint = merged(checkpoint, read_lora(options.merge_lora, checkpoint, options.lora_trained_on))
    spec, stock = checkpoint.spec, options.arch == "stock"
    folded: tuple[str, ...]
    explicit: tuple[str, ...] = ()
    _check_model(checkpoint, stock)
    if stock:
        folded = _stock_sites(options, checkpoint)
        tensors = list(plan_stock_tensors(checkpoint, folded, options.allow_nonfinite))
    else:
        if options.drop_sites:
            raise ConversionError("found sites to drop, but only a stock file can drop sites")
        folded = foldable_sites(spec) if options.rotations == "fold" else ()
        explicit = tuple(site for site in spec.sites if site not in folded)
        tensors = list(plan_tensors(checkpoint, folded, explicit, options.allow_nonfinite))
    arch = spec.base_model_type if stock else ARCH
    outfile = options.outfile or default_outfile(options)
    if not outfile.parent.is_dir() or outfile.is_dir():
        raise ConversionError(f"{outfile}: expected a file name in an existing directory")
    shapes = [tensor.shape for tensor in tensors if not tensor.exact]
    metadata = base_metadata(checkpoint, arch, file_type(options.outtype), shapes, options.model_name)
    added = stock_keys(turning_sites(checkpoint, folded)) if stock else so8t_keys(spec, explicit, folded)
    keys = metadata.keys | added
    extra = [LazyTensor.of(name, values, exact=True) for name, values in metadata.tensors.items()]
    typed = choose_types([*extra, *tensors], keys, arch, options, spec)
    shards = split(keys, typed, options.split_max_size)
    paths = _shard_paths(outfile, len(shards))
    heads = _heads_shard(checkpoint) if stock and checkpoint.is_so8t and spec.heads else None
    if heads is not None:
        paths.append(heads_file(outfile))
    importance = _importances(typed, options.imatrix)
    return Plan(options, checkpoint, arch, folded, explicit, tuple(paths), tuple(shards), importance, heads)


def run(planned: Plan) -> Path:
    """Writes what `plan` decided.

    Raises:
        CheckpointError: a weight is not finite, or the source changed meanwhile.
        ConversionError: a value does not fit its type.
    """
    options, n = planned.options, len(planned.shards)
    with new_files(planned.paths) as temporaries:
        write(
            temporaries[:n],
            planned.shards,
            planned.arch,
            planned.importances,
            options.threads,
            check=not options.allow_nonfinite,
            progress=options.outtype if options.progress else None,
        )
        if planned.heads is not None:
            heads = bound_heads(planned.heads, temporaries[:n])
            write(temporaries[n:], [heads], ARCH, {}, options.threads, check=True, progress=None)
    return planned.paths[0]


def bound_heads(heads: Shard, parts: Sequence[Path]) -> Shard:
    """The heads file of a model of which these files were written: it fits no other of the same shapes.

    Raises:
        CheckpointError: a file is damaged.
    """
    gguf = upstream.gguf
    sha256 = gguf.GGUFValue(base_sha256(parts), gguf.GGUFValueType.STRING)
    return Shard({**heads.keys, Keys.BASE_SHA256: sha256}, heads.tensors)


def default_outfile(options: ConvertOptions) -> Path:
    """``MODEL/NAME-ARCH-OUTTYPE.gguf`` with the name of the directory."""
    name = Path(os.path.abspath(options.model)).name
    return options.model / f"{name}-{options.arch}-{options.outtype}.gguf"


def heads_file(outfile: Path) -> Path:
    """Where the heads of a stock file go: ``NAME.heads.gguf``."""
    return outfile.with_name(f"{outfile.name.removesuffix('.gguf')}.heads.gguf")


def _shard_paths(outfile: Path, count: int) -> list[Path]:
    if count == 1:
        return [outfile]
    stem = outfile.name.removesuffix(".gguf")
    return [
        outfile.with_name(upstream.gguf.SHARD_NAME_FORMAT.format(stem, number + 1, count)) for number in range(count)
    ]


def _importances(tensors: Sequence[LazyTensor], imatrix: Path | None) -> dict[str, np.ndarray]:
    """Importances of the columns of the quantized tensors, as far as the file has them."""
    if imatrix is None:
        return {}
    found, result = importances(imatrix), {}
    for tensor in tensors:
        if upstream.gguf.GGML_QUANT_SIZES[ggml_type(tensor)][0] == 1 or tensor.name not in found:
            continue
        importance = found[tensor.name]
        if importance.shape == (tensor.shape[-1],):
            result[tensor.name] = importance
        elif tensor.name != "token_embd.weight":
            raise ConversionError(
                f"{imatrix}: tensor {tensor.name!r}: found {importance.size} importances, "
                f"expected {tensor.shape[-1]}; it belongs to another model"
            )
    return result


def _stock_sites(options: ConvertOptions, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Sites to fold into a stock file: it has no place for the others."""
    spec, path = checkpoint.spec, checkpoint.path
    if options.rotations != "fold":
        raise ConversionError(f"found rotations {options.rotations!r}, but a stock file has them folded")
    if not checkpoint.is_so8t:
        if options.drop_sites:
            raise ConversionError(f"{path}: found sites to drop, but the model has no rotations")
        return ()
    foldable = foldable_sites(spec)
    for site in options.drop_sites:
        if site not in spec.sites or site in foldable:
            raise ConversionError(
                f"{path}: found {site!r} among the sites to drop, expected one that cannot be folded: "
                f"{', '.join(s for s in spec.sites if s not in foldable) or 'this model has none'}"
            )
    for site in spec.sites:
        if site in foldable or site in options.drop_sites:
            continue
        turning = _turning(checkpoint, site)
        if turning:
            raise ConversionError(
                f"{path}: site {site} cannot be folded, because a norm stands between the projection and the "
                f"rotation, and a stock file has no rotations: tensor {turning!r} is not zero; leave the "
                f"site out with --drop-sites {site}, which changes the model, or write arch so8t"
            )
    return foldable


def turning_sites(checkpoint: Checkpoint, sites: Sequence[str]) -> tuple[str, ...]:
    """Those of the sites that turn anything: a generator of zeros makes the identity."""
    return tuple(site for site in sites if _turning(checkpoint, site))


def _turning(checkpoint: Checkpoint, site: str) -> str | None:
    """Name of the first generator of a site that is not zero."""
    layers, parts = range(checkpoint.spec.n_layer), SITES[site].generator_names
    names = (generator_name(layer, part) for layer in layers for part in parts)
    return next((name for name in names if np.any(checkpoint.load(name))), None)


def _heads_shard(checkpoint: Checkpoint) -> Shard:
    gguf, spec = upstream.gguf, checkpoint.spec
    keys = {
        "general.architecture": gguf.GGUFValue(ARCH, gguf.GGUFValueType.STRING),
        "general.type": gguf.GGUFValue(HEADS_TYPE, gguf.GGUFValueType.STRING),
        f"{ARCH}.embedding_length": gguf.GGUFValue(spec.hidden_size, gguf.GGUFValueType.UINT32),
        f"{ARCH}.block_count": gguf.GGUFValue(spec.n_layer, gguf.GGUFValueType.UINT32),
    }
    return Shard(keys | so8t_keys(checkpoint.spec, (), ()), list(plan_heads(checkpoint)))


def _equal(a: LazyTensor, b: LazyTensor) -> bool:
    """Whether two tensors have the same values; row by row where both can, for an embedding has a GB or more."""
    if a.read_rows is None or b.read_rows is None:
        return np.array_equal(a.read(), b.read())
    cuts = [*range(0, a.shape[0], _ROWS), a.shape[0]]
    return all(np.array_equal(a.read_rows(i, j), b.read_rows(i, j)) for i, j in pairwise(cuts))


def _check_model(checkpoint: Checkpoint, stock: bool) -> None:
    config = checkpoint.config
    if not checkpoint.is_so8t and not stock:
        raise ConversionError(
            f"{checkpoint.path}: is a plain {config.get('model_type')} model without rotations and heads; "
            f"make an SO8T model of it first: so8t init --base {checkpoint.path} --out DIR"
        )
    generators = checkpoint.spec.generator_shapes()
    for name in so8t_tensors(checkpoint.spec):
        # small, so before any work: NaN in one generator would spoil every weight beside it
        if name in checkpoint.tensors:
            (checkpoint.load_generator if name in generators else checkpoint.load_finite)(name)
    if config.get("hidden_act", "silu") != "silu":
        raise ConversionError(f"{checkpoint.path}: found hidden_act {config['hidden_act']!r}, expected 'silu'")
    if config.get("use_sliding_window"):
        raise ConversionError(f"{checkpoint.path}: found use_sliding_window true, but so8t attends to all positions")
    if config.get("tie_word_embeddings") and OUTPUT in checkpoint.tensors:
        if not _equal(checkpoint.tensors[OUTPUT], checkpoint.tensors[EMBEDDING]):
            raise ConversionError(
                f"{checkpoint.path}: config.json ties the embeddings, but {OUTPUT} differs from {EMBEDDING}; "
                f"set tie_word_embeddings to false, or remove the tensor"
            )
