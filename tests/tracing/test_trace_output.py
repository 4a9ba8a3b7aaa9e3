"""Files: JSON as the contract says, pictures of any text, and nothing half-written."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hand_made import SAFETY, two
from required import package

from llama_so8t.errors import ConfigError
from llama_so8t.format import HeadSpec
from llama_so8t.tracing import page
from llama_so8t.tracing.output import check_out, write


def test_json_has_an_entry_for_every_token(make_trace, tmp_path):
    probs = two([0.1, 0.2, 0.95, 0.95, 0.0])
    probs[4] = np.nan
    write(make_trace(["a", " b", "c", "é", ""], 2, {SAFETY: probs}), tmp_path / "t.json")
    found = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert [(e["part"], e["position"], e["id"], e["text"]) for e in found["trace"]] == [
        ("prompt", 0, 100, "a"), ("prompt", 1, 101, " b"),
        ("answer", 0, 102, "c"), ("answer", 1, 103, "é"), ("answer", 2, 104, ""),
    ]  # fmt: skip
    assert found["trace"][1]["heads"] == {"safety": {"safe": pytest.approx(0.8), "unsafe": pytest.approx(0.2)}}
    assert found["trace"][4]["heads"] == {"safety": {"safe": None, "unsafe": None}}
    assert found["heads"]["safety"]["thresholds"] == {"safe": 0.5, "unsafe": 0.9}
    assert [(t["part"], t["position"], t["head"], t["label"]) for t in found["triggers"]] == [
        ("answer", 1, "safety", "unsafe")
    ]


def test_json_tells_all_that_a_head_is(make_trace, tmp_path):
    head = replace(
        SAFETY, taps=(3, 1), prompt_aggregation=("token", "mean"), prompt_thresholds=(0.5, 0.75, 0.5, 0.875),
        activation="attention", stem="s", sliding_window=64,
    )  # fmt: skip
    write(make_trace(["a", "b"], 1, {head: two([0.1, 0.2])}), tmp_path / "t.json")
    told = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))["heads"]["safety"]
    of_spec = head.to_dict() | {"form": "attention"}
    names = ("form", "taps", "tap_norm", "link", "rule", "sliding_window", "aggregation", "window", "ema_alpha",
             "prompt_aggregation", "prompt_thresholds", "depends_on")  # fmt: skip
    assert {name: told[name] for name in names} == {
        name: of_spec.get(name, getattr(head, name, None)) for name in names
    }


@pytest.fixture
def drawn(make_trace, tmp_path):
    """Size in pixels of the picture of a trace."""
    matplotlib = package("matplotlib")

    def draw(texts, n_prompt, heads):
        file = tmp_path / "t.png"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write(make_trace(texts, n_prompt, heads), file)
        image = matplotlib.image.imread(file)
        assert image.std() > 0.01
        return image.shape[1], image.shape[0]

    return draw


def test_a_picture_of_hostile_text(drawn):
    texts = ["$x_{$", "\\frac", "日本", "\u202e", "", "\n\n", "\t", "🙂", "x" * 500, "\x1b[31m", "%", "{}"]
    probs = two(np.linspace(0, 1, 12))
    probs[3] = np.nan
    width, height = drawn(texts, 4, {SAFETY: probs})
    assert width == 1320 and height < 1320


def test_a_picture_grows_with_text_and_heads_up_to_a_limit(drawn):
    small = drawn([" word"] * 40, 20, {SAFETY: two(np.full(40, 0.5))})
    long = drawn([" word"] * 2000, 1000, {SAFETY: two(np.full(2000, 0.5))})
    longest = drawn([" word"] * 12_000, 1000, {SAFETY: two(np.full(12_000, 0.0))})
    assert small[1] < long[1] < longest[1] < 6000
    heads = {HeadSpec(f"h{i}", ("a", "b"), ("allow", "allow"), (0.5, 0.5)): two([0.5]) for i in range(6)}
    assert drawn(["a"], 1, heads)[1] > small[1]


def test_too_many_heads_for_a_picture(drawn, tmp_path):
    heads = {HeadSpec(f"h{i}", ("a", "b"), ("allow", "refuse"), (0.5, 0.5)): two([0.5]) for i in range(150)}
    with pytest.raises(ConfigError, match=r"150 heads .*\.html"):
        drawn(["a"], 1, heads)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_file_that_was_there(make_trace, tmp_path, monkeypatch):
    file = tmp_path / "t.html"
    file.write_text("before")
    monkeypatch.setattr(page, "render", lambda trace: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(make_trace(["a"], 1, {SAFETY: two([0.5])}), file)
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_outputs_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "d.html").mkdir()
    for name, words in {
        "t.pdf": "suffix '.pdf'", "trace": "suffix ''", "d.html": "is a directory", "no/t.html": "no directory",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            check_out(tmp_path / name)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="cannot be written"):
        check_out(tmp_path / "t.JSON")


def test_a_head_that_was_never_fitted_is_shown_and_does_not_act(make_trace, tmp_path):
    by_argmax = replace(SAFETY, rule="argmax")
    for head, thresholds in ((SAFETY, [0.5, 0.9]), (by_argmax, [None, None])):
        fitted = make_trace(["a", "b"], 1, {head: two([0.95, 0.95])})
        unfitted = replace(fitted, unfitted=frozenset({"safety"}))
        for trace, is_fitted in ((fitted, True), (unfitted, False)):
            for suffix in ("html", "json"):
                write(trace, tmp_path / f"t.{suffix}")
            found = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
            assert found["heads"]["safety"]["fitted"] == is_fitted and found["heads"]["safety"]["rule"] == head.rule
            assert list(found["heads"]["safety"]["thresholds"].values()) == thresholds
            assert len(found["triggers"]) == int(is_fitted)
            shown = (tmp_path / "t.html").read_text(encoding="utf-8")
            assert ("never fitted, so no label acts" in shown) == (not is_fitted)
            assert ('class="threshold"' in shown) == (is_fitted and head.rule == "threshold")
            assert ("unsafe if largest: refuse" in shown) == (is_fitted and head.rule == "argmax")
