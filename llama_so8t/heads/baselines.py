"""What can be told without a model: classifiers on the shape of the text, as a measure of style leakage.

A head that is no better than these has learned how the sets are worded, not what they ask for.
"""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

_WORD = re.compile(r"[a-z']+")
STRENGTH = 30.0
"""Inverse regularization, for weights that sum to one."""


def first_word(text: str) -> list[str]:
    """The first word."""
    return _WORD.findall(text.lower())[:1]


def function_words(text: str) -> list[str]:
    """Words without content of their own, and the length in steps of a third of an octave."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = _WORD.findall(text.lower())
    return [word for word in words if word in ENGLISH_STOP_WORDS] + [f"#{int(3 * math.log2(1 + len(words)))}"]


def all_words(text: str) -> list[str]:
    """Every word: content too, but neither order nor meaning."""
    return _WORD.findall(text.lower())


BASELINES: dict[str, Callable[[str], list[str]]] = {
    "first_word": first_word,
    "function_words": function_words,
    "all_words": all_words,
}


def scores(
    analyzer: Callable[[str], list[str]],
    fit: Sequence[str],
    labels: np.ndarray,
    weights: np.ndarray,
    held_out: Sequence[str],
) -> np.ndarray:
    """Log odds of held-out texts from a logistic regression on word counts of the fit texts, ``(held_out,)``."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = CountVectorizer(analyzer=analyzer)
    counts = vectorizer.fit_transform(fit)
    model = LogisticRegression(C=STRENGTH, max_iter=5000)
    model.fit(counts, labels, sample_weight=weights / weights.sum())
    return model.decision_function(vectorizer.transform(held_out))
