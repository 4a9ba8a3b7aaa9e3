"""Backends without a kernel of ours against the PyTorch reference: BLAS with the CPU, and Vulkan where it is built."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from properties import assert_same_function
from required import absent

from .backend_values import values
from .conftest import MARGIN, reference, tokens_for

N_TOKENS = 40
"""BLAS takes products of 32 columns and more."""

VULKAN_MARGIN = 5e-3
"""llama.cpp's Vulkan backend rounds what attention multiplies to float16, with and without rotations: measured 4e-4 to
3e-3 of the largest logit, for folded and explicit files alike. A lost site changes more than 2e-2."""

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
    return reference(model, tokens_for(model, N_TOKENS))


@pytest.fixture(scope="session")
def blas(runtime):
    """Environment in which llama.cpp loads its BLAS backend."""
    plugin = [*(runtime / "backends").glob("*ggml-blas-test.*")]
    if not plugin:
        absent("native", f"the BLAS backend is not in {runtime / 'backends'}: run `make setup` and `make test-native`")
    return {"GGML_BACKEND_PATH": str(plugin[0])}


@pytest.fixture(scope="session")
def vulkan(runtime):
    """Environment of the build with Vulkan."""
    if not [*runtime.glob("*ggml-vulkan.*")]:
        absent("vulkan", f"no Vulkan backend in {runtime}: `make test-vulkan` builds and tests it")
    # the first: Mesa's lavapipe, which is no GPU, is used too; the second: products are not rounded to float16
    environment = {"GGML_VK_VISIBLE_DEVICES": "0", "GGML_VK_DISABLE_F16": "1"}
    devices = run(runtime / "llama-completion", "--list-devices", environment=environment).stdout
    if "Vulkan0" not in devices:
        absent("vulkan", "the Vulkan backend finds no device: apt-get install mesa-vulkan-drivers has lavapipe")
    return environment


def run(*command: object, environment: dict[str, str]) -> subprocess.CompletedProcess:
    result = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=600,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def check(model: Path, file: Path, expected, out: Path, environment, margin: float = MARGIN, **options: int) -> None:
    found = values(file, tokens_for(model, N_TOKENS), out, environment, **options)
    assert_same_function(found, expected, margin, np.abs(expected["task"]).max())


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
    check(model, to_gguf(model, rotations), expected, tmp_path / "values.npz", blas)


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_vulkan_gives_the_values_of_the_reference(model, expected, to_gguf, vulkan, rotations, tmp_path):
    check(model, to_gguf(model, rotations), expected, tmp_path / "values.npz", vulkan, VULKAN_MARGIN, n_gpu_layers=99)


def test_blas_multiplies_weights_and_leaves_rotations_to_the_cpu(runtime, model, to_gguf, blas):
    found = products(runtime, to_gguf(model, "explicit"), "BLAS", blas)
    assert "BLAS" in found["ffn_gate"]
    assert found["so8t_"] == {"CPU"}


def test_vulkan_computes_rotations_too(runtime, model, to_gguf, vulkan):
    found = products(runtime, to_gguf(model, "explicit"), "Vulkan0", vulkan)
    assert found == {"ffn_gate": {"Vulka"}, "so8t_": {"Vulka"}}  # the log cuts names
