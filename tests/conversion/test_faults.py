"""A conversion that is killed, meets a full disk or odd shapes: nothing half-written, nothing left behind."""

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from required import absent, mount_tmpfs
from tiny_models import stored, write_base

from llama_so8t import cli, upstream
from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.conversion import writer
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.conversion.tensors import plan_tensors
from llama_so8t.errors import CheckpointError, ConversionError
from llama_so8t.files import safetensors_file, safetensors_writer
from llama_so8t.files.gguf_file import read_gguf

HOLD = """
import sys, time
from llama_so8t import kernels
from llama_so8t.cli import main
quantize = kernels.quantize
def held(*args):
    sys.stdout.write("writing\\n")
    sys.stdout.flush()
    time.sleep(1)
    return quantize(*args)
kernels.quantize = held
sys.exit(main(["convert", *sys.argv[1:]]))
"""


def environment(pinned_tree):
    return os.environ | {"LLAMA_CPP_SOURCE": str(pinned_tree), "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def stopped(models, tmp_path, pinned_tree):
    """Starts a conversion, sends a signal while it writes, and returns its exit code."""

    def run(signal_number):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(models["tiny-llama", "random"]), "--outfile", str(tmp_path / "out.gguf")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(pinned_tree),
        )  # fmt: skip
        assert process.stdout.readline() == b"writing\n"
        assert any(name.endswith(".partial") for name in os.listdir(tmp_path))
        process.send_signal(signal_number)
        code = process.wait(20)
        process.stdout.close()
        return code

    return run


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(stopped, tmp_path, signal_number):
    assert stopped(signal_number) == 130
    assert os.listdir(tmp_path) == []


def test_what_a_killed_run_leaves_the_next_one_removes(stopped, models, tmp_path):
    model, out = models["tiny-llama", "random"], tmp_path / "out.gguf"
    assert stopped(signal.SIGKILL) == -signal.SIGKILL
    left = os.listdir(tmp_path)
    assert len(left) == 1 and left[0].endswith(".partial")
    (tmp_path / ".other.gguf.1.partial").write_text("of a running process, for another file")
    convert(ConvertOptions(model=model, outfile=out, progress=False))
    assert sorted(os.listdir(tmp_path)) == [".other.gguf.1.partial", "out.gguf"]


def test_a_full_disk_is_one_line_and_nothing_is_lost(models, tmp_path, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount_tmpfs(disk, "128k")
    try:
        (disk / "out.gguf").write_text("old")
        assert cli.main(["convert", str(models["tiny-llama", "random"]), "--outfile", str(disk / "out.gguf")]) == 1
        assert "No space left on device" in capfd.readouterr().err.splitlines()[-1]
        assert os.listdir(disk) == ["out.gguf"]
        assert (disk / "out.gguf").read_text() == "old"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_system_that_refuses_direct_writes_gets_others(models, tmp_path, monkeypatch):
    """With small buffers every one is written while others are filled."""
    try:
        os.close(os.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError as error:
        absent("direct", f"{tmp_path}: no direct writes here ({error}); name a folder of another disk by --basetemp")
    model, outfile = models["tiny-llama", "random"], tmp_path / "out.gguf"
    expected = convert(ConvertOptions(model=model, outfile=outfile, progress=False)).read_bytes()
    monkeypatch.setattr(writer, "_BUFFER", 4096)
    assert convert(ConvertOptions(model=model, outfile=outfile, progress=False)).read_bytes() == expected
    pwrite, refused = os.pwrite, []

    def refuse(file, data, offset):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    assert convert(ConvertOptions(model=model, outfile=outfile, progress=False)).read_bytes() == expected
    assert len(refused) == 1


def test_a_limit_of_the_file_size_is_one_line(models, tmp_path, pinned_tree):
    arguments = [models["tiny-llama", "random"], "--outfile", tmp_path / "out.gguf"]
    result = subprocess.run(
        [sys.executable, "-m", "llama_so8t", "convert", *map(str, arguments)],
        capture_output=True, text=True, env=environment(pinned_tree),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )  # fmt: skip
    assert result.returncode == 1
    assert "File too large" in result.stderr and "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(models, tmp_path, value, copied):
    model = copied(models["tiny-llama", "random"])
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = safetensors_file.read_sharded(model)
    weight = tensors[name].read().copy()
    weight[5, 7] = value
    tensors[name] = stored(name, weight)
    safetensors_writer.write_file(model / "new", list(tensors.values()))
    os.replace(model / "new", model / "model.safetensors")
    out = tmp_path / "out.gguf"
    with pytest.raises(CheckpointError, match=rf"{name}'.*found (nan|inf) at \[5, 7\]"):
        convert(ConvertOptions(model=model, outfile=out, progress=False))
    assert not out.exists()
    convert(ConvertOptions(model=model, outfile=out, outtype="f16", allow_nonfinite=True, progress=False))
    assert not np.isfinite(read_gguf(out).tensors["blk.1.ffn_down.weight"].read()[5, 7])


def test_values_that_do_not_fit_the_type_are_named(models, tmp_path, copied):
    model = copied(models["tiny-llama", "zero"])
    tensors = safetensors_file.read_sharded(model)
    name = "lm_head.weight"
    tensors[name] = stored(name, tensors[name].read() * np.float32(1e7))
    safetensors_writer.write_file(model / "new", list(tensors.values()))
    os.replace(model / "new", model / "model.safetensors")
    with pytest.raises(ConversionError, match=r"tensor 'output.weight': found values up to .* do not fit F16"):
        convert(ConvertOptions(model=model, outfile=tmp_path / "out.gguf", outtype="f16", progress=False))
    assert os.listdir(tmp_path) == ["copied"]


def test_a_source_that_shrinks_meanwhile_is_noticed(models, tmp_path, copied):
    model = copied(models["tiny-llama", "random"])
    checkpoint = open_checkpoint(model)
    os.truncate(model / "model.safetensors", 5000)
    with pytest.raises(CheckpointError, match=r"model.safetensors: ends before byte \d+; it was cut"):
        checkpoint.load("lm_head.weight")


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_repetition_do_not_change_a_byte(models, tmp_path, threads):
    files = [
        convert(
            ConvertOptions(
                model=models["Tiny-Qwen3-0.1M-Instruct", "random"],
                outfile=tmp_path / f"{number}.gguf",
                threads=count,
                progress=False,
            )
        ).read_bytes()
        for number, count in enumerate((threads, 2, None))
    ]
    assert files[0] == files[1] == files[2]


def test_a_split_file_has_every_tensor_once(models, tmp_path):
    model = models["tiny-llama", "random"]
    whole = read_gguf(convert(ConvertOptions(model=model, outfile=tmp_path / "whole.gguf", progress=False)))
    first = convert(ConvertOptions(model=model, outfile=tmp_path / "part.gguf", split_max_size=60_000, progress=False))
    parts = [read_gguf(path) for path in sorted(tmp_path.glob("part-*.gguf"))]
    assert len(parts) > 2
    assert first.name == f"part-00001-of-{len(parts):05d}.gguf"
    assert [part.get("split.no") for part in parts] == list(range(len(parts)))
    assert {part.get("split.count") for part in parts} == {len(parts)}
    assert {part.get("split.tensors.count") for part in parts} == {len(whole.tensors)}
    found = {name: tensor.read() for part in parts for name, tensor in part.tensors.items()}
    assert list(found) == list(whole.tensors)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(found[name], tensor.read())
    assert parts[0].get("so8t.heads") == whole.get("so8t.heads")
    assert parts[1].get("so8t.heads") is None


@pytest.mark.parametrize("seed", range(8))
def test_any_shape_and_type_comes_back(tmp_path, seed, monkeypatch, pinned_tree):
    """Random shapes: every tensor read back is the planned one, within half a step of its type."""
    rng = np.random.default_rng(seed)
    family = ["qwen3", "llama", "qwen2"][seed % 3]
    n_kv, group, head_dim = int(rng.integers(1, 4)), int(rng.integers(1, 5)), 8 * int(rng.integers(1, 4))
    n_head = n_kv * group
    hidden = n_head * head_dim if family == "qwen2" else 8 * int(rng.integers(4, 12))
    base = write_base(
        tmp_path / "base", family, dtype=str(rng.choice(["F32", "BF16"])), seed=seed,
        hidden_size=hidden, intermediate_size=8 * int(rng.integers(1, 20)), num_attention_heads=n_head,
        num_key_value_heads=n_kv, head_dim=head_dim, vocab_size=int(rng.integers(10, 300)),
        tie_word_embeddings=bool(rng.integers(2)), num_hidden_layers=int(rng.integers(1, 4)),
    )  # fmt: skip
    from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
    from llama_so8t.conversion.metadata import BaseMetadata

    initialize(InitializeOptions(str(base), tmp_path / "model", rotations="random", seed=seed))
    kinds = upstream.gguf.GGUFValueType
    keys = {"general.architecture": upstream.gguf.GGUFValue("so8t", kinds.STRING)}
    # a tokenizer has nothing to do with shapes
    metadata = BaseMetadata(dict(keys), {})
    monkeypatch.setattr("llama_so8t.conversion.convert.base_metadata", lambda *args: metadata)
    outtype = str(rng.choice(["f32", "f16", "bf16", "q8_0"]))
    mode = str(rng.choice(["fold", "explicit"]))
    out = convert(
        ConvertOptions(tmp_path / "model", tmp_path / "o.gguf", outtype=outtype, rotations=mode, progress=False)
    )
    checkpoint, file = open_checkpoint(tmp_path / "model"), read_gguf(out)
    folded = tuple(file.get("so8t.rotation.folded", ()))
    explicit = tuple(file.get("so8t.rotation.explicit", ()))
    planned = list(plan_tensors(checkpoint, folded, explicit))
    assert [tensor.name for tensor in planned] == list(file.tensors)
    for tensor in planned:
        expected, stored_tensor = tensor.read(), file.tensors[tensor.name]
        found = stored_tensor.read()
        assert found.shape == expected.shape
        if stored_tensor.dtype == "F32":
            np.testing.assert_array_equal(found, expected)
        elif stored_tensor.dtype == "Q8_0":
            blocks = np.abs(expected.reshape(-1, 32)).max(axis=1, keepdims=True)
            limit = blocks / 127 * (0.5 + 127 / 2**11)  # the step is a float16
            assert (np.abs(found - expected).reshape(-1, 32) <= limit).all()
        else:
            bits = {"F16": 11, "BF16": 8}[stored_tensor.dtype]
            np.testing.assert_allclose(found, expected, rtol=2.0**-bits, atol=1e-7)


def test_dry_run_shows_types_and_writes_nothing(models, tmp_path, capfd):
    arguments = [str(models["tiny-llama", "random"]), "--outfile", str(tmp_path / "out.gguf"), "--dry-run"]
    assert cli.main(["convert", *arguments]) == 0
    assert os.listdir(tmp_path) == []
    rows = {line.split()[0]: line.split()[1:] for line in capfd.readouterr().out.splitlines()}
    made = convert(ConvertOptions(models["tiny-llama", "random"], tmp_path / "o.gguf", progress=False))
    counted = [t.dtype for t in read_gguf(made).tensors.values()]
    assert int(rows["Q8_0"][0]) == counted.count("Q8_0")
    assert int(rows["total"][0]) == len(counted)
