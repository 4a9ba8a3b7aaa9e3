"""What `so8t diagnose` found: one object for the text, the JSON and the exit code."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from llama_so8t.published import Layout


@dataclass(frozen=True)
class Gate:
    """The rotations of one parameter tensor: largest ``|R^T R - I|`` and ``|det R - 1|`` over its blocks."""

    tensor: str
    layer: int | None
    blocks: int
    orthogonality_error: float
    determinant_error: float


@dataclass(frozen=True)
class Diagnosis:
    """What a file or directory is, what it means, and whether this project can use it.

    ``problems`` are reasons why it cannot; ``notes`` are worth knowing and change nothing.
    """

    path: str
    kind: str
    meaning: str
    layout: Layout | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()

    @property
    def usable(self) -> bool:
        """True where nothing speaks against it."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The object of ``--json``; numbers that are not finite become None."""
        row = self.layout
        return {
            "path": self.path,
            "kind": self.kind,
            "meaning": self.meaning,
            "layout": row and row.id,
            "name": row and row.name,
            "verdict": row and row.verdict,
            "reason": row and row.reason,
            "site": row and row.site,
            "side": row and row.side,
            "usable": self.usable,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "gates": [
                {
                    key: None if isinstance(value, float) and not math.isfinite(value) else value
                    for key, value in asdict(gate).items()
                }
                for gate in self.gates
            ],
        }


def render(diagnosis: Diagnosis) -> str:
    """The diagnosis as text, control characters of hostile names escaped."""
    lines = [f"{diagnosis.path}: {diagnosis.kind}", f"  {diagnosis.meaning}"]
    if diagnosis.layout is not None:
        row = diagnosis.layout
        lines.append(f"  layout {row.id}: {row.name}; verdict: {row.verdict}")
        lines.append(f"  {row.reason}")
    if diagnosis.gates:
        orthogonality = max(diagnosis.gates, key=lambda gate: gate.orthogonality_error)
        determinant = max(diagnosis.gates, key=lambda gate: gate.determinant_error)
        lines.append(
            f"  {len(diagnosis.gates)} gates, {sum(gate.blocks for gate in diagnosis.gates)} blocks: "
            f"|R^T R - I| up to {orthogonality.orthogonality_error:.3g} ({orthogonality.tensor}), "
            f"|det R - 1| up to {determinant.determinant_error:.3g} ({determinant.tensor})"
        )
    lines += [f"  problem: {text}" for text in diagnosis.problems]
    lines += [f"  note: {text}" for text in diagnosis.notes]
    lines.append("  usable" if diagnosis.usable else "  not usable as it is")
    return "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in lines)
