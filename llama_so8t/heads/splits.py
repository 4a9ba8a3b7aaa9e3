"""Which examples train which head, and which are held out. Nothing held out is ever fitted or tuned on."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from llama_so8t.heads import datasets
from llama_so8t.heads.datasets import Example, normalized

SIMILAR = 0.5
"""Two prompts that share this part of their words (Jaccard) stand on the same side of every split."""

HELD_OUT_PART = 0.25
"""Part of Do-Not-Answer and BFCL that is held out; the other sets are whole on one side."""

N_ORDINARY = 600
"""Prompts taken of the 2,900 of BFCL: enough for a threshold, few enough for a processor without an accelerator."""


@dataclass(frozen=True)
class Labelled:
    """An example with the label of a head: 1 is the label that acts. ``group`` is never divided."""

    example: Example
    label: int
    group: str


@dataclass(frozen=True)
class Task:
    """Data of one head at one kind of position. ``fit`` trains and tunes, ``held_out`` only measures.

    ``position`` is "prompt" (the last token of the prompt) or "answer" (every token of the answer).
    """

    head: str
    position: str
    fit: tuple[Labelled, ...]
    held_out: tuple[Labelled, ...]

    @property
    def name(self) -> str:
        """For tables: head and position."""
        return f"{self.head}, {self.position}"


def tasks() -> tuple[Task, ...]:
    """All tasks.

    Raises:
        DatasetError: a package with data is missing.
    """
    datasets.check_packages()
    return safety_prompts(), safety_answers(), authority_prompts()


def safety_prompts() -> Task:
    """Harmful prompts against benign ones. The held-out rho pairs differ in topic only, not in source or style."""
    ordinary, ordinary_held_out = _ordinary()
    # 11 requests of HarmBench come with held-out answers in PyRIT
    answered = {normalized(example.prompt) for example in datasets.pyrit_objective()}
    return Task(
        head="safety",
        position="prompt",
        fit=_labelled(
            datasets.rho_pairs("harmful_benign_50"),
            datasets.rho_edgy("benign_edgy_80"),
            datasets.strongreject(),
            [example for example in datasets.harmbench() if normalized(example.prompt) not in answered],
            ordinary,
        ),
        held_out=_labelled(
            datasets.rho_pairs("expanded_100"),
            datasets.rho_edgy("expanded_70"),
            datasets.advbench(),
            datasets.mt_bench(),
            ordinary_held_out,
        ),
    )


def safety_answers() -> Task:
    """Harmful answers against harmless ones, mostly to the same kind of harmful request."""
    harm = datasets.pyrit_harm()
    # rows of one objective, and rows with one answer, belong together
    groups = _linked(harm, lambda row: (f"p {normalized(row.prompt)}", f"a {normalized(row.required_answer())}"))
    fit = tuple(Labelled(row, round(row.required_score()), group) for row, group in zip(harm, groups, strict=True))
    references = [example for example in datasets.mt_bench() if example.answer is not None]
    return Task(
        head="safety",
        position="answer",
        fit=fit + _labelled(datasets.rho_pairs("harmful_benign_50")),
        held_out=_labelled(datasets.pyrit_objective(), datasets.rho_pairs("expanded_100"), references),
    )


def authority_prompts() -> Task:
    """Questions a model should hand on (Do-Not-Answer) against benign ones, edgy ones among them."""
    escalate = tuple(example for name in datasets.DO_NOT_ANSWER for example in datasets.do_not_answer(name))
    words = [frozenset(normalized(example.prompt).split()) for example in escalate]
    groups = _similar(words)
    held_out = _chosen(groups, HELD_OUT_PART)
    rows = [Labelled(example, 1, group) for example, group in zip(escalate, groups, strict=True)]
    ordinary, ordinary_held_out = _ordinary()

    def benign(name: str) -> list[Example]:
        return [example for example in datasets.rho_pairs(name) if not example.score]

    return Task(
        head="authority",
        position="prompt",
        fit=tuple(row for row in rows if row.group not in held_out)
        + _labelled(benign("harmful_benign_50"), datasets.rho_edgy("benign_edgy_80"), ordinary),
        held_out=tuple(row for row in rows if row.group in held_out)
        + _labelled(benign("expanded_100"), datasets.rho_edgy("expanded_70"), datasets.mt_bench(), ordinary_held_out),
    )


def _ordinary() -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """BFCL prompts to fit and to hold out, the same for every head and seed."""
    chosen = sorted(datasets.bfcl(), key=lambda example: _hash(normalized(example.prompt)))[:N_ORDINARY]
    groups = _similar([frozenset(normalized(example.prompt).split()) for example in chosen])
    held_out = _chosen(groups, HELD_OUT_PART)
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example, group in zip(chosen, groups, strict=True):
        sides[group in held_out].append(example)
    return tuple(sides[0]), tuple(sides[1])


def _labelled(*sets: Iterable[Example]) -> tuple[Labelled, ...]:
    """Examples with the label of their score, in groups of their own; the two sides of a rho pair share one."""
    return tuple(
        Labelled(
            example, round(example.required_score()), example.id.replace("/benign/", "/").replace("/harmful/", "/")
        )
        for examples in sets
        for example in examples
    )


def _linked(examples: Sequence[Example], keys: Callable[[Example], Iterable[str]]) -> list[str]:
    """Group names: examples that share a key, directly or through others, share a group."""
    parents = list(range(len(examples)))
    owner: dict[str, int] = {}
    for index, example in enumerate(examples):
        for key in keys(example):
            _join(parents, owner.setdefault(key, index), index)
    return [examples[_root(parents, index)].id for index in range(len(examples))]


def _similar(words: Sequence[frozenset[str]]) -> list[str]:
    """Group names by similarity of word sets, joined through chains of similar texts."""
    parents = list(range(len(words)))
    for i, a in enumerate(words):
        for j in range(i):
            b = words[j]
            if len(a & b) >= SIMILAR * len(a | b):
                _join(parents, j, i)
    return [str(_root(parents, index)) for index in range(len(words))]


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


def _join(parents: list[int], a: int, b: int) -> None:
    a, b = _root(parents, a), _root(parents, b)
    parents[max(a, b)] = min(a, b)


def _chosen(groups: Sequence[str], part: float) -> set[str]:
    """Groups, in an order fixed by their hash, until they hold ``part`` of all rows."""
    chosen: set[str] = set()
    rows = 0
    for group in sorted(set(groups), key=_hash):
        size = groups.count(group)
        if rows + size <= part * len(groups):
            chosen.add(group)
            rows += size
    return chosen


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
