"""The contract between checkpoints, GGUF files and the runtime: names, shapes, defaults.

Every name of `docs/format.md` exists here once for Python; `llama_so8t/csrc/model/so8t-format.h` is its
C++ twin, compared by `tests/test_format_twins.py`.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from llama_so8t.algebra.basis import DIM
from llama_so8t.algebra.triality import REPRESENTATIONS, SPINOR_MINUS, SPINOR_PLUS, VECTOR
from llama_so8t.errors import ConfigError

ARCH = "so8t"
FORMAT_VERSION = 1
BASE_ARCHITECTURES = ("qwen3", "llama", "qwen2")

# --- sites -----------------------------------------------------------------------------------

SITES = ("gate", "qk", "v", "heads", "ffn")
"""Sites inside a layer, in the order of the data flow. `out` comes once, after the last layer."""

GENERATORS = {
    "gate": ("gate_safe", "gate_cmd"),
    "qk": ("qk",),
    "v": ("v",),
    "heads": ("heads",),
    "ffn": ("ffn",),
}
"""Site -> its generator tensors ``model.layers.{i}.so8t.NAME``, each [n, 28] float32."""

ROTATIONS = {
    "gate": ("gate_safe", "gate_cmd"),
    "qk": ("q", "k"),
    "v": ("v",),
    "heads": ("heads",),
    "ffn": ("ffn",),
}
"""Site -> its rotation tensors ``blk.N.so8t_NAME_rot.weight`` when the site is explicit."""

OUT_GENERATOR = "so8t.out"
"""Checkpoint name of the generator before the heads, [nb, 28]."""


def generator_name(layer: int, generator: str) -> str:
    """Checkpoint tensor name of a generator inside a layer."""
    return f"model.layers.{layer}.so8t.{generator}"


def n_generators(generator: str, hidden_size: int, n_head: int, shared_blocks: bool) -> int:
    """Rows n of a generator tensor [n, 28]: blocks for gate, ffn and out; 1 for qk and v; groups for heads."""
    if generator in ("qk", "v"):
        return 1
    if generator == "heads":
        return n_head // DIM
    return 1 if shared_blocks else hidden_size // DIM


# --- heads -----------------------------------------------------------------------------------

ACTIONS = ("allow", "escalate", "refuse")
ACTIVATIONS = ("none", "gelu", "tanh", "rmsnorm")
SCOPES = ("prompt", "answer", "both")


@dataclass(frozen=True)
class HeadSpec:
    """A classification head: what its rows mean and when they act.

    ``probability = softmax(logits / temperature)``; a label acts when its probability reaches its
    threshold. ``gelu`` is the exact one (erf). ``stem`` names the shared first layer of an MLP head.
    """

    name: str
    labels: tuple[str, ...]
    actions: tuple[str, ...]
    thresholds: tuple[float, ...]
    representation: int = VECTOR
    activation: str = "none"
    stem: str | None = None
    temperature: float = 1.0
    debounce: int = 1
    scope: str = "both"
    prompt_token: int | None = None

    def __post_init__(self) -> None:
        for key in ("labels", "actions", "thresholds"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        where = f"head {self.name!r}"
        if not self.name or not all(c.isalnum() or c in "_-" for c in self.name):
            raise ConfigError(f"{where}: a name has letters, digits, '_' and '-' only")
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"{where}: found labels {list(self.labels)}, expected two or more different ones")
        for key in ("actions", "thresholds"):
            if len(getattr(self, key)) != len(self.labels):
                raise ConfigError(
                    f"{where}: found {len(getattr(self, key))} {key} for {len(self.labels)} labels, expected one each"
                )
        for action in self.actions:
            if action not in ACTIONS:
                raise ConfigError(f"{where}: found action {action!r}, expected one of {', '.join(ACTIONS)}")
        if not all(isinstance(t, (int, float)) and math.isfinite(t) for t in self.thresholds):
            raise ConfigError(f"{where}: found thresholds {list(self.thresholds)}, expected finite numbers")
        if self.representation not in range(len(REPRESENTATIONS)):
            raise ConfigError(f"{where}: found representation {self.representation!r}, expected 0, 1 or 2")
        if self.activation not in ACTIVATIONS:
            allowed = ", ".join(ACTIVATIONS)
            raise ConfigError(f"{where}: found activation {self.activation!r}, expected one of {allowed}")
        if (self.stem is None) != (self.activation == "none"):
            raise ConfigError(f"{where}: an activation needs a stem, and a stem an activation")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"{where}: found temperature {self.temperature!r}, expected a number above 0")
        if self.debounce < 1:
            raise ConfigError(f"{where}: found debounce {self.debounce!r}, expected 1 or more")
        if self.scope not in SCOPES:
            raise ConfigError(f"{where}: found scope {self.scope!r}, expected one of {', '.join(SCOPES)}")

    @classmethod
    def from_dict(cls, name: str, fields: dict[str, Any]) -> "HeadSpec":
        """Head from its entry in ``so8t_heads`` of config.json.

        Raises:
            ConfigError: missing or unknown keys, or values that contradict each other.
        """
        known = set(cls.__dataclass_fields__) - {"name"}
        if not isinstance(fields, dict) or set(fields) - known or {"labels", "actions", "thresholds"} - set(fields):
            found = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
            raise ConfigError(
                f"so8t_heads[{name!r}]: found keys {found}, expected labels, actions, thresholds "
                f"and optionally {', '.join(sorted(known - {'labels', 'actions', 'thresholds'}))}"
            )
        return cls(name=name, **fields)

    def to_dict(self) -> dict[str, Any]:
        """The entry in ``so8t_heads``: everything but the name; absent options left out."""
        fields = asdict(self)
        del fields["name"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items() if v is not None}


def default_heads() -> dict[str, HeadSpec]:
    """The heads of the SO8T model: safety on spinor+, authority on spinor-."""
    return {
        "safety": HeadSpec(
            name="safety",
            labels=("safe", "unsafe"),
            actions=("allow", "refuse"),
            thresholds=(0.5, 0.5),
            representation=SPINOR_PLUS,
        ),
        "authority": HeadSpec(
            name="authority",
            labels=("handle", "escalate"),
            actions=("allow", "escalate"),
            thresholds=(0.5, 0.5),
            representation=SPINOR_MINUS,
        ),
    }


def head_tensor_prefix(name: str) -> str:
    """Checkpoint prefix of a head's ``weight`` [labels, d] and ``bias`` [labels]."""
    return f"{name}_head" if name in ("safety", "authority") else f"heads.{name}"


def stem_tensor_prefix(stem: str) -> str:
    """Checkpoint prefix of a stem's ``weight`` [inner, d], ``bias`` [inner] and ``norm.weight`` [inner]."""
    return f"stems.{stem}"


def default_representations(n: int, enabled: tuple[bool, bool, bool] = (True, True, True)) -> list[int]:
    """Representation per head: index mod 3, with switched-off representations falling back to vector."""
    return [index % 3 if enabled[index % 3] else VECTOR for index in range(n)]


# --- GGUF ------------------------------------------------------------------------------------


class Keys:
    """GGUF metadata keys. Head keys keep the literal prefix ``so8t.`` in every architecture."""

    FORMAT_VERSION = "so8t.format_version"
    BASE_ARCHITECTURE = "so8t.base_architecture"
    ROTATION_DIMENSION = "so8t.rotation.dimension"
    ROTATION_EXPLICIT = "so8t.rotation.explicit"
    ROTATION_FOLDED = "so8t.rotation.folded"
    HEAD_REPRESENTATION = "so8t.attention.head_representation"
    HEAD_KV_REPRESENTATION = "so8t.attention.head_kv_representation"
    HEADS = "so8t.heads"
    HEAD_LABELS = "so8t.head.{name}.labels"
    HEAD_ACTIONS = "so8t.head.{name}.actions"
    HEAD_THRESHOLDS = "so8t.head.{name}.thresholds"
    HEAD_TEMPERATURE = "so8t.head.{name}.temperature"
    HEAD_DEBOUNCE = "so8t.head.{name}.debounce"
    HEAD_REPRESENTATION_OF = "so8t.head.{name}.representation"
    HEAD_ACTIVATION = "so8t.head.{name}.activation"
    HEAD_STEM = "so8t.head.{name}.stem"
    HEAD_SCOPE = "so8t.head.{name}.scope"
    HEAD_PROMPT_TOKEN = "so8t.head.{name}.prompt_token"


class Tensors:
    """GGUF tensor names. All are F32 in every file; ggml dimensions in comments, fastest first."""

    GENERATOR = "blk.{layer}.so8t_{name}_gen.weight"  # [28, n]
    ROTATION = "blk.{layer}.so8t_{name}_rot.weight"  # [8, 8, n]; element [j, i, b] = R_b[i][j]
    OUT_GENERATOR = "so8t_out_gen.weight"  # [28, nb]
    HEAD_WEIGHT = "so8t_head.{name}.weight"  # [d or inner, labels]
    HEAD_BIAS = "so8t_head.{name}.bias"  # [labels]
    STEM_WEIGHT = "so8t_stem.{stem}.weight"  # [d, inner]
    STEM_BIAS = "so8t_stem.{stem}.bias"  # [inner]
    STEM_NORM = "so8t_stem.{stem}.norm.weight"  # [inner]
