"""What a conversion is asked for."""

from dataclasses import dataclass
from pathlib import Path

OUTTYPES = ("f32", "f16", "bf16", "q8_0")
ROTATION_MODES = ("fold", "explicit")


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `so8t convert`.

    ``outfile`` None means ``MODEL/NAME-so8t-OUTTYPE.gguf``. ``base`` replaces the base that an adapter names.
    ``rotations``: ``fold`` absorbs every site that can be absorbed, ``explicit`` leaves all but out in the
    graph.
    """

    model: Path
    outfile: Path | None = None
    outtype: str = "q8_0"
    rotations: str = "fold"
    base: str | None = None
    model_name: str | None = None
    progress: bool = True
