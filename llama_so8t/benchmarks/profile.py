"""Where the time of a token goes: the nodes of the graph, each computed alone and timed, by what they are."""

import random
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_so8t.benchmarks.models import BASE, Arm, write_models
from llama_so8t.benchmarks.run import RunOptions, machine
from llama_so8t.bindings import Session
from llama_so8t.bindings.session import Node, SessionSizes
from llama_so8t.conversion.options import ROTATION_MODES
from llama_so8t.errors import So8tError
from llama_so8t.text_table import markdown

HEADS, ROTATIONS, VIEWS = "heads", "rotations", "views"

_EMPTY = ("NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE")
_WEIGHT = re.compile(r"(?:blk\.\d+\.)?(.+)\.weight")
_OUTPUTS = ("output", "token_embd")


@dataclass(frozen=True)
class Part:
    """Nodes of one kind in an evaluation: number, and seconds without starting and joining the threads."""

    name: str
    n_nodes: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """One model. ``seconds``: an evaluation as it is; ``overhead``: of timing one node, taken off each."""

    model: str
    seconds: float
    overhead: float
    parts: tuple[Part, ...]


def profile(models: Sequence[Path], n_tokens: int, rounds: int, threads: int, sites: bool = False) -> dict[str, Any]:
    """Evaluates random tokens and adds up the times of the nodes.

    Computing each node alone costs a start and a join of the threads each time. Views compute nothing: the median
    of their times is this cost, and is taken off every node. What is left differs from the time of a whole
    evaluation by what the caches keep from one node to the next.

    Args:
        models: GGUF files; the first one is the base of the comparison.
        n_tokens: of an evaluation; 1 is generation.
        rounds: evaluations; the medians count.
        threads: CPU threads.
        sites: whether each site is a part of its own, instead of one part for all rotations.

    Returns:
        ``machine``, ``n_tokens``, ``threads`` and ``models``: those of `Profile`.

    Raises:
        So8tError: llama.cpp refuses a file.
    """
    if min(n_tokens, rounds, threads) < 1:
        raise So8tError(f"found {n_tokens} tokens, {rounds} rounds, {threads} threads, expected 1 or more of each")
    found = [_profile(model, n_tokens, rounds, threads, sites) for model in models]
    return {
        "machine": machine(),
        "n_tokens": n_tokens,
        "threads": threads,
        "models": [asdict(one) for one in found],
    }


def profile_shape(directory: Path, shape: str, outtype: str, *how: Any) -> dict[str, Any]:
    """`profile` of a shape with random weights: the base, and folded and explicit with heads.

    Args:
        directory: takes the models for a while.
        shape: one of `SHAPES`.
        outtype: as `so8t convert --outtype`.
        how: what follows ``models`` in `profile`.

    Raises:
        So8tError: an unknown shape; ConversionError: an unknown type.
    """
    RunOptions(shapes=(shape,)).check()
    directory.mkdir(parents=True, exist_ok=True)
    arms = [BASE, *(Arm(rotations, True) for rotations in ROTATION_MODES)]
    with tempfile.TemporaryDirectory(prefix="profile-", dir=directory) as temporary:
        return profile(list(write_models(Path(temporary), shape, outtype, arms).values()), *how)


def part_of(node: Node, sites: bool = False) -> str:
    """The part that a node belongs to: a weight by its name, rotations, heads, views, else its operation."""
    weight = _WEIGHT.fullmatch(node.operand)
    if node.op in _EMPTY:
        return VIEWS
    of_heads = node.name in ("so8t_head", "so8t_heads", "so8t_stem") or node.name.startswith("so8t_tap")
    if of_heads or node.operand.startswith(("so8t_head.", "so8t_stem.")):
        return HEADS
    if node.is_rotation:
        return weight[1].removesuffix("_rot") if sites and weight else ROTATIONS
    if node.op == "MUL_MAT" and weight:
        return f"MUL_MAT {'output' if weight[1] in _OUTPUTS else weight[1]}"
    return node.op


def render(found: dict[str, Any]) -> str:
    """A Markdown table: one line per part, for each model its nodes, microseconds and share."""
    models = [{part["name"]: part for part in one["parts"]} for one in found["models"]]
    names = sorted(
        dict.fromkeys(name for parts in models for name in parts),
        key=lambda name: -max(parts[name]["seconds"] for parts in models if name in parts),
    )
    lines = [["part", *(cell for one in found["models"] for cell in (f"{one['model']}: nodes", "us", "%"))]]
    totals = [sum(part["seconds"] for part in parts.values()) for parts in models]
    for name in names:
        line = [name]
        for parts, total in zip(models, totals, strict=True):
            part = parts.get(name)
            share = f"{100 * part['seconds'] / total:.1f}" if part else ""
            line += [str(part["n_nodes"]), _us(part["seconds"]), share] if part else [""] * 3
        lines.append(line)
    lines.append(["sum"])
    for parts, total in zip(models, totals, strict=True):
        lines[-1] += [str(sum(part["n_nodes"] for part in parts.values())), _us(total), "100.0"]
    lines.append(["as a whole", *(cell for one in found["models"] for cell in ("", _us(one["seconds"]), ""))])
    return "\n".join(markdown(lines))


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}"


def _profile(model: Path, n_tokens: int, rounds: int, threads: int, sites: bool) -> Profile:
    options: SessionSizes = {
        "n_ctx": n_tokens * (rounds + 1),
        "n_batch": n_tokens,
        "n_ubatch": n_tokens,
        "n_threads": threads,
    }
    names: list[str] = []
    whole: list[float] = []
    times: list[list[float]] = []  # of every node in every round
    draw = random.Random(0)
    with Session(model, **options) as plain, Session(model, **options, observe="times") as watched:
        for turn in range(rounds + 1):
            tokens = [draw.randrange(plain.n_vocab) for _ in range(n_tokens)]
            seconds = plain.time(tokens)
            watched.time(tokens)
            if turn == 0:  # builds the graph
                names = [part_of(node, sites) for node in watched.nodes()]
            else:
                whole.append(seconds)
                times.append([node.seconds for node in watched.nodes()])
    # by node, so that what disturbs one round is left out
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    by_part: dict[str, list[float]] = defaultdict(list)
    for name, seconds in zip(names, medians, strict=True):
        by_part[name].append(seconds)
    overhead = statistics.median(by_part.pop(VIEWS, [0.0]))
    parts = [
        Part(name, len(found), sum(max(0.0, seconds - overhead) for seconds in found))
        for name, found in by_part.items()
    ]
    parts.sort(key=lambda part: -part.seconds)
    return Profile(_title(model), statistics.median(whole), overhead, tuple(parts))


def _title(model: Path) -> str:
    return re.sub(r"-\d{5}-of-\d{5}$", "", model.stem)
