"""A profile as a picture: one bar per model, cut into its parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_so8t.errors import So8tError

_SMALL = 0.02
"""Parts below this share of the longest bar are drawn together."""

_REST = "the rest"


def draw(found: dict[str, Any], path: Path) -> None:
    """Writes the picture; the suffix of ``path`` chooses the format (png, pdf, svg).

    Raises:
        So8tError: the suffix is unknown.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    models = found["models"]
    figure = Figure(figsize=(11, 1.6 + 0.6 * len(models)), dpi=110, facecolor="white", layout="constrained")
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        raise So8tError(f"--plot {path}: found suffix {path.suffix!r}, expected one of {', '.join(sorted(known))}")
    axes = figure.add_subplot()
    longest = max(sum(part["seconds"] for part in one["parts"]) for one in models)
    large = {part["name"] for one in models for part in one["parts"] if part["seconds"] >= _SMALL * longest}
    names = [name for name in dict.fromkeys(part["name"] for one in models for part in one["parts"]) if name in large]
    colors = [matplotlib.colormaps["tab20"](index) for index in range(20)]
    left = [0.0] * len(models)
    for index, name in enumerate([*names, _REST]):
        widths = [_milliseconds(one["parts"], name, large) for one in models]
        axes.barh([one["model"] for one in models], widths, left=left, label=name, color=colors[index % len(colors)])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    tokens = "token" if found["n_tokens"] == 1 else f"{found['n_tokens']} tokens"
    axes.set_xlabel(f"ms per {tokens}, {found['threads']} thread{'s' if found['threads'] > 1 else ''}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=6, fontsize="small", frameon=False)
    figure.savefig(path, facecolor="white")


def _milliseconds(parts: Sequence[dict[str, Any]], name: str, large: set[str]) -> float:
    return 1e3 * sum(part["seconds"] for part in parts if (part["name"] if part["name"] in large else _REST) == name)
