"""What `so8t bench convert` and `so8t bench guard` make of their measurements; nothing is converted or served."""

import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama_so8t.benchmarks import convert, guard
from llama_so8t.benchmarks.convert import ConversionOptions, Measurement, measure_conversions
from llama_so8t.benchmarks.guard import BARE, GuardOptions, Timing, measure_guard


@pytest.fixture
def conversions(monkeypatch, tmp_path):
    """Runs `so8t bench convert` where ours takes half of upstream's time, rotated a quarter more."""
    seconds = {"convert_hf_to_gguf": 4.0, "so8t convert": 2.0, "rotated": 2.5}

    def measured(name, arguments, outfile):
        kind = max((key for key in seconds if key in name), key=lambda key: key == "rotated")
        return Measurement(name, seconds[kind], 1.0, 10**9, 2 * 10**9)

    monkeypatch.setattr(convert, "_measure", measured)
    monkeypatch.setattr(convert, "_write_time", lambda path, size: size / 1e9)
    monkeypatch.setattr(convert, "write_base", lambda *arguments: None)
    monkeypatch.setattr(convert, "write_so8t", lambda *arguments, **scale: None)
    monkeypatch.setattr(convert.upstream, "source", lambda: tmp_path)
    (tmp_path / "convert_hf_to_gguf.py").touch()
    lines = []
    return lambda: (
        measure_conversions(ConversionOptions(tmp_path, tmp_path, 2, ("q8_0", "f16"), 3), lines.append),
        lines,
    )


def test_conversions_are_compared_with_upstream_to_the_same_type(conversions):
    found, lines = conversions()
    assert found["ratios"] == {
        f"so8t convert {outtype}{label}": ratio
        for outtype in ("f16", "q8_0")
        for label, ratio in (("", 0.5), (", rotated", 0.625))
    }
    assert len(found["measurements"]) == 2 * 3 * 3 == sum("GB written" in line for line in lines)
    assert found["write_seconds"] == 2.0


def test_cores_are_counted_where_the_system_has_no_affinity(conversions, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert conversions()[0]["cores"] == os.cpu_count()


def test_the_first_round_of_guard_does_not_count(monkeypatch, tmp_path):
    slower = {"bare": 1.0, "off": 1.5, "enforce": 2.0}
    turns = dict.fromkeys(slower, 0)

    def complete(url, prompt, n_predict):
        turns[url] += 1
        factor = slower[url] * (100 if turns[url] == 1 else 1)
        return Timing(10 * factor, factor)

    @contextmanager
    def server(model, n_ctx, threads, flags):
        yield SimpleNamespace(url=flags[1] if flags else "bare")

    tokens = SimpleNamespace(value=["token"] * 50)
    monkeypatch.setattr(guard, "read_gguf", lambda path: SimpleNamespace(metadata={"tokenizer.ggml.tokens": tokens}))
    monkeypatch.setattr(guard, "unfitted_heads", lambda file: ("safety",))
    monkeypatch.setattr(guard, "without_heads", lambda model, out: out)
    monkeypatch.setattr(guard, "_never", lambda model: "safety/unsafe=1")
    monkeypatch.setattr(guard, "_server", server)
    monkeypatch.setattr(guard, "_complete", complete)
    lines = []
    found = measure_guard(GuardOptions(Path("m.gguf"), tmp_path, 4, 2, 1, 1, ("off", "enforce")), lines.append)
    assert "head safety has weights of zeros" in lines.pop(0)
    assert len(lines) == 1 and set(turns.values()) == {2}
    assert found["medians"][BARE] == {"first_ms": 10.0, "token_ms": 1.0}
    assert {arm: ratio["token_ms"]["median"] for arm, ratio in found["ratios"].items()} == {"off": 1.5, "enforce": 2.0}
