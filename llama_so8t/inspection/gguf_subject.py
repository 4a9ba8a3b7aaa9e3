"""A GGUF file as a `Subject`: stored rotations and generators, or generators alone where folded."""

import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t.algebra import DIM, N_GENERATORS
from llama_so8t.checkpoint.gguf_generators import read_generators
from llama_so8t.errors import CheckpointError
from llama_so8t.files.finite import check_finite
from llama_so8t.files.gguf_file import GgufFile, read_gguf
from llama_so8t.files.tensor_hash import is_sha256
from llama_so8t.format import (
    ARCH,
    HEAD_DIM,
    HEAD_FORMS,
    HEADS_TYPE,
    INNER,
    OUT,
    PER_HEAD,
    PER_HEAD_KV,
    READ,
    SITES,
    HeadSpec,
    Keys,
    Tensors,
)
from llama_so8t.inspection.gguf_heads import format_version, read_heads
from llama_so8t.inspection.subject import (
    Generator,
    HeadTensors,
    RotationTensor,
    Subject,
    computed,
    head_problem,
    used_representations,
)

_POOLING_TYPE = f"{ARCH}.pooling_type"

MAX_LAYERS = 4096
MAX_WIDTH = 1 << 17
"""Largest hidden size that is believed; it bounds the blocks of a rotation tensor."""


def open_gguf(path: Path) -> Subject:
    """Reads rotations and heads of a GGUF file.

    Raises:
        CheckpointError: not GGUF, damaged, or not an SO8T file.
    """
    file = read_gguf(path)
    return (_HeadsReader if file.get("general.type") == HEADS_TYPE else _ModelReader)(file).subject()


class _Reader:
    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.path = file.path
        self.arch = self._get("general.architecture", str)
        self.hidden_size = self._size(f"{self.arch}.embedding_length", MAX_WIDTH)

    def _get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.file.get(key, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            found = "missing" if value is None else reprlib.repr(value)
            raise CheckpointError(f"{self.path}: key {key} is {found}, expected a value of type {kind.__name__}")
        return value

    def _size(self, key: str, largest: int, default: int | None = None) -> int:
        value = self._get(key, int, default)
        if not 1 <= value <= largest:
            raise CheckpointError(f"{self.path}: found {key} {value}, expected 1 to {largest}")
        return value

    def _list(self, key: str, kind: type, length: int | None = None) -> list[Any]:
        value = self._get(key, list)
        if not all(isinstance(entry, kind) for entry in value) or (length is not None and len(value) != length):
            raise CheckpointError(
                f"{self.path}: key {key} has {len(value)} entries, expected {length or 'only'} of type {kind.__name__}"
            )
        return value

    def _array(self, name: str, shape: tuple[int | None, ...], largest: int) -> np.ndarray:
        """A tensor of an expected shape in numpy order; None is any size from 1 to ``largest``."""
        tensor = self.file.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.path}: tensor {name} is missing")
        # ggml drops trailing dimensions of size 1, which lead in numpy order
        found = (1,) * (len(shape) - len(tensor.shape)) + tensor.shape
        if len(found) != len(shape) or not all(
            1 <= f <= largest if s is None else f == s for s, f in zip(shape, found, strict=True)
        ):
            shown = ", ".join("n" if size is None else str(size) for size in reversed(shape))
            raise CheckpointError(
                f"{self.path}: tensor {name} has dimensions {list(reversed(tensor.shape))}, "
                f"expected [{shown}]{f' with n from 1 to {largest}' if None in shape else ''}"
            )
        if tensor.dtype != "F32":
            raise CheckpointError(f"{self.path}: tensor {name} has type {tensor.dtype}, expected F32 (never quantized)")
        return tensor.read().reshape(found)

    def _coefficients(self, name: str, largest: int) -> np.ndarray:
        return self._array(name, (None, N_GENERATORS), largest).astype(np.float64)

    def _stem_width(self, spec: HeadSpec, n_in: int) -> int:
        """What the stem of a head gives; all its tensors are there, fit together, and are finite."""
        sizes = {READ: n_in}
        for part in HEAD_FORMS[spec.activation].stem_tensors:
            name = Tensors.STEM.format(stem=spec.stem, part=part.name)
            if part.required or name in self.file.tensors:
                values = self._array(name, tuple(sizes.get(size) for size in part.sizes), MAX_WIDTH)
                check_finite(self.path, name, values)
                sizes.update(zip(part.sizes, values.shape, strict=True))
        head_dim = sizes.get(HEAD_DIM, 1)
        if sizes[INNER] % head_dim:
            raise CheckpointError(
                f"{self.path}: stem {spec.stem} of head {spec.name}: found keys of {head_dim} and the width "
                f"{sizes[INNER]}, expected a multiple: one or more whole heads"
            )
        return sizes[INNER]

    def _head(self, spec: HeadSpec) -> HeadTensors:
        weight_name = Tensors.HEAD_WEIGHT.format(name=spec.name)
        bias_name = Tensors.HEAD_BIAS.format(name=spec.name)
        width = len(spec.taps) * self.hidden_size
        if spec.stem is not None:
            width = self._stem_width(spec, width)
        weight = self._array(weight_name, (None, None), MAX_WIDTH)
        bias = self._array(bias_name, (None,), MAX_WIDTH) if bias_name in self.file.tensors else None
        problem = head_problem(spec, weight, bias, width)
        norm = float(np.linalg.norm(weight.astype(np.float64)))
        return HeadTensors(spec, weight.shape, norm, bias is not None, problem)


class _ModelReader(_Reader):
    def __init__(self, file: GgufFile) -> None:
        super().__init__(file)
        if self.arch != ARCH and Keys.HEADS not in file.metadata:
            raise CheckpointError(
                f"{self.path}: found architecture {self.arch!r} without {Keys.HEADS}, expected an SO8T model"
            )
        self.n_layer = self._size(f"{self.arch}.block_count", MAX_LAYERS)
        self.n_head = self._size(f"{self.arch}.attention.head_count", MAX_WIDTH)
        self.n_head_kv = self._size(f"{self.arch}.attention.head_count_kv", self.n_head, self.n_head)
        self.head_dim = self._size(
            f"{self.arch}.attention.key_length", MAX_WIDTH, max(1, self.hidden_size // self.n_head)
        )

    def subject(self) -> Subject:
        specs = read_heads(self.file, self.n_layer)
        base, version = self.arch, None
        generators: list[Generator] = []
        if self.arch == ARCH:
            base = self._get(Keys.BASE_ARCHITECTURE, str)
            self._get(Keys.FORMAT_VERSION, int)  # required here
            version = format_version(self.file)
            dimension = self._get(Keys.ROTATION_DIMENSION, int)
            if dimension != DIM:
                raise CheckpointError(f"{self.path}: found {Keys.ROTATION_DIMENSION} {dimension}, expected {DIM}")
            if _POOLING_TYPE in self.file.metadata:
                raise CheckpointError(
                    f"{self.path}: found key {_POOLING_TYPE}, the mark of an embedding model, expected none"
                )
            generators = self._generators(specs, version)
        return Subject(
            path=str(self.path),
            format="gguf",
            architecture=self.arch,
            base_architecture=base,
            format_version=version,
            n_layer=self.n_layer,
            hidden_size=self.hidden_size,
            n_head=self.n_head,
            n_head_kv=self.n_head_kv,
            head_dim=self.head_dim,
            compensated=None,
            generators=tuple(generators),
            heads=tuple(self._head(spec) for spec in specs.values()),
        )

    def _sites(self, key: str) -> list[str]:
        sites = self._list(key, str) if key in self.file.metadata else []
        for index, site in enumerate(sites):
            if site not in SITES:
                raise CheckpointError(
                    f"{self.path}: key {key} names site {site!r}, expected some of {', '.join(SITES)}"
                )
            if site in sites[:index]:
                raise CheckpointError(f"{self.path}: key {key} names site {site} twice")
        return sites

    def _generators(self, specs: dict[str, HeadSpec], version: int) -> list[Generator]:
        head = tuple(self._list(Keys.ATTN_HEAD_REPRESENTATION, int, self.n_head))
        head_kv = tuple(self._list(Keys.ATTN_HEAD_KV_REPRESENTATION, int, self.n_head_kv))
        for key, values in (
            (Keys.ATTN_HEAD_REPRESENTATION, head),
            (Keys.ATTN_HEAD_KV_REPRESENTATION, head_kv),
        ):
            if not set(values) <= {0, 1, 2}:
                raise CheckpointError(f"{self.path}: key {key} has {sorted(set(values))}, expected 0, 1 or 2")
        explicit, folded = self._sites(Keys.ROTATION_EXPLICIT), self._sites(Keys.ROTATION_FOLDED)
        twice = sorted(set(explicit) & set(folded))
        if twice:
            raise CheckpointError(f"{self.path}: site {twice[0]} is listed as explicit and as folded, expected one")
        by_head = {PER_HEAD: head, PER_HEAD_KV: head_kv}
        blocks = max(self.hidden_size // DIM, 1)
        found = []
        rotations: tuple[RotationTensor, ...]
        for layer in range(self.n_layer):
            generators = read_generators(
                self.path, version, layer, [*explicit, *folded], self.hidden_size, self.n_head, self._coefficients
            )
            for site in (site for site in SITES if site in explicit or site in folded):
                used = used_representations(site, head, head_kv, specs)
                for name in SITES[site].generator_names:
                    tensor, coefficients = generators[name]
                    if site in folded:
                        rotations = (computed(tensor, coefficients, used),)
                    else:
                        made = [rotation for rotation in SITES[site].rotations if rotation.generator == name]
                        rotations = tuple(
                            self._stored(layer, rotation.name, by_head.get(rotation.per), len(coefficients))
                            for rotation in made
                        )
                    state = "folded" if site in folded else "explicit"
                    found.append(Generator(layer, site, name, tensor, state, coefficients, rotations))
        if Tensors.OUT_GENERATOR in self.file.tensors:
            coefficients = self._coefficients(Tensors.OUT_GENERATOR, blocks)
            used = used_representations(OUT, head, head_kv, specs)
            rotations = (computed(Tensors.OUT_GENERATOR, coefficients, used),)
            found.append(Generator(None, OUT, OUT, Tensors.OUT_GENERATOR, "folded", coefficients, rotations))
        return found

    def _stored(self, layer: int, name: str, per_matrix: tuple[int, ...] | None, n: int) -> RotationTensor:
        tensor = Tensors.ROTATION.format(layer=layer, name=name)
        count = n if per_matrix is None else len(per_matrix)
        # element [j, i, b] = R_b[i][j] in ggml order is numpy's [b, i, j]
        rotations = self._array(tensor, (count, DIM, DIM), count).astype(np.float64)
        return RotationTensor(tensor, rotations, per_matrix or (0,) * n, stored=True)


class _HeadsReader(_Reader):
    """A heads file. Of its base it knows the width, and perhaps the architecture, the layers and the tensors' hash."""

    def subject(self) -> Subject:
        layers = f"{self.arch}.block_count"
        n_layer = self._size(layers, MAX_LAYERS) if layers in self.file.metadata else None
        specs = read_heads(self.file, MAX_LAYERS if n_layer is None else n_layer)
        base = Keys.BASE_ARCHITECTURE
        sha256 = self._get(Keys.BASE_SHA256, str) if Keys.BASE_SHA256 in self.file.metadata else None
        if sha256 is not None and not is_sha256(sha256):
            raise CheckpointError(
                f"{self.path}: key {Keys.BASE_SHA256} is {reprlib.repr(sha256)}, expected 64 hex digits"
            )
        return Subject(
            path=str(self.path),
            format="heads",
            architecture=self.arch,
            base_architecture=self._get(base, str) if base in self.file.metadata else None,
            format_version=format_version(self.file),
            n_layer=n_layer,
            hidden_size=self.hidden_size,
            n_head=None,
            n_head_kv=None,
            head_dim=None,
            compensated=None,
            base_sha256=sha256,
            heads=tuple(self._head(spec) for spec in specs.values()),
        )
