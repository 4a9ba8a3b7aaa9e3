"""What `config.json` says about an SO8T model, checked once and used everywhere."""

import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any

from llama_so8t.algebra.basis import DIM
from llama_so8t.algebra.triality import REPRESENTATIONS, VECTOR
from llama_so8t.errors import ConfigError
from llama_so8t.format import (
    FAMILIES,
    HEAD_DIM,
    HEAD_FORMS,
    INNER,
    OUT,
    OUT_GENERATOR,
    PER_HEAD,
    PER_HEAD_KV,
    SITES,
    Family,
    HeadSpec,
    Site,
    SiteRotation,
    check_dependencies,
    default_heads,
    default_representations,
    generator_name,
    n_generators,
)

MAX_SIZE = 1 << 20
"""Layers, attention heads, widths: more than any model has, few enough for a list of them from a hostile file."""

_BASE_FIELDS: tuple[tuple[str, type, str], ...] = (
    ("rope_parameters", Mapping, "an object"),
    ("tie_word_embeddings", bool, "true or false"),
    ("attention_bias", bool, "true or false"),
    ("mlp_bias", bool, "true or false"),
    ("use_sliding_window", bool, "true or false"),
    ("hidden_act", str, "a text"),
)
"""Fields of the base that are read elsewhere, beside the sizes."""


@dataclass(frozen=True)
class ModelSpec:
    """Shapes, sites, representations and heads of one SO8T model."""

    base_model_type: str
    hidden_size: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    shared_blocks: bool
    sites: tuple[str, ...]
    head_representation: tuple[int, ...]
    head_kv_representation: tuple[int, ...]
    heads: dict[str, HeadSpec]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    stem_sizes: dict[str, int] = field(default_factory=dict)
    """Stem -> its inner width, as far as ``so8t_stem_sizes`` says; a checkpoint's tensors say it too."""
    stem_head_dims: dict[str, int] = field(default_factory=dict)
    """The same from ``so8t_stem_head_dims``: stem of the form attention -> numbers of a key."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelSpec":
        """Reads the fields of a ``config.json`` with ``model_type`` "so8t" (or of a base model, as identity).

        Raises:
            ConfigError: a field is missing, of the wrong kind, or contradicts another.
        """
        base = config.get("base_model_type", config.get("model_type"))
        if not isinstance(base, str) or base not in FAMILIES:
            raise ConfigError(f"config.json: found base model type {base!r}, supported are {', '.join(FAMILIES)}")
        family = FAMILIES[base]
        for key, kind, expected in _BASE_FIELDS:
            if not isinstance(config.get(key), (kind, NoneType)):
                raise ConfigError(f"config.json: found {key} {reprlib.repr(config[key])}, expected {expected}")
        n_head = _positive(config, "num_attention_heads")
        n_head_kv = _positive(config, "num_key_value_heads", n_head)
        hidden_size = _positive(config, "hidden_size")
        head_dim = _positive(config, "head_dim", hidden_size // n_head)
        for key, value in (("hidden_size", hidden_size), ("head_dim", head_dim)):
            if value % DIM:
                raise ConfigError(f"config.json: found {key} {value}, expected a multiple of {DIM} (SO(8) blocks)")
        if n_head % n_head_kv:
            raise ConfigError(f"config.json: found {n_head} heads and {n_head_kv} key-value heads, expected a multiple")
        rotation_dim = _positive(config, "so8t_rotation_dim", DIM)
        if rotation_dim != DIM:
            raise ConfigError(f"config.json: found so8t_rotation_dim {rotation_dim!r}, expected {DIM}")

        enabled = tuple(_flag(config, f"so8t_{name}_representation") for name in REPRESENTATIONS)
        if not _flag(config, "so8t_triality_symmetry"):
            enabled = (True, False, False)
        shared_blocks = _flag(config, "so8t_shared_blocks", False)
        heads = config.get("so8t_heads")
        if heads is None:
            specs = default_heads()
        elif isinstance(heads, Mapping):
            specs = {name: HeadSpec.from_dict(name, fields) for name, fields in heads.items()}
        else:
            raise ConfigError(f"config.json: found so8t_heads {reprlib.repr(heads)}, expected an object of head names")
        # a representation that is switched off falls back to vector here as it does at qk and v
        specs = {
            name: head if enabled[head.representation] else replace(head, representation=VECTOR)
            for name, head in specs.items()
        }
        n_layer = _positive(config, "num_hidden_layers", largest=2**63)  # `base_tensors` has the limit
        for head in specs.values():
            head.check_taps(n_layer)
        check_dependencies(specs.values())
        return cls(
            base_model_type=base,
            hidden_size=hidden_size,
            n_layer=n_layer,
            n_head=n_head,
            n_head_kv=n_head_kv,
            head_dim=head_dim,
            shared_blocks=shared_blocks,
            sites=tuple(site.name for site in SITES.values() if _exists(site, config, hidden_size, n_head)),
            head_representation=_representations(config, "so8t_head_representation", n_head, enabled),
            head_kv_representation=_representations(config, "so8t_head_kv_representation", n_head_kv, enabled),
            heads=specs,
            qkv_bias=_has_bias(config, family.qkv_bias),
            o_bias=_has_bias(config, family.o_bias),
            mlp_bias=_has_bias(config, family.mlp_bias),
            stem_sizes=_stem_sizes(config, "so8t_stem_sizes", _stems(specs)),
            stem_head_dims=_stem_sizes(config, "so8t_stem_head_dims", _stems(specs, HEAD_DIM)),
        )

    @property
    def family(self) -> Family:
        """The base family."""
        return FAMILIES[self.base_model_type]

    @property
    def has_qk_norm(self) -> bool:
        """Whether a norm stands between the q, k projections and the qk site, so that it cannot be folded."""
        return self.family.qk_norm

    @property
    def unfoldable_sites(self) -> tuple[str, ...]:
        """Sites of this model that can be neither folded nor compensated."""
        return tuple(site for site in self.sites if self.has_qk_norm and SITES[site].after_qk_norm)

    def n_rotations(self, rotation: SiteRotation, n_generators: int) -> int:
        """Matrices of a rotation tensor, for the rows of its generator: both are the same away from q, k and v."""
        return {PER_HEAD: self.n_head, PER_HEAD_KV: self.n_head_kv}.get(rotation.per, n_generators)

    def representations(self, rotation: SiteRotation) -> tuple[int, ...] | None:
        """Representation of each matrix of a rotation of q, k or v; None for others, which are vectors."""
        return {PER_HEAD: self.head_representation, PER_HEAD_KV: self.head_kv_representation}.get(rotation.per)

    def generator_shapes(self) -> dict[str, tuple[int, int]]:
        """Every generator tensor of the checkpoint and its shape [n, 28]."""
        shapes = {
            generator_name(layer, generator): (self._rows(generator), 28)
            for layer in range(self.n_layer)
            for site in self.sites
            for generator in SITES[site].generator_names
        }
        shapes[OUT_GENERATOR] = (self._rows(OUT), 28)
        return shapes

    def _rows(self, generator: str) -> int:
        return n_generators(generator, self.hidden_size, self.n_head, self.shared_blocks)


def _positive(config: Mapping[str, Any], key: str, default: int | None = None, largest: int = MAX_SIZE) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"config.json: found {key} {reprlib.repr(value)}, expected a whole number above 0")
    if value > largest:
        raise ConfigError(f"config.json: found {key} {reprlib.repr(value)}, expected at most {largest}")
    return value


def _flag(config: Mapping[str, Any], key: str, default: bool = True) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: found {key} {reprlib.repr(value)}, expected true or false")
    return value


def _exists(site: Site, config: Mapping[str, Any], hidden_size: int, n_head: int) -> bool:
    if site.flag is not None and not _flag(config, site.flag):
        return False
    # a model with fewer than 8 attention heads has no group to mix
    return all(n_generators(name, hidden_size, n_head, shared_blocks=True) for name in site.generator_names)


def _has_bias(config: Mapping[str, Any], bias: bool | str) -> bool:
    return bias if isinstance(bias, bool) else bool(config.get(bias))


def _representations(config: Mapping[str, Any], key: str, n: int, enabled: tuple[bool, ...]) -> tuple[int, ...]:
    value = config.get(key)
    if value is None:
        return tuple(default_representations(n, enabled))
    if not isinstance(value, list) or len(value) != n or not all(type(v) is int and v in (0, 1, 2) for v in value):
        raise ConfigError(f"config.json: found {key} {reprlib.repr(value)}, expected {n} entries of 0, 1 or 2")
    return tuple(v if enabled[v] else 0 for v in value)


def _stems(heads: Mapping[str, HeadSpec], size: str = INNER) -> list[str]:
    """Names of the stems with a tensor of that size, whose heads must agree on what the stem reads and does."""
    stems: dict[str, HeadSpec] = {}
    for head in heads.values():
        if head.stem is None:
            continue
        first = stems.setdefault(head.stem, head)
        for key in ("activation", "representation", "taps", "tap_norm", "sliding_window"):
            if getattr(first, key) != getattr(head, key):
                raise ConfigError(
                    f"config.json: heads {first.name!r} and {head.name!r} share the stem {head.stem!r}: "
                    f"found {key} {getattr(first, key)!r} and {getattr(head, key)!r}, expected the same"
                )
    return [
        stem
        for stem, head in stems.items()
        if any(size in tensor.sizes for tensor in HEAD_FORMS[head.activation].stem_tensors)
    ]


def _stem_sizes(config: Mapping[str, Any], key: str, stems: Collection[str]) -> dict[str, int]:
    sizes = config.get(key)
    if sizes is None:
        return {}
    if not isinstance(sizes, Mapping) or set(sizes) - set(stems):
        raise ConfigError(
            f"config.json: found {key} {reprlib.repr(sizes)}, "
            f"expected an object with the stems of so8t_heads: {', '.join(stems) or 'none'}"
        )
    return {stem: _positive(sizes, stem) for stem in sizes}
