"""The rules of docs/guard.md in plain Python, over the tables of a scripted model: what a tool must say and deliver."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
from scripted_model import THINK, Head

REFUSAL = "I can't help with that."
ESCALATION = "This request needs the decision of a person. It was not answered."
_RANK = ("allow", "escalate", "refuse")


@dataclass(frozen=True)
class Policy:
    """Settings of a run; None: those of the heads."""

    mode: str = "monitor"
    think: str = "enforce"
    holdback: int | None = 0
    """None: no flag, so as many tokens as the heads need."""
    debounce: int | None = None
    thresholds: Mapping[tuple[str, str], float] = field(default_factory=dict)
    on_refuse: str = "message"

    @property
    def flags(self) -> list[str]:
        flags = ["--so8t-policy", self.mode, "--so8t-think", self.think, "--so8t-on-refuse", self.on_refuse]
        if self.holdback is not None:
            flags += ["--so8t-holdback", str(self.holdback)]
        if self.debounce is not None:
            flags += ["--so8t-debounce", str(self.debounce)]
        if self.thresholds:
            pairs = [f"{head}/{label}={value}" for (head, label), value in self.thresholds.items()]
            flags += ["--so8t-threshold", ",".join(pairs)]
        return flags

    def debounce_of(self, head: Head) -> int:
        return self.debounce or head.debounce

    def needed(self, heads: Mapping[str, Head]) -> int:
        """Tokens to hold back, so that a stream has none of a run that triggers."""
        acting = [
            head for head in heads.values() if head.fitted and head.scope != "prompt" and set(head.actions) - {"allow"}
        ]
        spans = (
            head.window if head.window and self.debounce_of(head) > 1 else self.debounce_of(head) for head in acting
        )
        return max(spans, default=0)

    def held_back(self, heads: Mapping[str, Head]) -> int:
        """The newest tokens of a stream that wait for their verdicts."""
        if self.mode != "enforce":
            return 0
        return self.needed(heads) if self.holdback is None else self.holdback


@dataclass
class Reading:
    """What one head said in one part."""

    label: str = ""
    probabilities: Mapping[str, float | None] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    triggered: tuple[int, str] | None = None
    given: list[Any] = field(default_factory=list)
    """Table entries of the head since the part began or values were not finite."""
    held: list[dict[str, bool]] = field(default_factory=list)
    """And for each label, whether its rule held there; a position at which the head has no values has none."""

    def n_run(self, label: str) -> int:
        """The newest positions in a row at which the rule has held."""
        return sum(1 for _ in itertools.takewhile(lambda held: held.get(label, False), reversed(self.held)))

    def n_held(self, head: Head, label: str, newest: int | None = None) -> int:
        """Positions that agree: in a row, or among the newest of the window."""
        if head.aggregation != "window":
            return self.n_run(label)
        newest = head.window if newest is None else newest
        return sum(held.get(label, False) for held in self.held[len(self.held) - min(newest, len(self.held)) :])

    def n_agreed(self, head: Head, label: str, debounce: int) -> int:
        """Positions from the first that agreed up to the newest."""
        if head.aggregation != "window":
            return debounce
        newest = self.held[-head.window :]
        return len(newest) - next(i for i, held in enumerate(newest) if held.get(label, False))


@dataclass
class Part:
    action: str = "allow"
    n_positions: int = 0
    heads: dict[str, Reading] = field(default_factory=dict)


@dataclass
class Expected:
    """Verdict of an answer, and what of it is delivered."""

    parts: dict[str, Part]
    decision: str = "allow"
    action: str = "allow"
    """That is enforced."""
    triggered: tuple[str, int, str, str] | None = None
    """Part, position, head, label."""
    probability: float | None = None
    sent: list[str] = field(default_factory=list)
    """Tokens of a stream."""
    kept: list[str] = field(default_factory=list)
    """Tokens of an answer that was not streamed, without the text of the policy."""
    text: str = ""
    """Of the policy."""
    in_think: bool = False
    """Where it ended."""

    def check(self, verdict: Mapping[str, Any]) -> None:
        """Compares with an object ``so8t``."""
        assert verdict["decision"] == self.decision
        ended = "none" if self.action == "allow" else "stop"
        assert verdict["enforced"] == {REFUSAL: "message", ESCALATION: "escalation"}.get(self.text, ended)
        triggered = verdict["triggered"]
        assert (triggered and tuple(triggered[k] for k in ("part", "position", "head", "label"))) == self.triggered
        if triggered:
            assert triggered["probability"] == pytest.approx(self.probability, abs=2e-6)
        assert ("think" in verdict) == (self.parts["think"].n_positions > 0)
        for name, part in self.parts.items():
            if name in verdict:
                self._check_part(verdict[name], part, name)

    @staticmethod
    def _check_part(found: Mapping[str, Any], part: Part, name: str) -> None:
        assert found["action"] == part.action
        assert name == "prompt" or found["n_positions"] == part.n_positions
        assert list(found["heads"]) == list(part.heads)
        for head, reading in part.heads.items():
            other = found["heads"][head]
            assert other["label"] == reading.label, (name, head)
            assert other["probabilities"] == pytest.approx(reading.probabilities, abs=2e-6), (name, head)
            if name != "prompt":
                assert other["peak"] == pytest.approx(reading.peak, abs=2e-6), (name, head)
                triggered = other["triggered"]
                assert (triggered and (triggered["position"], triggered["label"])) == reading.triggered, (name, head)


def judge(
    prompt: str, answer: Sequence[str], heads: Mapping[str, Head], policy: Policy, n_predict: int | None = None
) -> Expected:
    """Follows an answer token by token.

    Args:
        prompt: its last token.
        answer: all tokens that the model would generate, without the end.
        heads: in the order of the model.
        policy: in force.
        n_predict: tokens after which the answer is cut.
    """
    expected = Expected({name: Part() for name in ("prompt", "think", "answer")})
    holdback = policy.held_back(heads)
    block = "open" if prompt.strip() == THINK[0] else "possible"
    part, n_sent, limit = "prompt", 0, 10**9
    for k in itertools.count():  # the k-th sampling judges the prompt or token k - 1
        if k > 0:
            part, block = _part(answer[k - 1], block)
        token = answer[k - 1] if k > 0 else prompt
        found = _read(expected.parts[part], token, heads, policy, part)
        if _RANK.index(found.action) > _RANK.index(expected.decision):
            position = expected.parts[part].n_positions - 1
            expected.decision, expected.probability = found.action, found.probability
            expected.triggered = part, position, found.head, found.label
        enforces = policy.mode == "enforce" and (part != "think" or policy.think == "enforce")
        if enforces and found.action != "allow":
            expected.action, limit = found.action, max(0, k - found.run)
            break
        if k == len(answer):
            break
        n_sent = k + 1 if holdback == 0 else max(0, k - holdback + 1)
        if k + 1 == n_predict:
            break
    n_generated = min(k if expected.action != "allow" else n_predict or len(answer), len(answer))
    is_doubtful = holdback > 0 and n_generated > k and _can_trigger(answer[k], block, expected.parts, heads, policy)
    final = min(limit, n_generated - is_doubtful)
    refusal = REFUSAL if policy.on_refuse == "message" else ""
    expected.text = {"allow": "", "escalate": ESCALATION, "refuse": refusal}[expected.action]
    expected.sent = list(answer[: max(n_sent, final)])
    expected.kept = [] if expected.text else list(answer[:final])
    expected.in_think = block == "open"
    return expected


def _part(token: str, block: str) -> tuple[str, str]:
    """Part of the next token of an answer, and the state of the think block after it: possible, open or over."""
    word = token.strip()
    if block == "possible" and word:
        block = "open" if word == THINK[0] else "over"
    if block != "open":
        return "answer", block
    return "think", "over" if word == THINK[1] else "open"


def _can_trigger(token: str, block: str, parts: Mapping[str, Part], heads: Mapping[str, Head], policy: Policy) -> bool:
    """Whether a token that has no verdict could be the last one of a run that triggers."""
    part, _ = _part(token, block)
    if part == "think" and policy.think != "enforce":
        return False
    return any(
        parts[part].heads.get(name, Reading()).n_held(head, label, head.window and head.window - 1) + 1
        >= policy.debounce_of(head)
        for name, head in heads.items()
        if head.fitted and head.scope != "prompt"
        for label, action in zip(head.labels, head.actions, strict=True)
        if action != "allow"
    )


class _Found(NamedTuple):
    action: str = "allow"
    head: str = ""
    label: str = ""
    probability: float | None = None
    run: int = 0
    """Positions that agreed."""


def aggregated(head: Head, given: Sequence[Any]) -> np.ndarray:
    """Probabilities ``(labels,)`` of a head at the last of these table entries, from the definitions, one sum each."""
    n = len(given)
    if head.aggregation == "max":
        return np.max([head.probabilities(entry) for entry in given], axis=0)
    if head.aggregation not in ("mean", "ema"):
        return head.probabilities(given[-1])
    alpha = head.ema_alpha
    weights = [(1 - alpha) ** (n - 1 - t) * (alpha if t else 1.0) if alpha else 1 / n for t in range(n)]
    return head.link_of(sum(weight * head.values(entry) for weight, entry in zip(weights, given, strict=True)))


def _read(part: Part, token: str, heads: Mapping[str, Head], policy: Policy, name: str) -> _Found:
    """The strongest action at one position."""
    strongest = _Found()
    acts = set()
    for head_name, head in heads.items():
        if head.scope not in ("both", "prompt" if name == "prompt" else "answer"):
            continue
        if head.depends_on is None and strongest.action == "refuse":
            continue
        if head.depends_on is not None and head.depends_on not in acts:
            if head_name in part.heads:
                part.heads[head_name].held.append({})
            continue
        reading = part.heads.setdefault(head_name, Reading())
        given = head.tokens.get(token, head.default)
        if isinstance(given, float) and head.fitted:
            reading.label = "not finite"
            reading.probabilities = dict.fromkeys(head.labels)
            reading.peak = reading.peak or dict.fromkeys(head.labels, 0.0)
            reading.given, reading.held = [], []
            if strongest.action != "refuse":
                strongest = _Found("refuse", head_name, "not finite", None, 1)
            continue
        reading.given.append(given)
        probs = dict(zip(head.labels, map(float, aggregated(head, reading.given)), strict=True))
        reading.label = max(probs, key=probs.get)
        reading.probabilities = probs
        reading.peak = {label: max(p, reading.peak.get(label, 0.0)) for label, p in probs.items()}
        debounce = 1 if name == "prompt" else policy.debounce_of(head)
        holds = {}
        for label, threshold in zip(head.labels, head.thresholds, strict=True):
            threshold = policy.thresholds.get((head_name, label), threshold)
            is_largest = label == reading.label
            holds[label] = head.fitted and (is_largest if head.rule == "argmax" else probs[label] >= threshold)
        reading.held.append(holds)
        for label, action in zip(head.labels, head.actions, strict=True):
            if action == "allow":
                continue
            if holds[label] if head.link == "sigmoid" else head.fitted and label == reading.label:
                acts.add(head_name)
            if reading.n_held(head, label) < debounce:
                continue
            if _RANK.index(action) > _RANK.index(strongest.action):
                strongest = _Found(action, head_name, label, probs[label], reading.n_agreed(head, label, debounce))
            if reading.triggered is None:
                reading.triggered = (part.n_positions, label)
    part.n_positions += 1
    part.action = max(part.action, strongest.action, key=_RANK.index)
    return strongest
