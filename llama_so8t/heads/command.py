"""What `so8t heads` does: data, hidden states, fit, measurement, files."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_so8t.checkpoint import Checkpoint, adapter
from llama_so8t.errors import ConfigError
from llama_so8t.format import HeadSpec, unfitted_warning
from llama_so8t.heads import datasets, store
from llama_so8t.heads.backbone import Backbone
from llama_so8t.heads.evaluation import evaluate_task
from llama_so8t.heads.features import Features, cache_folder
from llama_so8t.heads.fitting import Fitted, fit_head
from llama_so8t.heads.regression import Direction
from llama_so8t.heads.report import REPORT_NAME, model_card
from llama_so8t.heads.splits import Task, tasks

HEADS = ("safety", "authority")
"""The heads with training data, in verdict order."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class FitOptions:
    """What `so8t heads fit` was asked for. ``made_by`` is the command that made the model, for its README."""

    model: Path
    base: str | None = None
    seed: int = 0
    max_false_positives: float = 0.05
    out: Path | None = None
    made_by: str | None = None


def fit(options: FitOptions, progress: Progress) -> dict[str, Any]:
    """Fits the heads, measures them, and writes tensors, thresholds, report and README.

    Returns:
        The report; `so8t heads --help` lists its keys.

    Raises:
        DatasetError: a package with data is missing.
        CheckpointError: the model cannot be read or written.
        ConfigError: a head is absent or of another form, or an option is out of range.
    """
    if not 0 < options.max_false_positives < 1:
        raise ConfigError(f"--max-false-positives: found {options.max_false_positives}, expected between 0 and 1")
    if options.seed < 0:
        raise ConfigError(f"--seed: found {options.seed}, expected 0 or more")
    session = _Session(options.model, options.base, progress, fitting=True)
    store.check_out(session.checkpoint, options.out or options.model)
    fitted, heads = {}, {}
    for name in HEADS:
        own = [task for task in session.tasks if task.head == name]
        progress(f"fitting {name}")
        fitted[name] = fit_head(own, session.features, options.seed, options.max_false_positives)
        scope = own[0].position if len(own) == 1 else "both"
        heads[name] = store.tuned(
            session.checkpoint.spec.heads[name], fitted[name].threshold, fitted[name].debounce, scope
        )
    directions = {name: found.direction for name, found in fitted.items()}
    report = session.report(directions, heads, progress)
    report["fit"] = _fit_fields(options, fitted)
    files = {
        REPORT_NAME: json.dumps(report, indent=2) + "\n",
        "README.md": model_card(report, options.out or options.model),
    }
    store.write(session.checkpoint, options.out or options.model, directions, heads, files)
    return report


def evaluate(model: Path, base: str | None, progress: Progress) -> dict[str, Any]:
    """Measures the heads that a model has; says once which of them were never fitted.

    Returns:
        The report without its part ``fit``.

    Raises:
        As `fit`.
    """
    session = _Session(model, base, progress, fitting=False)
    if unfitted := session.checkpoint.unfitted_heads:
        progress(unfitted_warning(unfitted))
    heads = {name: session.checkpoint.spec.heads[name] for name in HEADS}
    directions = {name: store.read_direction(session.checkpoint, head) for name, head in heads.items()}
    return session.report(directions, heads, progress)


class _Session:
    """A model, the data and the hidden states of all examples."""

    def __init__(self, model: Path, base: str | None, progress: Progress, fitting: bool) -> None:
        self.tasks: tuple[Task, ...] = tasks()
        backbone = Backbone(model, base)
        self.checkpoint: Checkpoint = backbone.checkpoint
        for name in HEADS:
            if name not in self.checkpoint.spec.heads:
                raise ConfigError(f"{model}: has no head {name!r}, expected {' and '.join(HEADS)}")
            store.check_form(self.checkpoint.spec.heads[name])
        self.features = Features(backbone, cache_folder(), progress)
        # one call for each side: what is cached for the held-out side serves `fit` and `evaluate`
        self.features.compute(row.example for task in self.tasks for row in task.held_out)
        if fitting:
            self.features.compute(row.example for task in self.tasks for row in task.fit)
        self._digest = backbone.digest

    def report(
        self, directions: dict[str, Direction], heads: dict[str, HeadSpec], progress: Progress
    ) -> dict[str, Any]:
        progress("measuring on held-out data")
        return {
            "format": 1,
            "backbone": self._digest,
            "model": _model_fields(self.checkpoint),
            "packages": {name: version for name, version in datasets.PACKAGES.values()},
            "heads": {name: head.to_dict() for name, head in heads.items()},
            "tasks": [
                evaluate_task(task, directions[task.head], heads[task.head], self.features) for task in self.tasks
            ],
        }


def _model_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the rotations are: how many generators of each kind there are and how many of them turn anything."""
    spec = checkpoint.spec
    names = sorted(spec.generator_shapes())
    kinds: dict[str, list[int]] = {}
    for name in names:
        turns, count = kinds.get(name.rsplit(".", 1)[-1], (0, 0))
        kinds[name.rsplit(".", 1)[-1]] = [turns + bool(checkpoint.load(name).any()), count + 1]
    is_adapter = (checkpoint.path / adapter.CONFIG_NAME).is_file()
    fields = adapter.read_fields(checkpoint.path) if is_adapter else {}
    return {
        "base_architecture": spec.base_model_type,
        "n_layer": spec.n_layer,
        "hidden_size": spec.hidden_size,
        "base_model": fields.get("base_model_name_or_path"),
        "base_model_sha256": fields.get("base_model_sha256"),
        "compensated": fields.get("so8t_compensated"),
        "generators": {kind: {"not_zero": turns, "of": count} for kind, (turns, count) in sorted(kinds.items())},
    }


def _fit_fields(options: FitOptions, fitted: dict[str, Fitted]) -> dict[str, Any]:
    return {
        "made_by": options.made_by,
        "seed": options.seed,
        "max_false_positives": options.max_false_positives,
        "heads": {
            name: {"strength": found.strength, "debounce": found.debounce, "validation": found.validation}
            for name, found in fitted.items()
        },
    }
