"""Configuration of SO8T models: the fields of the base family, flat, and the ``so8t_*`` fields."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llama_so8t.algebra import DIM
from llama_so8t.errors import ConfigError
from llama_so8t.format import ARCH, ATTENTION, FAMILIES, HeadSpec, default_heads
from llama_so8t.model_spec import ModelSpec

ARCHITECTURE = "SO8TTransformerForCausalLM"

# a config.json from before transformers 5 has RoPE in these; the base class moves them to rope_parameters
LEGACY_ROPE_FIELDS = ("rope_theta", "rope_scaling", "partial_rotary_factor")


class SO8TTransformerConfig(PretrainedConfig):
    """Configuration of a base family plus rotations and heads; every field of the base is an attribute.

    Args:
        base_model_type: a name of `format.FAMILIES`; decides which further fields exist, and their defaults.
        so8t_rotation_dim: 8.
        so8t_triality_symmetry: False puts every head on the vector representation.
        so8t_cross_head_interaction: whether the heads site exists.
        so8t_non_commutative_gates: whether the gate site exists.
        so8t_vector_representation: kept for symmetry; the vector representation is what others fall back to.
        so8t_spinor_plus_representation: False makes spinor+ fall back to vector.
        so8t_spinor_minus_representation: False makes spinor- fall back to vector.
        so8t_shared_blocks: one generator for all blocks of the hidden vector, instead of one per block.
        so8t_head_representation: per query head 0, 1 or 2; None is the index mod 3.
        so8t_head_kv_representation: the same per key-value head.
        so8t_heads: name -> entry of `HeadSpec.from_dict` (or a `HeadSpec`), in verdict order; None is safety
            and authority, {} is no head.
        so8t_stem_sizes: stem -> inner width, one for each stem that the heads name.
        so8t_stem_head_dims: stem -> numbers of a key, one for each stem of the form attention; its inner width is a
            multiple, which gives the number of its attention heads.

    Raises:
        ConfigError: a field is unknown, of the wrong kind, or contradicts another.
    """

    model_type = ARCH
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    base_model_type: str = "qwen3"
    so8t_rotation_dim: int = DIM
    so8t_triality_symmetry: bool = True
    so8t_cross_head_interaction: bool = True
    so8t_non_commutative_gates: bool = True
    so8t_vector_representation: bool = True
    so8t_spinor_plus_representation: bool = True
    so8t_spinor_minus_representation: bool = True
    so8t_shared_blocks: bool = False
    so8t_head_representation: list[int] | None = None
    so8t_head_kv_representation: list[int] | None = None
    so8t_heads: dict[str, Any] | None = None
    so8t_stem_sizes: dict[str, int] | None = None
    so8t_stem_head_dims: dict[str, int] | None = None

    if TYPE_CHECKING:
        architectures: list[str] | None = None  # of the base class, which no type checker reads

    def __post_init__(self, **kwargs: Any) -> None:
        unknown = sorted(key for key in kwargs if key.startswith("so8t_"))
        if unknown:
            known = sorted(f.name for f in fields(self) if f.name.startswith("so8t_"))
            raise ConfigError(f"config: found unknown {', '.join(unknown)}, expected only {', '.join(known)}")
        found_type = kwargs.pop("model_type", ARCH)
        if found_type != ARCH:
            raise ConfigError(f"config: found model_type {found_type!r}, expected {ARCH!r}, or from_base")
        base_class = _base_class(self.base_model_type)
        names = [f.name for f in fields(base_class) if f.name not in PretrainedConfig.__dataclass_fields__]
        # the base class fills its defaults, checks them and brings RoPE into its present form
        base = base_class(**{key: kwargs.pop(key) for key in (*names, *LEGACY_ROPE_FIELDS) if key in kwargs})
        for name in names:
            setattr(self, name, getattr(base, name))
        if self.architectures is None:
            self.architectures = [ARCHITECTURE]
        super().__post_init__(**kwargs)
        self.so8t_heads = _complete_heads(self.so8t_heads)
        self.model_spec()

    @classmethod
    def from_base(cls, base_config: PretrainedConfig, **so8t_fields: Any) -> "SO8TTransformerConfig":
        """Configuration with every field of ``base_config``, and the ``so8t_*`` fields given.

        Raises:
            ConfigError: unsupported base family, or a wrong ``so8t_*`` field.
        """
        base_fields = base_config.to_dict()
        for key in ("architectures", "transformers_version"):
            base_fields.pop(key, None)
        base_fields["base_model_type"] = base_fields.pop("model_type")
        return cls(**base_fields, **so8t_fields, attn_implementation=base_config._attn_implementation)

    def base_config(self) -> PretrainedConfig:
        """The configuration of the base family alone: the model this one equals with all generators zero."""
        base_fields = {
            key: value
            for key, value in self.to_dict().items()
            if not key.startswith("so8t_") and key not in ("model_type", "base_model_type", "architectures")
        }
        return _base_class(self.base_model_type)(
            **base_fields,
            architectures=[MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.base_model_type]],
            attn_implementation=self._attn_implementation,
        )

    def model_spec(self) -> ModelSpec:
        """Shapes, sites, representations and heads, checked.

        Raises:
            ConfigError: fields contradict each other, or a stem has no inner width.
        """
        spec = ModelSpec.from_config(self.to_dict())
        for head in spec.heads.values():
            if head.stem is not None and head.stem not in spec.stem_sizes:
                raise ConfigError(
                    f"config: head {head.name!r} uses the stem {head.stem!r}, which has no width; "
                    f"add it to so8t_stem_sizes"
                )
            if head.form != ATTENTION:
                continue
            inner, head_dim = spec.stem_sizes[str(head.stem)], spec.stem_head_dims.get(str(head.stem))
            if head_dim is None or inner % head_dim:
                raise ConfigError(
                    f"config: the stem {head.stem!r} has the width {inner}; found {head_dim} for it in "
                    f"so8t_stem_head_dims, expected the size of a key, of which the width is a multiple"
                )
        return spec

    def to_json_string(self, use_diff: bool = True) -> str:
        """JSON text of the configuration; unlike in other models the heads keep their order: it is data."""
        sorted_fields = json.loads(super().to_json_string(use_diff))
        sorted_fields["so8t_heads"] = self.so8t_heads
        return json.dumps(sorted_fields, indent=2) + "\n"


def _base_class(base_model_type: str) -> type[PretrainedConfig]:
    if base_model_type not in FAMILIES:
        raise ConfigError(f"config: found base_model_type {base_model_type!r}, expected {', '.join(FAMILIES)}")
    return CONFIG_MAPPING[base_model_type]


def _complete_heads(heads: Any) -> dict[str, dict[str, Any]]:
    # written out in full, so that config.json says what each row of a head means
    if heads is None:
        heads = default_heads()
    if not isinstance(heads, Mapping):
        raise ConfigError(f"config: found so8t_heads {heads!r}, expected an object of head names")
    complete = {}
    for name, head in heads.items():
        spec = head if isinstance(head, HeadSpec) else HeadSpec.from_dict(name, head)
        complete[name] = spec.to_dict()
    return complete
