"""The report as text: one line per generator and range of alike layers, with the worst values."""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import groupby

from llama_so8t.algebra import TOLERANCE
from llama_so8t.format import (
    EMA,
    FINAL_NORM,
    RUN,
    SOFTMAX,
    TAP_NORM_NONE,
    THRESHOLD,
    TOKEN,
    WINDOW,
    HeadSpec,
    unfitted_warning,
)
from llama_so8t.inspection.measure import ANGLE_FLOOR, Report, SiteMeasure
from llama_so8t.inspection.subject import HeadTensors, Subject, representation_name
from llama_so8t.text_table import aligned

_COLUMNS = (
    "generator",
    "layers",
    "state",
    "n",
    "angle",
    "max",
    "|RtR-I|",
    "|det-1|",
    "|R-exp A|",
    "triality",
    "[R,R']",
)
_LEGEND = (
    "n: 8x8 blocks per layer; angle, max: mean and largest planar rotation angle in radians; worst\n"
    "value of the layers in the error columns; [R,R']: norm of the commutator of R_safe and R_cmd"
)


def render(report: Report) -> str:
    """The whole table, ending with what is wrong, or that nothing is."""
    parts = [_title(report.subject), ""]
    if report.sites:
        parts += [*aligned([_COLUMNS, *_site_rows(report.sites)], left=3), "", _LEGEND, ""]
    if report.subject.heads:
        heads: list[tuple[str, ...]] = [("head", "reads", "form", "labels", "scope", "debounce", "temperature")]
        heads += [_head_row(head) for head in report.subject.heads]
        parts += [*aligned(heads, left=7), ""]
        told = {head.spec.name: head.spec.provenance for head in report.subject.heads if head.spec.provenance}
        parts += [f"{name}: {json.dumps(json.loads(text))}" for name, text in told.items()] + [""] * bool(told)
    if report.subject.unfitted_heads:
        parts.append(unfitted_warning(report.subject.unfitted_heads))
    parts += [f"PROBLEM {problem}" for problem in report.problems]
    if not report.problems:
        rotations = sum(site.n for site in report.sites)
        if rotations:
            parts.append(f"ok: {rotations} generators, every rotation in SO(8) within {TOLERANCE:g}")
        else:
            parts.append("ok: no rotations")
    return "\n".join(parts)


def _title(subject: Subject) -> str:
    if subject.n_head is None:
        base = "a base" if subject.base_architecture is None else subject.base_architecture
        width = f"width {subject.hidden_size}" + ("" if subject.n_layer is None else f" with {subject.n_layer} layers")
        tensors = "" if subject.base_sha256 is None else f"\ntensors of the base: {subject.base_sha256}"
        return f"{subject.path}: heads for {base} of {width}, format version {subject.format_version}{tensors}"
    lines = [
        f"{subject.path}: {subject.format}, architecture {subject.architecture} "
        f"on {subject.base_architecture}, {subject.n_layer} layers",
        f"hidden {subject.hidden_size}, {subject.n_head} heads and {subject.n_head_kv} key-value heads "
        f"of {subject.head_dim}",
    ]
    if subject.format_version is not None:
        lines[1] += f", format version {subject.format_version}"
    if subject.compensated is not None:
        lines[1] += ", weights compensated" if subject.compensated else ", weights not compensated"
    return "\n".join(lines)


def _site_rows(sites: Sequence[SiteMeasure]) -> Iterable[tuple[str, ...]]:
    names = list(dict.fromkeys(site.generator for site in sites))
    for name in names:
        of_name = [site for site in sites if site.generator == name]
        for (state, n), group in groupby(of_name, key=lambda site: (_state(site), site.n)):
            yield _row(name, state, n, list(group))


def _state(site: SiteMeasure) -> str:
    return f"{site.state}, identity" if site.angle_max < ANGLE_FLOOR else site.state


def _row(name: str, state: str, n: int, sites: list[SiteMeasure]) -> tuple[str, ...]:
    angles = [site.angle_mean for site in sites]
    errors = ("orthogonality_error", "determinant_error", "generator_error", "triality_residual")
    return (
        name,
        _layers(sites),
        state,
        str(n),
        f"{sum(angles) / len(angles):.3f}",
        f"{_worst(sites, 'angle_max')[0]:.3f}",
        *(_error(*_worst(sites, key)) for key in errors),
        _number(_worst(sites, "commutator_norm")[0], ".3f"),
    )


def _layers(sites: list[SiteMeasure]) -> str:
    first, last = sites[0].layer, sites[-1].layer
    if first is None:
        return "end"
    return str(first) if first == last else f"{first}-{last}"


def _worst(sites: list[SiteMeasure], key: str) -> tuple[float | None, int | None]:
    """Largest value and its layer; NaN counts as the largest."""
    found = [(getattr(site, key), site.layer) for site in sites if getattr(site, key) is not None]
    if not found:
        return None, None
    return max(found, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])


def _error(value: float | None, layer: int | None) -> str:
    text = _number(value, ".1e")
    if value is None or value <= TOLERANCE or layer is None:
        return text
    return f"{text} @{layer}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _reads(spec: HeadSpec) -> str:
    """What a head reads: the final norm by its representation alone, taps by their layers."""
    parts = [representation_name(spec.representation)] if spec.taps == (FINAL_NORM,) or spec.representation else []
    if spec.taps != (FINAL_NORM,):
        parts.append("taps " + ", ".join("norm" if tap == FINAL_NORM else str(tap) for tap in spec.taps))
    if spec.tap_norm != TAP_NORM_NONE:
        parts.append(spec.tap_norm)
    return "; ".join(parts)


def _asked(spec: HeadSpec) -> str:
    """Where a head is asked, and how a prompt is read."""
    parts = [spec.scope]
    if spec.prompt_aggregation != (TOKEN,) and spec.scope != "answer":
        parts.append(f"prompt by {', '.join(_prompts(spec))}")
    if spec.depends_on is not None:
        parts.append(f"where {spec.depends_on} acts")
    return "; ".join(parts)


def _prompts(spec: HeadSpec) -> Iterable[str]:
    """The ways in which a prompt is read, with thresholds that are others than those of the labels."""
    n = len(spec.labels)
    for i, way in enumerate(spec.prompt_aggregation):
        alpha = f" {spec.ema_alpha:g}" if way == EMA else ""
        own = () if spec.prompt_thresholds is None else spec.prompt_thresholds[i * n : (i + 1) * n]
        yield way + alpha + (f" at {' / '.join(f'{threshold:.3g}' for threshold in own)}" if own else "")


def _combined(spec: HeadSpec) -> str:
    """Positions of an answer that have to agree, and how they are combined before."""
    if spec.aggregation == WINDOW:
        return f"{spec.debounce} of {spec.window}"
    if spec.aggregation == RUN:
        return str(spec.debounce)
    return f"{spec.debounce}, {spec.aggregation}" + (f" {spec.ema_alpha:g}" if spec.aggregation == EMA else "")


def _head_row(head: HeadTensors) -> tuple[str, ...]:
    spec = head.spec
    form = spec.form if spec.stem is None else f"{spec.activation} ({spec.stem})"
    if spec.sliding_window:
        form += f", last {spec.sliding_window}"
    if spec.link != SOFTMAX:
        form += f", {spec.link}"
    if not head.fitted:
        form += ", not fitted"
    labels = [
        label
        if action == "allow"
        else f"{label}: {action} at {threshold:.3g}"
        if spec.rule == THRESHOLD
        else f"{label}: {action} if largest"
        for label, action, threshold in zip(spec.labels, spec.actions, spec.thresholds, strict=True)
    ]
    return (
        spec.name,
        _reads(spec),
        form,
        " | ".join(labels),
        _asked(spec),
        _combined(spec),
        f"{spec.temperature:g}",
    )
