"""Rows of measurements as Markdown tables: one line per test, one column per arm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_so8t.benchmarks.paired import geometric_mean
from llama_so8t.text_table import markdown


@dataclass(frozen=True)
class _Kind:
    """How a test is written: title of the column of the base, its value, and how the others compare with it."""

    title: str
    unit: str
    value: Callable[[float], str]
    compared: Callable[[Mapping[str, float]], str]


def _ratio(interval: Mapping[str, float]) -> str:
    if interval["n"] == 1:
        return f"{interval['median']:.4f}"
    return _with_interval(interval["median"], interval["low"], interval["high"])


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _milliseconds(interval: Mapping[str, float]) -> str:
    median, low, high = (1e3 * interval[key] for key in ("median", "low", "high"))
    return f"{median:+.0f} ({low:+.0f} to {high:+.0f})"


_KINDS = {
    "speed": _Kind("Speed: tokens per second, and ratio to the base", "t/s", lambda v: f"{v:.2f}", _ratio),
    "peak": _Kind("Memory: largest resident size, and ratio to the base", "MB", lambda v: f"{v / 1e6:.0f}", _ratio),
    "load": _Kind("Loading: ms, and ms more than the base", "ms", lambda v: f"{1e3 * v:.0f}", _milliseconds),
    "instructions of prompt": _Kind(
        "Instructions: millions per token of a prompt, and ratio to the base", "M", lambda v: f"{v / 1e6:.2f}", _ratio
    ),
    "instructions": _Kind(
        "Instructions: millions per generated token, and ratio to the base", "M", lambda v: f"{v / 1e6:.2f}", _ratio
    ),
}


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table per kind of test; the first arm of a test is what the others are compared with.

    Args:
        rows: those of `measure`: shape, outtype, threads, test, arm, value, compared.
    """
    tables = []
    for name, kind in _KINDS.items():
        found = [row for row in rows if _kind(row["test"]) == name]
        if found:
            tables.append(f"{kind.title}\n\n{_table(kind, found)}")
        if found and name == "speed":
            tables.append(f"Speed: geometric means over the rows, and their intervals\n\n{_means(found)}")
    return "\n\n".join(tables)


def _kind(test: str) -> str:
    return test if test in _KINDS else "speed"


def _means(rows: Sequence[Mapping[str, Any]]) -> str:
    arms = list(dict.fromkeys(row["arm"] for row in rows))[1:]
    lines = [["", *arms]]
    for prefix, name in (("pp", "prompt"), ("tg", "generation")):
        ratios = {
            arm: [row["compared"]["median"] for row in rows if row["arm"] == arm and row["test"].startswith(prefix)]
            for arm in arms
        }
        cells = [_with_interval(*geometric_mean(found)) if found else "" for found in ratios.values()]
        n_rows = max(map(len, ratios.values()), default=0)
        lines.append([f"{name}, {n_rows} row{'' if n_rows == 1 else 's'}", *cells])
    return "\n".join(markdown(lines))


def _table(kind: _Kind, rows: Sequence[Mapping[str, Any]]) -> str:
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    cells: dict[tuple, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        test = (f"{row['shape']} {row['outtype'].upper()}", row["threads"], row["test"])
        cells.setdefault(test, {})[row["arm"]] = row
    with_threads = any(row["threads"] is not None for row in rows)
    lead = ["model", *(["threads", "test"] if with_threads else [])]
    lines = [[*lead, f"{arms[0]}, {kind.unit}", *arms[1:]]]
    for (model, threads, test), found in cells.items():
        line = [model, *([str(threads), test] if with_threads else []), kind.value(found[arms[0]]["value"])]
        line += [kind.compared(found[arm]["compared"]) if arm in found else "" for arm in arms[1:]]
        lines.append(line)
    return "\n".join(markdown(lines))
