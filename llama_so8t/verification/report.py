"""What a verification found: as an object, as JSON beside the file, as a table."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_so8t.errors import ConversionError
from llama_so8t.files.atomic import new_file
from llama_so8t.text_table import aligned
from llama_so8t.verification.tensors import TensorMeasure

OK, FAILED, NOT_RUN = "ok", "failed", "not run"

_COLUMNS = ("type", "tensors", "values", "max error", "RMS error", "of allowed", "worst tensor")
_LEGEND = (
    "max error, RMS error: of the worst tensor, relative to its RMS; of allowed: largest error as a share of\n"
    "what the type allows at that value; exact: rotations, generators and heads, which must be equal"
)
_SHOWN = 20


@dataclass(frozen=True)
class Check:
    """One question about the file. ``detail`` says what was found, or why it was not asked."""

    name: str
    status: str
    detail: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyReport:
    """All tensors and checks of one conversion; ``files`` are the parts of a split, or a file and its heads."""

    files: tuple[Path, ...]
    checkpoint: Path
    arch: str
    outtype: str
    rotations: str
    tensors: tuple[TensorMeasure, ...]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed; one that was not run did not fail, and says so."""
        return not any(check.status == FAILED for check in self.checks)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, one line each."""
        return tuple(problem for check in self.checks for problem in check.problems)

    def to_dict(self) -> dict[str, Any]:
        """The object in ``FILE.verify.json``; numbers that are not finite are null."""
        return {
            "files": [file.name for file in self.files],
            "checkpoint": str(self.checkpoint),
            "arch": self.arch,
            "outtype": self.outtype,
            "rotations": self.rotations,
            "ok": self.ok,
            "checks": [asdict(check) for check in self.checks],
            "tensors": [{key: _finite(value) for key, value in asdict(tensor).items()} for tensor in self.tensors],
        }

    def require_ok(self) -> None:
        """Does nothing where all is well.

        Raises:
            ConversionError: a check failed; names the first problem.
        """
        if not self.ok:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise ConversionError(f"{self.files[0]}: verification failed: {self.problems[0]}{more}")

    def write(self) -> Path:
        """Writes ``FILE.verify.json`` beside the first file; it appears complete or not at all."""
        outfile = self.files[0].with_name(f"{self.files[0].name}.verify.json")
        with new_file(outfile) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return outfile


def render(report: VerifyReport) -> str:
    """The report as text: one line per type, one per check, and what is wrong."""
    rows = list(_rows(report.tensors))
    form = f"architecture {report.arch}, {report.outtype}, rotations {report.rotations}"
    parts = [*map(str, report.files), f"{form}, from {report.checkpoint}", ""]
    if rows:
        parts += [*aligned([_COLUMNS, *rows], left=1), "", _LEGEND, ""]
    checks = [(check.name, check.status, check.detail) for check in report.checks]
    parts += [*aligned(checks, left=3), ""]
    parts += [f"PROBLEM {problem}" for problem in report.problems[:_SHOWN]]
    if len(report.problems) > _SHOWN:
        parts.append(f"PROBLEM and {len(report.problems) - _SHOWN} more")
    unasked = [check.name for check in report.checks if check.status == NOT_RUN]
    if report.ok:
        parts.append(f"ok, but not run: {', '.join(unasked)}" if unasked else "ok")
    return "\n".join(parts)


def _rows(tensors: Iterable[TensorMeasure]) -> Iterable[tuple[str, ...]]:
    groups: dict[str, list[TensorMeasure]] = {}
    for tensor in tensors:
        groups.setdefault(f"{tensor.type}, exact" if tensor.exact else tensor.type, []).append(tensor)
    for label, group in sorted(groups.items(), key=lambda entry: (entry[1][0].exact, entry[0])):
        worst = max(group, key=lambda tensor: _order(tensor.share))
        yield (
            label,
            str(len(group)),
            f"{sum(tensor.n for tensor in group):,}",
            *(f"{max((getattr(t, key) for t in group), key=_order):.1e}" for key in ("max_error", "rms_error")),
            "-" if worst.share == 0 else f"{worst.share:.2f}",
            "-" if worst.share == 0 else worst.name,
        )


def _order(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
