"""A head and probabilities for traces made by hand."""

import numpy as np

from llama_so8t.format import HeadSpec

SAFETY = HeadSpec("safety", ("safe", "unsafe"), ("allow", "refuse"), (0.5, 0.9), debounce=2)


def two(unsafe):
    """Probabilities ``(n, 2)`` from those of the second label."""
    unsafe = np.asarray(unsafe, dtype=float)
    return np.stack([1 - unsafe, unsafe], -1)
