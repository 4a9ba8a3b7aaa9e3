"""A trace as JSON."""

import math
from typing import Any

from llama_so8t.format import THRESHOLD, HeadSpec
from llama_so8t.tracing.rule import Trigger
from llama_so8t.tracing.trace import Trace


def to_dict(trace: Trace) -> dict[str, Any]:
    """The object that `so8t trace --help` describes. A probability that is not finite is null."""
    entries = []
    for span in trace.spans:
        for token in range(span.start, span.stop):
            heads = {
                head.name: _row(head, trace.probabilities[head.name][token])
                for head in trace.heads
                if trace.has_values(head)[token]
            }
            entries.append(
                {
                    "part": span.part,
                    "position": token - span.start,
                    "id": trace.tokens[token],
                    "text": trace.texts[token],
                    "heads": heads,
                }
            )
    return {
        "model": {"architecture": trace.architecture, "name": trace.name, "path": str(trace.path)},
        "heads": {head.name: _head(head, trace.is_fitted(head)) for head in trace.heads},
        "triggers": [_trigger(head, trigger) for head, triggers in trace.triggers.items() for trigger in triggers],
        "trace": entries,
    }


def _head(head: HeadSpec, is_fitted: bool) -> dict[str, Any]:
    return {
        "labels": list(head.labels),
        "actions": list(head.actions),
        "fitted": is_fitted,
        "rule": head.rule,
        "thresholds": dict(
            zip(head.labels, head.thresholds if head.rule == THRESHOLD else [None] * len(head.labels), strict=True)
        ),
        "debounce": head.debounce,
        "temperature": head.temperature,
        "scope": head.scope,
        "representation": head.representation,
        "form": head.form,
        "taps": list(head.taps),
        "tap_norm": head.tap_norm,
        "link": head.link,
        "sliding_window": head.sliding_window,
        "aggregation": head.aggregation,
        "ema_alpha": head.ema_alpha,
        "window": head.window,
        "prompt_aggregation": list(head.prompt_aggregation),
        "prompt_thresholds": None if head.prompt_thresholds is None else list(head.prompt_thresholds),
        "depends_on": head.depends_on,
    }


def _row(head: HeadSpec, probabilities: Any) -> dict[str, float | None]:
    return {label: float(p) if math.isfinite(p) else None for label, p in zip(head.labels, probabilities, strict=True)}


def _trigger(head: str, trigger: Trigger) -> dict[str, Any]:
    return {
        "part": trigger.part,
        "position": trigger.position,
        "head": head,
        "label": trigger.label,
        "action": trigger.action,
        "probability": trigger.probability,
    }
