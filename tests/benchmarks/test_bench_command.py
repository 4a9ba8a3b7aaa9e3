"""`so8t bench` as a user calls it: options, errors, programs."""

import json
import os
import sys

import pytest

from llama_so8t import cli
from llama_so8t.benchmarks import instructions, process, run
from llama_so8t.benchmarks.models import BASE, WEIGHTS
from llama_so8t.benchmarks.run import RunOptions
from llama_so8t.errors import So8tError


@pytest.fixture
def bench(monkeypatch, capsys):
    """Runs `so8t bench`; returns exit code, stdout and stderr."""
    monkeypatch.setattr(cli, "COMMANDS", ("bench",))

    def call(*args):
        try:
            code = cli.main(["bench", *map(str, args)])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def asked(monkeypatch):
    """What `so8t bench run` asks `measure` and `count_instructions` for; nothing is measured."""
    found = []

    def measure(options, report):
        for step in range(options.n_steps):
            report(f"step {step}")
        found.append(options)
        return {"machine": {"processor": "a processor", "cores": 2}, "rows": []}

    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(instructions, "count_instructions", lambda options, report: measure(options, lambda what: None))
    return found


def test_options_become_what_is_measured(bench, asked, tmp_path):
    code, out, _ = bench(
        "run", "--shapes", "tiny,4B", "--outtypes", "q8_0", "--threads", "1,4", "-r", "5", "--prompt", "64",
        "-n", "8", "--shared-blocks", "--directory", tmp_path, "--arms", "qwen3,qwen3 + probe",
    )  # fmt: skip
    assert (code, out.splitlines()[0]) == (0, "a processor, 2 cores")
    assert asked == [
        RunOptions(("tiny", "4B"), ("q8_0",), (1, 4), 5, 64, 8, True, tmp_path, ("qwen3", "qwen3 + probe"))
    ]


def test_defaults_are_those_of_the_options(bench, asked):
    code, out, _ = bench("run", "--json")
    assert code == 0 and json.loads(out)["rows"] == []
    assert asked == [RunOptions()]


def test_instructions_are_counted_on_the_small_shape(bench, asked):
    assert bench("run", "--instructions")[0] == 0
    assert (asked[0].shapes, asked[0].outtypes) == (("135M",), ("q8_0",))


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--shapes", "5B"], 1, "shape: found '5B', expected one of tiny, 135M, 0.6B, 4B"),
        (["--arms", "qwen3,probe"], 1, "arms: found 'probe', expected some of qwen3, qwen3 + heads"),
        (["--arms", "qwen3 + probe"], 1, "arms: found qwen3 + probe, expected qwen3 among them"),
        (["--shapes", ","], 0, ""),  # an empty list is the default
        (["--threads", "1,0"], 2, "found '0', expected a whole number above 0"),
        (["--threads", "two"], 2, "found 'two', expected a whole number above 0"),
        (["--prompt", "-1"], 2, "found '-1', expected a whole number above 0"),
        (["-r", "0"], 2, "found '0', expected a whole number above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(bench, asked, args, code, words):
    found, _, err = bench("run", *args)
    assert found == code and words in err


@pytest.mark.parametrize(("n_bytes", "sizes"), [(150e6, (512, 128)), (650e6, (128, 32)), (2.5e9, (16, 4))])
def test_large_models_get_shorter_tests_unless_told(tmp_path, n_bytes, sizes):
    (tmp_path / WEIGHTS).touch()
    os.truncate(tmp_path / WEIGHTS, int(n_bytes))  # a hole
    paths = {BASE: tmp_path / "base.gguf"}
    assert run._sizes(RunOptions(), paths) == sizes
    assert run._sizes(RunOptions(n_prompt=512, n_gen=7), paths) == (512, 7)


def test_no_valgrind_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(So8tError, match="found no valgrind on the path; install it"):
        instructions.count_instructions(RunOptions(shapes=("tiny",), directory=tmp_path), print)


def test_a_profile_needs_a_model(bench):
    code, _, err = bench("profile")
    assert code == 2 and "one of the arguments MODEL --shape is required" in err


def test_a_program_tells_what_it_used():
    found = process.run([sys.executable, "-c", "data = bytearray(200_000_000); print('done')"])
    assert found.output == "done\n"
    assert found.peak_bytes > 200_000_000 and found.cpu_seconds > 0


def test_the_peak_of_a_program_does_not_begin_at_that_of_this_process():
    ballast = bytearray(300_000_000)
    assert process.run([sys.executable, "-c", ""]).peak_bytes < len(ballast) / 2


def test_a_program_that_fails_is_an_error_with_its_last_words():
    with pytest.raises(So8tError, match=r"exit code 3: no such thing"):
        process.run([sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"])
