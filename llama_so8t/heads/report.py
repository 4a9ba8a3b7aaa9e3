"""The report of `so8t heads` as tables for a terminal and as the README of a model."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_so8t.heads.datasets import INSTALL
from llama_so8t.heads.features import MAX_ANSWER_TOKENS
from llama_so8t.text_table import aligned, markdown

REPORT_NAME = "heads_report.json"

CLOSE = 0.03
"""A difference in AUROC that a hundred examples a side do not show reliably (its standard error is about 0.02)."""

_LIMITS = """\
- Answers are the hard side: those of PyRIT all belong to harmful requests, and most refusals among them begin
  alike. The verdict on the prompt comes first; a head on answers is a second line behind it.
- The label of authority is weak. "Escalate" is three files of Do-Not-Answer (personal data, doubtful facts,
  personal advice and crisis) that their authors say a model should not answer alone; nobody judged them for
  "a person should take over". "Handle" is harmless requests of other sources. A quarter of Do-Not-Answer is
  held out, in groups of similar wording, but it comes from the same authors as the rest: expect less elsewhere.
- The thresholds aim at the benign sets of the training data. On other benign sets a head acts more often than
  there, as the tables show.
- The benign but edgy sets (rho) are small, English, and of one source. No adversarial prompt, no jailbreak
  template, no long context, no system prompt, no second turn and no other language was tried.
- The hidden states are those of a float32 model on the dequantized weights. A runtime that rounds activations
  moves probabilities a little, and with them verdicts near the threshold.
"""

_CLASSIFIERS = {
    "head": "head",
    "first_word": "first word",
    "function_words": "function words, length",
    "all_words": "all words",
}


def render(report: dict[str, Any]) -> str:
    """Tables for a terminal."""
    blocks = []
    for task in report["tasks"]:
        blocks.append(f"{_title(task)}\n{_sizes(task, report)}")
        blocks += [_indented(_rates(task["rates"], task, report)), _indented(_auroc(task))]
    heads = [
        f"{name}: {head['labels'][1]} from {head['thresholds'][1]:.4f}, debounce {head['debounce']}, "
        f"scope {head['scope']}"
        for name, head in report["heads"].items()
    ]
    return "\n\n".join([*blocks, "\n".join(heads)])


def model_card(report: dict[str, Any], path: Path) -> str:
    """README of a model whose heads were fitted: numbers, how they came about, what they do not say."""
    options = report["fit"]
    seed = f" --seed {options['seed']}" if options["seed"] else ""
    rate = options["max_false_positives"]
    fit_command = f"so8t heads fit {path}{seed}" + (f" --max-false-positives {rate}" if rate != 0.05 else "")
    lines = [
        f"# {path.name}",
        "",
        _model(report["model"]),
        "",
        f"This file was written by `so8t heads fit`, and so was every number in it; `{REPORT_NAME}` has them for",
        "programs.",
        "",
        "## Reproduce",
        "",
        "```sh",
        INSTALL,
        *_recipe(fit_command, options["made_by"]),
        "```",
        "",
        "The hidden states are cached after the first run, which takes some minutes to half an hour without an",
        "accelerator. `so8t heads evaluate` measures the stored heads again.",
        "",
        "## Heads",
        "",
        *markdown(_head_rows(report)),
        "",
        _rule(report),
        "",
        "## Measured on held-out data",
        "",
    ]
    for task in report["tasks"]:
        lines += [f"### {_title(task)}", "", _sizes(task, report), ""]
        lines += [*markdown(_rates(task["rates"], task, report)), "", *markdown(_auroc(task)), ""]
    return "\n".join([*lines, "## What these numbers do not say", "", _matched(report), _LIMITS])


def _model(model: dict[str, Any]) -> str:
    kinds = model["generators"]
    turning = [name for name, count in kinds.items() if count["not_zero"]]
    text = (
        f"An SO8T model with a safety head and an authority head, on a {model['base_architecture']} base of "
        f"{model['n_layer']} layers and width {model['hidden_size']}"
    )
    if model["base_model"]:
        text += f" (`{model['base_model']}`, sha256 {model['base_model_sha256'][:16]}...)"
    if not turning:
        return textwrap.fill(f"{text}. All rotations are the identity.", width=110)
    text += ". Rotations other than the identity: " + ", ".join(
        f"{name} {kinds[name]['not_zero']} of {kinds[name]['of']}" for name in turning
    )
    if model["compensated"]:
        text += ". The weights are counter-rotated: the language model computes what its base does, up to rounding"
    return textwrap.fill(f"{text}.", width=110)


def _recipe(fit_command: str, made_by: str | None) -> list[str]:
    if made_by is None:
        return [fit_command]
    return [made_by, fit_command]


def _title(task: dict[str, Any]) -> str:
    what = "prompts" if task["position"] == "prompt" else "answers"
    return f"{task['head'].capitalize()} of {what}"


def _sizes(task: dict[str, Any], report: dict[str, Any]) -> str:
    benign, acting = report["heads"][task["head"]]["labels"]

    def count(rows: Sequence[dict[str, Any]], label: int) -> int:
        return sum(row["n"] for row in rows if row["label"] == label)

    fit, held_out = task["fit"], task["held_out"]
    return (
        f"Fitted on {count(fit, 1)} {acting} and {count(fit, 0)} {benign} examples, "
        f"measured on {count(held_out, 1)} {acting} and {count(held_out, 0)} {benign} others."
    )


def _rates(rates: Sequence[dict[str, Any]], task: dict[str, Any], report: dict[str, Any]) -> list[list[str]]:
    head = report["heads"][task["head"]]
    rows = [["set", "label", "n", f"{head['actions'][1]}"]]
    return rows + [
        [rate["set"], head["labels"][rate["label"]], str(rate["n"]), f"{100 * rate['rate']:.1f} %"] for rate in rates
    ]


def _auroc(task: dict[str, Any]) -> list[list[str]]:
    rows = [["AUROC of", "against", "n", *_CLASSIFIERS.values()]]
    return rows + [
        [
            row["acting"],
            row["benign"],
            f"{row['n'][0]} / {row['n'][1]}",
            *(f"{row[name]:.3f}" for name in _CLASSIFIERS),
        ]
        for row in task["auroc"]
    ]


def _head_rows(report: dict[str, Any]) -> list[list[str]]:
    rows = [["head", "labels", "acts", "threshold", "debounce", "scope", "temperature"]]
    return rows + [
        [
            name,
            ", ".join(head["labels"]),
            head["actions"][1],
            f"{head['thresholds'][1]:.4f}",
            str(head["debounce"]),
            head["scope"],
            f"{head['temperature']:g}",
        ]
        for name, head in report["heads"].items()
    ]


def _rule(report: dict[str, Any]) -> str:
    fit = report["fit"]
    decided = ", ".join(f"{found['validation']['decided_by']} for {name}" for name, found in fit["heads"].items())
    return textwrap.fill(
        "A head is one logistic regression on the final-norm hidden state: at the last token of the prompt, and "
        "for safety at tokens of answers too. The rows of its weight are -u/2 and +u/2, with u the fitted "
        "direction turned by the rotation of the site out. Regularization, debounce and threshold come from "
        f"{next(iter(fit['heads'].values()))['validation']['folds']} grouped folds of the training data: the "
        f"threshold is the lowest at which at most {100 * fit['max_false_positives']:g} % of every single set of "
        f"benign examples acts, out of fold (decided by {decided}). A prompt acts at its last token, an answer "
        "when as many tokens in a row agree as debounce says; of answers, the first "
        f"{MAX_ANSWER_TOKENS} tokens are read. The temperature is 1: probabilities are not calibrated to how often "
        "harm occurs in real use.",
        width=110,
    )


def _matched(report: dict[str, Any]) -> str:
    """Where a classifier without a model comes close to the head, or passes it."""
    rows = [
        f"{task['head']} of {task['position']}s, {row['acting']} against {row['benign']}"
        for task in report["tasks"]
        for row in task["auroc"]
        if max(row[name] for name in _CLASSIFIERS if name != "head") > row["head"] - CLOSE
    ]
    found = "; ".join(rows) or "none"
    return textwrap.fill(
        "- The columns beside the head are classifiers without any model, fitted on the same examples: the first "
        "word alone, function words with the length, all words. Where one of them is near the head or above it, "
        "the row says how the sets are worded, not that the head understands. Rows where one comes within "
        f"{CLOSE:g} or passes: {found}.",
        width=110,
        subsequent_indent="  ",
    )


def _indented(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"  {line}" for line in aligned(rows, left=2))
