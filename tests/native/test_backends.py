"""Backends without a kernel of ours against the PyTorch reference: BLAS with the CPU, and Vulkan where it is built."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .conftest import assert_close, reference, tokens_for

ROOT = Path(__file__).resolve().parents[2]
N_TOKENS = 40
"""BLAS takes products of 32 columns and more."""

MODELS = {
    "qwen3": {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64},
    "llama": {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64},
    "shared": {"hidden_size": 128, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, make_model):
    family = "llama" if request.param == "shared" else request.param
    return make_model(family, shared_blocks=request.param == "shared", **MODELS[request.param])


@pytest.fixture(scope="module")
def expected(model):
    tokens = tokens_for(model, N_TOKENS)
    found = reference(model, [*tokens, tokens[0]])
    return {name: rows[:-1] for name, rows in found.items()} | {"next": found["task"][-1:]}


@pytest.fixture(scope="session")
def blas(runtime):
    """Environment in which llama.cpp loads its BLAS backend."""
    plugin = [*(runtime / "backends").glob("*ggml-blas-test.*")]
    if not plugin:
        missing(f"the BLAS backend is not in {runtime / 'backends'}: run `make setup` and `make test-native`", "native")
    return {"GGML_BACKEND_PATH": str(plugin[0])}


@pytest.fixture(scope="session")
def vulkan(runtime):
    """Environment of the build with Vulkan."""
    if not [*runtime.glob("*ggml-vulkan.*")]:
        missing(f"no Vulkan backend in {runtime}: `make test-vulkan` builds and tests it", "vulkan")
    return {}


def missing(reason: str, needed: str) -> None:
    if needed in os.environ.get("SO8T_REQUIRE", ""):
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: object, environment: dict[str, str]) -> subprocess.CompletedProcess:
    result = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=600,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def check(model: Path, file: Path, expected, environment, n_gpu_layers: int, out: Path) -> None:
    tokens = tokens_for(model, N_TOKENS)
    run(
        sys.executable, Path(__file__).with_name("backend_values.py"), file, out, n_gpu_layers, *tokens,
        environment=environment,
    )  # fmt: skip
    found = np.load(out)
    scale = np.abs(expected["task"]).max()
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert_close(found[name], values, scale, name)
    assert np.array_equal(found["task"].argmax(-1), expected["task"].argmax(-1))


def products(runtime: Path, file: Path, device: str, environment: dict[str, str]) -> dict[str, set[str]]:
    """Backends that compute the matrix products of a prompt: of rotations, and of the weights of the FFN."""
    log = run(
        runtime / "llama-completion", "-m", file, "-p", "The head decides. " * 10, "-n", 1, "-no-cnv", "-c", 256, "-v",
        "--no-warmup", "-fa", "off", "-dev", device, "-ngl", 99, environment={**environment, "GGML_SCHED_DEBUG": "2"},
    )  # fmt: skip
    found = {"so8t_": set(), "ffn_gate": set()}
    for node in re.finditer(r"node #\d+ +\( *MUL_MAT\): .*?\[ *(\w+) *\].*", log.stderr + log.stdout):
        for name, backends in found.items():
            if re.search(rf"blk\.\d\.{name}", node[0]):
                backends.add(node[1])
    return found


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_blas_gives_the_values_of_the_reference(model, expected, to_gguf, blas, rotations, tmp_path):
    check(model, to_gguf(model, rotations), expected, blas, 0, tmp_path / "values.npz")


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_vulkan_gives_the_values_of_the_reference(model, expected, to_gguf, vulkan, rotations, tmp_path):
    check(model, to_gguf(model, rotations), expected, vulkan, 99, tmp_path / "values.npz")


def test_blas_multiplies_weights_and_leaves_rotations_to_the_cpu(runtime, model, to_gguf, blas):
    found = products(runtime, to_gguf(model, "explicit"), "BLAS", blas)
    assert "BLAS" in found["ffn_gate"]
    assert found["so8t_"] == {"CPU"}


def test_vulkan_computes_rotations_too(runtime, model, to_gguf, vulkan):
    found = products(runtime, to_gguf(model, "explicit"), "Vulkan0", vulkan)
    assert found == {"ffn_gate": {"Vulkan0"}, "so8t_": {"Vulkan0"}}
