"""Random SO8T models with every rotation and head non-zero, their GGUF files, and the runtime under test."""

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from required import absent
from safetensors.numpy import load_file, save_file
from scripted_model import scripted_gguf
from tiny_models import make_base

from llama_so8t.bindings.library import library_directory
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.errors import RuntimeLibraryError

from .guard_server import HEADS, SCRIPTS, SMALL, Server

MARGIN = 2e-4
"""Largest difference of logits and head values to the reference, relative to the largest logit."""

GAIN = {"q_proj.weight": 12.0, "k_proj.weight": 12.0, "v_proj.weight": 6.0, "o_proj.weight": 6.0, "up_proj.weight": 6.0}
"""transformers starts so small that attention hardly shows in the logits; a lost rotation would not either."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the build."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.native)


@pytest.fixture(scope="session", autouse=True)
def runtime() -> Path:
    """Folder of the built tools and libraries. SO8T_REQUIRE=native makes its absence a failure."""
    if "SO8T_ASAN_OPTIONS" in os.environ:  # of `make test-asan`, for what is started from here
        os.environ["ASAN_OPTIONS"] = os.environ["SO8T_ASAN_OPTIONS"]
    try:
        return library_directory()
    except RuntimeLibraryError as error:
        absent("native", error)


@pytest.fixture(scope="session")
def gpu(runtime: Path) -> str:
    """Name of the first GPU of the built llama.cpp. SO8T_REQUIRE=cuda makes its absence a failure."""
    ggml = ctypes.CDLL(str(next(iter(sorted(runtime.glob("libggml.*"))))))
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_name.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_name.argtypes = [ctypes.c_void_p]
    device = ggml.ggml_backend_dev_by_type(1)  # GGML_BACKEND_DEVICE_TYPE_GPU
    if not device:
        absent("cuda", f"{runtime}: this build of llama.cpp sees no GPU; `make test-cuda` builds one for CUDA")
    return ggml.ggml_backend_dev_name(device).decode()


@pytest.fixture(scope="session")
def make_model(tmp_path_factory, pinned_tree) -> Callable[..., Path]:
    """Makes an SO8T checkpoint: ``make_model(family, shared_blocks=False, seed=0, **config fields)``."""
    from llama_so8t import upstream

    upstream.gguf  # before transformers, which would import another one  # noqa: B018

    def make(family: str, *, shared_blocks: bool = False, seed: int = 0, **fields: Any) -> Path:
        root = tmp_path_factory.mktemp(family)
        base = make_base(root / "base", family, **fields)
        scale_weights(base)
        model = root / "model"
        initialize(
            InitializeOptions(str(base), model, rotations="random", seed=seed, scale=0.5, shared_blocks=shared_blocks)
        )
        randomize_heads(model, seed)
        return model

    return make


@pytest.fixture(scope="session")
def to_gguf() -> Callable[..., Path]:
    """Converts a checkpoint: ``to_gguf(model, rotations="fold", outtype="f32")``, once for each choice."""
    made = {}

    def run(model: Path, rotations: str = "fold", outtype: str = "f32") -> Path:
        key = (model, rotations, outtype)
        if key not in made:
            outfile = model.parent / f"{rotations}-{outtype}.gguf"
            convert(ConvertOptions(model=model, outfile=outfile, outtype=outtype, rotations=rotations, progress=False))
            made[key] = outfile
        return made[key]

    return run


def scale_weights(base: Path) -> None:
    """Multiplies the projections by `GAIN`."""
    file = base / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        gain = next((g for suffix, g in GAIN.items() if name.endswith(suffix)), 1.0)
        tensors[name] = (tensors[name] * np.float32(gain)).astype(np.float32)
    save_file(tensors, file, metadata={"format": "pt"})


def randomize_heads(model: Path, seed: int) -> None:
    """Gives the heads random weights; `so8t init` leaves them at zero."""
    file = model / "model.safetensors"
    tensors = load_file(file)
    rng = np.random.default_rng(seed)
    for name, tensor in tensors.items():
        if "_head." in name and not name.startswith("lm_head"):
            tensors[name] = rng.normal(0.0, 0.05, tensor.shape).astype(np.float32)
    save_file(tensors, file, metadata={"format": "pt"})


def tokens_for(model: Path, n: int, seed: int = 1) -> list[int]:
    """Random token ids of the tiny vocabulary."""
    return np.random.default_rng(seed).integers(3, 300, n).tolist()


def reference(model: Path, tokens: list[int]) -> dict[str, np.ndarray]:
    """Task logits and head values of the PyTorch reference model, float32, for every position."""
    import torch
    from transformers import AutoModelForCausalLM

    import llama_so8t.hf  # noqa: F401

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        output = net(torch.tensor([tokens]))
    values = {name: value[0].numpy() for name, value in output.head_logits.items()}
    return {"task": output.logits[0].numpy(), **values}


@pytest.fixture(scope="session")
def guard_file(tmp_path_factory, pinned_tree) -> Path:
    """The scripted model of the tests of the guard."""
    return scripted_gguf(tmp_path_factory.mktemp("guard") / "model", SCRIPTS, HEADS)


@pytest.fixture(scope="session")
def serve(runtime) -> Iterator[Callable[..., Server]]:
    """llama-server with these flags, started once for all tests: ``serve(file, *flags, key=None)``."""
    yield from _servers(runtime)


@pytest.fixture(scope="module")
def serve_here(runtime) -> Iterator[Callable[..., Server]]:
    """The same once for the tests of a module: under ASan a server takes hundreds of MB."""
    yield from _servers(runtime)


def _servers(runtime: Path) -> Iterator[Callable[..., Server]]:
    running: dict[tuple, Server] = {}

    def start(file: Path, *flags: object, key: str | None = None) -> Server:
        choice = (file, flags, key)
        if choice not in running or not running[choice].is_alive:
            running[choice] = Server(runtime / "llama-server", "-m", file, *SMALL, *flags, key=key)
        return running[choice]

    yield start
    for server in running.values():
        server.stop()
