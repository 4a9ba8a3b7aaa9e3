"""What head values mean, as `docs/conventions.md` says under "Verdicts". C++: `csrc/model/so8t-rules.h`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from llama_so8t.format import ACTIONS, ARGMAX, EMA, MAX, MEAN, SIGMOID, WINDOW, HeadSpec

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


def aggregate(head: HeadSpec, values: np.ndarray, spans: Sequence[Span], asked: np.ndarray | None = None) -> np.ndarray:
    """Probabilities of every position: in a prompt as they are, behind it aggregated from the beginning of each part.

    With x_t the values at the t-th position of a part, alpha the ``ema_alpha`` of the head:
    ema: ``e_0 = x_0, e_t = alpha x_t + (1 - alpha) e_(t-1)``, mean: ``(x_0 + ... + x_t) / (t + 1)``, then the link;
    max: the largest probability of each label up to t. After values that are not finite all of them begin anew.

    Args:
        head: what the values mean.
        values: ``(n, labels)``.
        spans: in the order of the text.
        asked: ``(n,)`` bool; positions at which the head has values; None: everywhere.

    Returns:
        ``(n, labels)`` float64; NaN where a value is not finite or the head has none.
    """
    probs = probabilities(head, values)
    if asked is not None:
        probs[~asked] = np.nan
    for span in spans:
        if span.part == PROMPT or head.aggregation not in (EMA, MEAN, MAX):
            continue
        tokens = np.arange(span.start, span.stop)
        tokens = tokens if asked is None else tokens[asked[tokens]]
        ends = np.flatnonzero(np.isnan(probs[tokens]).any(-1))
        for piece in np.split(tokens, ends):
            piece = piece[~np.isnan(probs[piece]).any(-1)]
            probs[piece] = _accumulated(head, values[piece].astype(np.float64), probs[piece])
    return probs


def _accumulated(head: HeadSpec, values: np.ndarray, probs: np.ndarray) -> np.ndarray:
    if head.aggregation == MAX or len(values) == 0:
        return np.maximum.accumulate(probs, axis=0)
    if head.aggregation == MEAN:
        return probabilities(head, np.cumsum(values, axis=0) / np.arange(1, len(values) + 1)[:, None])
    alpha = float(np.float32(head.ema_alpha))
    for t in range(1, len(values)):
        values[t] = alpha * values[t] + (1 - alpha) * values[t - 1]
    return probabilities(head, values)


def says(head: HeadSpec, probs: np.ndarray) -> np.ndarray:
    """Where a label of the head has an action other than allow, for the heads that depend on it; ``(n,)`` bool.

    That is the largest label, or with the link sigmoid any that reaches its threshold. NaN says nothing.
    """
    if head.link == SIGMOID:
        return np.any(reached(head, probs), axis=-1, keepdims=False)
    largest = np.where(np.isnan(probs).any(-1), -1, probs.astype(np.float32).argmax(-1))
    return np.isin(largest, acting(head))


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


def in_parts(spans: Sequence[Span], parts: Collection[str], n: int) -> np.ndarray:
    """Positions of these parts, ``(n,)`` bool."""
    result = np.zeros(n, dtype=bool)
    for span in spans:
        result[span.start : span.stop] = span.part in parts
    return result


def in_scope(head: HeadSpec, spans: Sequence[Span], n: int) -> np.ndarray:
    """Positions of the parts that the head judges, ``(n,)`` bool."""
    parts = {"prompt": (PROMPT,), "answer": (THINK, ANSWER)}.get(head.scope, (PROMPT, THINK, ANSWER))
    return in_parts(spans, parts, n)


def judged(head: HeadSpec, spans: Sequence[Span], n: int) -> np.ndarray:
    """Which positions a guard reads: the last one of the prompt, all others, as far as the scope goes; ``(n,)``."""
    result = in_scope(head, spans, n)
    for span in spans:
        if span.part == PROMPT:
            result[span.start : span.stop - 1] = False
    return result


def triggers(
    head: HeadSpec,
    spans: Sequence[Span],
    probs: np.ndarray,
    is_fitted: bool = True,
    asked: np.ndarray | None = None,
) -> list[Trigger]:
    """The first trigger of the head in each span that it judges; a prompt needs no debounce.

    Args:
        head: what the values mean.
        spans: in the order of the text.
        probs: ``(n, labels)``, aggregated.
        is_fitted: false for a head whose weights are zeros: it does not act.
        asked: ``(n,)`` bool; positions at which the head has values; None: everywhere.
    """
    if not is_fitted:
        return []
    found, read = [], judged(head, spans, len(probs))
    for span in spans:
        held: list[np.ndarray] = []
        needed = 1 if span.part == PROMPT else head.debounce
        for token in np.flatnonzero(read[span.start : span.stop]) + span.start:
            if asked is not None and not asked[token]:
                held.append(np.zeros(len(acting(head)), dtype=bool))
                continue
            trigger = _at(head, probs[token], held, needed)
            if trigger is not None:
                action, label = trigger
                name, p = (None, None) if label is None else (head.labels[label], float(probs[token, label]))
                found.append(Trigger(span.part, int(token), int(token) - span.start, action, name, p))
                break
    return found


def _at(head: HeadSpec, row: np.ndarray, held: list[np.ndarray], needed: int) -> tuple[str, int | None] | None:
    """Action and label at one position, if any; adds to ``held`` where the rule holds."""
    if not np.isfinite(row).all():
        return "refuse", None
    held.append(reached(head, row[None])[0])
    n_newest = head.window if head.aggregation == WINDOW and head.window else needed
    newest = np.array(held[-n_newest:])
    labels = [label for label, n in zip(acting(head), newest.sum(0), strict=True) if n >= needed]
    if not labels:
        return None
    label = max(labels, key=lambda index: ACTIONS.index(head.actions[index]))
    return head.actions[label], label
