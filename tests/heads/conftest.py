"""Harmless stand-ins for data, and a small adapter to write heads into."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from required import absent

from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.heads import datasets
from llama_so8t.heads.datasets import DatasetError, Example
from llama_so8t.heads.splits import Labelled, Task
from tests.tiny_models import write_base

MARK = "zyzzyva"
"""A word in every stand-in text, and in no file that a command writes."""

WIDTH = 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: on a busy machine threads that wait for each other take most of the time."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # comes with scikit-learn
        yield
        return
    with threadpool_limits(1):
        yield


@pytest.fixture
def packages() -> None:
    """The packages with data; without them the test is skipped, and the reason says how to install them."""
    try:
        datasets.check_packages()
    except DatasetError as error:
        absent("data", error)


@pytest.fixture(params=["adapter", "full"])
def model(request, tmp_path: Path, pinned_tree: Path) -> Path:
    """An SO8T model with random rotations and zero heads, as adapter and as full checkpoint."""
    base = write_base(tmp_path / "base", "llama", hidden_size=WIDTH)
    out = tmp_path / "model"
    is_adapter = request.param == "adapter"
    initialize(
        InitializeOptions(str(base), out, rotations="random", seed=8, scale=0.3, compensate=True, adapter=is_adapter)
    )
    return out


def example(source: str, index: int, score: float, answer: bool = False) -> Example:
    """A text that says nothing but where it stands."""
    text = f"{MARK} {source} {index}"
    return Example(source, index, text, f"{text} answer" if answer else None, score)


def task(head: str, position: str, n: int = 60) -> Task:
    """Alternating labels from two sources of each side."""

    def rows(side: str, count: int) -> tuple[Labelled, ...]:
        examples = [
            example(f"{head}/{side}{index % 4}", index, index % 2, position == "answer") for index in range(count)
        ]
        return tuple(Labelled(e, round(e.score), e.id) for e in examples)

    return Task(head, position, rows("fit", n), rows("held", n // 2))


class SyntheticFeatures:
    """Hidden states with the label along one direction and noise everywhere."""

    def __init__(self, separation: float = 4.0, n_tokens: int = 12) -> None:
        self.direction = np.random.default_rng(3).normal(size=WIDTH)
        self.direction /= np.linalg.norm(self.direction)
        self.separation, self.n_tokens = separation, n_tokens

    def compute(self, examples) -> None:
        """Nothing to do."""

    def prompt(self, e: Example) -> np.ndarray:
        return self._states(e, 1)[0]

    def answer(self, e: Example) -> np.ndarray:
        return self._states(e, self.n_tokens)

    def _states(self, e: Example, n: int) -> np.ndarray:
        rng = np.random.default_rng([*e.id.encode()])
        return (rng.normal(size=(n, WIDTH)) + self.separation * (e.score - 0.5) * self.direction).astype(np.float32)
