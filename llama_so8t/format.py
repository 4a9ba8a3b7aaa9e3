"""The contract between checkpoints, GGUF files and the runtime: names, shapes, defaults.

Sites, base families and head forms are one row each, which all other code reads. Every name of `docs/format.md`
exists here once; `format_header` writes the same names and rows for C++ (`csrc/model/so8t-format.h`).
`docs/howto.md` says what else a new row needs.
"""

import json
import math
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

from llama_so8t.algebra.basis import DIM
from llama_so8t.algebra.triality import REPRESENTATIONS, SPINOR_MINUS, SPINOR_PLUS, VECTOR
from llama_so8t.errors import ConfigError

ARCH = "so8t"
FORMAT_VERSION = 2
"""The version that is written. Those before it are read for ever; docs/format.md says what each of them lacks."""

# --- sites -----------------------------------------------------------------------------------

PER_BLOCK, PER_GROUP, PER_HEAD, PER_HEAD_KV = PER = ("block", "group", "head", "head_kv")
"""How many matrices a rotation has, and what they turn.

``block``: one for each 8 numbers of the hidden vector, or one for all of them (``so8t_shared_blocks``).
``group``: one for each 8 attention heads, whose outputs it mixes. ``head``, ``head_kv``: one for each query or
key-value head, in the representation of that head; all are made from one generator.
"""


@dataclass(frozen=True)
class SiteGenerator:
    """A generator ``model.layers.{i}.so8t.NAME`` of a checkpoint, ``(n, 28)`` float32, and how a picture shows it.

    ``titles`` has a title for each representation that is drawn, from the vector on (matplotlib's mathtext).
    """

    name: str
    label: str
    colour: str
    titles: tuple[str, ...]


@dataclass(frozen=True)
class SiteRotation:
    """A rotation tensor ``blk.N.so8t_NAME_rot.weight``, made from a generator.

    ``before`` are the linear maps whose input it turns (``W' = W R``), ``after`` those whose output it turns
    (``W' = R W``, ``b' = R b``): folding and compensation change these.
    """

    name: str
    generator: str
    per: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """A place inside a layer where vectors are rotated.

    ``rotations`` stand in the order in which they act. ``flag`` is the field of ``config.json`` that switches the
    site off. ``after_qk_norm``: the q/k norm of a family stands between the linear map and the rotation; its weight
    does not commute with the rotation, which then can be neither folded nor compensated.
    """

    name: str
    generators: tuple[SiteGenerator, ...]
    rotations: tuple[SiteRotation, ...]
    flag: str | None = None
    after_qk_norm: bool = False

    @property
    def generator_names(self) -> tuple[str, ...]:
        """Names of its generator tensors."""
        return tuple(generator.name for generator in self.generators)

    @property
    def rotation_names(self) -> tuple[str, ...]:
        """Names of its rotation tensors."""
        return tuple(rotation.name for rotation in self.rotations)

    @property
    def is_triality(self) -> bool:
        """Whether one generator acts in several representations."""
        return any(rotation.per in (PER_HEAD, PER_HEAD_KV) for rotation in self.rotations)


LINEAR_NAMES: Mapping[str, str] = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Linear maps of a layer: name after ``model.layers.{i}.`` in a checkpoint -> after ``blk.{i}.`` in a file."""

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

# colours: Okabe and Ito's palette, told apart by people with any kind of colour vision (https://jfly.uni-koeln.de/color/)
_SITES = (
    Site(
        "gate",
        (
            SiteGenerator("gate_safe", "gate, safe", "#0072B2", ("$R_{safe}$",)),
            SiteGenerator("gate_cmd", "gate, cmd", "#56B4E9", ("$R_{cmd}$",)),
        ),
        (
            SiteRotation("gate_safe", "gate_safe", PER_BLOCK, before=_QKV),
            SiteRotation("gate_cmd", "gate_cmd", PER_BLOCK, before=_QKV),
        ),
        flag="so8t_non_commutative_gates",
    ),
    Site(
        "qk",
        (SiteGenerator("qk", "q and k", "#D55E00", ("q, k: vector", "q, k: spinor+", "q, k: spinor$-$")),),
        (
            SiteRotation("q", "qk", PER_HEAD, after=("self_attn.q_proj",)),
            SiteRotation("k", "qk", PER_HEAD_KV, after=("self_attn.k_proj",)),
        ),
        after_qk_norm=True,
    ),
    Site(
        "v",
        (SiteGenerator("v", "v", "#E69F00", ("v: vector",)),),
        (SiteRotation("v", "v", PER_HEAD_KV, after=("self_attn.v_proj",)),),
    ),
    Site(
        "heads",
        (SiteGenerator("heads", "heads", "#009E73", ("cross-head",)),),
        (SiteRotation("heads", "heads", PER_GROUP, before=("self_attn.o_proj",)),),
        flag="so8t_cross_head_interaction",
    ),
    Site(
        "ffn",
        (SiteGenerator("ffn", "ffn", "#CC79A7", ("ffn",)),),
        (SiteRotation("ffn", "ffn", PER_BLOCK, before=("mlp.gate_proj", "mlp.up_proj")),),
    ),
)

SITES: Mapping[str, Site] = {site.name: site for site in _SITES}
"""Sites inside a layer by name, in the order of the data flow."""

OUT = "out"
"""The site after the last layer, before the heads: one generator per block, always folded."""

OUT_GENERATOR = "so8t.out"
"""Checkpoint name of the generator before the heads, [nb, 28]."""

SO8T_FLAGS = (
    "so8t_triality_symmetry",
    *sorted(site.flag for site in _SITES if site.flag is not None),
    *(f"so8t_{name}_representation" for name in REPRESENTATIONS),
)
"""Fields of ``config.json`` that switch off a site or a representation; true where they are absent."""

_PER_OF_GENERATOR = {OUT: PER_BLOCK} | {
    rotation.generator: rotation.per for site in _SITES for rotation in site.rotations
}


def generator_name(layer: int, generator: str) -> str:
    """Checkpoint tensor name of a generator inside a layer."""
    return f"model.layers.{layer}.so8t.{generator}"


def n_generators(generator: str, hidden_size: int, n_head: int, shared_blocks: bool) -> int:
    """Rows n of a generator tensor [n, 28]: blocks for gate, ffn and out; 1 for qk and v; groups for heads."""
    per = _PER_OF_GENERATOR[generator]
    if per in (PER_HEAD, PER_HEAD_KV):
        return 1
    if per == PER_GROUP:
        return n_head // DIM
    return 1 if shared_blocks else hidden_size // DIM


def generator_rows(sites: Collection[str], n_rows: int, hidden_size: int, n_head: int) -> dict[str, slice] | None:
    """Where the generators of a layer stand in their one tensor ``[n_rows, 28]``, or None if it has other rows.

    Those of the sites in use stand one behind the other, in the order of `SITES`. The generators of blocks have one
    row each, or one for each block; ``n_rows`` tells which of both.

    Args:
        sites: sites that the file has, explicit or folded, in any order.
        n_rows: rows of the tensor.
        hidden_size: width of the model.
        n_head: attention heads.
    """
    names = [name for site in _SITES if site.name in sites for name in site.generator_names]
    for shared_blocks in (True, False):
        counts = (n_generators(name, hidden_size, n_head, shared_blocks) for name in names)
        stops = list(accumulate(counts, initial=0))
        if stops[-1] == n_rows:
            return {name: slice(*rows) for name, rows in zip(names, pairwise(stops), strict=True)}
    return None


# --- base families -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A family of base models, which differs from the others in what is named here and in nothing else.

    ``name`` is the ``model_type`` in Hugging Face and the architecture in GGUF; transformers has the class
    ``architecture`` and, beside it, the MLP. A bias is there (True), absent (False), or there when the field of
    ``config.json`` with this name says so. ``interleaved_rope``: the GGUF architecture rotates neighbours in its
    rope where Hugging Face rotates halves, so it has the rows of q and k in another order. ``sizes`` are the sizes
    that its models are known by, as llama.cpp spells them. ``aliases`` are other model types that are this family
    as long as they have no sliding window.
    """

    name: str
    architecture: str
    qk_norm: bool
    qkv_bias: bool | str
    o_bias: bool | str
    mlp_bias: bool | str
    interleaved_rope: bool
    sizes: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    @property
    def mlp_class(self) -> str:
        """Name of the MLP class of transformers."""
        return self.architecture.removesuffix("ForCausalLM") + "MLP"


_FAMILIES = (
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        qk_norm=True,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias=False,
        interleaved_rope=False,
        sizes=("0.6B", "1.7B", "4B", "8B", "14B", "32B"),
    ),
    Family(
        "llama",
        "LlamaForCausalLM",
        qk_norm=False,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        interleaved_rope=True,
        sizes=("360M", "1B", "1.7B", "3B", "7B", "8B", "13B", "34B", "65B", "70B", "405B"),
        aliases=("mistral",),
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        qk_norm=False,
        qkv_bias=True,
        o_bias=False,
        mlp_bias=False,
        interleaved_rope=False,
        sizes=("0.5B", "1.5B", "3B", "7B", "14B", "32B", "70B"),
    ),
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in _FAMILIES}
"""Base families by name."""

# --- heads -----------------------------------------------------------------------------------


FORMS = LINEAR, MLP, ATTENTION = ("linear", "mlp", "attention")
"""What stands between the taps of a head and its values: nothing, or one of two kinds of stem."""

STEM_SIZES = INNER, HEAD_DIM, READ = ("inner", "head_dim", "n_in")
"""Sizes of the tensors of a stem: what it gives, one key of attention, and all that it reads (taps * hidden size)."""


@dataclass(frozen=True)
class StemTensor:
    """A tensor of a stem: its name behind that of the stem, in a checkpoint and in a file, and its shape, rows first.

    ``sizes`` are some of `STEM_SIZES`. Rotations before the heads are folded into the columns of those that read.
    """

    name: str
    sizes: tuple[str, ...]
    required: bool = True

    @property
    def reads(self) -> bool:
        """Whether its columns are what the stem reads."""
        return self.sizes[-1] == READ


_STEM_TENSORS = (
    StemTensor("weight", (INNER, READ)),
    StemTensor("bias", (INNER,), required=False),
    StemTensor("attn_q.weight", (INNER, READ)),
    StemTensor("attn_k.weight", (HEAD_DIM, READ)),
    StemTensor("attn_v.weight", (HEAD_DIM, READ)),
    StemTensor("attn_output.weight", (INNER, INNER)),
    StemTensor("norm.weight", (INNER,)),
)

STEM_TENSORS: Mapping[str, StemTensor] = {tensor.name: tensor for tensor in _STEM_TENSORS}
"""Tensors of stems by their names; a form has some of them, in this order."""

_MLP_STEM = ("weight", "bias")
_ATTENTION_STEM = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight", "norm.weight")


@dataclass(frozen=True)
class HeadForm:
    """The form of a head, named by its activation: ``W z + b``, or ``W stem(z) + b``.

    ``stem`` names the tensors of the stem, some of `STEM_TENSORS`. ``bias``: the reference model has biases in head
    and stem; a file may have that of a head in any form.

    The stem of a form ``mlp`` is ``act(W1 z + b1)``. That of the form ``attention`` looks back at every token:
    ``rmsnorm(W_o concat_h(sum_s softmax_s(q_h . k_s / sqrt(d)) v_s) + q) * norm`` with the eps `TAP_NORM_EPS`, where
    ``q_h`` are the heads of ``attn_q z`` and ``k = attn_k z``, ``v = attn_v z`` [d] are shared by all of them.
    """

    activation: str
    form: str = MLP
    stem: tuple[str, ...] = _MLP_STEM
    bias: bool = True

    @property
    def stem_tensors(self) -> tuple[StemTensor, ...]:
        """The rows of `stem`."""
        return tuple(STEM_TENSORS[name] for name in self.stem)

    @property
    def norm(self) -> bool:
        """Whether the stem has a norm with a weight."""
        return "norm.weight" in self.stem


_HEAD_FORMS = (
    HeadForm("none", form=LINEAR, stem=()),
    HeadForm("gelu"),
    HeadForm("tanh"),
    HeadForm("rmsnorm", stem=(*_MLP_STEM, "norm.weight"), bias=False),  # the form of Qwen3Guard
    HeadForm("attention", form=ATTENTION, stem=_ATTENTION_STEM),  # a form of SingProbe
)

HEAD_FORMS: Mapping[str, HeadForm] = {form.activation: form for form in _HEAD_FORMS}
"""Head forms by the name of their activation; ``gelu`` is the exact one (erf)."""

FINAL_NORM = -1
"""The tap after the final norm. Tap k, from 0 to the number of layers, is the residual stream that enters layer k."""

TAP_NORMS = TAP_NORM_NONE, TAP_NORM_RMS = ("none", "rms")
"""What is done to each tap: nothing, or ``x / sqrt(mean(x^2) + TAP_NORM_EPS)``, which has no weight."""

TAP_NORM_EPS = 1e-6

LINKS = SOFTMAX, SIGMOID = ("softmax", "sigmoid")
"""Probabilities of a head from its values: one label holds, or each holds or not by itself."""

ACTIONS = ("allow", "escalate", "refuse")
SCOPES = ("prompt", "answer", "both")

RULES = THRESHOLD, ARGMAX = ("threshold", "argmax")
"""When a label acts: it reaches its threshold; or it is the largest of its head, the first of equal ones."""

AGGREGATIONS = RUN, WINDOW, EMA, MEAN, MAX = ("run", "window", "ema", "mean", "max")
"""How the positions of an answer are combined; docs/format.md has the formulas."""

PROMPT_AGGREGATIONS = ("token", MEAN, EMA, MAX, "window8", "window16")
"""How a prompt is read: at a token, or over the text of the user's turn."""

TOKEN = PROMPT_AGGREGATIONS[0]

MAX_LABELS = 4096
"""Labels of a head: more than any classifier has, few enough for a hostile file."""

MAX_DEBOUNCE = 1 << 16
"""Positions in a row: more than anybody waits for, few enough that -1 written as a u32 is refused."""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and all(c.isalnum() or c in "_-" for c in value)


def _is_number(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that is too large for a float
        return False


def _is_whole(value: Any, smallest: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= smallest


def _is_count(smallest: int) -> Callable[[Any], bool]:
    return lambda value: _is_whole(value, smallest) and value <= MAX_DEBOUNCE


def _is_label(value: Any) -> bool:
    if not isinstance(value, str) or not value:
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _all(is_right: Callable[[Any], bool], smallest: int = 0) -> Callable[[Any], bool]:
    return lambda values: (
        isinstance(values, (list, tuple)) and smallest <= len(values) <= MAX_LABELS and all(map(is_right, values))
    )


def _one_of(allowed: Collection[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in allowed


def _is_json_object(value: Any) -> bool:
    try:
        return isinstance(value, str) and isinstance(json.loads(value), dict) and bool(value.encode("utf-8"))
    except (ValueError, RecursionError):
        return False


_HEAD_FIELDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("name", _is_name, "letters, digits, '_' and '-' only"),
    ("labels", _all(_is_label, 1), f"different ones, {MAX_LABELS} at most: texts that are not empty"),
    ("actions", _all(_one_of(ACTIONS)), f"for each label one of {', '.join(ACTIONS)}"),
    ("thresholds", _all(_is_number), "finite numbers"),
    ("representation", lambda v: _is_whole(v) and v < len(REPRESENTATIONS), "0, 1 or 2"),
    ("activation", _one_of(HEAD_FORMS), f"one of {', '.join(HEAD_FORMS)}"),
    ("stem", lambda v: v is None or _is_name(v), "letters, digits, '_' and '-' only"),
    ("temperature", lambda v: _is_number(v) and v > 0, "a number above 0"),
    ("debounce", lambda v: _is_number(v) and 1 <= v <= MAX_DEBOUNCE, f"1 to {MAX_DEBOUNCE}"),
    ("scope", _one_of(SCOPES), f"one of {', '.join(SCOPES)}"),
    ("rule", _one_of(RULES), f"one of {', '.join(RULES)}"),
    ("prompt_token", lambda v: v is None or _is_whole(v), "the id of a token"),
    (
        "taps",
        lambda v: _all(lambda tap: _is_whole(tap, FINAL_NORM), 1)(v) and len(set(v)) == len(v),
        "different layers, -1 for the final norm",
    ),
    ("tap_norm", _one_of(TAP_NORMS), f"one of {', '.join(TAP_NORMS)}"),
    ("link", _one_of(LINKS), f"one of {', '.join(LINKS)}"),
    ("sliding_window", lambda v: _is_whole(v) and v < 1 << 31, "a number of tokens, 0 for all of them"),
    ("aggregation", _one_of(AGGREGATIONS), f"one of {', '.join(AGGREGATIONS)}"),
    ("ema_alpha", lambda v: v is None or (_is_number(v) and 0 < v <= 1), "a number above 0, at most 1"),
    ("window", lambda v: v is None or _is_count(1)(v), f"1 to {MAX_DEBOUNCE}"),
    (
        "prompt_aggregation",
        lambda v: _all(_one_of(PROMPT_AGGREGATIONS), 1)(v) and len(set(v)) == len(v),
        f"different ones of {', '.join(PROMPT_AGGREGATIONS)}",
    ),
    ("prompt_thresholds", lambda v: v is None or _all(_is_number)(v), "finite numbers"),
    ("depends_on", lambda v: v is None or _is_name(v), "the name of an earlier head"),
    ("provenance", lambda v: v is None or _is_json_object(v), "a JSON object as text"),
)


@dataclass(frozen=True)
class HeadSpec:
    """A classification head: what its rows mean and when they act.

    ``probability = link(logits / temperature)``; by the rule ``threshold`` a label acts when its probability
    reaches its threshold, by ``argmax`` when none of the head is larger (the first of equal ones), whatever the
    thresholds. ``gelu`` is the exact one (erf). ``stem`` names the shared first layer of an MLP head.

    ``taps`` are the places of the residual stream that the head reads, one behind the other in this order, each
    after ``tap_norm`` and the rotation of ``representation``. ``provenance`` is a JSON object as text: how the head
    was fitted, on what, and its figures.

    ``aggregation`` combines the positions of an answer, with ``ema_alpha`` or ``window``; ``prompt_aggregation`` says
    how a prompt is read, with ``prompt_thresholds`` for each of its ways and labels, or ``thresholds`` for all ways.
    A head that ``depends_on`` another is asked where a label of that one has an action other than allow.
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
    rule: str = THRESHOLD
    prompt_token: int | None = None
    taps: tuple[int, ...] = (FINAL_NORM,)
    tap_norm: str = TAP_NORM_NONE
    link: str = SOFTMAX
    sliding_window: int = 0
    aggregation: str = RUN
    ema_alpha: float | None = None
    window: int | None = None
    prompt_aggregation: tuple[str, ...] = (TOKEN,)
    prompt_thresholds: tuple[float, ...] | None = None
    depends_on: str | None = None
    provenance: str | None = None

    def __post_init__(self) -> None:
        where = f"head {self.name!r}"
        for key, is_right, expected in _HEAD_FIELDS:
            value = getattr(self, key)
            if not is_right(value):
                raise ConfigError(f"{where}: found {key} {reprlib.repr(value)}, expected {expected}")
        for key in ("labels", "actions", "thresholds", "taps", "prompt_aggregation", "prompt_thresholds"):
            if getattr(self, key) is not None:
                object.__setattr__(self, key, tuple(getattr(self, key)))
        if self.link == SOFTMAX and len(self.labels) < 2:
            raise ConfigError(f"{where}: found 1 label, expected two or more with the link {SOFTMAX}")
        if self.link == SIGMOID and self.rule == ARGMAX:
            raise ConfigError(
                f"{where}: found link {SIGMOID} and rule {ARGMAX}, expected rule {THRESHOLD} "
                "for labels of which several may hold"
            )
        if len(set(self.labels)) != len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ConfigError(f"{where}: found labels with {twice!r} twice, expected two or more different ones")
        for key in ("actions", "thresholds"):
            if len(getattr(self, key)) != len(self.labels):
                raise ConfigError(
                    f"{where}: found {len(getattr(self, key))} {key} for {len(self.labels)} labels, expected one each"
                )
        if (self.stem is not None) != bool(HEAD_FORMS[self.activation].stem):
            raise ConfigError(f"{where}: an activation needs a stem, and a stem an activation")
        self._check_aggregation(where)

    def _check_aggregation(self, where: str) -> None:
        for key, is_needed, reason in (
            ("ema_alpha", EMA in (self.aggregation, *self.prompt_aggregation), f"with the aggregation {EMA} only"),
            ("window", self.aggregation == WINDOW, f"with the aggregation {WINDOW} only"),
        ):
            if (getattr(self, key) is not None) != is_needed:
                raise ConfigError(f"{where}: found {key} {getattr(self, key)}, expected one {reason}")
        if self.window is not None and self.window < self.debounce:
            raise ConfigError(f"{where}: found window {self.window}, expected at least debounce, {self.debounce}")
        if self.sliding_window and self.form != ATTENTION:
            raise ConfigError(
                f"{where}: found sliding_window {self.sliding_window}, expected 0 for the form {self.form}"
            )
        n_expected = len(self.prompt_aggregation) * len(self.labels)
        if self.prompt_thresholds is not None and len(self.prompt_thresholds) != n_expected:
            raise ConfigError(
                f"{where}: found {len(self.prompt_thresholds)} prompt_thresholds, expected {n_expected}: "
                "one for each label of each prompt_aggregation"
            )

    @property
    def form(self) -> str:
        """One of `FORMS`."""
        return HEAD_FORMS[self.activation].form

    @property
    def reads_all_tokens(self) -> bool:
        """Whether it needs a value at every token of a prompt, and not only where logits are computed."""
        return self.form == ATTENTION or self.prompt_aggregation != (TOKEN,)

    @property
    def source(self) -> tuple[tuple[int, ...], str, int]:
        """Taps, their norm, and how far a stem looks back: heads on the same stem have the same."""
        return self.taps, self.tap_norm, self.sliding_window

    def check_taps(self, n_layer: int) -> None:
        """Compares the taps with the layers of a model.

        Raises:
            ConfigError: a tap is behind the last layer, or at a place where not every token is computed.
        """
        if max(self.taps) > n_layer:
            raise ConfigError(f"head {self.name!r}: found tap {max(self.taps)}, expected -1 to {n_layer}")
        if self.reads_all_tokens and not all(0 <= tap < n_layer for tap in self.taps):
            raise ConfigError(
                f"head {self.name!r}: found the taps {list(self.taps)}, expected 0 to {n_layer - 1} for a head "
                "that reads every token"
            )

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
        provenance = fields.get("provenance")
        if isinstance(provenance, dict):
            fields = fields | {"provenance": json.dumps(provenance)}
        return cls(name=name, **fields)

    def to_dict(self) -> dict[str, Any]:
        """The entry in ``so8t_heads``: everything but the name; absent options left out."""
        fields = asdict(self)
        del fields["name"]
        if self.provenance is not None:
            fields["provenance"] = json.loads(self.provenance)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items() if v is not None}


def check_dependencies(heads: Iterable[HeadSpec]) -> None:
    """Compares what heads depend on with the heads before them, in the order of the file.

    Raises:
        ConfigError: a head depends on one that does not stand before it.
    """
    names: list[str] = []
    for head in heads:
        if head.depends_on is not None and head.depends_on not in names:
            raise ConfigError(
                f"head {head.name!r}: found depends_on {head.depends_on!r}, "
                f"expected a head before it: {', '.join(names) or 'there is none'}"
            )
        names.append(head.name)


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


def unfitted_warning(names: Sequence[str]) -> str:
    """One line for the user of a model with these heads, one or more, whose weights are all zeros."""
    if len(names) == 1:
        said = f"head {names[0]} has weights of zeros: it was never fitted and does not act; fit it"
    else:
        said = f"heads {', '.join(names)} have weights of zeros: they were never fitted and do not act; fit them"
    return f"warning: {said} with so8t heads fit"


def head_tensor_prefix(name: str) -> str:
    """Checkpoint prefix of a head's ``weight`` [labels, d] and ``bias`` [labels]."""
    return f"{name}_head" if name in ("safety", "authority") else f"heads.{name}"


def stem_tensor_prefix(stem: str) -> str:
    """Checkpoint prefix of the tensors of a stem, `STEM_TENSORS`."""
    return f"stems.{stem}"


def default_representations(n: int, enabled: Sequence[bool] = (True, True, True)) -> list[int]:
    """Representation per head: index mod 3, with switched-off representations falling back to vector."""
    return [index % 3 if enabled[index % 3] else VECTOR for index in range(n)]


# --- GGUF ------------------------------------------------------------------------------------


class Keys:
    """GGUF metadata keys. Those of verdict heads, ``HEAD_*``, keep the prefix ``so8t.`` in every architecture."""

    FORMAT_VERSION = "so8t.format_version"
    BASE_ARCHITECTURE = "so8t.base_architecture"
    BASE_SHA256 = "so8t.base_sha256"
    ROTATION_DIMENSION = "so8t.rotation.dimension"
    ROTATION_EXPLICIT = "so8t.rotation.explicit"
    ROTATION_FOLDED = "so8t.rotation.folded"
    ATTN_HEAD_REPRESENTATION = "so8t.attention.head_representation"
    ATTN_HEAD_KV_REPRESENTATION = "so8t.attention.head_kv_representation"
    HEADS = "so8t.heads"
    HEAD_LABELS = "so8t.head.{name}.labels"
    HEAD_ACTIONS = "so8t.head.{name}.actions"
    HEAD_THRESHOLDS = "so8t.head.{name}.thresholds"
    HEAD_TEMPERATURE = "so8t.head.{name}.temperature"
    HEAD_DEBOUNCE = "so8t.head.{name}.debounce"
    HEAD_REPRESENTATION = "so8t.head.{name}.representation"
    HEAD_ACTIVATION = "so8t.head.{name}.activation"
    HEAD_STEM = "so8t.head.{name}.stem"
    HEAD_SCOPE = "so8t.head.{name}.scope"
    HEAD_RULE = "so8t.head.{name}.rule"
    HEAD_PROMPT_TOKEN = "so8t.head.{name}.prompt_token"
    HEAD_TAPS = "so8t.head.{name}.taps"
    HEAD_TAP_NORM = "so8t.head.{name}.tap_norm"
    HEAD_FORM = "so8t.head.{name}.form"
    HEAD_LINK = "so8t.head.{name}.link"
    HEAD_SLIDING_WINDOW = "so8t.head.{name}.sliding_window"
    HEAD_AGGREGATION = "so8t.head.{name}.aggregation"
    HEAD_EMA_ALPHA = "so8t.head.{name}.ema_alpha"
    HEAD_WINDOW = "so8t.head.{name}.window"
    HEAD_PROMPT_AGGREGATION = "so8t.head.{name}.prompt_aggregation"
    HEAD_PROMPT_THRESHOLDS = "so8t.head.{name}.prompt_thresholds"
    HEAD_DEPENDS_ON = "so8t.head.{name}.depends_on"
    HEAD_PROVENANCE = "so8t.head.{name}.provenance"
    LORA_FOLDED = "so8t.lora.folded"  # of a LoRA adapter

    HEAD_PREFIX = "so8t.head."
    """Before the name of a head, in every key of a head."""


@dataclass(frozen=True)
class HeadKey:
    """A key ``so8t.head.NAME.FIELD``: the field of `HeadSpec` with its value, its GGUF type, its first version.

    ``type`` is a name of docs/format.md: str, f32, u32, i32, or an array of them. A ``required`` key is in every file.
    """

    field: str
    type: str
    since: int = 1
    required: bool = False

    def of(self, name: str) -> str:
        """The whole key for the head ``name``."""
        return f"{Keys.HEAD_PREFIX}{name}.{self.field}"


_HEAD_KEYS = (
    HeadKey("labels", "str[]", required=True),
    HeadKey("actions", "str[]", required=True),
    HeadKey("thresholds", "f32[]", required=True),
    HeadKey("temperature", "f32"),
    HeadKey("debounce", "u32"),
    HeadKey("representation", "i32"),
    HeadKey("activation", "str"),
    HeadKey("stem", "str"),
    HeadKey("scope", "str"),
    HeadKey("rule", "str"),
    HeadKey("prompt_token", "i32"),
    HeadKey("taps", "i32[]", since=2),
    HeadKey("tap_norm", "str", since=2),
    HeadKey("form", "str", since=2),
    HeadKey("link", "str", since=2),
    HeadKey("sliding_window", "u32", since=2),
    HeadKey("aggregation", "str", since=2),
    HeadKey("ema_alpha", "f32", since=2),
    HeadKey("window", "u32", since=2),
    HeadKey("prompt_aggregation", "str[]", since=2),
    HeadKey("prompt_thresholds", "f32[]", since=2),
    HeadKey("depends_on", "str", since=2),
    HeadKey("provenance", "str", since=2),
)

HEAD_KEYS: Mapping[str, HeadKey] = {key.field: key for key in _HEAD_KEYS}
"""Keys of a head by the last part of their names, in the order of a file. Any other is an error."""


HEADS_TYPE = "heads"
"""``general.type`` of a file that has heads and no model."""


class Tensors:
    """GGUF tensor names. All are F32 in every file; ggml dimensions in comments, fastest first."""

    GENERATORS = "blk.{layer}.so8t_gen.weight"  # [28, n]; the rows of each, as `generator_rows` says
    GENERATOR = "blk.{layer}.so8t_{name}_gen.weight"  # [28, n]; one alone, in files of version 1
    ROTATION = "blk.{layer}.so8t_{name}_rot.weight"  # [8, 8, n]; element [j, i, b] = R_b[i][j]
    OUT_GENERATOR = "so8t_out_gen.weight"  # [28, nb]
    HEAD_WEIGHT = "so8t_head.{name}.weight"  # [taps * d or inner, labels]
    HEAD_BIAS = "so8t_head.{name}.bias"  # [labels]
    STEM = "so8t_stem.{stem}.{part}"  # any of them; part: a name of STEM_TENSORS
    STEM_WEIGHT = "so8t_stem.{stem}.weight"  # [taps * d, inner]
    STEM_ATTN_Q = "so8t_stem.{stem}.attn_q.weight"  # [taps * d, n_head * head_dim = inner]
    STEM_ATTN_K = "so8t_stem.{stem}.attn_k.weight"  # [taps * d, head_dim]
    STEM_ATTN_V = "so8t_stem.{stem}.attn_v.weight"  # [taps * d, head_dim]
    STEM_ATTN_OUTPUT = "so8t_stem.{stem}.attn_output.weight"  # [inner, inner]
    STEM_BIAS = "so8t_stem.{stem}.bias"  # [inner]
    STEM_NORM = "so8t_stem.{stem}.norm.weight"  # [inner]


HEAD_TENSORS = (Tensors.HEAD_WEIGHT.partition("{")[0], Tensors.STEM_WEIGHT.partition("{")[0])
"""Beginnings of the tensor names of heads and stems."""
