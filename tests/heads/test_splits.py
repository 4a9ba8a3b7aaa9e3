"""Nothing held out has been seen."""

import numpy as np
import pytest
from required import absent

from llama_so8t.heads import datasets, splits
from llama_so8t.heads.datasets import Example, normalized
from llama_so8t.heads.regression import N_FOLDS, folds


@pytest.fixture(scope="module")
def all_tasks():
    try:
        return splits.tasks()
    except datasets.DatasetError as error:
        absent("data", error)


def _text(row, position):
    return (
        normalized(row.example.prompt),
        normalized(row.example.answer or "") if position == "answer" else "",
    )


def test_no_text_and_no_group_is_on_both_sides(all_tasks):
    for task in all_tasks:
        fit, held_out = ({_text(row, task.position) for row in rows} for rows in (task.fit, task.held_out))
        shared = len(fit & held_out)  # a number first: a failed comparison of texts would print them
        assert shared == 0
        assert not {row.group for row in task.fit} & {row.group for row in task.held_out}


def test_no_prompt_is_fitted_for_one_task_and_held_out_for_another(all_tasks):
    fit = {normalized(row.example.prompt) for task in all_tasks for row in task.fit}
    held_out = {normalized(row.example.prompt) for task in all_tasks for row in task.held_out}
    shared = len(fit & held_out)
    assert shared == 0


def test_held_out_answers_share_neither_request_nor_answer_with_any_harm_row(all_tasks):
    harm = datasets._pyrit_harm()
    assert len(harm) == 990
    requests, answers = {normalized(r.prompt) for r in harm}, {normalized(r.answer) for r in harm}
    shared = [
        row.id
        for row in datasets.pyrit_objective()
        if normalized(row.prompt) in requests or normalized(row.answer) in answers
    ]
    assert shared == []


def test_rows_of_one_request_or_one_answer_share_a_group(all_tasks):
    (answers,) = (task for task in all_tasks if task.position == "answer")
    for key in ("prompt", "answer"):
        groups = {}
        for row in answers.fit:
            if row.example.set == "pyrit/harm":
                groups.setdefault(normalized(getattr(row.example, key)), set()).add(row.group)
        assert {len(found) for found in groups.values()} == {1}


def test_both_labels_are_on_both_sides(all_tasks):
    assert [task.name for task in all_tasks] == ["safety, prompt", "safety, answer", "authority, prompt"]
    for task in all_tasks:
        for rows in (task.fit, task.held_out):
            assert min(sum(row.label == label for row in rows) for label in (0, 1)) >= 100


def test_similar_held_out_requests_of_the_same_source_are_no_training_requests(all_tasks):
    for task in all_tasks:
        for name in ("bfcl", "donotanswer"):
            fit, held_out = (
                [set(normalized(r.example.prompt).split()) for r in rows if r.example.source.startswith(name)]
                for rows in (task.fit, task.held_out)
            )
            close = sum(
                len(words & other) >= splits.SIMILAR * len(words | other) for words in held_out for other in fit
            )
            assert close == 0


def test_similar_texts_are_linked_through_a_chain():
    chain = ["a b c d", "b c d e", "c d e f", "x y z"]
    groups = splits._similar([frozenset(text.split()) for text in chain])
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_examples_are_linked_by_either_key():
    rows = [Example("s", i, prompt, answer) for i, (prompt, answer) in enumerate(["pa", "pb", "qb", "rc"])]
    groups = splits._linked(rows, lambda row: (f"p {row.prompt}", f"a {row.answer}"))
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_chosen_groups_are_whole_and_at_most_the_part_asked_for():
    groups = ["a"] * 50 + ["b"] * 3 + [str(i) for i in range(47)]
    chosen = splits._chosen(groups, 0.25)
    assert "a" not in chosen
    assert 0.2 <= sum(group in chosen for group in groups) / len(groups) <= 0.25


def test_folds_never_divide_a_group(rng):
    groups = rng.integers(0, 40, size=300)
    fold = folds(groups, seed=1)
    assert set(fold) == set(range(N_FOLDS))
    assert all(len(set(fold[groups == group])) == 1 for group in set(groups))
    assert np.bincount(fold).min() > 40
    assert (folds(groups, seed=2) != fold).any() and (folds(groups, seed=1) == fold).all()
