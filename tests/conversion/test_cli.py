"""`so8t init` and `so8t convert` as a user runs them: exit codes, one line on stderr, options."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import write_base

from llama_so8t import cli
from llama_so8t.checkpoint import adapter, open_checkpoint
from llama_so8t.files.gguf_file import read_gguf

REPOSITORY = Path(__file__).parents[2]
UNFITTED = (
    "warning: heads safety, authority have weights of zeros: they were never fitted and do not act; "
    "fit them with so8t heads fit"
)


@pytest.fixture
def so8t(capfd):
    """Runs the command: ``so8t("init", ...)`` gives exit code, lines on stdout, lines on stderr."""

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


def test_a_checkpoint_is_made_and_converted(so8t, bases, tmp_path):
    model = tmp_path / "tiny-llama"
    options = ["--rotations", "random", "--seed", "8", "--scale", "0.3", "--compensate", "--shared-blocks"]
    assert so8t("init", "--base", bases["tiny-llama"], "--out", model, *options) == (
        0, [f"wrote checkpoint {model}"], [UNFITTED],
    )  # fmt: skip
    assert open_checkpoint(model).spec.shared_blocks
    code, out, err = so8t("convert", model, "--outtype", "f16", "--rotations", "explicit")
    made = model / "tiny-llama-so8t-f16.gguf"
    assert (code, out) == (
        0, [f"wrote {made} ({made.stat().st_size:,} bytes)", f"wrote {model / 'Modelfile'}"],
    )  # fmt: skip
    assert "100%" in err[-1] and err.count(UNFITTED) == 1
    (model / "Modelfile").write_text("FROM mine")
    code, out, err = so8t("convert", model, "--outtype", "f16", "--rotations", "explicit")
    assert (code, len(out)) == (0, 1)
    assert "stays as it is" in err[-1]
    assert (model / "Modelfile").read_text() == "FROM mine"
    assert read_gguf(made).get("so8t.rotation.explicit") == ["gate", "qk", "v", "heads", "ffn"]


def test_dropping_a_site_says_what_it_costs(so8t, models, tmp_path):
    model = models["Tiny-Qwen3-0.1M-Instruct", "random"]
    arguments = ["convert", model, "--arch", "stock", "--outfile", tmp_path / "o.gguf", "--drop-sites", "qk"]
    code, _, err = so8t(*arguments)
    assert code == 0
    found = re.search(r"without qk: logits change by ([0-9.]+)% of their RMS, .* (\d+) of 24", "\n".join(err))
    assert 0.0 < float(found[1]) < 100
    assert so8t(*arguments[:-2])[0] == 1


def test_an_adapter_is_made_and_converted_on_a_named_base(so8t, bases, upstream_files, tmp_path):
    model = tmp_path / "model"
    code, out, _ = so8t(
        "init", "--base", upstream_files["Tiny-Qwen3-0.1M-Instruct", "f32"], "--out", model, "--adapter",
        "--rotations", "random", "--compensate",
    )  # fmt: skip
    assert code == 0
    assert out[0].startswith("note: site qk stays zero")
    assert out[1] == f"wrote adapter {model}"
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(Path(adapter.read_fields(model)["base_model_name_or_path"]).read_bytes())
    code, _, _ = so8t("convert", model, "--base", moved, "--outfile", tmp_path / "x.gguf", "--model-name", "Named")
    assert code == 0
    file = read_gguf(tmp_path / "x.gguf")
    assert file.get("general.name") == "Named"
    assert file.get("general.file_type") == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "nowhere"], "so8t convert: error: nowhere: no such file or directory"),
        (["convert", "base"], "so8t convert: error: base: is a plain qwen3 model"),
        (["init", "--base", "nowhere", "--out", "x"], "so8t init: error: nowhere: no such file or directory"),
        (["init", "--base", "base", "--out", "base"], "so8t init: error: base: exists and is not empty"),
        (["init", "--base", "base", "--out", "x", "--seed", "-1"], "so8t init: error: seed: found -1"),
    ],
)
def test_an_input_error_is_one_line_and_exit_code_1(so8t, tmp_path, monkeypatch, arguments, message):
    write_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    code, out, err = so8t(*arguments)
    assert (code, out, len(err)) == (1, [], 1)
    assert err[0].startswith(message)
    assert os.listdir(tmp_path) == ["base"]


@pytest.mark.parametrize(
    "arguments", [["convert", "x", "--outtype", "q1"], ["init", "--base", "x"], ["convert", "x", "--rotations", "y"]]
)
def test_a_wrong_option_is_exit_code_2(so8t, arguments):
    with pytest.raises(SystemExit) as caught:
        so8t(*arguments)
    assert caught.value.code == 2


def test_the_script_of_the_clone_has_the_options_of_the_command(tmp_path):
    """Help needs neither the llama.cpp tree nor torch."""
    script = REPOSITORY / "convert_so8t_to_gguf.py"
    environment = os.environ | {"LLAMA_CPP_SOURCE": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    for option in (
        "--outfile",
        "--outtype",
        "--rotations",
        "--base",
        "--model-name",
        "--verbose",
        "q8_0",
        "explicit",
    ):
        assert option in done.stdout
    assert len(script.read_text().splitlines()) <= 20


@pytest.mark.parametrize(("text", "n_bytes"), [("1500000", 1_500_000), ("1M", 10**6), ("2G", 2 * 10**9)])
def test_sizes_of_split_files_are_decimal(text, n_bytes):
    """As in llama-gguf-split and --so8t-audit-max-size."""
    args = cli.build_parser().parse_args(["convert", "model", "--split-max-size", text])
    assert args.split_max_size == n_bytes
