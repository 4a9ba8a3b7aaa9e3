"""Static rotations absorbed into the weights beside them, and the reverse: compensation.

Before a linear map ``W (R x)``: ``W' = W R``. After it ``R (W x + b)``: ``W' = R W``, ``b' = R b``.
Compensation is folding with every R replaced by its transpose, so that folding afterwards, or rotating in
the graph, gives back the function of the uncompensated weights. Arithmetic is float64, results are float32.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from llama_so8t.algebra import DIM, rotation
from llama_so8t.errors import AlgebraError, ConversionError
from llama_so8t.layout import GENERATORS
from llama_so8t.model_spec import ModelSpec

_CHUNK = 1 << 20
"""Elements per float64 step: bounds the extra memory to a few MB whatever the tensor."""

_INPUT_ROTATION = {
    "self_attn.q_proj.weight": ("gate", "gate"),
    "self_attn.k_proj.weight": ("gate", "gate"),
    "self_attn.v_proj.weight": ("gate", "gate"),
    "self_attn.o_proj.weight": ("heads", "heads"),
    "mlp.gate_proj.weight": ("ffn", "ffn"),
    "mlp.up_proj.weight": ("ffn", "ffn"),
}
"""Layer tensor -> (site, rotation) that acts on its input."""

_OUTPUT_ROTATION = {
    "self_attn.q_proj": ("qk", "q"),
    "self_attn.k_proj": ("qk", "k"),
    "self_attn.v_proj": ("v", "v"),
}
"""Linear map (weight and bias) -> (site, rotation) that acts on its output."""


@dataclass(frozen=True)
class LayerRotations:
    """Rotations of one layer, float64, column convention ``y = R x``; None where the model lacks the site.

    ``gate``: ``(nb, 8, 8)`` the product ``R_cmd R_safe``; ``gate_safe``, ``gate_cmd``: its factors.
    ``q``: ``(n_head, 8, 8)``; ``k``, ``v``: ``(n_head_kv, 8, 8)``: one per head, in its representation.
    ``heads``: ``(n_head // 8, 8, 8)`` mixing of head groups. ``ffn``: ``(nb, 8, 8)``.
    """

    gate_safe: np.ndarray | None
    gate_cmd: np.ndarray | None
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    heads: np.ndarray | None
    ffn: np.ndarray

    @property
    def gate(self) -> np.ndarray | None:
        """``R_cmd R_safe``: R_safe acts first."""
        if self.gate_safe is None or self.gate_cmd is None:
            return None
        return self.gate_cmd @ self.gate_safe


def layer_rotations(spec: ModelSpec, read: Callable[[str], np.ndarray]) -> LayerRotations:
    """Rotations of a layer.

    Args:
        spec: the model.
        read: returns the generator ``(n, 28)`` of a name of `layout.GENERATORS`, e.g. ``"gate_safe"``.
    """
    found = {
        generator: np.asarray(read(generator), dtype=np.float64)
        for site in spec.sites
        for generator in GENERATORS[site]
    }

    def per_head(generator: str, representations: tuple[int, ...]) -> np.ndarray:
        by_representation = {t: rotation(found[generator][0], t) for t in set(representations)}
        return np.stack([by_representation[t] for t in representations])

    return LayerRotations(
        gate_safe=rotation(found["gate_safe"]) if "gate_safe" in found else None,
        gate_cmd=rotation(found["gate_cmd"]) if "gate_cmd" in found else None,
        q=per_head("qk", spec.head_representation),
        k=per_head("qk", spec.head_kv_representation),
        v=per_head("v", spec.head_kv_representation),
        heads=rotation(found["heads"]) if "heads" in found else None,
        ffn=rotation(found["ffn"]),
    )


def foldable_sites(spec: ModelSpec) -> tuple[str, ...]:
    """Sites that folding absorbs: all but qk where a norm stands between projection and rotation."""
    return tuple(site for site in spec.sites if site != "qk" or not spec.has_qk_norm)


def is_rotated(suffix: str) -> bool:
    """Whether a layer tensor (name after ``model.layers.{i}.``) is beside a site."""
    return suffix in _INPUT_ROTATION or suffix.rpartition(".")[0] in _OUTPUT_ROTATION


def fold(suffix: str, tensor: np.ndarray, rotations: LayerRotations, sites: Collection[str]) -> np.ndarray:
    """Absorbs the rotations of ``sites`` into a tensor: ``W' = R_after W R_before``, ``b' = R_after b``.

    Args:
        suffix: name after ``model.layers.{i}.``, e.g. ``"self_attn.q_proj.weight"``.
        tensor: ``(out, in)`` weight or ``(out,)`` bias.
        rotations: of this layer.
        sites: sites to absorb; others stay for the graph.

    Returns:
        float32, shape of ``tensor``; the values themselves where no site touches the tensor.
    """
    return _apply(suffix, tensor, rotations, sites, inverse=False)


def compensate(suffix: str, tensor: np.ndarray, rotations: LayerRotations, spec: ModelSpec) -> np.ndarray:
    """Counter-rotates a tensor, so that the rotated model computes the base: ``W' = R_after^T W R_before^T``.

    Args:
        suffix: name after ``model.layers.{i}.``.
        tensor: ``(out, in)`` weight or ``(out,)`` bias.
        rotations: of this layer.
        spec: the model.

    Returns:
        float32, shape of ``tensor``.

    Raises:
        ConversionError: the qk generators are not zero and the base has q/k norms: the norm weight stands
            between projection and rotation and does not commute with it.
    """
    if spec.has_qk_norm and not (_is_identity(rotations.q) and _is_identity(rotations.k)):
        raise ConversionError(
            "site qk: a base with q/k norms cannot be compensated for a rotation there; "
            "its generators have to stay zero"
        )
    return _apply(suffix, tensor, rotations, foldable_sites(spec), inverse=True)


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
    return _turn(weight, _columns_step(weight, rotations), None)


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
    return _turn(tensor, None, _rows_step(tensor, rotations))


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
    return _turn(weight, _mixing_step(weight, mixing, n_head), None)


_Step = Callable[[np.ndarray, int], np.ndarray]
"""Some rows of a tensor in float64 and the number of the first one -> those rows, turned."""


def _apply(
    suffix: str, tensor: np.ndarray, rotations: LayerRotations, sites: Collection[str], inverse: bool
) -> np.ndarray:
    def find(entry: tuple[str, str] | None) -> np.ndarray | None:
        if entry is None or entry[0] not in sites:
            return None
        found = getattr(rotations, entry[1])
        return found.swapaxes(-1, -2) if inverse and found is not None else found

    before = find(_INPUT_ROTATION.get(suffix))
    after = find(_OUTPUT_ROTATION.get(suffix.rpartition(".")[0]))
    if before is None:
        first = None
    elif suffix == "self_attn.o_proj.weight":
        first = _mixing_step(tensor, before, len(rotations.q))
    else:
        first = _columns_step(tensor, before)
    return _turn(tensor, first, None if after is None else _rows_step(tensor, after))


def _turn(tensor: np.ndarray, first: _Step | None, second: _Step | None) -> np.ndarray:
    if first is None and second is None:
        return tensor.astype(np.float32, copy=False)
    flat = tensor.reshape(tensor.shape[0], -1)
    result = np.empty(flat.shape, dtype=np.float32)
    # a multiple of 8 rows, so that no block of the output is torn
    step = DIM * max(1, _CHUNK // (DIM * flat.shape[1]))
    for start in range(0, len(flat), step):
        part = flat[start : start + step].astype(np.float64)
        for turn in (first, second):
            part = part if turn is None else turn(part, start)
        result[start : start + step] = part
    return result.reshape(tensor.shape)


def _columns_step(weight: np.ndarray, rotations: np.ndarray) -> _Step | None:
    width = weight.shape[1]
    if width % DIM or rotations.shape[0] not in (1, width // DIM):
        raise AlgebraError(
            f"found {rotations.shape[0]} rotations for {width} columns, expected 1 or one per {DIM}"
        )
    if _is_identity(rotations):
        return None

    def step(part: np.ndarray, start: int) -> np.ndarray:
        blocks = part.reshape(-1, width // DIM, DIM)
        if rotations.shape[0] == 1:
            return (blocks @ rotations[0]).reshape(part.shape)
        # (blocks, rows, 8) @ (blocks, 8, 8): one product per block
        return (blocks.swapaxes(0, 1) @ rotations).swapaxes(0, 1).reshape(part.shape)

    return step


def _rows_step(tensor: np.ndarray, rotations: np.ndarray) -> _Step | None:
    n_head = rotations.shape[0]
    if tensor.shape[0] % (n_head * DIM):
        raise AlgebraError(
            f"found {tensor.shape[0]} rows for {n_head} heads, expected {n_head} times a multiple of 8"
        )
    if _is_identity(rotations):
        return None
    blocks_per_head = tensor.shape[0] // (n_head * DIM)

    def step(part: np.ndarray, start: int) -> np.ndarray:
        blocks = part.reshape(-1, DIM, part.shape[1])
        head = (start // DIM + np.arange(len(blocks))) // blocks_per_head
        return (rotations[head] @ blocks).reshape(part.shape)

    return step


def _mixing_step(weight: np.ndarray, mixing: np.ndarray, n_head: int) -> _Step | None:
    width, groups = weight.shape[1], n_head // DIM
    if width % n_head or mixing.shape[0] != groups:
        raise AlgebraError(f"found {mixing.shape[0]} mixings for {n_head} heads and {width} columns")
    if _is_identity(mixing):
        return None
    mixed = groups * DIM * (width // n_head)

    def step(part: np.ndarray, start: int) -> np.ndarray:
        grouped = part[:, :mixed].reshape(len(part), groups, DIM, -1)  # (rows, groups, i, head_dim)
        # W'[k] = sum_i C[i, k] W[i]
        turned = mixing.swapaxes(-1, -2) @ grouped
        return np.concatenate([turned.reshape(len(part), mixed), part[:, mixed:]], axis=1)

    return step


def _is_identity(rotations: np.ndarray) -> bool:
    # a product with the identity would still turn -0 into 0 and infinity into NaN
    return bool((rotations == np.eye(DIM)).all())
