"""Static rotations absorbed into the weights beside them, and the reverse: compensation.

Before a linear map ``W (R x)``: ``W' = W R``. After it ``R (W x + b)``: ``W' = R W``, ``b' = R b``.
Compensation is folding with every R replaced by its transpose, so that folding afterwards, or rotating in
the graph, gives back the function of the uncompensated weights. Arithmetic is float64, results are float32.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np

from llama_so8t import kernels
from llama_so8t.algebra import DIM, rotation
from llama_so8t.errors import AlgebraError, ConversionError
from llama_so8t.format import PER_GROUP, SITES, SiteRotation, generator_name
from llama_so8t.model_spec import ModelSpec

RowStep = Callable[[np.ndarray, int], np.ndarray]
"""Some rows of a tensor, a multiple of 8, and the number of the first one -> those rows, turned; float32."""

_Beside = tuple[str, SiteRotation]
"""A site by name, and one of its rotations."""

_BEFORE: dict[str, list[_Beside]] = {}
"""Linear map of a layer -> rotations of its input, in the order in which they act."""

_AFTER: dict[str, list[_Beside]] = {}
"""Linear map of a layer (weight and bias) -> rotations of its output, in the order in which they act."""

for _site in SITES.values():
    for _rotation in _site.rotations:
        for _linear in _rotation.before:
            _BEFORE.setdefault(_linear, []).append((_site.name, _rotation))
        for _linear in _rotation.after:
            _AFTER.setdefault(_linear, []).append((_site.name, _rotation))


@dataclass(frozen=True)
class LayerRotations:
    """Rotations of one layer by their names in `format.SITES`: ``(n, 8, 8)`` float64, column convention ``y = R x``.

    n is the number of blocks (gate_safe, gate_cmd, ffn; 1 for shared blocks), of heads, each in its representation
    (q; k and v: key-value heads), or of groups of 8 heads (heads). Rotations that the model lacks are absent.
    """

    n_head: int
    matrices: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.matrices[name]

    def product(self, beside: Sequence[_Beside], sites: Collection[str]) -> np.ndarray | None:
        """``R_n ... R_1`` of those rotations that belong to ``sites``, the first one acting first; None of none."""
        found = [self[rotation.name] for site, rotation in beside if site in sites and rotation.name in self.matrices]
        return reduce(lambda acted, rotation: rotation @ acted, found) if found else None


def layer_rotations(spec: ModelSpec, read: Callable[[str], np.ndarray]) -> LayerRotations:
    """Rotations of a layer.

    Args:
        spec: the model.
        read: returns the generator ``(n, 28)`` of a name in `format.SITES`, e.g. ``"gate_safe"``.
    """
    matrices = {}
    for site in (SITES[name] for name in spec.sites):
        generators = {name: np.asarray(read(name), dtype=np.float64) for name in site.generator_names}
        for made in site.rotations:
            coefficients, representations = generators[made.generator], spec.representations(made)
            if representations is None:
                matrices[made.name] = rotation(coefficients)
            else:
                by_representation = {t: rotation(coefficients[0], t) for t in set(representations)}
                matrices[made.name] = np.stack([by_representation[t] for t in representations])
    return LayerRotations(spec.n_head, matrices)


class RotationCache:
    """Rotations of the last few layers asked for: threads read tensors of neighbouring layers.

    ``read`` returns the values ``(n, 28)`` of a generator by its name in a checkpoint, and refuses those that are not
    finite.
    """

    def __init__(self, spec: ModelSpec, read: Callable[[str], np.ndarray]) -> None:
        self.layer: Callable[[int], LayerRotations] = lru_cache(maxsize=4)(
            lambda layer: layer_rotations(spec, lambda generator: read(generator_name(layer, generator)))
        )


def foldable_sites(spec: ModelSpec) -> tuple[str, ...]:
    """Sites that folding absorbs: all but qk where a norm stands between projection and rotation."""
    return tuple(site for site in spec.sites if site not in spec.unfoldable_sites)


def is_rotated(suffix: str) -> bool:
    """Whether a layer tensor (name after ``model.layers.{i}.``) is beside a site."""
    linear, _, part = suffix.rpartition(".")
    return linear in _AFTER or (linear in _BEFORE and part == "weight")


def fold_step(suffix: str, shape: tuple[int, ...], rotations: LayerRotations, sites: Collection[str]) -> RowStep | None:
    """How to absorb the rotations of ``sites`` into a tensor: ``W' = R_after W R_before``, ``b' = R_after b``.

    Args:
        suffix: name after ``model.layers.{i}.``, e.g. ``"self_attn.q_proj.weight"``.
        shape: ``(out, in)`` of a weight or ``(out,)`` of a bias.
        rotations: of this layer.
        sites: sites to absorb; others stay for the graph.

    Returns:
        The step for any of its rows, or None where no site touches the tensor.
    """
    return _step(suffix, shape, rotations, sites, inverse=False)


def fold(suffix: str, tensor: np.ndarray, rotations: LayerRotations, sites: Collection[str]) -> np.ndarray:
    """`fold_step` applied to a whole tensor; float32, shape of ``tensor``."""
    return _turned(tensor, fold_step(suffix, tensor.shape, rotations, sites))


def fold_pair(
    suffix: str,
    a: np.ndarray,
    b: np.ndarray,
    rotations: LayerRotations,
    sites: Collection[str],
    inverse: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """`fold` for a change ``B A`` of a weight, as its two factors: ``A' = A R_before``, ``B' = R_after B``.

    Args:
        suffix: name of the weight after ``model.layers.{i}.``.
        a: ``(r, in)``.
        b: ``(out, r)``.
        rotations: of this layer.
        sites: sites to absorb.
        inverse: `compensate` instead: ``A' = A R_before^T``, ``B' = R_after^T B``.

    Returns:
        float32, in the shapes of ``a`` and ``b``.
    """
    columns, rows = _sides(suffix, (b.shape[0], a.shape[1]), rotations, sites, inverse)
    return _turned(a, _combined(columns, None)), _turned(b, _combined(None, rows))


def compensate_step(suffix: str, shape: tuple[int, ...], rotations: LayerRotations, spec: ModelSpec) -> RowStep | None:
    """How to counter-rotate a tensor, so that the rotated model computes the base: ``W' = R_after^T W R_before^T``.

    Args:
        suffix: name after ``model.layers.{i}.``.
        shape: ``(out, in)`` of a weight or ``(out,)`` of a bias.
        rotations: of this layer.
        spec: the model.

    Returns:
        The step for any of its rows, or None where no site touches the tensor.

    Raises:
        ConversionError: the qk generators are not zero and the base has q/k norms: the norm weight stands
            between projection and rotation and does not commute with it.
    """
    for site in spec.unfoldable_sites:
        if not all(_is_identity(rotations[name]) for name in SITES[site].rotation_names):
            raise ConversionError(
                f"site {site}: a base with q/k norms cannot be compensated for a rotation there; "
                f"its generators have to stay zero"
            )
    return _step(suffix, shape, rotations, foldable_sites(spec), inverse=True)


def compensate(suffix: str, tensor: np.ndarray, rotations: LayerRotations, spec: ModelSpec) -> np.ndarray:
    """`compensate_step` applied to a whole tensor; float32, shape of ``tensor``."""
    return _turned(tensor, compensate_step(suffix, tensor.shape, rotations, spec))


def rotate_columns(weight: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """``W' = W diag(R_1, ..., R_n)``: absorbs a rotation of the input.

    Args:
        weight: ``(out, 8 n)``.
        rotations: ``(n, 8, 8)`` or ``(1, 8, 8)`` for the same rotation of every block.

    Returns:
        ``(out, 8 n)`` float32.

    Raises:
        AlgebraError: the shapes do not fit.
    """
    return _turned(weight, _combined(_columns(weight.shape, rotations), None))


def rotate_rows(tensor: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """``W' = diag(R_h, ..., R_h per head) W``, ``b' = R b``: absorbs a rotation of the output.

    Args:
        tensor: ``(n_head * head_dim, in)`` weight or ``(n_head * head_dim,)`` bias.
        rotations: ``(n_head, 8, 8)``, the same for the head_dim / 8 blocks of a head.

    Returns:
        float32, shape of ``tensor``.

    Raises:
        AlgebraError: the shapes do not fit.
    """
    return _turned(tensor, _combined(None, _rows(tensor.shape, rotations)))


def mix_heads(weight: np.ndarray, mixing: np.ndarray, n_head: int) -> np.ndarray:
    """``W_o' = W_o (C (x) I_head_dim)``: absorbs ``o'_(8g+i) = sum_k C^g[i, k] o_(8g+k)``.

    Args:
        weight: ``(out, n_head * head_dim)``.
        mixing: ``(n_head // 8, 8, 8)``; heads past the last full group stay.
        n_head: number of heads.

    Returns:
        ``(out, n_head * head_dim)`` float32.

    Raises:
        AlgebraError: the shapes do not fit.
    """
    return _turned(weight, _combined(_mixing(weight.shape, mixing, n_head), None))


_Rows = Callable[[int, int], np.ndarray]
"""First row and number of rows -> their matrices ``(rows / 8, 8, 8)``."""


def _step(
    suffix: str, shape: tuple[int, ...], rotations: LayerRotations, sites: Collection[str], inverse: bool
) -> RowStep | None:
    return _combined(*_sides(suffix, shape, rotations, sites, inverse))


def _sides(
    suffix: str, shape: tuple[int, ...], rotations: LayerRotations, sites: Collection[str], inverse: bool
) -> tuple[kernels.ColumnRotation | None, _Rows | None]:
    """What turns the columns and what the rows of a tensor of this shape."""
    linear, _, part = suffix.rpartition(".")
    beside = _BEFORE.get(linear, []) if part == "weight" else []
    before, after = rotations.product(beside, sites), rotations.product(_AFTER.get(linear, []), sites)
    if inverse:
        before, after = (None if matrices is None else matrices.swapaxes(-1, -2) for matrices in (before, after))
    columns = None
    if before is not None and any(rotation.per == PER_GROUP for _, rotation in beside):
        columns = _mixing(shape, before, rotations.n_head)
    elif before is not None:
        columns = _columns(shape, before)
    return columns, None if after is None else _rows(shape, after)


def _combined(columns: kernels.ColumnRotation | None, rows: _Rows | None) -> RowStep | None:
    if columns is None and rows is None:
        return None

    def step(part: np.ndarray, start: int) -> np.ndarray:
        flat = part.reshape(len(part), -1)
        matrices = None if rows is None else rows(start, len(part))
        return kernels.rotate(flat, columns, matrices).reshape(part.shape)

    return step


def _turned(tensor: np.ndarray, step: RowStep | None) -> np.ndarray:
    return tensor.astype(np.float32, copy=False) if step is None else step(tensor, 0)


def _columns(shape: tuple[int, ...], rotations: np.ndarray) -> kernels.ColumnRotation | None:
    width = shape[1]
    if width % DIM or rotations.shape[0] not in (1, width // DIM):
        raise AlgebraError(f"found {rotations.shape[0]} rotations for {width} columns, expected 1 or one per {DIM}")
    return None if _is_identity(rotations) else kernels.ColumnRotation(rotations, width // DIM)


def _rows(shape: tuple[int, ...], rotations: np.ndarray) -> _Rows | None:
    n_head = rotations.shape[0]
    if shape[0] % (n_head * DIM):
        raise AlgebraError(f"found {shape[0]} rows for {n_head} heads, expected {n_head} times a multiple of 8")
    blocks_per_head = shape[0] // (n_head * DIM)
    if _is_identity(rotations):
        return None
    return lambda start, count: rotations[(start // DIM + np.arange(count // DIM)) // blocks_per_head]


def _mixing(shape: tuple[int, ...], mixing: np.ndarray, n_head: int) -> kernels.ColumnRotation | None:
    width, groups = shape[1], n_head // DIM
    if width % n_head or mixing.shape[0] != groups:
        raise AlgebraError(f"found {mixing.shape[0]} mixings for {n_head} heads and {width} columns")
    # W'[k] = sum_i W[i] C[i, k]: columns of one head are head_dim apart
    return None if _is_identity(mixing) else kernels.ColumnRotation(mixing, groups, width // n_head)


def _is_identity(rotations: np.ndarray) -> bool:
    # a product with the identity would still turn -0 into 0 and infinity into NaN
    return bool((rotations == np.eye(DIM)).all())
