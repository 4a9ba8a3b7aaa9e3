"""SingProbe directories as heads: risks of a prompt, harm and invention at each token of an answer.

A probe reads what enters some layers of its base, each divided by its RMS (eps 1e-6, no weight), one behind the other.
Its form is attention over these, or two linear maps with a GELU between them; ten rows follow, of which each holds or
not by itself: seven risks of the query, that it is safe, harm in the answer, invention in the answer. A row holds
where its logit is above 0.

Sources: SingProbe Technical Report, https://arxiv.org/abs/2608.30703. Names of tensors and fields are those that its
training code writes: scripts/convert_checkpoint_to_safetensors.py and scripts/modeling_sing_probe.py of
https://github.com/inclusionAI/SingProbe at 12a9441d817269b2d80b0975809743c29bda320c.
"""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t.errors import CheckpointError, ConfigError
from llama_so8t.files.finite import finite
from llama_so8t.files.json_file import read_json
from llama_so8t.files.safetensors_file import read_file
from llama_so8t.format import (
    ACTIONS,
    ATTENTION,
    HEAD_DIM,
    INNER,
    MLP,
    READ,
    SIGMOID,
    STEM_TENSORS,
    TAP_NORM_RMS,
    HeadSpec,
    Tensors,
)
from llama_so8t.tensors import LazyTensor

STEM = "singprobe"

DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class ProbeForm:
    """A form of probe: the activation of its stem, tensor -> part of the stem, and the prefix of its ten rows."""

    activation: str
    form: str
    parts: Mapping[str, str]
    rows: str


FORMS = {
    "sing_probe_attn": ProbeForm(
        "attention",
        ATTENTION,
        {
            "proj_q.weight": "attn_q.weight",
            "proj_k.weight": "attn_k.weight",
            "proj_v.weight": "attn_v.weight",
            "o_proj.weight": "attn_output.weight",
            "norm.weight": "norm.weight",
        },
        "classifier",
    ),
    "sing_probe_mlp": ProbeForm("gelu", MLP, {"fc1.weight": "weight", "fc1.bias": "bias"}, "fc2"),
}
"""By ``model_type`` of ``config.json``."""


@dataclass(frozen=True)
class ProbeHead:
    """Some rows of a probe that are read at the same places; ``actions`` of their labels, unless others are asked."""

    name: str
    rows: slice
    scope: str
    labels: tuple[str, ...]
    actions: tuple[str, ...]


HEADS = (
    ProbeHead("query", slice(0, 8), "prompt", (*"ABCDEFG", "safe"), (*["refuse"] * 7, "allow")),
    ProbeHead("response", slice(8, 9), "answer", ("unsafe",), ("refuse",)),
    ProbeHead("hallucination", slice(9, 10), "answer", ("hallucination",), ("allow",)),
)
"""In the order of the rows. The labels are those of a directory that names none."""

N_ROWS = 10

_SHOWN = 20
"""Tensors that an error lists: more than a probe has."""

HALF = 0.5
"""Threshold of every label: the probability of the logit 0."""


@dataclass(frozen=True)
class Probe:
    """Heads on one stem, with tensors under their names in a file, and the width of their base."""

    path: Path
    heads: tuple[HeadSpec, ...]
    tensors: tuple[LazyTensor, ...]
    hidden_size: int


def open_probe(path: Path, actions: Mapping[str, str] | None = None) -> Probe:
    """Reads a SingProbe directory: ``config.json`` and one safetensors file; weights are read when asked.

    Args:
        path: the directory.
        actions: label -> action, where it is not that of `HEADS`.

    Raises:
        CheckpointError: something is missing, malformed, or does not fit; names file and tensor.
        ConfigError: a label or an action is unknown.
    """
    where = path / "config.json"
    config = read_json(where)
    form = FORMS.get(str(config.get("model_type")).lower())
    if form is None:
        raise CheckpointError(
            f"{where}: found model_type {reprlib.repr(config.get('model_type'))}, expected {' or '.join(FORMS)}"
        )
    file, found = _tensors(path)
    stem, weight, bias = _parts(file, found, form)
    taps = _taps(where, config)
    hidden_size = _check_shapes(where, config, stem, (weight, bias), len(taps))
    window = _number(where, config, "sliding_window", 0, smallest=0) if form.form == ATTENTION else 0
    heads = _heads(where, config, form, taps, window)
    heads = _with_actions(heads, actions or {})
    tensors = [tensor.renamed(Tensors.STEM.format(stem=STEM, part=part)) for part, tensor in stem.items()]
    for head, spec in zip(HEADS, heads, strict=True):
        tensors.append(_rows(weight, Tensors.HEAD_WEIGHT.format(name=spec.name), head.rows))
        tensors.append(_rows(bias, Tensors.HEAD_BIAS.format(name=spec.name), head.rows))
    return Probe(path, heads, tuple(tensors), hidden_size)


def _tensors(path: Path) -> tuple[Path, dict[str, LazyTensor]]:
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(f"{path}: found the safetensors files {found}, expected one")
    return files[0], read_file(files[0])


def _parts(
    file: Path, found: Mapping[str, LazyTensor], form: ProbeForm
) -> tuple[dict[str, LazyTensor], LazyTensor, LazyTensor]:
    """Tensors of the stem by part, weight and bias of the rows. A wrapper may have put one prefix before all names."""
    wanted = (*form.parts, f"{form.rows}.weight", f"{form.rows}.bias")
    prefixes = {name.removesuffix(wanted[-2]) for name in found if f".{name}".endswith(f".{wanted[-2]}")}
    prefix = next(iter(prefixes)) if len(prefixes) == 1 else ""
    if set(found) != {prefix + name for name in wanted}:
        shown = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in list(found.items())[:_SHOWN]) or "none"
        raise CheckpointError(
            f"{file}: found the tensors {shown}{', ...' if len(found) > _SHOWN else ''}, expected {', '.join(wanted)}"
        )
    for tensor in found.values():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{file}: tensor {tensor.name!r}: found type {tensor.dtype}, expected {', '.join(DTYPES)}"
            )
    exact = {
        name: LazyTensor(name, found[prefix + name].shape, "F32", partial(finite, file, found[prefix + name]))
        for name in wanted
    }
    weight, bias = exact.pop(wanted[-2]), exact.pop(wanted[-1])
    return {form.parts[name]: tensor for name, tensor in exact.items()}, weight, bias


def _taps(where: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    layers = config.get("base_model_layer_ids")
    if (
        not isinstance(layers, list)
        or not layers
        or not all(type(layer) is int and layer >= 0 for layer in layers)
        or len(set(layers)) != len(layers)
    ):
        raise CheckpointError(
            f"{where}: found base_model_layer_ids {reprlib.repr(layers)}, expected the numbers of different layers"
        )
    return tuple(layers)


def _check_shapes(
    where: Path,
    config: Mapping[str, Any],
    stem: Mapping[str, LazyTensor],
    rows: tuple[LazyTensor, LazyTensor],
    n_taps: int,
) -> int:
    """Compares the tensors with each other and with what the configuration says; returns the width of the base."""
    first = next(iter(stem.values()))
    if len(first.shape) != 2 or not all(first.shape) or first.shape[1] % n_taps:
        raise CheckpointError(
            f"{where.parent}: tensor {first.name!r}: found shape {list(first.shape)}, expected a matrix whose columns "
            f"are a multiple of the {n_taps} base_model_layer_ids"
        )
    inner, n_in = first.shape
    hidden_size = _number(where, config, "hidden_size", n_in // n_taps)
    head_dim = 1
    if "attn_k.weight" in stem:
        head_dim = _number(where, config, "head_dim", max(stem["attn_k.weight"].shape[:1], default=1) or 1)
        inner = head_dim * _number(where, config, "num_attention_heads", max(inner // head_dim, 1))
    else:
        inner = _number(where, config, "intermediate_size", inner)
        if config.get("hidden_act", "gelu") != "gelu":
            raise CheckpointError(
                f"{where}: found hidden_act {reprlib.repr(config['hidden_act'])}, expected 'gelu'; "
                "a heads file has no other one"
            )
    n_rows = _number(where, config, "num_labels", N_ROWS)
    if n_rows != N_ROWS:
        raise CheckpointError(
            f"{where}: found num_labels {n_rows}, expected {N_ROWS}; the meaning of other rows cannot be guessed"
        )
    sizes = {READ: hidden_size * n_taps, INNER: inner, HEAD_DIM: head_dim}
    expected = {stem[part].name: tuple(sizes[size] for size in STEM_TENSORS[part].sizes) for part in stem}
    expected |= {rows[0].name: (N_ROWS, inner), rows[1].name: (N_ROWS,)}
    for tensor in (*stem.values(), *rows):
        if tensor.shape != expected[tensor.name]:
            raise CheckpointError(
                f"{where.parent}: tensor {tensor.name!r}: found shape {list(tensor.shape)}, "
                f"expected {list(expected[tensor.name])} by config.json and the other tensors"
            )
    return hidden_size


def _number(where: Path, config: Mapping[str, Any], key: str, default: int, smallest: int = 1) -> int:
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not int or not smallest <= value < 1 << 31:
        raise CheckpointError(f"{where}: found {key} {reprlib.repr(value)}, expected a whole number from {smallest} on")
    return value


def _heads(
    where: Path, config: Mapping[str, Any], form: ProbeForm, taps: tuple[int, ...], window: int
) -> tuple[HeadSpec, ...]:
    labels = config.get("labels")
    if labels is not None and (not isinstance(labels, list) or len(labels) != N_ROWS):
        raise CheckpointError(f"{where}: found labels {reprlib.repr(labels)}, expected a list of {N_ROWS} texts")
    base = config.get("base_model_name")
    source = {"made_by": "SingProbe", "paper": "arXiv:2608.30703", "base": base if isinstance(base, str) else None}
    common: dict[str, Any] = {
        "activation": form.activation,
        "stem": STEM,
        "taps": taps,
        "tap_norm": TAP_NORM_RMS,
        "link": SIGMOID,
        "sliding_window": window,
        "provenance": json.dumps(source, ensure_ascii=False),
    }
    return tuple(
        HeadSpec(
            name=head.name,
            labels=head.labels if labels is None else tuple(labels[head.rows]),
            actions=head.actions,
            thresholds=(HALF,) * len(head.actions),
            scope=head.scope,
            **common,
        )
        for head in HEADS
    )


def _with_actions(heads: tuple[HeadSpec, ...], actions: Mapping[str, str]) -> tuple[HeadSpec, ...]:
    known = [label for head in heads for label in head.labels]
    for label, action in actions.items():
        if known.count(label) != 1:
            raise ConfigError(f"found an action for the label {label!r}, expected one of {', '.join(known)}")
        if action not in ACTIONS:
            raise ConfigError(f"found the action {action!r} for {label!r}, expected one of {', '.join(ACTIONS)}")
    return tuple(
        replace(head, actions=tuple(actions.get(*pair) for pair in zip(head.labels, head.actions, strict=True)))
        for head in heads
    )


def _rows(tensor: LazyTensor, name: str, rows: slice) -> LazyTensor:
    def read() -> np.ndarray:
        return tensor.read()[rows]

    return LazyTensor(name, (rows.stop - rows.start, *tensor.shape[1:]), "F32", read, exact=True)
