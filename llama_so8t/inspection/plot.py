"""The report as a picture: rotations as heat maps, and errors, commutators and angles over the layers."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llama_so8t.algebra import TOLERANCE
from llama_so8t.errors import CheckpointError
from llama_so8t.format import SITES
from llama_so8t.inspection.measure import Report
from llama_so8t.inspection.subject import Generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

MAX_SHOWN_LAYERS = 3
ERROR_FLOOR = 1e-17
"""Exact zeros are drawn here: a log scale has no zero, and float64 errors start near 1e-16."""

_GENERATORS = {generator.name: generator for site in SITES.values() for generator in site.generators}
_MAPS = tuple(
    (generator.name, representation, title)
    for generator in _GENERATORS.values()
    for representation, title in enumerate(generator.titles)
)
_GREY, _RED = "#666666", "#B00020"


def draw(report: Report, path: Path) -> None:
    """Writes the picture; the suffix of ``path`` chooses the format (png, pdf, svg).

    Raises:
        CheckpointError: the model has no rotations, or the suffix is unknown.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    layers = {generator.layer: None for generator in report.subject.generators if generator.layer is not None}
    if not layers:
        raise CheckpointError(f"{report.subject.path}: has no rotations in its layers, nothing to draw")
    figure = Figure(figsize=(13, 4.65 + 1.5 * min(MAX_SHOWN_LAYERS, len(layers))), dpi=110, facecolor="white")
    known = {*figure.canvas.get_supported_filetypes()}
    if path.suffix.lstrip(".").lower() not in known:
        raise CheckpointError(
            f"--plot {path}: found suffix {path.suffix!r}, expected one of {', '.join(sorted(known))}"
        )
    _fill(figure, report, list(layers))
    figure.savefig(path, facecolor="white")


def _shown(layers: list[int], broken: set[tuple[int, str]]) -> list[int]:
    """First, middle and last layer; broken ones come before these."""
    picks = np.linspace(0, len(layers) - 1, min(MAX_SHOWN_LAYERS, len(layers))).round().astype(int)
    wanted = [*sorted({layer for layer, _ in broken}), *(layers[pick] for pick in picks)]
    return sorted(dict.fromkeys(wanted), key=wanted.index)[: len(picks)]


def _broken(report: Report) -> set[tuple[int, str]]:
    """Layer and generator of every measure above the tolerance, NaN included."""
    errors = ("orthogonality_error", "determinant_error", "generator_error")
    return {
        (site.layer, site.generator)
        for site in report.sites
        if site.layer is not None
        and any(getattr(site, key) is not None and not getattr(site, key) <= TOLERANCE for key in errors)
    }


def _fill(figure: "Figure", report: Report, layers: list[int]) -> None:
    broken = _broken(report)
    shown = sorted(_shown(layers, broken))
    height = figure.get_size_inches()[1]
    top = 1 - 0.85 / height
    split = 3.8 / height
    subject = report.subject
    figure.text(
        0.035,
        1 - 0.32 / height,
        f"SO(8) rotations of {Path(subject.path).name}",
        fontsize=15,
        weight="bold",
        va="center",
    )
    state = "all in SO(8)" if not report.problems else f"{len(report.problems)} tensors break the rules"
    figure.text(
        0.985,
        1 - 0.32 / height,
        f"{subject.base_architecture} base, {subject.n_layer} layers, "
        f"{subject.n_head} heads of {subject.head_dim}; {state}",
        fontsize=10,
        color=_GREY if not report.problems else _RED,
        ha="right",
        va="center",
    )
    maps = figure.add_gridspec(
        len(shown),
        len(_MAPS),
        left=0.055,
        right=0.945,
        top=top,
        bottom=split + 0.35 / height,
        hspace=0.08,
        wspace=0.1,
    )
    _heat_maps(figure, maps, report.subject.generators, shown, broken)
    charts = figure.add_gridspec(
        1, 3, left=0.055, right=0.985, top=split - 0.45 / height, bottom=0.95 / height, wspace=0.2
    )
    _errors(figure.add_subplot(charts[0]), report)
    _commutators(figure.add_subplot(charts[1]), report)
    _angles(figure.add_subplot(charts[2]), report)


def _heat_maps(
    figure: "Figure",
    grid: "GridSpec",
    generators: tuple[Generator, ...],
    shown: list[int],
    broken: set[tuple[int, str]],
) -> None:
    found = {(generator.layer, generator.name): generator for generator in generators}
    image = None
    for row, layer in enumerate(shown):
        for column, (name, representation, title) in enumerate(_MAPS):
            axes = figure.add_subplot(grid[row, column])
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color("#CCCCCC")
            if row == 0:
                axes.set_title(title, fontsize=10)
            if column == 0:
                axes.set_ylabel(f"layer {layer}", fontsize=10)
            generator = found.get((layer, name))
            if generator is None:
                axes.text(0.5, 0.5, "absent", ha="center", va="center", color=_GREY, transform=axes.transAxes)
                continue
            if (layer, name) in broken:
                for spine in axes.spines.values():
                    spine.set(color=_RED, linewidth=2)
            rotation = generator.of_representation(representation)[0]
            image = axes.imshow(rotation, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    if image is not None:
        bar_axes = figure.add_axes(_beside(figure, grid))
        bar = figure.colorbar(image, cax=bar_axes, ticks=[-1, 0, 1])
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0)


def _beside(figure: "Figure", grid: "GridSpec") -> tuple[float, float, float, float]:
    bottoms, tops, _, rights = grid.get_grid_positions(figure)
    return rights[-1] + 0.012, bottoms[-1], 0.009, tops[0] - bottoms[-1]


def _by_generator(report: Report, key: str) -> dict[str, tuple[list[int], list[float]]]:
    series: dict[str, tuple[list[int], list[float]]] = {}
    for site in report.sites:
        value = getattr(site, key)
        if site.layer is not None and value is not None:
            layers, values = series.setdefault(site.generator, ([], []))
            layers.append(site.layer)
            values.append(value)
    return series


def _plain(axes: "Axes", title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel("layer", fontsize=9)
    axes.tick_params(labelsize=8)
    from matplotlib.ticker import MaxNLocator

    locator = axes.xaxis.get_major_locator()
    if isinstance(locator, MaxNLocator):
        locator.set_params(integer=True)
    axes.grid(axis="y", color="#E8E8E8", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(axes: "Axes", columns: int) -> None:
    # below the axis: inside, it would cover the points of one form of file or the other
    axes.legend(
        fontsize=8, frameon=False, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.17),
        handletextpad=0.3, columnspacing=1.4,
    )  # fmt: skip


def _errors(axes: "Axes", report: Report) -> None:
    kinds = (
        ("orthogonality_error", "|R$^T$R $-$ I|", "#0072B2", "o"),
        ("determinant_error", "|det R $-$ 1|", "#009E73", "s"),
        ("triality_residual", "triality", "#D55E00", "^"),
        ("generator_error", "|R $-$ exp A|", "#CC79A7", "D"),
    )
    for key, label, color, marker in kinds:
        worst: dict[int, float] = {}
        for layers, values in _by_generator(report, key).values():
            for layer, value in zip(layers, values, strict=True):
                worst[layer] = np.fmax(worst.get(layer, ERROR_FLOOR), value)
        if worst:
            axes.plot(list(worst), list(worst.values()), marker, color=color, markersize=3.2, label=label, alpha=0.9)
    axes.axhline(TOLERANCE, color=_RED, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, ERROR_FLOOR * 3), max(high, 30 * TOLERANCE))
    axes.text(
        0.99,
        TOLERANCE * 1.6,
        "refused above this line",
        transform=axes.get_yaxis_transform(),
        ha="right",
        fontsize=8,
        color=_RED,
    )
    _plain(axes, "Errors, worst of each layer")
    _legend(axes, 4)


def _commutators(axes: "Axes", report: Report) -> None:
    series = _by_generator(report, "commutator_norm").get("gate_safe")
    if series:
        axes.bar(*series, color="#0072B2", width=0.7)
        axes.set_ylim(0, max(1e-3, 1.15 * float(np.nanmax(series[1]))))
    else:
        axes.text(0.5, 0.5, "no gates", ha="center", va="center", color=_GREY, transform=axes.transAxes)
    _plain(axes, "Commutator of the gates, $\\|R_{safe} R_{cmd} - R_{cmd} R_{safe}\\|$")


def _angles(axes: "Axes", report: Report) -> None:
    largest = 0.0
    series = _by_generator(report, "angle_mean")
    for name, (layers, values) in series.items():
        shown = _GENERATORS[name]
        axes.plot(layers, values, "-o", color=shown.colour, markersize=2.6, linewidth=1.2, label=shown.label)
        largest = np.fmax(largest, np.nanmax(values))
    axes.set_ylim(0, max(1e-3, 1.12 * largest))
    _plain(axes, "Mean rotation angle, radians")
    _legend(axes, max(1, -(-len(series) // 2)))  # two rows
