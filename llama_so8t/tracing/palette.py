"""What page and picture share: colours of labels and actions, words, and characters made visible."""

import unicodedata

from llama_so8t.format import EMA, FINAL_NORM, MAX, MEAN, THRESHOLD, WINDOW, HeadSpec
from llama_so8t.tracing.rule import PROMPT, Trigger, acting

ACTION_COLORS = {"refuse": "#d5402b", "escalate": "#d99000"}

# first Okabe and Ito's, told apart by people with any kind of colour vision (https://jfly.uni-koeln.de/color/)
_OTHERS = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#8c6d1f", "#7f7f7f", "#6a51a3", "#66a61e", "#a50f15")

_JOINERS = "‌‍"  # parts of words and emoji, not hidden text


def drawn_labels(head: HeadSpec) -> list[int]:
    """Labels with a curve: those that act, or all where none does."""
    return acting(head) or list(range(len(head.labels)))


def label_colors(head: HeadSpec) -> dict[int, str]:
    """Colour of each drawn label: that of its action, as long as it is the first one with it."""
    colors: dict[int, str] = {}
    rest = 0
    for label in drawn_labels(head):
        color = ACTION_COLORS.get(head.actions[label])
        if color is None or color in colors.values():
            color = _OTHERS[rest % len(_OTHERS)]
            rest += 1
        colors[label] = color
    return colors


def rule_text(head: HeadSpec, is_fitted: bool = True) -> str:
    """The rule of a head in one line."""
    if not is_fitted:
        return "never fitted, so no label acts"
    rules = [
        f"{head.labels[i]} at {head.thresholds[i]:.4g} or above: {head.actions[i]}"
        if head.rule == THRESHOLD
        else f"{head.labels[i]} if largest: {head.actions[i]}"
        for i in acting(head)
    ]
    if not rules:
        return "no label acts"
    where = {"both": "prompt and answer", "prompt": "the prompt", "answer": "the answer"}[head.scope]
    if head.scope != PROMPT:
        rules += _aggregation(head)
    reads = "" if head.taps == (FINAL_NORM,) else f"reads layers {', '.join(map(_tap, head.taps))}; "
    asked = "" if head.depends_on is None else f", where {head.depends_on} acts"
    return f"{'; '.join(rules)}; {reads}judges {where}{asked}"


def _aggregation(head: HeadSpec) -> list[str]:
    """How the positions of an answer are combined, and how many have to agree."""
    if head.aggregation == WINDOW:
        return [f"{head.debounce} of {head.window} tokens"]
    means = {EMA: f"exponential mean, alpha {head.ema_alpha:.4g}" if head.ema_alpha else "", MEAN: "mean of the part",
             MAX: "maximum of the part"}  # fmt: skip
    rules = [means[head.aggregation]] if head.aggregation in means else []
    return rules + ([f"{head.debounce} tokens in a row"] if head.debounce > 1 else [])


def _tap(tap: int) -> str:
    return "norm" if tap == FINAL_NORM else str(tap)


def trigger_text(trigger: Trigger) -> str:
    """Where and why a head acts, in one line."""
    reason = "values not finite" if trigger.label is None else f"{trigger.label} {trigger.probability:.3f}"
    where = "at its end" if trigger.part == PROMPT else f"at token {trigger.position}"
    return f"{trigger.action}: {trigger.part} {where}, {reason}"


def visible(text: str) -> str:
    """Control and format characters as their code points, except line ends, tabs and joiners."""
    if text.isprintable():
        return text
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in ("Cc", "Cf") and c not in f"\n\t{_JOINERS}" else c
        for c in text
    )
