"""SO8T models of a few kB with every weight non-zero but a few, and their sidecar files."""

import json

import numpy as np
import pytest
from required import package
from safetensors.numpy import load_file, save_file
from tiny_models import make_base

from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.sidecars.writing import write_sidecars

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

BASES = {
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "llama3-shared": ("llama", {"rope_parameters": LLAMA3_ROPE, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory, pinned_tree):
    """Name -> directory of an SO8T model, random rotations and heads; a head of llama3-shared is not the default."""
    from llama_so8t import upstream

    upstream.gguf  # before transformers, which would import another one  # noqa: B018
    package("sentencepiece")
    root = tmp_path_factory.mktemp("sidecars")
    made = {}
    for name, (family, fields) in BASES.items():
        base = make_base(root / f"base-{name}", family, **fields)
        shared = name.endswith("-shared")
        initialize(InitializeOptions(str(base), root / name, rotations="random", scale=0.5, shared_blocks=shared))
        weights = load_file(root / name / "model.safetensors")
        rng = np.random.default_rng(3)
        for tensor in weights:
            if tensor.startswith("safety_head"):  # authority stays zero
                weights[tensor] = rng.normal(0, 0.1, weights[tensor].shape).astype(np.float32)
        save_file(weights, root / name / "model.safetensors", metadata={"format": "pt"})
        if shared:
            config = json.loads((root / name / "config.json").read_text())
            config["so8t_heads"]["safety"]["thresholds"] = [0.5, 0.75]
            (root / name / "config.json").write_text(json.dumps(config))
        made[name] = root / name
    return made


@pytest.fixture(scope="session")
def sidecars(models, tmp_path_factory):
    """Name -> directory with the four files."""
    root = tmp_path_factory.mktemp("files")
    for name, model in models.items():
        write_sidecars(open_checkpoint(model), root / name)
    return {name: root / name for name in models}
