"""A checkpoint or adapter directory as a `Subject`: generators alone, nothing is folded or stored yet."""

from pathlib import Path

import numpy as np

from llama_so8t.checkpoint import Checkpoint, adapter, open_checkpoint
from llama_so8t.errors import CheckpointError
from llama_so8t.format import ARCH, OUT, OUT_GENERATOR, SITES, HeadSpec, generator_name, head_tensor_prefix
from llama_so8t.inspection.subject import (
    Generator,
    HeadTensors,
    Subject,
    computed,
    head_problem,
    used_representations,
)


def open_directory(path: Path, base: str | None = None) -> Subject:
    """Reads generators and heads of a model directory.

    Args:
        path: full checkpoint or adapter.
        base: for an adapter, the base to use instead of the one that it names.

    Raises:
        CheckpointError: missing, damaged, or a base model without SO8T.
        ConfigError: a configuration that contradicts itself.
    """
    checkpoint = open_checkpoint(path, base)
    if not checkpoint.is_so8t:
        raise CheckpointError(f"{path}: found a {checkpoint.spec.base_model_type} base model, expected an SO8T model")
    spec = checkpoint.spec
    is_adapter = (path / adapter.CONFIG_NAME).is_file()
    return Subject(
        path=str(path),
        format="adapter" if is_adapter else "checkpoint",
        architecture=ARCH,
        base_architecture=spec.base_model_type,
        format_version=None,
        n_layer=spec.n_layer,
        hidden_size=spec.hidden_size,
        n_head=spec.n_head,
        n_head_kv=spec.n_head_kv,
        head_dim=spec.head_dim,
        compensated=bool(adapter.read_fields(path).get("so8t_compensated")) if is_adapter else None,
        generators=tuple(_generators(checkpoint)),
        heads=tuple(_head(checkpoint, head) for head in spec.heads.values()),
    )


def _generators(checkpoint: Checkpoint) -> list[Generator]:
    spec = checkpoint.spec
    places = [
        (layer, site, name, generator_name(layer, name))
        for layer in range(spec.n_layer)
        for site in spec.sites
        for name in SITES[site].generator_names
    ]
    found = []
    for layer, site, name, tensor in [*places, (None, OUT, OUT, OUT_GENERATOR)]:
        used = used_representations(site, spec.head_representation, spec.head_kv_representation, spec.heads)
        coefficients = checkpoint.load(tensor).astype(np.float64)
        rotations = (computed(tensor, coefficients, used),)
        found.append(Generator(layer, site, name, tensor, "checkpoint", coefficients, rotations))
    return found


def _head(checkpoint: Checkpoint, spec: HeadSpec) -> HeadTensors:
    prefix = head_tensor_prefix(spec.name)
    weight = checkpoint.load(f"{prefix}.weight")
    bias = checkpoint.load(f"{prefix}.bias") if f"{prefix}.bias" in checkpoint.tensors else None
    # the checkpoint reader has compared the width with the hidden size or with the stem
    problem = head_problem(spec, weight, bias, weight.shape[-1])
    return HeadTensors(spec, weight.shape, float(np.linalg.norm(weight.astype(np.float64))), bias is not None, problem)
