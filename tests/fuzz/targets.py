"""What the fuzzer feeds to the Python readers: small files of our own making, changed in every way.

A reader may refuse a file by `So8tError`, in one line, in little time and memory. All else is a defect of ours.
"""

import json
import signal
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from audit_writer import run, write
from gguf_files import write_gguf
from hypothesis import strategies as st
from lora_adapters import write_lora
from probe_models import ProbeShape, write_probe
from tiny_models import write_base

from llama_so8t.algebra import random_generators
from llama_so8t.audit import Log, verify
from llama_so8t.audit.anchor import read_anchor
from llama_so8t.audit.records import read_record
from llama_so8t.audit.statistics import render_statistics, statistics
from llama_so8t.checkpoint import open_checkpoint
from llama_so8t.checkpoint.adapter import WEIGHTS_NAME
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.checkpoint.lora import merged, read_lora
from llama_so8t.checkpoint.singprobe import open_probe
from llama_so8t.conversion.convert import plan
from llama_so8t.conversion.lora import plan_lora
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.diagnosis import diagnose
from llama_so8t.errors import So8tError
from llama_so8t.files import gguf_file, safetensors_file, torch_file
from llama_so8t.format import Keys
from llama_so8t.heads_file import Base, write_heads_file
from llama_so8t.inspection import inspect, render

SECONDS = 60
"""No file of a few kB takes that long, also on a slow machine with other work."""

MEMORY = 256 << 20
"""Bytes that Python and numpy may hold at once for a file of a few kB."""

NUMBERS = (
    0,
    1,
    7,
    8,
    127,
    128,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
"""Sizes at which a reader counts wrongly, if it does."""


@dataclass(frozen=True)
class Target:
    """A reader, and files for it: ``inputs`` draws the bytes of one, ``read`` reads the file with them."""

    name: str
    inputs: Callable[[], st.SearchStrategy[bytes]]
    read: Callable[[Path], None]

    def check(self, data: bytes) -> None:
        """Reads a file.

        Raises:
            AssertionError: it takes too long, too much memory, or the error has several lines.
            Exception: whatever else escapes.
        """
        with tempfile.TemporaryDirectory() as directory, _bounded(), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # numpy's, which a user would see too
            path = Path(directory) / "file"
            path.write_bytes(data)
            try:
                self.read(path)
            except So8tError as error:
                assert str(error).strip() and "\n" not in str(error), f"an error of several lines: {error}"


@contextmanager
def _bounded() -> Iterator[None]:
    def expired(signal_number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"the reader took longer than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(SECONDS)
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
        assert peak <= MEMORY, f"the reader held {peak} bytes, allowed {MEMORY}"
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


# --- how files are changed -------------------------------------------------------------------


@st.composite
def changed(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A file with one to five places changed: bits, bytes, numbers, pieces moved, doubled, cut out or off."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 5))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 7)):
            case 0:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                size = draw(st.sampled_from([1, 2, 4, 8]))
                number = draw(st.sampled_from(NUMBERS)) % (1 << 8 * size)
                data[at : at + size] = number.to_bytes(size, "little")
            case 2:
                data[at : at + draw(st.integers(1, 16))] = draw(st.binary(max_size=16))
            case 3:
                del data[at : at + draw(st.integers(1, 64))]
            case 4:
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case 5:
                del data[at:]
            case 6:
                other = draw(st.integers(0, len(data) - 1))
                size = draw(st.integers(1, 64))
                data[at : at + size] = data[other : other + size]
            case _:
                seed = draw(st.sampled_from(seeds))
                data[at:] = seed[draw(st.integers(0, len(seed))) :]
    return bytes(data)


NAMES = st.sampled_from(["a", "", "task", "\u00e9", "a\nb", "\x1b[2J", "x" * 300, "\ud800"])

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([*NUMBERS, 10**9, 10**30, -1, -(2**63)])
    | st.sampled_from([0.5, 8.0, 1e308, -0.0, float("nan"), float("inf")])
    | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
"""Any JSON value, and those that `json.loads` takes beyond the standard."""


@st.composite
def changed_json(draw: st.DrawFn, seed: Any) -> Any:
    """An object with one to three of its values, at any depth, replaced, removed or added."""
    value = json.loads(json.dumps(seed))
    for _ in range(draw(st.integers(1, 3))):
        inner, parents = value, []
        while isinstance(inner, dict | list) and inner and (not parents or draw(st.booleans())):
            keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
            key = draw(st.sampled_from(list(keys)))
            parents.append((inner, key))
            inner = inner[key]
        if not parents:
            break
        holder, key = parents[-1]
        match draw(st.integers(0, 3)):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw(NAMES)] = draw(ANYTHING)
            case _:
                holder[key] = draw(ANYTHING)
    return value


# --- GGUF ------------------------------------------------------------------------------------


@cache
def _gguf_seeds() -> list[bytes]:
    from llama_so8t.upstream import gguf

    kinds = gguf.GGUFValueType
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "seed.gguf"
        keys: dict[str, Any] = {
            "general.name": "seed",
            "llama.block_count": 1,
            "texts": ["a", "", "\u00e9"],
            "flag": True,
        }
        arrays = {kind.lower(): (rng.normal(size=(2, 64)).astype(np.float32), kind) for kind in ("F16", "Q8_0", "Q4_1")}
        plain = write_gguf(path, "llama", keys, {"norm": np.ones(3, np.float32)} | arrays).read_bytes()
        head = {
            Keys.HEAD_LABELS: ["safe", "unsafe"],
            Keys.HEAD_ACTIONS: ["allow", "refuse"],
            Keys.HEAD_THRESHOLDS: [0.5, 0.9],
            Keys.HEAD_REPRESENTATION: gguf.GGUFValue(1, kinds.INT32),
            Keys.HEAD_TAPS: gguf.GGUFValue([0, -1], kinds.ARRAY, kinds.INT32),
            Keys.HEAD_TAP_NORM: "rms",
            Keys.HEAD_LINK: "sigmoid",
            Keys.HEAD_FORM: "linear",
            Keys.HEAD_PROVENANCE: '{"fitted": "by hand"}',
        }
        keys = {
            "so8t.block_count": 1,
            "so8t.embedding_length": 16,
            "so8t.attention.head_count": 2,
            "so8t.attention.head_count_kv": 1,
            Keys.FORMAT_VERSION: 2,
            Keys.BASE_ARCHITECTURE: "llama",
            Keys.ROTATION_DIMENSION: 8,
            Keys.ROTATION_FOLDED: ["ffn"],
            Keys.ATTN_HEAD_REPRESENTATION: [0, 1],
            Keys.ATTN_HEAD_KV_REPRESENTATION: [0],
            Keys.HEADS: ["safety"],
        } | {key.format(name="safety"): value for key, value in head.items()}
        tensors = {
            "blk.0.so8t_gen.weight": random_generators(rng, (2,), 0.3).astype(np.float32),
            "so8t_out_gen.weight": random_generators(rng, (2,), 0.3).astype(np.float32),
            "so8t_head.safety.weight": rng.normal(size=(2, 32)).astype(np.float32),
        }
        return [write_gguf(path, "so8t", keys, tensors).read_bytes(), plain]


def _read_gguf(path: Path) -> None:
    file = gguf_file.read_gguf(path)
    for tensor in file.tensors.values():
        tensor.read()
    for key in file.metadata:
        file.get(key)


def _inspect(path: Path) -> None:
    path = path.rename(path.with_suffix(".gguf"))
    render(inspect(path))


def _diagnose(path: Path) -> None:
    diagnose(path.rename(path.with_suffix(".gguf")))


# --- safetensors -----------------------------------------------------------------------------

_HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "F8_E4M3", "shape": [], "data_offsets": [32, 33]},
    "d": {"dtype": "F64", "shape": [0, 7], "data_offsets": [33, 33]},
}


def _safetensors(header: Any) -> bytes:
    raw = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw + bytes(range(33))


def _safetensors_inputs() -> st.SearchStrategy[bytes]:
    return changed_json(_HEADER).map(_safetensors) | changed([_safetensors(_HEADER)])


def _read_safetensors(path: Path) -> None:
    for tensor in safetensors_file.read_file(path).values():
        tensor.read()
        if tensor.read_rows is not None and tensor.shape[0]:
            tensor.read_rows(0, 1)


# --- files of torch.save ---------------------------------------------------------------------


@cache
def _torch_seeds() -> list[bytes]:
    import io

    import torch

    seeds = []
    for content in ({"a": torch.ones(2, 3), "b": {"c": torch.zeros(4, dtype=torch.bfloat16), "n": 3}}, torch.ones(2)):
        written = io.BytesIO()
        torch.save(content, written)
        seeds.append(written.getvalue())
    return seeds


def _read_torch(path: Path) -> None:
    for entry in torch_file.read(path).values():
        entry.read()


# --- audit logs ------------------------------------------------------------------------------


@cache
def _audit_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        return [write(Path(directory) / "log", run(n)).read_bytes() for n in (9, 2)]


def _read_audit(path: Path) -> None:
    log = Log(path)
    verify(path)
    records = list(log.records(lambda line: None))
    for place, record in records:
        try:
            read_record(place, record)
        except So8tError:
            pass
    render_statistics(statistics(records))


def _read_anchor(path: Path) -> None:
    read_anchor(path)


_ANCHOR = b"so8t-audit/log\n9\n" + b"A" * 43 + b"=\n\n\xe2\x80\x94 so8t-audit/log " + b"A" * 91 + b"=\n"

# --- config.json -----------------------------------------------------------------------------


@cache
def _model() -> Path:
    """A tiny SO8T model, made once and kept until the process ends."""
    root = Path(_kept().name)
    initialize(InitializeOptions(str(write_base(root / "base", "llama")), root / "model", rotations="random"))
    return root / "model"


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _config_inputs() -> st.SearchStrategy[bytes]:
    seed = json.loads((_model() / "config.json").read_text())
    return changed_json(seed).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))


def _read_config(path: Path) -> None:
    """The model with another config.json, as `so8t convert --dry-run` and `so8t inspect` see it."""
    directory = path.parent / "model"
    directory.mkdir()
    for file in _model().iterdir():
        (directory / file.name).symlink_to(file)
    (directory / "config.json").unlink()
    path.rename(directory / "config.json")
    open_checkpoint(directory)
    try:
        plan(ConvertOptions(model=directory, outfile=path.parent / "out.gguf", progress=False))
    finally:
        inspect(directory)


# --- LoRA adapters of PEFT -----------------------------------------------------------------


@cache
def _lora() -> Path:
    """A LoRA adapter for `_model`, with every field that is read."""
    directory = Path(_kept().name) / "lora"
    fields = {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"mlp.*": 4},
        "init_lora_weights": True,
    }
    return write_lora(directory, _model(), ["q_proj", "down_proj"], modules_to_save=None, **fields)


def _lora_inputs() -> st.SearchStrategy[bytes]:
    """A configuration behind its length, and the weights behind that: one of them is changed."""
    config, weights = (_lora() / "adapter_config.json").read_bytes(), (_lora() / WEIGHTS_NAME).read_bytes()
    configs = changed_json(json.loads(config)).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    return configs.map(lambda changed: _joined(changed, weights)) | changed([weights]).map(lambda w: _joined(config, w))


def _joined(config: bytes, weights: bytes) -> bytes:
    return len(config).to_bytes(4, "little") + config + weights


def _read_lora(path: Path) -> None:
    """As `so8t convert --lora` and `--merge-lora` read it."""
    data, directory = path.read_bytes(), path.parent / "lora"
    directory.mkdir()
    n = int.from_bytes(data[:4], "little")
    (directory / "adapter_config.json").write_bytes(data[4 : 4 + n])
    (directory / WEIGHTS_NAME).write_bytes(data[4 + n :])
    checkpoint = open_checkpoint(_model())
    lora = read_lora(directory, checkpoint)
    for name in lora.pairs:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            merged(checkpoint, lora).load(name)
    plan_lora(ConvertOptions(_model(), path.parent / "out.gguf", "f32"), directory)


# --- probes ----------------------------------------------------------------------------------

_PROBE = ProbeShape("attn", 8, (0, 1), n_head=2, head_dim=4)


@cache
def _probe() -> Path:
    return write_probe(Path(_kept().name) / "probe", _PROBE)


def _probe_inputs() -> st.SearchStrategy[bytes]:
    """A configuration behind its length, and the weights behind that: one of them is changed."""
    config, weights = (_probe() / "config.json").read_bytes(), (_probe() / "model.safetensors").read_bytes()
    configs = changed_json(json.loads(config)).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    return configs.map(lambda c: _joined(c, weights)) | changed([weights]).map(lambda w: _joined(config, w))


def _read_probe(path: Path) -> None:
    """As `so8t import-probe` reads it, for a base of three layers."""
    data, directory = path.read_bytes(), path.parent / "probe"
    directory.mkdir()
    n = int.from_bytes(data[:4], "little")
    (directory / "config.json").write_bytes(data[4 : 4 + n])
    (directory / "model.safetensors").write_bytes(data[4 + n :])
    probe = open_probe(directory, {"A": "escalate"})
    write_heads_file(path.parent / "out.gguf", Base(probe.hidden_size, n_layer=3), probe.heads, probe.tensors)


TARGETS = {
    target.name: target
    for target in (
        Target("gguf", lambda: changed(_gguf_seeds()), _read_gguf),
        Target("inspect", lambda: changed(_gguf_seeds()[:1]), _inspect),
        Target("diagnose", lambda: changed([*_gguf_seeds(), *_torch_seeds()]), _diagnose),
        Target("safetensors", _safetensors_inputs, _read_safetensors),
        Target("torch", lambda: changed(_torch_seeds()), _read_torch),
        Target("audit", lambda: changed(_audit_seeds()), _read_audit),
        Target("anchor", lambda: changed([_ANCHOR]), _read_anchor),
        Target("config", _config_inputs, _read_config),
        Target("lora", _lora_inputs, _read_lora),
        Target("probe", _probe_inputs, _read_probe),
    )
}
