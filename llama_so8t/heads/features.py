"""Hidden states of examples, computed once and kept in a cache folder outside the project."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from llama_so8t.heads.backbone import Backbone
from llama_so8t.heads.datasets import Example

MAX_ANSWER_TOKENS = 128
"""Answers are read this far: a verdict that comes later has let most of the answer pass."""

FORMAT = 1
"""Part of the cache key; raised when the meaning of the cached arrays changes."""


def cache_folder() -> Path:
    """``features`` in SO8T_CACHE_DIR, else in ``llama_so8t`` of the user's cache folder (docs/env-vars.md)."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SO8T_CACHE_DIR") or user / "llama_so8t") / "features"


class Features:
    """Final-norm hidden states by example.

    Args:
        backbone: the decoder.
        folder: where the arrays are kept. They hold no text; their names are hashes.
        progress: called with one line per set that has to be computed.
    """

    def __init__(self, backbone: Backbone, folder: Path, progress: Callable[[str], None]) -> None:
        self._backbone = backbone
        self._folder = folder
        self._progress = progress
        self._states: dict[str, np.ndarray] = {}

    def compute(self, examples: Iterable[Example]) -> None:
        """Makes the hidden states of examples available, from the cache where it has the same part of a set."""
        sets: dict[str, dict[str, Example]] = {}
        for example in examples:
            sets.setdefault(example.set, {})[example.id] = example
        missing = {}
        for name, members in sets.items():
            todo = [example for key, example in sorted(members.items()) if key not in self._states]
            if todo and not self._read(todo):
                missing[name] = todo
        for number, (name, todo) in enumerate(missing.items(), start=1):
            self._progress(f"hidden states of {len(todo)} examples of {name} (set {number} of {len(missing)})")
            self._compute(todo)

    def prompt(self, example: Example) -> np.ndarray:
        """Hidden state at the last prompt token, where the runtime reads the verdict on a prompt: ``(d,)``."""
        return self._states[example.id][0].astype(np.float32)

    def answer(self, example: Example) -> np.ndarray:
        """Hidden states at the answer tokens, at most `MAX_ANSWER_TOKENS`: ``(tokens, d)``."""
        return self._states[example.id][1:].astype(np.float32)

    def _compute(self, examples: Sequence[Example]) -> None:
        tokenizer = self._backbone.tokenizer
        prompts = [tokenizer.prompt(example.prompt) for example in examples]
        answers = [
            tokenizer.answer(example.answer)[:MAX_ANSWER_TOKENS] if example.answer else [] for example in examples
        ]
        by_index: dict[int, np.ndarray] = {}
        sequences = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        for index, states in self._backbone.hidden_states(sequences):
            # half precision: 1e-3 of a value, far below what separates the labels, at half the disk
            by_index[index] = states[-1 - len(answers[index]) :].astype(np.float16)
        found = [by_index[index] for index in range(len(examples))]
        self._write(examples, found)
        self._states |= {example.id: states for example, states in zip(examples, found, strict=True)}

    def _path(self, examples: Sequence[Example]) -> Path:
        sha256 = hashlib.sha256(f"{FORMAT} {MAX_ANSWER_TOKENS} {self._backbone.digest}".encode())
        for example in examples:
            sha256.update(repr((example.id, example.prompt, example.answer)).encode())
        return self._folder / f"{sha256.hexdigest()}.npz"

    def _read(self, examples: Sequence[Example]) -> bool:
        path = self._path(examples)
        if not path.is_file():
            return False
        with np.load(path, allow_pickle=False) as arrays:
            states, lengths = arrays["states"], arrays["lengths"]
        ends = np.cumsum(lengths)
        for example, start, end in zip(examples, ends - lengths, ends, strict=True):
            self._states[example.id] = states[start:end]
        return True

    def _write(self, examples: Sequence[Example], found: Sequence[np.ndarray]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".partial", delete=False) as file:
            np.savez(file, states=np.concatenate(found), lengths=np.array([len(states) for states in found]))
        os.replace(file.name, self._path(examples))
