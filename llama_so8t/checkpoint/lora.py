"""LoRA adapters of PEFT: a directory with ``adapter_config.json`` and ``adapter_model.safetensors``.

An adapter changes linear maps, ``W' = W + s B A`` with ``s = alpha / r`` (rank-stabilized: ``alpha / sqrt(r)``), and
may bring whole tensors that replace those of the model. Everything else that PEFT has is refused by its name.
"""

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t.checkpoint import adapter
from llama_so8t.checkpoint.adapter import CONFIG_NAME, WEIGHTS_NAME
from llama_so8t.checkpoint.checkpoint import Checkpoint
from llama_so8t.checkpoint.names import EMBEDDING, OUTPUT, layer_tensor, so8t_tensors
from llama_so8t.errors import CheckpointError
from llama_so8t.files import safetensors_file
from llama_so8t.files.finite import check_finite, finite
from llama_so8t.files.json_file import read_json
from llama_so8t.folding import fold_pair, foldable_sites, is_rotated
from llama_so8t.tensors import LazyTensor

TRAINED_ON = MODEL, BASE = ("model", "base")
"""What an adapter was trained on: the SO8T model, beside its rotations, or its base."""

MERGE = "merge it with PEFT's merge_and_unload() and convert the result"

_MODEL_PREFIX = "base_model.model."

_PARTS = {".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_embedding_A": "A", ".lora_embedding_B": "B"}

_READ = (
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"),
    # what they did is in the tensors, or over
    *("auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config", "exclude_modules"),
    *("inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "modules_to_save"),
    *("peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type"),
)
"""Fields of the configuration that may have any value. All others must be absent, null, false or empty."""

_INITIALIZATIONS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base weights as they are."""

_PATTERN = re.compile(r"[\w.^\\\[\]*+?-]{1,200}")
_MAX_QUANTIFIERS = 3
"""A pattern of ``alpha_pattern`` comes from a file: without groups, and with few of ``* + ?``, it takes no time."""


@dataclass(frozen=True)
class LoraPair:
    """The change of one linear map: ``W' = W + scale B A``.

    ``a`` is ``(r, in)`` and ``b`` ``(out, r)``, float32; of an embedding ``(vocab, d)``, in and out are d and vocab of
    ``W^T``: ``W' = W + scale (B A)^T``.
    """

    name: str
    a: np.ndarray
    b: np.ndarray
    scale: float
    is_embedding: bool = False

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows of the change of W, ``(stop - start, columns of W)`` float32."""
        left, right = (self.a.T, self.b.T) if self.is_embedding else (self.b, self.a)
        return (np.float32(self.scale) * (left[start:stop] @ right)).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Lora:
    """An adapter, read and checked against its model: changes of linear maps, and tensors that replace others."""

    path: Path
    alpha: float
    pairs: Mapping[str, LoraPair]
    replaced: Mapping[str, LazyTensor]


def read_lora(path: Path, checkpoint: Checkpoint, trained_on: str | None = None) -> Lora:
    """Reads an adapter for a model; A and B are read, replaced tensors are not.

    Args:
        path: its directory.
        checkpoint: the model.
        trained_on: one of `TRAINED_ON`. The rotations of a compensated model leave the function of its base as it was,
            so that an adapter for the base serves it too: A and B are then compensated as the weights are. None: the
            model, where no adapter for the base could serve.

    Raises:
        CheckpointError: it is no LoRA of PEFT, has something that is not supported, or does not fit the model; or
            ``trained_on`` is None where both are possible, or ``base`` where that is not.
    """
    _check_trained_on(path, checkpoint, trained_on)
    file = path / CONFIG_NAME
    config = read_json(file)
    _check_config(file, config)
    tensors = _tensors(path)
    pairs, replaced = {}, {}
    halves: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        module, part = _split(name.removeprefix(_MODEL_PREFIX))
        if part is None:
            replaced[module] = tensor
        elif part in halves.setdefault(module, {}):
            raise CheckpointError(f"{path}: tensor {name!r}: found {part} of {module!r} twice")
        else:
            halves[module][part] = tensor
    for module, half in halves.items():
        pair = _pair(path, config, checkpoint, module, half)
        pairs[pair.name] = pair
    _check_replaced(path, checkpoint, pairs, replaced)
    if not pairs and not replaced:
        raise CheckpointError(f"{path / WEIGHTS_NAME}: found no tensor, expected A and B of some linear maps")
    if trained_on == BASE:
        pairs = {name: _compensated(checkpoint, pair) for name, pair in pairs.items()}
        turned = [name for name in replaced if _is_turned(name)]
        if turned:
            raise CheckpointError(
                f"{path}: found tensor {turned[0]!r} of the base as a whole, beside rotations; {MERGE}"
            )
    return Lora(path, float(config["lora_alpha"]), pairs, replaced)


def merged(checkpoint: Checkpoint, lora: Lora) -> Checkpoint:
    """The model with the adapter in its weights: ``W' = W + s B A``, computed in float32 as rows are read.

    Raises:
        CheckpointError: on reading, a weight of the sum is not finite.
    """
    tensors = dict(checkpoint.tensors)
    tensors |= {name: tensor.renamed(name) for name, tensor in lora.replaced.items()}
    for pair in lora.pairs.values():
        tensors[pair.name] = _changed(checkpoint.path, tensors[pair.name], pair)
    return replace(checkpoint, tensors=tensors)


def _check_trained_on(path: Path, checkpoint: Checkpoint, trained_on: str | None) -> None:
    directory = checkpoint.path
    is_adapter = (directory / CONFIG_NAME).is_file()
    is_compensated = is_adapter and adapter.read_fields(directory).get("so8t_compensated") is True
    if trained_on not in (None, *TRAINED_ON):
        raise CheckpointError(f"found trained_on {trained_on!r}, expected one of {', '.join(TRAINED_ON)}")
    if is_compensated and trained_on is None:
        raise CheckpointError(
            f"{path}: the model {directory} computes what its base does, so it may have been trained on either: "
            f"say --lora-trained-on model or --lora-trained-on base"
        )
    if not is_compensated and trained_on == BASE:
        raise CheckpointError(
            f"{path}: an adapter that was trained on the base fits an SO8T adapter that is compensated "
            f"(so8t init --compensate --adapter), found {directory}"
        )


def _compensated(checkpoint: Checkpoint, pair: LoraPair) -> LoraPair:
    found = layer_tensor(pair.name)
    if found is None:
        return pair
    layer, suffix = found
    sites = foldable_sites(checkpoint.spec)
    a, b = fold_pair(suffix, pair.a, pair.b, checkpoint.layer_rotations(layer), sites, inverse=True)
    return replace(pair, a=a, b=b)


def _is_turned(name: str) -> bool:
    found = layer_tensor(name)
    return found is not None and is_rotated(found[1])


def _changed(path: Path, tensor: LazyTensor, pair: LoraPair) -> LazyTensor:
    def add(rows: np.ndarray, start: int) -> np.ndarray:
        changed = rows + pair.rows(start, start + len(rows))
        check_finite(path, tensor.name, changed, start)
        return changed

    return tensor.mapped_rows(add)


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{file}: found peft_type {reprlib.repr(kind)}, expected 'LORA'; {MERGE}")
    for key, value in config.items():
        if key not in _READ and value not in (None, False, "", [], {}):
            field = f"{reprlib.repr(key)} {reprlib.repr(value)}"
            raise CheckpointError(f"{file}: found {field}, which is not supported; {MERGE}")
    initial = config.get("init_lora_weights")
    if not any(initial is value or (isinstance(value, str) and initial == value) for value in _INITIALIZATIONS):
        raise CheckpointError(
            f"{file}: found init_lora_weights {reprlib.repr(initial)}, which changes the weights of the base as well; "
            f"save the adapter with path_initial_model_for_weight_conversion, or {MERGE}"
        )
    alpha = config.get("lora_alpha")
    if not _is_number(alpha) or alpha == 0:
        raise CheckpointError(f"{file}: found lora_alpha {reprlib.repr(alpha)}, expected a finite number other than 0")
    if not isinstance(config.get("use_rslora", False), bool | None):
        raise CheckpointError(f"{file}: found use_rslora {reprlib.repr(config['use_rslora'])}, expected true or false")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
        raise CheckpointError(
            f"{file}: found alpha_pattern {reprlib.repr(patterns)}, expected an object of names and numbers"
        )
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern) or sum(pattern.count(c) for c in "*+?") > _MAX_QUANTIFIERS:
            raise CheckpointError(
                f"{file}: found alpha_pattern for {pattern[:80]!r}, expected the end of a module's name; {MERGE}"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(f"{file}: found alpha_pattern for {pattern[:80]!r}: {error}") from None


def _tensors(path: Path) -> dict[str, LazyTensor]:
    file = path / WEIGHTS_NAME
    if not file.is_file() and (path / "adapter_model.bin").is_file():
        raise CheckpointError(
            f"{path}: found adapter_model.bin, expected {WEIGHTS_NAME}; load it with PEFT and save it again"
        )
    return safetensors_file.read_file(file)


def _split(name: str) -> tuple[str, str | None]:
    """Module and part of a tensor of A or B; name and None of a whole tensor."""
    for suffix, part in _PARTS.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), part
    return name, None


def _pair(
    path: Path, config: Mapping[str, Any], checkpoint: Checkpoint, module: str, half: Mapping[str, LazyTensor]
) -> LoraPair:
    name = f"{module}.weight"
    if name not in checkpoint.tensors:
        tied = f", because it ties its embeddings; {MERGE}" if name == OUTPUT else ""
        raise CheckpointError(f"{path}: found A and B of {name!r}, which the model {checkpoint.path} has not{tied}")
    if name == EMBEDDING and (checkpoint.config.get("tie_word_embeddings") or OUTPUT not in checkpoint.tensors):
        raise CheckpointError(
            f"{path}: found A and B of {name!r}, but the output matrix of {checkpoint.path} is its embedding, "
            f"which would change too; {MERGE}"
        )
    missing = {"A", "B"} - set(half)
    if missing:
        raise CheckpointError(f"{path}: tensor {missing.pop()} of {module!r} is missing")
    shape = checkpoint.shape(name)
    rows, columns = reversed(shape) if name == EMBEDDING else shape
    a, b = half["A"], half["B"]
    rank = a.shape[0] if len(a.shape) == 2 else 0
    if rank < 1 or a.shape != (rank, columns) or b.shape != (rows, rank):
        raise CheckpointError(
            f"{path}: found A {list(a.shape)} and B {list(b.shape)} of {module!r}, "
            f"expected [r, {columns}] and [{rows}, r] for the model {checkpoint.path}"
        )
    alpha = _alpha(config, module)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraPair(name, finite(path, a), finite(path, b), scale, name == EMBEDDING)


def _alpha(config: Mapping[str, Any], module: str) -> float:
    """The alpha of a module: that of the first pattern that its name ends with, as PEFT looks it up."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(alpha)
    return float(config["lora_alpha"])


def _check_replaced(
    path: Path, checkpoint: Checkpoint, pairs: Mapping[str, LoraPair], replaced: dict[str, LazyTensor]
) -> None:
    """Checks whole tensors. PEFT saves the layer under A and B of an embedding too, unchanged: those go."""
    optional = {name: entry.shape for name, entry in so8t_tensors(checkpoint.spec).items() if not entry.required}
    for name in list(replaced):
        under = name.replace(".base_layer.", ".")
        if under != name and under in pairs:
            if replaced[name].shape != checkpoint.shape(under):
                raise CheckpointError(
                    f"{path}: tensor {name!r}: found shape {list(replaced[name].shape)}, expected "
                    f"{list(checkpoint.shape(under))}: the adapter was made for another vocabulary; {MERGE}"
                )
            del replaced[name]
        elif name not in checkpoint.tensors and name not in optional:
            raise CheckpointError(f"{path}: found tensor {name!r}, which the model {checkpoint.path} has not; {MERGE}")
        elif replaced[name].shape != (checkpoint.shape(name) if name in checkpoint.tensors else optional[name]):
            raise CheckpointError(
                f"{path}: tensor {name!r}: found shape {list(replaced[name].shape)}, which the model has not"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2.0**127
