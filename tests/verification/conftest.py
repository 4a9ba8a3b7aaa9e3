"""A tiny SO8T model, and conversions of it whose files may be spoiled."""

import dataclasses
import shutil

import numpy as np
import pytest
from required import package
from safetensors.numpy import load_file, save_file
from tiny_models import make_base

from llama_so8t import upstream
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.conversion.convert import plan, run
from llama_so8t.conversion.options import ConvertOptions


@pytest.fixture(scope="session")
def model(tmp_path_factory, pinned_tree):
    """An SO8T checkpoint with random rotations and heads."""
    upstream.gguf  # before transformers, which would import another one  # noqa: B018
    package("sentencepiece")
    root = tmp_path_factory.mktemp("verification")
    base = make_base(root / "base", "llama")
    initialize(InitializeOptions(str(base), root / "model", rotations="random", seed=8, scale=0.3))
    file = root / "model" / "model.safetensors"
    tensors = load_file(file)
    rng = np.random.default_rng(0)
    for name in tensors:
        if name.startswith(("safety_head", "authority_head")):
            tensors[name] = rng.normal(0.0, 0.05, tensors[name].shape).astype(np.float32)
    save_file(tensors, file, metadata={"format": "pt"})
    return root / "model"


@pytest.fixture(scope="session")
def converted_once(model, tmp_path_factory):
    made = {}

    def convert(outtype, rotations, **options):
        key = (outtype, rotations, *options.items())
        if key not in made:
            out = tmp_path_factory.mktemp("files") / "out.gguf"
            fields = {"model": model, "outfile": out, "outtype": outtype, "rotations": rotations, "progress": False}
            made[key] = plan(ConvertOptions(**fields | options))
            run(made[key])
        return made[key]

    return convert


@pytest.fixture
def converted(converted_once, tmp_path):
    """Plan of a conversion whose files are copies of its own: ``converted("q8_0", "explicit")``."""

    def copy(outtype="f32", rotations="explicit", **options):
        made = converted_once(outtype, rotations, **options)
        paths = tuple(shutil.copy(path, tmp_path / path.name) for path in made.paths)
        return dataclasses.replace(made, paths=paths)

    return copy
