"""Traces made by hand: no model is run."""

from pathlib import Path

import numpy as np
import pytest

from llama_so8t.tracing.rule import Span
from llama_so8t.tracing.trace import Trace


@pytest.fixture
def make_trace():
    """A trace: ``make_trace(texts, n_prompt, {head: (n, labels)})``."""

    def make(texts, n_prompt, probabilities, name="tiny"):
        spans = (Span("prompt", 0, n_prompt), Span("answer", n_prompt, len(texts)))
        return Trace(
            path=Path("tiny.gguf"),
            name=name,
            architecture="so8t",
            heads=tuple(probabilities),
            tokens=tuple(range(100, 100 + len(texts))),
            texts=tuple(texts),
            spans=tuple(span for span in spans if span.stop > span.start),
            probabilities={head.name: np.asarray(values) for head, values in probabilities.items()},
        )

    return make
