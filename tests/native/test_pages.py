"""The blocks of commands and of Python that the pages show are run, as they stand, beside the files that they name.

A block is left out only where its own commands give one of `REASONS`. llama-server is started, and ended when it is
ready. llama-cli gets a question, as nobody types one.
"""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lora_adapters import write_lora
from pages import ROOT, Block, page, pages
from probe_models import ProbeShape, write_probe
from required import absent, smollm2
from tiny_models import make_base

from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions

from .conftest import randomize_heads
from .guard_server import SMALL, Server

REASONS = {
    "builds llama.cpp or runs the tests": r"^(make|cmake) ",
    "measures for minutes": r"^so8t bench ",
    "installs packages": r"^(pip install |findings/)",
    "needs other machines": r"\b10\.0\.0\.\d+",
    "needs Ollama": r"^\$P/bin/ollama ",
    "decides an answer that is held": r"^curl .*/so8t/escalations/",
}
"""Why a block is not run -> what its commands then have."""

SERVER = """#!{python}
import sys
from pathlib import Path
from llama_so8t.server_process import LlamaServer
with LlamaServer(Path("{tool}"), *sys.argv[1:]):
    pass
"""
SHIMS = {
    "so8t": '#!/bin/sh\nexec {python} -m llama_so8t "$@"\n',
    "python": '#!/bin/sh\nexec {python} "$@"\n',
    # without repacked weights: they are other code on each kind of CPU
    "llama-cli": '#!/bin/sh\nexec {tool} "$@" -st -n 4 -p Hello < /dev/null\n',
    "llama-server": SERVER,
}


def reason(block: Block) -> str | None:
    """Why a block is not run, or None."""
    found = [name for name, pattern in REASONS.items() if any(re.search(pattern, c) for c in block.commands)]
    return found[0] if found else None


BLOCKS = [block for page in pages() for block in page.blocks if block.language == "sh"]
RUN = [block for block in BLOCKS if reason(block) is None]


def test_every_reason_is_given_and_most_pages_run():
    assert {reason(block) for block in BLOCKS} == {*REASONS, None}
    assert len({block.page for block in RUN}) >= 7


@pytest.fixture(scope="module")
def so8t_file(tmp_path_factory) -> Path:
    """A model with random weights and heads, as GGUF."""
    directory = tmp_path_factory.mktemp("so8t")
    base = make_base(directory / "base", "qwen3")
    initialize(InitializeOptions(str(base), directory / "model", rotations="random"))
    randomize_heads(directory / "model", 1)
    file = directory / "so8t.gguf"
    convert(ConvertOptions(model=directory / "model", outfile=file, outtype="f32", progress=False))
    return file


@pytest.fixture
def folder(tmp_path, guard_file) -> Path:
    """A folder with the files that blocks name."""
    (tmp_path / "build/demo").mkdir(parents=True)
    (tmp_path / "convert_so8t_to_gguf.py").symlink_to(ROOT / "convert_so8t_to_gguf.py")
    for name in ("so8t-q8_0.gguf", "build/demo/so8t-q8_0.gguf", "model.gguf"):
        (tmp_path / name).symlink_to(guard_file)
    return tmp_path


@pytest.fixture
def shell(runtime, folder, tmp_path_factory) -> Callable[[str], subprocess.CompletedProcess]:
    """Runs commands in the folder, with our programs on the path."""
    programs = tmp_path_factory.mktemp("bin")
    for name, text in SHIMS.items():
        (programs / name).write_text(text.format(python=sys.executable, tool=runtime / name))
        (programs / name).chmod(stat.S_IRWXU)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SO8T_LIBRARY_PATH": str(runtime),
    }

    def run(commands: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=folder, env=environment, capture_output=True, text=True, errors="replace", timeout=600,
        )  # fmt: skip

    return run


def prepare_readme(folder: Path, **_) -> None:
    make_base(folder / "Qwen3-4B-Thinking-2507", "qwen3")


def prepare_modelfile(folder: Path, so8t_file: Path, **_) -> None:
    (folder / "model").mkdir()
    (folder / "model/model-so8t-q8_0.gguf").symlink_to(so8t_file)


def prepare_audit(folder: Path, runtime: Path, guard_file: Path, shell, **_) -> None:
    """A log with a refused request, its checkpoint, and both keys, as the page makes them."""
    keys = next(block for block in page("docs/audit.md").blocks if block.text.startswith("openssl"))
    if (made := shell(keys.text)).returncode == 127:
        absent("openssl", made.stderr)
    assert made.returncode == 0, made.stderr
    flags = ("--so8t-audit", folder / "FILE", "--so8t-audit-checkpoint", folder / "NOTE")
    with Server(runtime / "llama-server", "-m", guard_file, *SMALL, *flags) as server:
        for prompt in ("go", "fine"):
            server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}], "max_tokens": 8})
    (folder / "question.txt").write_text("go\n")
    flags = ("--so8t-audit", folder / "audit-{model}.jsonl", "--so8t-audit-checkpoint", folder / "note-{model}")
    with Server(runtime / "llama-server", "-m", guard_file, *SMALL, *flags) as server:
        server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "fine"}], "max_tokens": 8})
    prepare_router(folder, guard_file)


def prepare_router(folder: Path, guard_file: Path, **_) -> None:
    (folder / "models").mkdir()
    (folder / "models/model.gguf").symlink_to(guard_file)


def prepare_convert(folder: Path, **_) -> None:
    """A model with rotations that are folded, an adapter of PEFT's form for it, and a probe beside a stock file."""
    make_base(folder / "base", "llama")
    initialize(InitializeOptions(str(folder / "base"), folder / "model", rotations="random"))
    write_lora(folder / "lora", folder / "model", ["q_proj", "down_proj"])
    outfile = folder / "Qwen3-0.6B-Q8_0.gguf"
    convert(ConvertOptions(model=make_base(folder / "qwen3", "qwen3"), outfile=outfile, arch="stock", progress=False))
    write_probe(folder / "Qwen3-0.6B-singprobe", ProbeShape("attn", 64, (0, 1), head_dim=8))


def prepare_heads_file(folder: Path, **_) -> None:
    make_base(folder / "base", "llama")
    initialize(InitializeOptions(str(folder / "base"), folder / "model", rotations="random"))
    randomize_heads(folder / "model", 1)
    file = folder / "SmolLM2-135M.gguf"
    convert(ConvertOptions(model=folder / "model", outfile=file, outtype="f32", arch="stock", progress=False))
    file.with_suffix(".heads.gguf").rename(folder / "safety.heads.gguf")


PREPARATIONS = {
    "README.md": prepare_readme,
    "README.ja.md": prepare_readme,
    "docs/ollama.md": prepare_modelfile,
    "docs/audit.md": prepare_audit,
    "docs/convert.md": prepare_convert,
    "docs/format.md": prepare_heads_file,
    "docs/router.md": prepare_router,
}


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.where)
def test_the_commands_of_a_page_run(block, shell, folder, runtime, guard_file, so8t_file):
    prepare = PREPARATIONS.get(block.page)
    if prepare:
        prepare(folder=folder, runtime=runtime, guard_file=guard_file, so8t_file=so8t_file, shell=shell)
    done = shell(block.text)
    assert done.returncode == 0, f"{block.where}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


def test_the_python_of_the_readme_runs(folder, so8t_file, monkeypatch):
    import torch

    (folder / "model").symlink_to(so8t_file.with_name("model"))
    monkeypatch.chdir(folder)
    (block,) = (block for block in page("README.md").blocks if block.language == "python")
    names = {"input_ids": torch.tensor([[5, 6, 7]])}
    exec(block.text, names)
    assert names["output"].safety_logits.shape[:2] == (1, 3)


def test_the_python_of_the_page_on_verification_runs(so8t_file, tmp_path, capsys):
    (block,) = (block for block in page("docs/verify.md").blocks if block.language == "python")
    model = tmp_path / "model"
    model.mkdir()
    for file in so8t_file.with_name("model").iterdir():
        (model / file.name).symlink_to(file)
    names = {"model": model}
    exec(block.text, names)
    assert names["report"].ok
    shown = capsys.readouterr().out
    assert {cells[0] for cells in page("docs/verify.md").table("check")} - {"rotations and heads"} <= set(shown.split())


def verdict_lines(text: str) -> list[str]:
    """Verdict lines without their probabilities, which differ a little between kinds of CPU."""
    lines = [line for line in text.splitlines() if re.match(r"so8t (prompt|think|answer|enforced):", line)]
    return [re.sub(r" \d\.\d\d", "", line) for line in lines]


def test_the_demo_says_what_the_readme_shows(shell, folder, runtime):
    """The two questions of `make demo`; labels and actions, not the free text."""
    smollm2()
    demo = (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0]
    questions = re.findall(r'^\s+"(.*)"(?:; do)? \\$', demo, re.M)
    (sampling,) = re.findall(r"-st .* -n 64", demo)
    file = folder / "demo.gguf"
    convert(ConvertOptions(ROOT / "models/smollm2-135m-so8t", outfile=file, outtype="q8_0", progress=False))
    said = []
    for question in questions:
        done = subprocess.run(
            [runtime / "llama-cli", "-m", file, *sampling.split(), "-p", question],
            capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        said += verdict_lines(done.stderr)
    for path in ("README.md", "README.ja.md"):
        shown = next(block for block in page(path).blocks if block.language == "text" and "so8t prompt:" in block.text)
        assert [line.removeprefix("> ") for line in shown.lines if line.startswith("> ")] == questions
        assert verdict_lines(shown.text) == said, path
