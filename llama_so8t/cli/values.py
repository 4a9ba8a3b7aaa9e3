"""Values of options, as `argparse` reads them: each function takes the text and says what is wrong with it."""

import argparse
import re


def count(text: str) -> int:
    """A whole number above 0.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    value = _whole(text)
    if not value:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return value


def count_or_zero(text: str) -> int:
    """A whole number, 0 or more.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    value = _whole(text)
    if value is None:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, 0 or more")
    return value


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers above 0, separated by commas.

    Raises:
        argparse.ArgumentTypeError: one of them is something else.
    """
    return tuple(count(word) for word in words(text))


def words(text: str) -> tuple[str, ...]:
    """Words separated by commas, without the spaces around them."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def size(text: str) -> int:
    """Bytes, as in llama-gguf-split: a number, or one with M or G for 10^6 or 10^9.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    found = re.fullmatch(r"(\d+)([MG]?)", text, re.ASCII)
    if not found or not int(found[1]):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number with M or G, such as 2G")
    return int(found[1]) * {"": 1, "M": 10**6, "G": 10**9}[found[2]]


def _whole(text: str) -> int | None:
    # nine digits are more than any machine has of anything, and fit an int32
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else None
