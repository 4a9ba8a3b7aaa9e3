"""What head values mean, as `docs/conventions.md` says under "Verdicts". C++: `csrc/model/so8t-rules.h`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_so8t.format import ACTIONS, ARGMAX, SIGMOID, HeadSpec

PROMPT, THINK, ANSWER = "prompt", "think", "answer"


@dataclass(frozen=True)
class Span:
    """Tokens ``[start, stop)`` of one part: prompt, think or answer."""

    part: str
    start: int
    stop: int


@dataclass(frozen=True)
class Trigger:
    """Where a head acts first in a span; label and probability are None where its values are not finite."""

    part: str
    token: int
    position: int
    action: str
    label: str | None
    probability: float | None


def probabilities(head: HeadSpec, values: np.ndarray) -> np.ndarray:
    """``link(values / temperature)``: the softmax of a row, or ``1 / (1 + exp(-x))`` of each value.

    Args:
        head: what the values mean.
        values: ``(n, labels)``.

    Returns:
        ``(n, labels)`` float64; a row with a value that is not finite is NaN.
    """
    finite = np.isfinite(values).all(-1, keepdims=True)
    scaled = np.where(finite, values, 0.0).astype(np.float64) / head.temperature
    if head.link == SIGMOID:
        return np.where(finite, 0.5 + 0.5 * np.tanh(scaled / 2), np.nan)
    e = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.where(finite, e / e.sum(-1, keepdims=True), np.nan)


def acting(head: HeadSpec) -> list[int]:
    """Indices of the labels that do more than allow."""
    return [index for index, action in enumerate(head.actions) if action != "allow"]


def risk(head: HeadSpec, probs: np.ndarray) -> np.ndarray:
    """Largest probability of an acting label, ``(n, labels) -> (n,)``; 0 for a head that never acts, NaN stays."""
    return probs[:, acting(head)].max(-1) if acting(head) else np.where(np.isnan(probs[:, 0]), np.nan, 0.0)


def reached(head: HeadSpec, probs: np.ndarray) -> np.ndarray:
    """Where an acting label reaches its threshold, or by the rule argmax is the largest of its head.

    Args:
        head: what the values mean.
        probs: ``(n, labels)``; a row with NaN reaches nothing.

    Returns:
        ``(n, acting labels)`` bool.
    """
    labels = acting(head)
    values = probs.astype(np.float32)  # as in the runtime; thresholds are float32 in the file, too
    if head.rule == ARGMAX:
        largest = np.where(np.isnan(values).any(-1), -1, values.argmax(-1))
        return largest[:, None] == np.array(labels, dtype=int)
    return values[:, labels] >= np.array(head.thresholds, dtype=np.float32)[labels]


def judged(head: HeadSpec, spans: Sequence[Span], n: int) -> np.ndarray:
    """Which positions a guard reads: the last one of the prompt, all others, as far as the scope goes; ``(n,)``."""
    result = np.zeros(n, dtype=bool)
    for span in spans:
        if head.scope in ("both", PROMPT if span.part == PROMPT else ANSWER):
            result[span.stop - 1 if span.part == PROMPT else span.start : span.stop] = True
    return result


def triggers(head: HeadSpec, spans: Sequence[Span], probs: np.ndarray, is_fitted: bool = True) -> list[Trigger]:
    """The first trigger of the head in each span that it judges; a prompt needs no debounce.

    Args:
        head: what the values mean.
        spans: in the order of the text.
        probs: ``(n, labels)``.
        is_fitted: false for a head whose weights are zeros: it does not act.
    """
    if not is_fitted:
        return []
    read, found = judged(head, spans, len(probs)), []
    for span in spans:
        streak = np.zeros(len(acting(head)), dtype=int)
        needed = 1 if span.part == PROMPT else head.debounce
        for token in np.flatnonzero(read[span.start : span.stop]) + span.start:
            trigger = _at(head, probs[token], streak, needed)
            if trigger is not None:
                action, label = trigger
                name, p = (None, None) if label is None else (head.labels[label], float(probs[token, label]))
                found.append(Trigger(span.part, int(token), int(token) - span.start, action, name, p))
                break
    return found


def _at(head: HeadSpec, row: np.ndarray, streak: np.ndarray, needed: int) -> tuple[str, int | None] | None:
    """Action and label at one position, if any; counts in ``streak``."""
    if not np.isfinite(row).all():
        return "refuse", None
    above = reached(head, row[None])[0]
    streak[:] = np.where(above, streak + 1, 0)
    labels = [label for label, n in zip(acting(head), streak, strict=True) if n >= needed]
    if not labels:
        return None
    label = max(labels, key=lambda index: ACTIONS.index(head.actions[index]))
    return head.actions[label], label
