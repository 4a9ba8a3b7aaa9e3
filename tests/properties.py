"""What must hold of rotations and models, whoever computed them: from the definitions, in float64 by numpy alone."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "so8_golden.json"


def assert_in_so8(rotations: Any, atol: float) -> None:
    """``R^T R = I`` and ``det R = +1`` for every ``R`` of ``(..., 8, 8)``.

    Args:
        rotations: numpy or torch, without gradient.
        atol: largest absolute error of an entry of ``R^T R``, and of the determinant.
    """
    found = np.asarray(rotations, dtype=np.float64)
    assert found.shape[-2:] == (8, 8) and found.size, f"found shape {found.shape}, expected (..., 8, 8)"
    error = np.abs(np.swapaxes(found, -1, -2) @ found - np.eye(8)).max()
    assert error <= atol, f"R^T R differs from I by {error:.2e}, allowed {atol:.0e}"
    error = np.abs(np.linalg.det(found) - 1).max()
    assert error <= atol, f"det R differs from +1 by {error:.2e}, allowed {atol:.0e}"


def assert_triality(vector: Any, spinor_plus: Any, spinor_minus: Any, atol: float) -> None:
    """``R_s+ (G v) = G(R_v v) R_s-`` for every v, with ``G v = sum_a v_a G_a`` and the golden octonion units ``G_a``.

    Args:
        vector: ``R_v``, ``(..., 8, 8)``, and so the two spinors, all of the same generators.
        spinor_plus: ``R_s+``.
        spinor_minus: ``R_s-``.
        atol: largest absolute error.
    """
    of_vector, plus, minus = (np.asarray(r, dtype=np.float64) for r in (vector, spinor_plus, spinor_minus))
    assert of_vector.shape == plus.shape == minus.shape and of_vector.size
    units = _units()
    for a in range(8):
        turned = np.tensordot(of_vector[..., a], units, axes=(-1, 0))  # G(R_v e_a)
        error = np.abs(plus @ units[a] - turned @ minus).max()
        assert error <= atol, f"the triality identity for axis {a} is off by {error:.2e}, allowed {atol:.0e}"


def assert_same_function(found: Any, expected: Any, margin: float, scale: float | None = None) -> None:
    """Values of one model, computed in two ways: of the same names and shapes, and no further apart than the margin.

    Args:
        found: an array, numpy or torch, or several by name.
        expected: the same.
        margin: largest difference. 0: every bit, and the dtype too.
        scale: what the margin is relative to; None: it is absolute.
    """
    if isinstance(expected, Mapping):
        assert list(found) == list(expected), f"found {list(found)}, expected {list(expected)}"
        for name in expected:
            _assert_close(name, found[name], expected[name], margin, scale)
    else:
        _assert_close("values", found, expected, margin, scale)


def _assert_close(name: str, found: Any, expected: Any, margin: float, scale: float | None) -> None:
    if margin == 0:
        assert found.dtype == expected.dtype, f"{name}: found {found.dtype}, expected {expected.dtype}"
    found, expected = (_float64(values) for values in (found, expected))
    assert found.shape == expected.shape, f"{name}: found shape {found.shape}, expected {expected.shape}"
    assert found.size, f"{name}: no values"
    difference = np.abs(found - expected).max() / (1.0 if scale is None else scale)
    of = "" if scale is None else f" of {scale:.3g}"
    assert difference <= margin, f"{name}: differs by {difference:.2e}{of}, allowed {margin:.0e}"


def _float64(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # torch; numpy has no bfloat16
        values = values.detach().double()
    return np.asarray(values, dtype=np.float64)


@cache
def _units() -> np.ndarray:
    return np.array(json.loads(GOLDEN.read_text())["G"], dtype=np.float64)
