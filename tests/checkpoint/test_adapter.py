"""How an adapter finds its base, and how it notices a wrong one."""

import json
import shutil

import pytest
from tiny_models import write_base

from llama_so8t.checkpoint import adapter, open_checkpoint
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.errors import CheckpointError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A directory with ``models/base`` and an adapter beside it, as working directory."""
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "models" / "base")
    return tmp_path


def make_adapter(base, out):
    initialize(InitializeOptions(base=str(base), out=out, rotations="random", adapter=True))
    return out


def edit(directory, **fields):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_relative_base_is_relative_to_the_adapter(home, monkeypatch):
    out = make_adapter("models/base", home / "models" / "adapter")
    assert adapter.read_fields(out)["base_model_name_or_path"] == "../base"
    monkeypatch.chdir("/")
    assert open_checkpoint(out).config["base_model_type"] == "qwen3"
    shutil.move(home / "models", home / "moved")
    assert open_checkpoint(home / "moved" / "adapter").is_so8t


def test_an_absolute_base_stays_absolute(home):
    out = make_adapter(home / "models" / "base", home / "adapter")
    assert adapter.read_fields(out)["base_model_name_or_path"] == str(home / "models" / "base")
    assert open_checkpoint(out).is_so8t


def test_a_base_inside_a_package_is_found(home, monkeypatch):
    package = home / "site" / "tiny_so8t_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('an import would run code')")
    shutil.copytree(home / "models" / "base", package / "base")
    monkeypatch.syspath_prepend(str(home / "site"))
    out = make_adapter("package:tiny_so8t_package/base", home / "adapter")
    assert adapter.read_fields(out)["base_model_name_or_path"] == "package:tiny_so8t_package/base"
    assert open_checkpoint(out).is_so8t


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:json/../../secret", "expected package:NAME/FILE"),
        ("package:json//etc/passwd", "expected package:NAME/FILE"),
        ("package:json", "expected package:NAME/FILE"),
        ("package:os.path/x", "expected package:NAME/FILE"),
        ("package:json/missing.gguf", "has no file 'missing.gguf'"),
        ("package:no_such_package/x", "is not installed"),
    ],
)
def test_a_package_name_reaches_nothing_else(home, name, message):
    with pytest.raises(CheckpointError, match=message):
        adapter.resolve(name, home)


def test_another_base_can_be_named(home):
    out = make_adapter("models/base", home / "adapter")
    shutil.move(home / "models", home / "elsewhere")
    with pytest.raises(CheckpointError, match=r"base model '../models/base' is not at .*--base"):
        open_checkpoint(out)
    assert open_checkpoint(out, home / "elsewhere" / "base").is_so8t
    with pytest.raises(CheckpointError, match="no such base model"):
        open_checkpoint(out, home / "nowhere")


def test_a_base_with_other_weights_is_refused(home):
    out = make_adapter("models/base", home / "adapter")
    other = write_base(home / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"found sha256 [0-9a-f]{64}, expected [0-9a-f]{64} .*--base"):
        open_checkpoint(out, other)


def test_every_shard_counts_in_the_sha256(home):
    base = home / "models" / "base"
    from llama_so8t.files import safetensors_file, safetensors_writer

    tensors = list(safetensors_file.read_sharded(base).values())
    sharded = home / "sharded"
    sharded.mkdir()
    safetensors_writer.write_sharded(sharded, tensors, max_bytes=50_000)
    first = adapter.weights_sha256(sharded)
    last = sorted(sharded.glob("*.safetensors"))[-1]
    raw = bytearray(last.read_bytes())
    raw[-1] ^= 1
    last.write_bytes(raw)
    assert adapter.weights_sha256(sharded) != first


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapter_type": "lora"}, "adapter_type 'lora', expected 'so8t'"),
        ({"base_model_sha256": None}, "base_model_sha256 None"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path 7"),
        ({"so8t_compensated": "yes"}, "so8t_compensated 'yes'"),
        (
            {"so8t_shared_blocks": True},
            r"'model.layers.0.so8t.gate_safe'.*found shape \[8, 28\], expected \[1, 28\]",
        ),
        ({"so8t_cross_head_interaction": False}, "not expected from config.json"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(home, fields, message):
    out = make_adapter("models/base", home / "adapter")
    edit(out, **fields)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(out)


def test_an_adapter_is_no_base_of_an_adapter(home):
    out = make_adapter("models/base", home / "adapter")
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        open_checkpoint(out, out)


def test_a_base_is_for_adapters_only(home):
    with pytest.raises(CheckpointError, match="a base is for adapters only"):
        open_checkpoint(home / "models" / "base", home / "models" / "base")


def test_an_adapter_without_weights_is_refused(home):
    out = make_adapter("models/base", home / "adapter")
    (out / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: no such file"):
        open_checkpoint(out)
