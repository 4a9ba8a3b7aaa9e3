"""Shared by every test: fixed seeds, tolerances with their reasons, golden numbers."""

import json
import os
import random
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from required import absent

SEED = 28
GOLDEN = Path(__file__).parent / "golden"

# tensors of tests are tiny: torch's threads, two to a worker, would mostly wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

# checks that several test modules share
pytest.register_assert_rewrite("tests.ui.any_server")

# a shell that starts the tests in the background has them ignore Ctrl-C, and their children too
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same state of `random` and, where a test imported it, of torch."""
    random.seed(SEED)
    if "torch" in sys.modules:  # algebra and conversion tests must run without torch
        sys.modules["torch"].manual_seed(SEED)
    return SEED


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """The random numbers of a numpy test."""
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def tolerance() -> SimpleNamespace:
    """Largest absolute error by kind of computation. Integer identities have none: they use ``==``."""
    return SimpleNamespace(
        float64=1e-12,  # 8x8 products of entries of size 1: a few hundred roundings of 1e-16
        float32=1e-5,  # a whole tiny model in float32: some thousand roundings of 6e-8
    )


@pytest.fixture(scope="session")
def so8_golden() -> dict:
    """Octonion units and rotations in all three representations, float64, written by independent code."""
    return json.loads((GOLDEN / "so8_golden.json").read_text())


@pytest.fixture(scope="session")
def pinned_tree() -> Path:
    """Folder of the pinned llama.cpp source: LLAMA_CPP_SOURCE or build/llama.cpp."""
    from llama_so8t import upstream
    from llama_so8t.errors import So8tError

    try:
        return upstream.source()
    except So8tError as error:
        absent("source", error)


@pytest.fixture(scope="session")
def gguf(pinned_tree: Path):
    """gguf-py of the pinned tree."""
    from llama_so8t import upstream

    return upstream.gguf
