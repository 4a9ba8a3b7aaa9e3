"""Base models, what upstream's converter makes of them, and the SO8T models made from them."""

import json
import shutil
from pathlib import Path

import pytest
from bases import BASES, COMPARED, QWEN3, QWEN3_SHAPE, qwen3_tokenizer
from required import package
from tiny_models import make_base
from upstream_converter import run_upstream

from llama_so8t import upstream
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="session")
def bases(tmp_path_factory, pinned_tree):
    """Name -> directory of a base model with tokenizer, chat template, model card and sampling defaults."""
    upstream.gguf  # before transformers, which would import another one  # noqa: B018
    package("sentencepiece")
    root = tmp_path_factory.mktemp("bases")
    made = {}
    for name, fields in BASES.items():
        directory = make_base(root / name, **fields)
        (directory / "tokenizer_config.json").write_text(
            json.dumps({"add_bos_token": False, "chat_template": CHAT_TEMPLATE, "tokenizer_class": "LlamaTokenizer"})
        )
        (directory / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20}))
        (directory / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# Tiny\n")
        made[name] = directory
    files = qwen3_tokenizer()
    if isinstance(files, dict):
        made[QWEN3] = make_base(root / QWEN3, "qwen3", "bfloat16", **QWEN3_SHAPE)
        (root / QWEN3 / "tokenizer.model").unlink()
        for name, content in files.items():
            (root / QWEN3 / name).write_bytes(content)
    return made


@pytest.fixture(scope="session")
def upstream_files(bases, pinned_tree, tmp_path_factory):
    """(name, outtype) -> file that convert_hf_to_gguf.py of the pinned tree makes, in a process of its own."""
    root = tmp_path_factory.mktemp("upstream")
    compared = [*COMPARED, (QWEN3, "f16")] if QWEN3 in bases else COMPARED
    return run_upstream(
        pinned_tree, {(name, kind): (bases[name], root / f"{name}-{kind}.gguf") for name, kind in compared}
    )


@pytest.fixture(scope="session")
def models(bases, tmp_path_factory):
    """(name, rotations) -> SO8T checkpoint with rotations zero or random; named like its base."""
    made = {}
    for rotations in ("zero", "random"):
        root = tmp_path_factory.mktemp(f"models-{rotations}")
        for name in BASES:
            initialize(InitializeOptions(str(bases[name]), root / name, rotations=rotations, seed=8, scale=0.3))
            made[name, rotations] = root / name
    return made


@pytest.fixture
def convert_to(tmp_path):
    """Converts a model to a file of its own: ``convert_to(model, outtype="f32", rotations="fold", ...)``."""

    def run(model, outtype="f32", rotations="fold", name="out.gguf", **options):
        return convert(
            ConvertOptions(
                model=model,
                outfile=tmp_path / name,
                outtype=outtype,
                rotations=rotations,
                progress=False,
                **options,
            )
        )

    return run


@pytest.fixture
def copied(tmp_path):
    """A copy of a model directory, to be spoiled."""

    def copy(model):
        return Path(shutil.copytree(model, tmp_path / "copied" / model.name))

    return copy
