"""`so8t heads` from end to end on stand-in data: what is written, and what is not."""

import argparse
import json

import pytest
from required import package

from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.cli import heads as cli
from llama_so8t.errors import CheckpointError, ConfigError
from llama_so8t.heads import command, fitting
from llama_so8t.heads.command import FitOptions
from llama_so8t.heads.report import REPORT_NAME, model_card, render
from tests.heads.conftest import MARK, SyntheticFeatures, task

package("sklearn")


class Backbone:
    """A checkpoint without a decoder."""

    digest = "0" * 64

    def __init__(self, path, base=None) -> None:
        self.checkpoint = open_checkpoint(path, base)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    tasks = (task("safety", "prompt", 40), task("safety", "answer", 40), task("authority", "prompt", 40))
    monkeypatch.setattr(fitting, "STRENGTHS", (1.0, 30.0))
    monkeypatch.setattr(command, "tasks", lambda: tasks)
    monkeypatch.setattr(command, "Backbone", Backbone)
    monkeypatch.setattr(command, "Features", lambda *arguments: SyntheticFeatures())


def test_fit_writes_heads_thresholds_report_and_readme_without_any_text(model):
    report = command.fit(FitOptions(model, made_by="so8t init --out there"), lambda line: None)
    assert json.loads((model / REPORT_NAME).read_text()) == report
    for file in model.iterdir():
        assert MARK.encode() not in file.read_bytes()
    spec = open_checkpoint(model).spec
    assert spec.heads["safety"].scope == "both" and spec.heads["authority"].scope == "prompt"
    assert spec.heads["authority"].debounce == 1
    assert {name: head.to_dict() for name, head in spec.heads.items()} == report["heads"]
    readme = (model / "README.md").read_text()
    assert readme == model_card(report, model)
    assert "so8t init --out there\nso8t heads fit" in readme


def test_the_stored_heads_measure_as_the_fit_said(model):
    fitted = command.fit(FitOptions(model), lambda line: None)
    measured = command.evaluate(model, None, lambda line: None)
    assert measured["tasks"] == fitted["tasks"] and "fit" not in measured


def test_heads_that_were_never_fitted_are_named_once(model):
    lines = []
    command.evaluate(model, None, lines.append)
    assert [line for line in lines if "weights of zeros" in line] == [
        "warning: heads safety, authority have weights of zeros: they were never fitted and do not act; fit them with "
        "so8t heads fit"
    ]
    command.fit(FitOptions(model), lambda line: None)
    lines.clear()
    command.evaluate(model, None, lines.append)
    assert lines and not any("zeros" in line for line in lines)


def test_tables_and_json_come_from_one_report(model, capsys):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    assert cli.run(parser.parse_args(["fit", str(model)])) == 0
    printed = capsys.readouterr()
    report = json.loads((model / REPORT_NAME).read_text())
    assert printed.out.strip() == render(report).strip()
    assert MARK not in printed.out + printed.err
    assert cli.run(parser.parse_args(["evaluate", str(model), "--json"])) == 0
    assert json.loads(capsys.readouterr().out)["tasks"] == report["tasks"]
    missing = [key for key in (*report, *report["tasks"][0], *report["fit"]) if key not in cli.KEYS]
    assert missing == []


@pytest.mark.parametrize("field", [{"max_false_positives": 0.0}, {"max_false_positives": 1.5}, {"seed": -1}])
def test_an_option_out_of_range_is_an_error(model, field):
    with pytest.raises(ConfigError):
        command.fit(FitOptions(model, **field), lambda line: None)


def test_a_used_output_directory_is_refused_before_the_work(model, tmp_path, monkeypatch):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    monkeypatch.setattr(command, "fit_head", lambda *arguments: pytest.fail("fitted first"))
    with pytest.raises(CheckpointError, match="not empty"):
        command.fit(FitOptions(model, out=tmp_path / "used"), lambda line: None)


def test_a_model_without_the_heads_is_an_error(model, monkeypatch):
    monkeypatch.setattr(command, "HEADS", ("safety", "privacy"))
    with pytest.raises(ConfigError, match="has no head 'privacy'"):
        command.fit(FitOptions(model), lambda line: None)
