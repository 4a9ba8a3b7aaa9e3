"""A trace as one HTML page: no script, nothing from elsewhere, everything of the model and the text escaped."""

from collections.abc import Iterator
from html import escape
from importlib.resources import files

import numpy as np

from llama_so8t.format import THRESHOLD, HeadSpec
from llama_so8t.tracing.curves import MAX_POINTS, peaks, runs, ticks
from llama_so8t.tracing.palette import drawn_labels, label_colors, rule_text, trigger_text, visible
from llama_so8t.tracing.rule import Span, Trigger, acting, judged, reached, risk
from llama_so8t.tracing.trace import Trace

_WIDTH, _HEIGHT = 1000, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 880, 18, 162

_STYLE = files("llama_so8t.tracing").joinpath("page.css")


def render(trace: Trace) -> str:
    """The whole page."""
    title = _text(f"Trace of {trace.name}")
    counts = ", ".join(f"{span.stop - span.start} tokens of {span.part}" for span in trace.spans)
    return "".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n",
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            f"<title>{title}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style></head>\n<body>\n",
            f"<h1>{title}</h1>\n",
            f'<p class="muted">{_text(trace.path.name)}, architecture {_text(trace.architecture)}; {counts}</p>\n',
            *_summary(trace),
            _LEGEND,
            *(part for number, head in enumerate(trace.heads) for part in _section(trace, head, number)),
            "</body></html>\n",
        ]
    )


_LEGEND = (
    '<p class="legend muted"><span>risk 0</span> <span class="bar refuse"></span> 1 of a label that refuses, '
    '<span class="bar escalate"></span> of one that escalates &nbsp; '
    '<span class="t a" style="--r:.5">a label at its threshold or above; by argmax the largest</span> &nbsp; '
    '<span class="t x" style="--r:.5">the head acts here</span> &nbsp; '
    "faint: where no guard reads the head</p>\n"
)


def _summary(trace: Trace) -> Iterator[str]:
    yield "<table><thead><tr><th>head<th>rule<th>end of the prompt<th>highest after it<th>acts</thead><tbody>\n"
    n_prompt = trace.spans[0].stop
    for number, head in enumerate(trace.heads):
        probs, asked = trace.probabilities[head.name], trace.has_values(head)
        found = trace.triggers[head.name]
        acts = "".join(f'<div class="{t.action}">{_text(trigger_text(t))}</div>' for t in found) or "no"
        yield (
            f'<tr><th><a href="#head-{number}">{_text(head.name)}</a><td>{_rule(trace, head)}'
            f"<td>{_highest(head, probs[n_prompt - 1 : n_prompt][asked[n_prompt - 1 : n_prompt]])}"
            f"<td>{_highest(head, probs[n_prompt:][asked[n_prompt:]])}<td>{acts}\n"
        )
    yield "</tbody></table>\n"


def _rule(trace: Trace, head: HeadSpec) -> str:
    return _text(rule_text(head, trace.is_fitted(head)))


def _highest(head: HeadSpec, probs: np.ndarray) -> str:
    """Label and probability of the highest value in ``(n, labels)`` of the drawn labels."""
    if np.isnan(probs).any():
        return "not finite"
    if not len(probs):
        return ""
    labels = drawn_labels(head)
    best = probs[:, labels].max(0)
    return f"{_text(head.labels[labels[int(best.argmax())]])} {best.max():.3f}"


def _section(trace: Trace, head: HeadSpec, number: int) -> Iterator[str]:
    colors = label_colors(head)
    yield f'<section id="head-{number}"><h2>{_text(head.name)}</h2>\n<p class="muted">{_rule(trace, head)}</p>\n'
    yield '<p class="key">'
    for label in drawn_labels(head):
        yield f'<span><b style="background:{colors[label]}"></b>{_text(head.labels[label])}</span> '
    yield "</p>\n"
    yield from _curves(trace, head, colors)
    if trace.can_act(head):
        yield from _colored(trace, head)
    yield "</section>\n"


# --- curves ------------------------------------------------------------------------------------


def _curves(trace: Trace, head: HeadSpec, colors: dict[int, str]) -> Iterator[str]:
    probs, n = trace.probabilities[head.name], len(trace.tokens)
    read = judged(head, trace.spans, n)
    name = escape(visible(head.name), quote=True)
    yield f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="probabilities of {name} over the tokens">'
    yield from _frame(trace, n)
    for label in acting(head) if trace.can_act(head) and head.rule == THRESHOLD else ():
        yield from _threshold(head, label, colors[label])
    for label, color in colors.items():
        values = probs[:, label]
        yield f'<g stroke="{color}" fill="{color}">'
        yield from _line(values, 0, n, n, "faint")
        for start, stop in runs(read):
            yield from _line(values, start, stop, n, "line")
        yield "</g>"
    for start, stop in runs(trace.not_finite(head)):
        x, width = _x(start - 0.5, n), max(_x(stop - 0.5, n) - _x(start - 0.5, n), 3)
        yield f'<rect class="nan" x="{x:.1f}" y="{_TOP - 6}" width="{width:.1f}" height="6">'
        yield "<title>values not finite</title></rect>"
    for trigger in trace.triggers[head.name]:
        yield _mark(trigger, n)
    yield "</svg>\n"


def _frame(trace: Trace, n: int) -> Iterator[str]:
    for value in (0.0, 0.5, 1.0):
        y = _y(value)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    for index, label in ticks(trace.spans, n):
        yield f'<text x="{_x(index, n):.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{label}</text>'
    for span in trace.spans:
        x = _x(span.start - 0.5, n) if span.start else _LEFT
        if span.start:
            yield f'<path class="border" d="M{x:.1f} {_TOP - 14}V{_BOTTOM}"/>'
        if span.stop - span.start > 0.07 * n:
            yield f'<text x="{x + 5:.1f}" y="{_TOP - 6}">{span.part}</text>'


def _threshold(head: HeadSpec, label: int, color: str) -> Iterator[str]:
    y = _y(min(max(head.thresholds[label], 0.0), 1.0))
    yield f'<path class="threshold" stroke="{color}" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>'
    if not any(head.thresholds[other] == head.thresholds[label] for other in acting(head) if other < label):
        yield f'<text x="{_RIGHT + 6}" y="{y + 4:.1f}">threshold {head.thresholds[label]:.3g}</text>'


def _line(values: np.ndarray, start: int, stop: int, n: int, kind: str) -> Iterator[str]:
    most = max(2, MAX_POINTS * (stop - start) // n)
    positions, tops = peaks(values[start:stop], most)
    if len(positions) == 1:
        yield f'<circle class="{kind}" cx="{_x(start + positions[0], n):.1f}" cy="{_y(tops[0]):.1f}" r="3"/>'
    elif len(positions):
        points = " ".join(f"{_x(start + p, n):.1f},{_y(v):.1f}" for p, v in zip(positions, tops, strict=True))
        yield f'<polyline class="{kind}" points="{points}"/>'


def _mark(trigger: Trigger, n: int) -> str:
    y = _TOP - 3 if trigger.probability is None else _y(trigger.probability)
    title = _text(trigger_text(trigger))
    return f'<circle class="mark" cx="{_x(trigger.token, n):.1f}" cy="{y:.1f}" r="6"><title>{title}</title></circle>'


def _x(token: float, n: int) -> float:
    return _LEFT + (_RIGHT - _LEFT) * (token + 0.5) / n


def _y(probability: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * probability


# --- text --------------------------------------------------------------------------------------


def _colored(trace: Trace, head: HeadSpec) -> Iterator[str]:
    probs = trace.probabilities[head.name]
    risks, above = risk(head, probs), np.any(reached(head, probs), axis=-1)
    labels = acting(head)
    strongest = np.array(labels)[np.nan_to_num(probs[:, labels]).argmax(-1)]
    read = judged(head, trace.spans, len(trace.tokens)) & trace.has_values(head)
    not_finite = trace.not_finite(head)
    acts = {trigger.token: trigger for trigger in trace.triggers[head.name]}
    for span in trace.spans:
        yield f'<h3>{span.part}</h3><div class="text">'
        for token in range(span.start, span.stop):
            p = risks[token]
            kinds = ["t"]
            if not_finite[token]:
                kinds.append("nan")
            elif head.actions[strongest[token]] == "escalate":
                kinds.append("e")
            kinds += ["u"] * (not read[token]) + ["a"] * bool(above[token]) + ["x"] * (token in acts)
            style = f' style="--r:{p:.2f}"' if p >= 0.005 else ""
            title = _title(trace, head, span, token)
            if token in acts:
                title += f"\n{trigger_text(acts[token])}"
            yield f'<span class="{" ".join(kinds)}"{style} title="{escape(visible(title), quote=True)}">'
            yield f"{_shown(trace.texts[token])}</span>"
        yield "</div>\n"


def _title(trace: Trace, head: HeadSpec, span: Span, token: int) -> str:
    where = f"{span.part} {token - span.start}, id {trace.tokens[token]}"
    row = trace.probabilities[head.name][token]
    if not trace.has_values(head)[token]:
        return f"{where}\nnot asked"
    if np.isnan(row).any():
        return f"{where}\nvalues not finite"
    order = np.argsort(-row, kind="stable")[:8]
    return f"{where}\n" + ", ".join(f"{head.labels[label]} {row[label]:.3f}" for label in order)


def _shown(text: str) -> str:
    if not text:
        return '<span class="n">◦</span>'  # part of a character that a later token completes
    return _text(text).replace("\n", '<span class="n">↵</span>\n')


def _text(text: str) -> str:
    return escape(visible(text), quote=True)
