"""The adapter in models/ is what its commands make, says what was measured, and shows no text of the data."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import required

from llama_so8t.checkpoint import adapter
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.files import safetensors_file
from llama_so8t.heads import datasets
from llama_so8t.heads.report import REPORT_NAME, model_card

NAME = Path("models/smollm2-135m-so8t")
FOLDER = Path(__file__).parents[2] / NAME
SITES = {"gate_safe": 30, "gate_cmd": 30, "qk": 30, "v": 30, "heads": 30, "ffn": 30, "out": 1}


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    stored = safetensors_file.read_file(FOLDER / adapter.WEIGHTS_NAME)
    return {name: np.array(tensor.read()) for name, tensor in stored.items()}


@pytest.fixture(scope="module")
def report() -> dict:
    return json.loads((FOLDER / REPORT_NAME).read_text())


def test_it_is_small_and_every_site_turns(tensors):
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 200_000
    for kind, count in SITES.items():
        found = [values for name, values in tensors.items() if name.rsplit(".", 1)[-1] == kind]
        assert len(found) == count and all(np.abs(values).max() > 0.3 for values in found)


def test_its_generators_come_from_its_first_command(tensors, report, tmp_path, pinned_tree):
    required.smollm2()
    words = report["fit"]["made_by"].split()
    options = dict(itertools.pairwise(words))
    assert words[:2] == ["so8t", "init"] and {"--compensate", "--adapter", "--shared-blocks"} <= set(words)
    out = tmp_path / "again"
    initialize(
        InitializeOptions(
            base=options["--base"],
            out=out,
            rotations=options["--rotations"],
            seed=int(options["--seed"]),
            scale=float(options["--scale"]),
            compensate=True,
            adapter=True,
            shared_blocks=True,
        )
    )
    made = safetensors_file.read_file(out / adapter.WEIGHTS_NAME)
    assert set(made) == set(tensors)
    different = [n for n, values in tensors.items() if not np.array_equal(values, made[n].read())]
    assert {name.split(".")[0] for name in different} == {"safety_head", "authority_head"}
    fields, again = (json.loads((d / adapter.CONFIG_NAME).read_text()) for d in (FOLDER, out))
    assert {k for k in fields if fields[k] != again[k]} == {"so8t_heads"}


def test_its_thresholds_are_those_of_the_report(report):
    fields = json.loads((FOLDER / adapter.CONFIG_NAME).read_text())
    assert fields["so8t_heads"] == report["heads"]


def test_its_readme_is_the_report_in_words(report):
    assert (FOLDER / "README.md").read_text() == model_card(report, NAME)


def test_make_adapter_runs_the_same_first_command(report):
    rule = (FOLDER.parents[1] / "Makefile").read_text().split("\nadapter:")[1].split("\n\n")[0]
    words = rule.replace("$(ADAPTER)", f"models/{FOLDER.name}").split()
    first = words[words.index("llama_so8t") + 1 :]
    init = [word for word in first[: first.index("$(BIN)/python")] if word not in ("\\", "--force")]
    assert report["fit"]["made_by"] == f"so8t {' '.join(init)}"


def test_it_shows_no_text_of_the_data(packages):
    shown = datasets.normalized(" ".join(file.read_text(errors="replace") for file in FOLDER.iterdir()))
    examples = [
        *datasets.advbench(),
        *datasets.harmbench(),
        *datasets.strongreject(),
        *datasets.pyrit_harm(),
        *datasets.pyrit_objective(),
        *(e for name in ("harmful_benign_50", "expanded_100") for e in datasets.rho_pairs(name)),
        *(e for name in datasets.DO_NOT_ANSWER for e in datasets.do_not_answer(name)),
    ]
    texts = {e.id: datasets.normalized(t) for e in examples for t in (e.prompt, e.answer) if t}
    found = [key for key, text in texts.items() if len(text.split()) > 3 and text in shown]
    assert found == []
