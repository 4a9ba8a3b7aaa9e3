"""Measures every rotation of a `Subject` and says which tensors break the rules of the format."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llama_so8t.algebra import (
    MAX_COEFFICIENT,
    SPINOR_MINUS,
    SPINOR_PLUS,
    TOLERANCE,
    VECTOR,
    commutator_norm,
    determinant,
    orthogonality_error,
    triality_residual,
)
from llama_so8t.inspection.subject import TRIALITY_SITES, Generator, Subject, representation_name

ANGLE_FLOOR = 1e-6
"""Rotations by less than this many radians count as the identity (float32 resolution)."""


@dataclass(frozen=True)
class SiteMeasure:
    """One generator of one layer. Errors are the worst over its blocks, heads and representations.

    ``angle_max`` and ``angle_mean`` are the planar rotation angles in radians, 0 to pi, of which an 8x8
    rotation has four. ``generator_error`` is the distance of stored rotations from the exponential of
    their generator, ``triality_residual`` the violation of the triality identity, ``commutator_norm`` the
    Frobenius norm of the commutator of R_safe and R_cmd; each is None where it does not apply.
    """

    layer: int | None
    site: str
    generator: str
    state: str
    n: int
    angle_max: float
    angle_mean: float
    orthogonality_error: float
    determinant_error: float
    generator_error: float | None
    triality_residual: float | None
    commutator_norm: float | None


@dataclass(frozen=True)
class Report:
    """All measures of one model. ``problems`` names the tensors that a loader must refuse."""

    subject: Subject
    sites: tuple[SiteMeasure, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The object that ``so8t inspect --json`` prints; its keys are listed in the help of the command."""
        subject = self.subject
        model = {
            key: getattr(subject, key)
            for key in (
                "path", "format", "architecture", "base_architecture", "format_version", "n_layer",
                "hidden_size", "n_head", "n_head_kv", "head_dim", "compensated", "base_sha256",
            )
        }  # fmt: skip
        heads = [
            {
                "name": head.spec.name,
                **head.spec.to_dict(),
                "representation": representation_name(head.spec.representation),
                "form": head.spec.form,
                "weight_shape": list(head.weight_shape),
                "weight_norm": _finite(head.weight_norm),
                "has_bias": head.has_bias,
                "fitted": head.fitted,
            }
            for head in subject.heads
        ]
        sites = [{key: _finite(value) for key, value in asdict(site).items()} for site in self.sites]
        return {
            **model,
            "tolerance": TOLERANCE,
            "ok": not self.problems,
            "problems": list(self.problems),
            "sites": sites,
            "heads": heads,
        }


def _finite(value: Any) -> Any:
    # JSON has no NaN; a value that is not finite is null, and `problems` names its tensor
    return None if isinstance(value, float) and not np.isfinite(value) else value


def measure(subject: Subject) -> Report:
    """Measures all generators and rotations of a model."""
    sites, problems = [], []
    commutators = _commutators(subject)
    for generator in subject.generators:
        site, found = _measure(generator, commutators.get(generator.layer))
        sites.append(site)
        problems.extend(found)
    problems.extend(head.problem for head in subject.heads if head.problem)
    return Report(subject, tuple(sites), tuple(problems))


def _commutators(subject: Subject) -> dict[int | None, float]:
    gates: dict[int | None, dict[str, np.ndarray]] = {}
    for generator in subject.generators:
        if generator.site == "gate":
            gates.setdefault(generator.layer, {})[generator.name] = generator.of_representation(VECTOR)
    return {
        layer: float(commutator_norm(pair["gate_safe"], pair["gate_cmd"]).max())
        for layer, pair in gates.items()
        if len(pair) == 2
    }


def _measure(generator: Generator, commutator: float | None) -> tuple[SiteMeasure, list[str]]:
    problems = []
    angles, orthogonality, determinants, from_generator = [], [0.0], [0.0], []
    if not np.isfinite(generator.coefficients).all():
        problems.append(f"{generator.tensor}: has NaN or infinity, expected finite coefficients")
    elif (largest := np.abs(generator.coefficients).max()) > MAX_COEFFICIENT:
        problems.append(
            f"{generator.tensor}: has a coefficient of {largest:.3g}, expected at most {MAX_COEFFICIENT:g} radians"
        )
    for tensor in generator.tensors:
        orthogonality.append(float(orthogonality_error(tensor.rotations).max()))
        determinants.append(float(np.abs(determinant(tensor.rotations) - 1.0).max()))
        angles.append(_angles(tensor.rotations))
        if tensor.stored:
            error = _generator_error(generator, tensor.rotations, tensor.representations)
            from_generator.append(error)
            problems.extend(_tensor_problems(generator, tensor.name, orthogonality[-1], determinants[-1], error))
    site = SiteMeasure(
        layer=generator.layer,
        site=generator.site,
        generator=generator.name,
        state=generator.state,
        n=len(generator.coefficients),
        angle_max=float(np.max(np.concatenate(angles))),
        angle_mean=float(np.mean(np.concatenate(angles))),
        orthogonality_error=float(np.max(orthogonality)),
        determinant_error=float(np.max(determinants)),
        generator_error=float(np.max(from_generator)) if from_generator else None,
        triality_residual=_triality(generator) if generator.site in TRIALITY_SITES else None,
        commutator_norm=commutator if generator.site == "gate" else None,
    )
    return site, problems


def _tensor_problems(generator: Generator, name: str, orthogonality: float, det: float, error: float) -> list[str]:
    # written as "not (x <= limit)" so that NaN is a problem too
    found = []
    if not orthogonality <= TOLERANCE:
        found.append(f"R^T R - I has an entry of {orthogonality:.2g}")
    if not det <= TOLERANCE:
        found.append(f"|det R - 1| is {det:.2g}")
    if found:
        return [f"{name}: is not in SO(8): {' and '.join(found)}, expected at most {TOLERANCE:g}"]
    if not error <= TOLERANCE:
        return [f"{name}: differs from exp of {generator.tensor} by {error:.2g}, expected at most {TOLERANCE:g}"]
    return []


def _angles(rotations: np.ndarray) -> np.ndarray:
    """Planar angles in radians, (m, 8): each of the four twice, as a pair of conjugate eigenvalues."""
    if not np.isfinite(rotations).all():
        return np.full((len(rotations), rotations.shape[-1]), np.nan)
    return np.abs(np.angle(np.linalg.eigvals(rotations)))


def _generator_error(generator: Generator, rotations: np.ndarray, representations: tuple[int, ...]) -> float:
    expected = np.empty_like(rotations)
    for t in set(representations):
        mask = np.array([r == t for r in representations])
        # triality sites have one generator for all heads, the others one matrix per generator row
        expected[mask] = generator.expected(t)
    return float(np.abs(rotations - expected).max())


def _triality(generator: Generator) -> float:
    triple = [generator.of_representation(t) for t in (VECTOR, SPINOR_PLUS, SPINOR_MINUS)]
    # heads of one representation share their rotation, so any pairing of heads must satisfy the identity
    m = max(len(rotations) for rotations in triple)
    triple = [rotations[np.arange(m) % len(rotations)] for rotations in triple]
    return float(triality_residual(*triple).max())
