"""`so8t bench run` and `so8t bench profile` measure what they say; how long it takes is nobody's test."""

import json
from pathlib import Path

import pytest
from required import package

from llama_so8t import cli
from llama_so8t.benchmarks import run
from llama_so8t.benchmarks.models import ARMS, Arm, write_models

NAMES = [arm.name for arm in ARMS]
QUICK = ("--shapes", "tiny", "--threads", "1", "-r", "2", "--prompt", "32", "-n", "16")


@pytest.fixture
def bench(monkeypatch, capsys, tmp_path):
    """Runs `so8t bench` in a new directory and returns its standard output."""
    monkeypatch.setattr(cli, "COMMANDS", ("bench",))

    def call(*args):
        assert cli.main(["bench", *map(str, args), "--directory", str(tmp_path)]) == 0
        return capsys.readouterr().out

    return call


def test_every_arm_has_a_row_for_every_test(bench, tmp_path):
    rows = json.loads(bench("run", *QUICK, "--json"))["rows"]
    expected = {
        (outtype, threads, test, arm)
        for outtype in ("q8_0", "q4_k_m")
        for threads, test in ((None, "peak"), (None, "load"), (1, "pp32"), (1, "tg16"))
        for arm in NAMES
    }
    found = [(row["outtype"], row["threads"], row["test"], row["arm"]) for row in rows]
    assert len(found) == len(expected) == 48 and set(found) == expected
    assert [arm for *_, arm in found[: len(NAMES)]] == NAMES  # tables take the first one for the base
    for row in rows:
        compared = row["compared"]
        assert row["value"] > 0 and compared["low"] <= compared["median"] <= compared["high"]
        assert compared["n"] == (1 if row["test"] == "peak" else 2)
        if row["arm"] == "qwen3":
            assert compared["median"] == (0.0 if row["test"] == "load" else 1.0)
    assert not list(tmp_path.iterdir())  # the models are gone


def test_the_table_has_all_arms(bench):
    lines = bench("run", *QUICK, "--outtypes", "q8_0").splitlines()
    heads = [line for line in lines if line.startswith("| model")]
    assert len(heads) == 3 and all(name in head for head in heads for name in NAMES[1:])
    assert sum(line.startswith(("| prompt, 1 row |", "| generation, 1 row |")) for line in lines) == 2
    assert sum(line.startswith("| tiny Q8_0") for line in lines) == 4


@pytest.fixture
def loaded(monkeypatch):
    """Names of the models that `so8t bench run` loads, in order."""
    names = []

    class Watched(run.Session):
        def __init__(self, path, **options):
            super().__init__(path, **options)
            names.append(path.name)

    monkeypatch.setattr(run, "Session", Watched)
    return names


def test_each_repetition_loads_the_models_anew_in_another_order(bench, loaded):
    bench("run", *QUICK, "--outtypes", "q8_0")
    _, *loads = loaded  # the first one asks for its size
    orders = [loads[start : start + len(ARMS)] for start in range(0, len(loads), len(ARMS))]
    assert len(orders) == 2 * 2  # to time the loading, then all together
    assert len(set(map(tuple, orders))) > 2 and all(len(set(order)) == len(ARMS) for order in orders)


def test_arms_that_do_not_fit_in_memory_are_measured_in_groups(bench, loaded, monkeypatch):
    free = {"RssAnon": iter(range(0, 10**9, 1000)), "MemAvailable": iter([3000] * 100)}  # three models of 1000
    monkeypatch.setattr(run, "_kilobytes", lambda path, key: next(free[key]))
    rows = json.loads(bench("run", *QUICK, "--outtypes", "q8_0", "--json"))["rows"]
    base, *loads = loaded
    together = loads[len(ARMS) : len(ARMS) + 10]  # after those that are timed
    pairs = list(zip(together[::2], together[1::2], strict=True))
    assert all(len(set(pair)) == 2 and base in pair for pair in pairs) and len(set(together)) == len(ARMS)
    assert len(loads) == 2 * (len(ARMS) + 2 * 5)
    found = [(row["test"], row["arm"]) for row in rows if row["threads"]]
    assert all(found.count(("tg16", name)) == 1 for name in NAMES)


def test_a_profile_has_the_nodes_of_the_graph(bench):
    found = json.loads(bench("profile", "--shape", "tiny", "--threads", "1", "--runs", "3", "--sites", "--json"))
    base, fold, explicit = ({part["name"]: part for part in one["parts"]} for one in found["models"])
    assert [one["model"] for one in found["models"]] == ["qwen3", "so8t-fold-heads", "so8t-explicit-heads"]
    assert set(base) < set(fold) < set(explicit)
    assert set(fold) - set(base) == {"so8t_q", "so8t_k", "heads"}
    sites = {"so8t_gate_safe", "so8t_gate_cmd", "so8t_v", "so8t_heads", "so8t_ffn"}
    assert set(explicit) - set(fold) == {*sites, "CONT", "CPY"}
    assert (base["MUL_MAT ffn_up"]["n_nodes"], fold["heads"]["n_nodes"], explicit["CONT"]["n_nodes"]) == (2, 5, 2)
    assert all(one["seconds"] > 0 and one["overhead"] > 0 for one in found["models"])


def test_a_profile_can_be_drawn(tmp_path, capsys, monkeypatch):
    package("matplotlib")
    monkeypatch.setattr(cli, "COMMANDS", ("bench",))
    models = write_models(tmp_path, "tiny", "q8_0", [Arm(None, False), Arm("explicit", True)])
    command = ["bench", "profile", *map(str, models.values()), "--threads", "1", "--runs", "2", "--tokens", "4"]
    assert cli.main([*command, "--plot", str(tmp_path / "profile.png")]) == 0
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*command, "--plot", str(tmp_path / "profile.xyz")]) == 1
    assert "found suffix '.xyz', expected one of" in capsys.readouterr().err


def test_a_model_that_does_not_load_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", ("bench",))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    assert cli.main(["bench", "profile", str(bad)]) == 1
    assert str(Path(bad)) in capsys.readouterr().err
