"""Checks that need no verdict: numbers that are not finite, weights and gates that were never trained."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from llama_so8t.algebra import coefficients, determinant, orthogonality_error
from llama_so8t.diagnosis.report import Gate
from llama_so8t.errors import AlgebraError, CheckpointError
from llama_so8t.published import Layout, Signature
from llama_so8t.published.restore import builder_of
from llama_so8t.published.rotations import column_form

_SHOWN = 3


def listed(names: Iterable[str]) -> str:
    """The first names of many, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more


def is_default_init(weight: np.ndarray) -> bool:
    """Whether a matrix looks like a fresh ``nn.Linear``: uniform within ``+-1 / sqrt(fan_in)``.

    Args:
        weight: ``(out, in)`` floats; of thousands of entries, or chance decides.
    """
    if weight.ndim != 2 or weight.size < 1024:
        return False
    bound = 1 / math.sqrt(weight.shape[1])
    return 0.97 * bound < float(np.abs(weight).max()) < 1.01 * bound and is_flat(weight)


def is_flat(values: np.ndarray) -> bool:
    """Whether floats of any shape are spread uniformly from -m to m: a standard deviation of m / sqrt(3)."""
    with np.errstate(over="ignore", invalid="ignore"):  # floats of damaged files
        largest, deviation = float(np.abs(values).max(initial=0)), float(values.std(dtype=np.float64))
    return largest > 0 and abs(deviation * math.sqrt(3) / largest - 1) < 0.03


def weight_problems(tensors: Mapping[str, Any]) -> list[str]:
    """Reads every tensor once; one line for those that are unreadable, those with NaN or infinity, and for linear
    maps in the state in which PyTorch makes them."""
    unreadable, infinite, fresh, linear = [], [], [], 0
    for name, tensor in tensors.items():
        try:
            values = tensor.read()
        except CheckpointError as error:
            unreadable.append(str(error))
            continue
        if not np.isfinite(values).all():
            infinite.append(name)
        elif values.ndim == 2 and name.endswith("_proj.weight"):
            linear += 1
            fresh += [name] if is_default_init(values) else []
    problems = unreadable[:_SHOWN]
    if infinite:
        problems.append(f"NaN or infinity in {listed(infinite)}")
    if fresh and 2 * len(fresh) >= linear:
        problems.append(
            f"{len(fresh)} of {linear} linear maps are uniform within 1 / sqrt(fan_in), the state in which PyTorch "
            f"makes them: they were never trained or never loaded"
        )
    return problems


def gate_measures(
    found: Signature, read: Callable[[str], np.ndarray], config: Mapping[str, Any]
) -> tuple[list[Gate], list[str]]:
    """Rotations of every parameter tensor whose formula is known, and what is wrong with the tensors.

    Args:
        found: the layout and its tensors.
        read: name of a tensor -> its values, in the shape of `Layout.shape`.
        config: config.json of the model, which may say that a gate has another formula.
    """
    builder = builder_of(found.layout, config)
    gates, problems = [], []
    if builder is None:
        return [], []
    for name, layer in found.parameters.items():
        try:
            rotation = column_form(builder(read(name)), found.layout.side or "").reshape(-1, 8, 8)
        except (AlgebraError, CheckpointError) as error:
            problems.append(f"tensor {name!r}: {error}")
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            errors = [orthogonality_error(rotation), np.abs(determinant(rotation) - 1)]
        gates.append(Gate(name, layer, len(rotation), *(float(np.max(error, initial=0)) for error in errors)))
    return gates, problems


def gate_notes(layout: Layout, thetas: list[np.ndarray]) -> list[str]:
    """Gates that turn nothing, or whose numbers look like those with which training starts.

    Only the skew part counts: nothing else of theta reaches R, so nothing else is trained.

    Args:
        layout: says how its training starts.
        thetas: parameters of the gates, ``(nb, 8, 8)`` each; of other shapes only zeros are told.
    """
    if not thetas:
        return []
    if not any(theta.any() for theta in thetas):
        return ["all gates are zero: every rotation is the identity"]
    if any(theta.shape[-2:] != (8, 8) for theta in thetas):
        return []
    skew = np.concatenate([coefficients(theta - theta.swapaxes(-1, -2)).reshape(-1) for theta in thetas])
    # the difference of two normal numbers of standard deviation s has s sqrt(2)
    with np.errstate(over="ignore", invalid="ignore"):
        spread, mean, n = float(skew.std()) / math.sqrt(2), float(skew.mean()) / math.sqrt(2), skew.size
    for scale in layout.init_scales:
        if abs(mean) < 4 * scale / math.sqrt(n) and abs(spread - scale) < 4 * scale / math.sqrt(2 * n):
            return [
                f"the numbers of the gates (standard deviation {spread:.4g}) are those with which training starts "
                f"({scale:g}): the gates look untrained"
            ]
    return []
