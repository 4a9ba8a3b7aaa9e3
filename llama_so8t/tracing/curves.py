"""What is drawn over the positions: curves of a bounded number of points, ticks, and borders of the parts."""

from collections.abc import Sequence

import numpy as np

from llama_so8t.tracing.rule import Span

MAX_POINTS = 1500


def peaks(values: np.ndarray, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Positions and values of at most ``most`` points: the largest of each bin of consecutive positions.

    Args:
        values: ``(n,)``; NaN is left out.
        most: number of points, at least.

    Returns:
        two arrays of one length, positions ascending.
    """
    size = -(-len(values) // most)
    found = []
    for start in range(0, len(values), max(size, 1)):
        part = values[start : start + size]
        if not np.isnan(part).all():
            found.append(start + int(np.nanargmax(part)))
    positions = np.array(found, dtype=int)
    return positions, values[positions]


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Ranges ``[start, stop)`` in which a bool array ``(n,)`` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def ticks(spans: Sequence[Span], n: int, wanted: int = 12) -> list[tuple[int, str]]:
    """Token index and label of each tick; every part counts from 0, as its positions do."""
    rough = max(n / wanted, 1.0)
    power = 10 ** int(np.floor(np.log10(rough)))
    step = next(int(factor * power) for factor in (1, 2, 5, 10) if factor * power >= rough)
    found: list[tuple[int, str]] = []
    for span in spans:
        for position in range(0, span.stop - span.start, step):
            index = span.start + position
            if position == 0 and found and index - found[-1][0] < 0.6 * step:
                found.pop()  # too near to the border
            found.append((index, str(position)))
    return found
