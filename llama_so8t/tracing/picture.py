"""A trace as a PNG picture: for every head its curves and, where it can act, the coloured text."""

import logging
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_so8t.errors import ConfigError
from llama_so8t.format import THRESHOLD, HeadSpec
from llama_so8t.tracing.curves import MAX_POINTS, peaks, runs, ticks
from llama_so8t.tracing.palette import (
    ACTION_COLORS,
    drawn_labels,
    label_colors,
    rule_text,
    trigger_text,
    visible,
)
from llama_so8t.tracing.rule import acting, judged, reached, risk
from llama_so8t.tracing.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
WIDTH = 12.0  # inches, as all lengths here
MAX_HEIGHT = 300.0  # 33 000 pixels; the format ends at 65 535
MAX_LINES = 200  # of text, all heads together

_CURVE, _LINE = 1.35, 0.2
_MARGIN, _COLUMN = 50 / DPI, 8 / DPI  # whole pixels, as glyphs are set: text must not drift away from its boxes
_FONT = _COLUMN * 72 / 0.602  # by the advance of DejaVu Sans Mono
_COLUMNS = int((WIDTH - 2 * _MARGIN - 0.2) / _COLUMN)
_GREY, _INK = "#5d6570", "#1c1f24"


@dataclass(frozen=True)
class Cell:
    """A token, or the part of one that lies in a line."""

    line: int
    column: int
    width: int
    text: str
    token: int


def draw(trace: Trace, path: Path) -> None:
    """Writes the picture.

    Raises:
        ConfigError: more heads than a picture can hold.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    cells = list(lay_out(trace))
    n_texts = sum(1 for head in trace.heads if trace.can_act(head))
    n_all = cells[-1].line + 1 if cells else 0
    n_lines = min(n_all, MAX_LINES // max(n_texts, 1))
    first = n_all - n_lines
    height = 1.0 + sum(_height(trace, head, n_lines) for head in trace.heads)
    if height > MAX_HEIGHT:
        raise ConfigError(f"{len(trace.heads)} heads are too many for a picture; write a page with --out FILE.html")

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    _words(figure, 0.3, f"Trace of {visible(trace.name)}", 15, weight="bold")
    counts = ", ".join(f"{span.stop - span.start} tokens of {span.part}" for span in trace.spans)
    _words(figure, 0.62, f"{visible(trace.path.name)}, {counts}", 9.5, color=_GREY)
    top = 1.0
    for head in trace.heads:
        _head(figure, trace, head, [cell for cell in cells if cell.line >= first], top)
        top += _height(trace, head, n_lines)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        figure.savefig(path, format="png", facecolor="white", metadata={"Software": None})


def lay_out(trace: Trace) -> Iterator[Cell]:
    """Tokens in lines of a fixed number of columns; a token moves to the next line rather than being cut."""
    line = column = 0
    n_prompt = trace.spans[0].stop
    for token, text in enumerate(trace.texts):
        if token == n_prompt:
            line, column = line + (2 if column else 1), 0
        pieces = visible(text).replace("\t", "    ").split("\n")
        for number, piece in enumerate(pieces):
            shown = piece + ("↵" if number < len(pieces) - 1 else "")
            if column and column + _columns(shown) > _COLUMNS:
                line, column = line + 1, 0
            for part in _cut(shown):
                if column and column + _columns(part) > _COLUMNS:
                    line, column = line + 1, 0
                yield Cell(line, column, _columns(part), part, token)
                column += _columns(part)
            if number < len(pieces) - 1:
                line, column = line + 1, 0


def _cut(text: str) -> Iterator[str]:
    """Parts of at most one line."""
    start = width = 0
    for index, character in enumerate(text):
        if width + _columns(character) > _COLUMNS:
            yield text[start:index]
            start, width = index, 0
        width += _columns(character)
    if text[start:]:
        yield text[start:]


def _columns(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(c) == "Mn" else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _height(trace: Trace, head: HeadSpec, n_lines: int) -> float:
    text = 0.35 + _LINE * n_lines if trace.can_act(head) else 0.0
    return 0.75 + _CURVE + text + 0.45


def _words(figure: "Figure", top: float, text: str, size: float, x: float = _MARGIN, **style: Any) -> None:
    figure.text(
        x / WIDTH, 1 - top / figure.get_figheight(), text, fontsize=size, va="center", parse_math=False, **style
    )


def _axes(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    whole = figure.get_figheight()
    return figure.add_axes((left / WIDTH, 1 - (top + height) / whole, width / WIDTH, height / whole))


def _head(figure: "Figure", trace: Trace, head: HeadSpec, cells: list[Cell], top: float) -> None:
    _words(figure, top + 0.12, visible(head.name), 12, weight="bold")
    acts = "; ".join(trigger_text(trigger) for trigger in trace.triggers[head.name])
    color = ACTION_COLORS[trace.triggers[head.name][0].action] if acts else _GREY
    _words(figure, top + 0.36, visible(acts) if acts else "does not act", 9.5, color=color, weight="bold")
    _words(
        figure,
        top + 0.12,
        visible(rule_text(head, trace.is_fitted(head))),
        9,
        x=WIDTH - _MARGIN,
        color=_GREY,
        ha="right",
    )
    _curves(_axes(figure, _MARGIN + 0.3, top + 0.7, WIDTH - 2 * _MARGIN - 1.7, _CURVE), trace, head)
    if trace.can_act(head) and cells:
        lines = cells[-1].line + 1 - cells[0].line
        bottom = top + 0.75 + _CURVE + 0.35
        if cells[0].line:
            note = f"the first {cells[0].token} tokens are not shown; a page (.html) has them all"
            _words(figure, bottom - 0.04, note, 8, color=_GREY)
        axes = _axes(figure, _MARGIN, bottom + 0.02, WIDTH - 2 * _MARGIN, _LINE * lines + 0.12)
        _text(axes, trace, head, cells, lines)


def _curves(axes: "Axes", trace: Trace, head: HeadSpec) -> None:
    probs, n = trace.probabilities[head.name], len(trace.tokens)
    read = judged(head, trace.spans, n)
    axes.set(xlim=(-0.5, n - 0.5), ylim=(-0.02, 1.06))
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_xticks(*zip(*ticks(trace.spans, n), strict=True))
    axes.tick_params(labelsize=8, length=0, colors=_GREY)
    axes.grid(axis="y", color="#d9dde3", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for span in trace.spans:
        if span.start:
            axes.axvline(span.start - 0.5, color=_GREY, linewidth=0.9)
        if span.stop - span.start > 0.07 * n:
            axes.text(max(span.start - 0.5, 0) + 0.004 * n, 1.09, span.part, fontsize=8, color=_GREY)
    named = set()
    for label, color in label_colors(head).items():
        name = visible(head.labels[label])
        _line(axes, probs[:, label], 0, n, color, 0.3, None)
        for number, (start, stop) in enumerate(runs(read)):
            _line(axes, probs[:, label], start, stop, color, 1.0, name if number == 0 else None)
        if not read.any():
            axes.plot([], [], color=color, alpha=0.3, label=name)
        if trace.can_act(head) and head.rule == THRESHOLD and label in acting(head):
            threshold = head.thresholds[label]
            axes.axhline(min(max(threshold, 0), 1), color=color, linewidth=0.9, linestyle=(0, (5, 4)), alpha=0.8)
            if threshold not in named:
                named.add(threshold)
                axes.text(
                    1.006, min(max(threshold, 0), 1), f"threshold {threshold:.3g}", fontsize=8, color=_GREY,
                    va="center", transform=axes.get_yaxis_transform(),
                )  # fmt: skip
    for start, stop in runs(trace.not_finite(head)):
        axes.axvspan(start - 0.5, stop - 0.5, 0.965, 1.0, color=ACTION_COLORS["refuse"], linewidth=1)
    for trigger in trace.triggers[head.name]:
        p = 1.04 if trigger.probability is None else trigger.probability
        axes.plot(trigger.token, p, "o", markersize=8, markerfacecolor="none", markeredgecolor=_INK, clip_on=False)
    legend = axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1.03), fontsize=8, frameon=False, ncols=min(len(drawn_labels(head)), 6),
        handlelength=1.4, columnspacing=1.4, borderaxespad=0, borderpad=0.2,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _line(axes: "Axes", values: np.ndarray, start: int, stop: int, color: str, alpha: float, label: str | None) -> None:
    positions, tops = peaks(values[start:stop], max(2, MAX_POINTS * (stop - start) // len(values)))
    mark = "o" if len(positions) == 1 else None
    axes.plot(start + positions, tops, color=color, alpha=alpha, linewidth=1.4, marker=mark, markersize=4, label=label)


def _text(axes: "Axes", trace: Trace, head: HeadSpec, cells: list[Cell], lines: int) -> None:
    from matplotlib.patches import Rectangle

    probs = trace.probabilities[head.name]
    risks, above = risk(head, probs), np.any(reached(head, probs), axis=-1)
    read = judged(head, trace.spans, len(trace.tokens)) & trace.has_values(head)
    not_finite = trace.not_finite(head)
    labels = np.array(acting(head))
    strongest = labels[np.nan_to_num(probs[:, labels]).argmax(-1)]
    acts = {trigger.token for trigger in trace.triggers[head.name]}
    pad = 0.1 / _COLUMN
    axes.set(xlim=(-pad, (WIDTH - 2 * _MARGIN) / _COLUMN - pad), ylim=(lines + 0.3, -0.3))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("#f7f8fa")
    for spine in axes.spines.values():
        spine.set_color("#d9dde3")
    family = _fonts()
    for cell in cells:
        y = cell.line - cells[0].line
        p = risks[cell.token]
        color = ACTION_COLORS[head.actions[strongest[cell.token]]]
        box: dict[str, Any] = {"xy": (cell.column, y + 0.08), "width": cell.width, "height": 0.84}
        if not_finite[cell.token]:
            axes.add_patch(Rectangle(**box, facecolor="none", edgecolor=ACTION_COLORS["refuse"], hatch="////", lw=0))
        elif p >= 0.005:
            axes.add_patch(Rectangle(**box, facecolor=color, alpha=p * (0.72 if read[cell.token] else 0.4), lw=0))
        if above[cell.token]:
            axes.plot([cell.column, cell.column + cell.width], [y + 0.88] * 2, color=_INK, linewidth=1)
        if cell.token in acts:
            axes.add_patch(Rectangle(**box, fill=False, edgecolor=_INK, linewidth=1.6, zorder=4, clip_on=False))
        if cell.text.strip():
            axes.text(
                cell.column, y + 0.54, cell.text, fontsize=_FONT, family=family, color=_INK, va="center_baseline",
                parse_math=False,
            )  # fmt: skip


def _fonts() -> list[str]:
    """DejaVu, which comes with matplotlib, and what is installed for characters that it lacks."""
    from matplotlib import font_manager

    found = {font.name for font in font_manager.fontManager.ttflist}
    others = sorted(name for name in found if "CJK" in name or "Emoji" in name)
    return ["DejaVu Sans Mono", "DejaVu Sans", *others]
