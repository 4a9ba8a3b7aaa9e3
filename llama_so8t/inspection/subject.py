"""What is inspected: the rotations and heads of one model, whatever file they came from."""

from dataclasses import dataclass

import numpy as np

from llama_so8t.algebra import DIM, REPRESENTATIONS, VECTOR, rotation
from llama_so8t.format import OUT, PER_HEAD, PER_HEAD_KV, SITES, HeadSpec

TRIALITY_SITES = (*(name for name, site in SITES.items() if site.is_triality), OUT)
"""Sites that use one generator in several representations."""


@dataclass(frozen=True)
class RotationTensor:
    """Rotations that act in the model: read from the file, or computed from the generator.

    ``rotations`` is (m, 8, 8) float64 and ``representations`` names the one of each matrix.
    """

    name: str
    rotations: np.ndarray
    representations: tuple[int, ...]
    stored: bool


@dataclass(frozen=True)
class Generator:
    """One generator tensor and the rotations made from it.

    ``layer`` is None for the site out. ``state`` is "explicit" (in the graph), "folded" (absorbed into the
    weights) or "checkpoint" (not converted yet). ``coefficients`` is (n, 28) float64.
    """

    layer: int | None
    site: str
    name: str
    tensor: str
    state: str
    coefficients: np.ndarray
    tensors: tuple[RotationTensor, ...]

    def expected(self, representation: int) -> np.ndarray:
        """Exponential of the stored coefficients, (n, 8, 8) float64; NaN where they are not finite."""
        return exponential(self.coefficients, representation)

    def of_representation(self, representation: int) -> np.ndarray:
        """All rotations of one representation, read where the file has them, ``(m, 8, 8)`` float64."""
        found = [tensor.rotations[[r == representation for r in tensor.representations]] for tensor in self.tensors]
        found = [rotations for rotations in found if len(rotations)]
        return np.concatenate(found) if found else self.expected(representation)


@dataclass(frozen=True)
class HeadTensors:
    """A head and what its tensors look like; ``problem`` says what is wrong with them."""

    spec: HeadSpec
    weight_shape: tuple[int, ...]
    weight_norm: float
    has_bias: bool
    problem: str | None = None

    @property
    def fitted(self) -> bool:
        """Whether a weight is not zero; `so8t init` writes zeros, and a head of zeros does not act."""
        return self.weight_norm != 0


@dataclass(frozen=True)
class Subject:
    """One model: where it came from, its shape, generators and heads.

    A heads file may not say of what architecture and depth its base is, and never says how it attends: None. It may
    have the hash of the tensors of its base.
    """

    path: str
    format: str
    architecture: str
    base_architecture: str | None
    format_version: int | None
    n_layer: int | None
    hidden_size: int
    n_head: int | None
    n_head_kv: int | None
    head_dim: int | None
    compensated: bool | None
    base_sha256: str | None = None
    generators: tuple[Generator, ...] = ()
    heads: tuple[HeadTensors, ...] = ()

    @property
    def unfitted_heads(self) -> tuple[str, ...]:
        """Names of the heads that were never fitted."""
        return tuple(head.spec.name for head in self.heads if not head.fitted)


def exponential(coefficients: np.ndarray, representation: int) -> np.ndarray:
    """``exp(rho_t(A))``, (n, 8, 8); all NaN when a coefficient is not finite, for the report to show."""
    if not np.isfinite(coefficients).all():
        return np.full((len(coefficients), DIM, DIM), np.nan)
    return rotation(coefficients, representation)


def computed(tensor: str, coefficients: np.ndarray, representations: tuple[int, ...]) -> RotationTensor:
    """The rotations ``exp(rho_t(A))`` of a generator for each representation that the model uses at its site.

    Args:
        tensor: name of the generator tensor.
        coefficients: ``(n, 28)``.
        representations: the t in use, each once.
    """
    rotations = np.concatenate([exponential(coefficients, t) for t in representations])
    labels = tuple(t for t in representations for _ in range(len(coefficients)))
    return RotationTensor(tensor, rotations.reshape(-1, DIM, DIM), labels, stored=False)


def used_representations(
    site: str, head: tuple[int, ...], head_kv: tuple[int, ...], heads: dict[str, HeadSpec]
) -> tuple[int, ...]:
    """Representations in use at a site, ascending; the vector alone away from the triality sites."""
    if site == OUT:
        used = {spec.representation for spec in heads.values()}
    else:
        by_head = {PER_HEAD: head, PER_HEAD_KV: head_kv}
        used = {t for rotation in SITES[site].rotations for t in by_head.get(rotation.per, ())}
    return tuple(sorted(used or {VECTOR}))


def head_problem(spec: HeadSpec, weight: np.ndarray, bias: np.ndarray | None, width: int) -> str | None:
    """What is wrong with the tensors of a head: shape, NaN, infinity.

    Args:
        spec: the head.
        weight: ``(labels, width)``.
        bias: ``(labels,)`` or None.
        width: the hidden size, or the inner size of the head's stem.
    """
    if weight.shape != (len(spec.labels), width):
        return f"head {spec.name}: weight has shape {list(weight.shape)}, expected {[len(spec.labels), width]}"
    if bias is not None and bias.shape != (len(spec.labels),):
        return f"head {spec.name}: bias has shape {list(bias.shape)}, expected {[len(spec.labels)]}"
    if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
        return f"head {spec.name}: weight or bias has NaN or infinity"
    return None


def representation_name(index: int) -> str:
    """The name shown to people: vector, spinor+ or spinor-."""
    return REPRESENTATIONS[index].replace("_plus", "+").replace("_minus", "-")
