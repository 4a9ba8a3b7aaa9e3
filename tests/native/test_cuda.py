"""Logits and head values of a GPU against the CPU and PyTorch, on small random models.

A GPU may multiply float32 matrices in TF32, which keeps 10 bits of each factor. What that may cost is measured, not
guessed: the PyTorch model is run with truncated factors too. Errors are normalized mean square errors,
NMSE = sum (a - b)^2 / sum b^2.
"""

import numpy as np
import pytest
import torch

from llama_so8t.bindings import Session
from llama_so8t.bindings.session import F32

from .conftest import reference, tokens_for
from .test_parity import SHAPES

pytestmark = pytest.mark.cuda

N_TOKENS = 31
"""From 32 tokens on llama.cpp would send products of a model on the CPU to the GPU too."""

FACTOR = 4
"""Allowed error over that of truncated factors. A lost rotation costs at least nine times what is allowed."""


@pytest.fixture(scope="module", params=SHAPES)
def model(request, make_model):
    family, fields = SHAPES[request.param]
    return make_model(family, **fields)


@pytest.fixture(scope="module")
def expected(model) -> dict[str, np.ndarray]:
    return reference(model, tokens_for(model, N_TOKENS))


@pytest.fixture(scope="module")
def allowed(model, expected) -> dict[str, float]:
    """Largest NMSE of task logits and head values."""
    linear, matmul = torch.nn.functional.linear, torch.matmul
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", lambda x, w, b=None: linear(tf32(x), tf32(w), b))
        patch.setattr(torch, "matmul", lambda a, b: matmul(tf32(a), tf32(b)))
        truncated = reference(model, tokens_for(model, N_TOKENS))
    return {name: FACTOR * nmse(truncated[name], expected[name]) for name in expected}


def tf32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without the last 13 bits of its numbers."""
    return (tensor.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def nmse(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.square(found - expected).sum() / np.square(expected).sum())


def run(file, tokens: list[int], n_gpu_layers: int, n_at_once: int = N_TOKENS) -> dict[str, np.ndarray]:
    """Task logits and head values of every token."""
    settings = {"type_k": F32, "type_v": F32, "flash_attn": False, "n_gpu_layers": n_gpu_layers}
    parts = []
    with Session(file, **settings) as session:
        for position in range(0, len(tokens), n_at_once):
            session.decode(tokens[position : position + n_at_once], position=position)
            heads = {head.name: session.head_logits(head.name) for head in session.heads}
            parts.append({"task": session.logits(), **heads})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("n_at_once", [1, N_TOKENS])
@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_a_gpu_computes_what_the_cpu_does(gpu, model, expected, allowed, to_gguf, rotations, n_at_once):
    tokens = tokens_for(model, N_TOKENS)
    file = to_gguf(model, rotations)
    on_cpu = run(file, tokens, 0, n_at_once)
    on_gpu = run(file, tokens, 99, n_at_once)
    assert set(on_gpu) == set(expected)
    assert not np.array_equal(on_gpu["task"], on_cpu["task"]), f"equal to the last bit: not computed on {gpu}"
    for name in expected:
        assert nmse(on_gpu[name], on_cpu[name]) <= allowed[name], f"{name}: against the CPU"
        assert nmse(on_gpu[name], expected[name]) <= allowed[name], f"{name}: against PyTorch"
