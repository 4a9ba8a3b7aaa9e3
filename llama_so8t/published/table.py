"""Every published SO8T layout as one row: what identifies it, how its rotation is built, what it is worth."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from llama_so8t.published import rotations
from llama_so8t.published.rotations import COLUMN, ROW

ACCEPT, REFUSE, NEEDS_ORIGIN = "accept", "refuse", "needs-origin"
"""Verdicts: it is read as a base model; it is refused; it is ambiguous, and the user must state the origin."""

AFTER_O_PROJ, BEFORE_O_PROJ, BEFORE_LM_HEAD = "after o_proj", "before o_proj", "before lm_head"
"""Sites that can be folded into the linear map beside them. A row may name others, which are never folded."""

FOLDABLE = (AFTER_O_PROJ, BEFORE_O_PROJ)
"""Those of them in every layer."""

CONFIG_FLAGS = (
    "so8t_integrated",
    "so8t_integration_date",
    "so8t_parameters",
    "so8t_hidden_size",
    "so8t_num_blocks",
    "so8t_use_cayley",
    "so8t_orthogonal_reg",
    "so8t_init_scale",
    "_so8t_proof",
    "layer_indices",
)
"""Keys of config.json that upstream scripts write; nothing of them is left in the restored base."""

CLAIMS = ("so8t_integrated", "_so8t_proof")
"""Those of them which claim that rotations are in the file."""


@dataclass(frozen=True)
class Layout:
    """One published layout.

    ``keys`` are regular expressions of tensor names; any of them identifies the layout. ``parameter`` is the name
    of the tensor from which R is built (group ``layer``), ``shape`` its shape (None: any size), ``builder`` the
    function, ``side`` the form of its result. ``exact`` is the exponential that an inexact ``builder`` was meant
    to be, ``without_cayley`` the builder where config.json says ``so8t_use_cayley: false``. ``wrapper`` is the
    module that stands between ``self_attn`` and its projections. ``layers`` says which layers have a gate where
    config.json has no ``layer_indices``: "all", "ends" (first, middle, last) or None (any). ``origins`` maps
    each possible origin of an ambiguous layout to whether the rotation was in the forward pass. ``files`` are names
    of files that identify it, too.
    """

    id: str
    name: str
    keys: tuple[str, ...]
    verdict: str
    reason: str
    parameter: str | None = None
    shape: tuple[int | None, ...] = (None, 8, 8)
    builder: Callable[[np.ndarray], np.ndarray] | None = None
    side: str | None = None
    site: str | None = None
    exact: Callable[[np.ndarray], np.ndarray] | None = None
    without_cayley: Callable[[np.ndarray], np.ndarray] | None = None
    wrapper: str | None = None
    layers: str | None = None
    origins: Mapping[str, bool] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    init_scales: tuple[float, ...] = ()


_LAYER = r"(?:^|\.)layers\.(?P<layer>\d+)\."

LAYOUTS = (
    Layout(
        "L6b",
        "gate before o_proj (QLoRA script)",
        (),
        ACCEPT,
        "the rotation acts on the input of o_proj and is folded into it",
        parameter=_LAYER + r"self_attn\.o_proj\.so8t_rotation_gate\.theta$",
        builder=rotations.cayley,
        without_cayley=rotations.exponential,
        side=ROW,
        site=BEFORE_O_PROJ,
        layers="ends",
        init_scales=(0.01,),
    ),
    Layout(
        "L6a",
        "gate after o_proj, by a forward hook",
        (),
        NEEDS_ORIGIN,
        "the same keys have two meanings: upstream has one training script that rotates in a forward hook, and one "
        "that attaches the gate without a hook and so never uses it",
        parameter=_LAYER + r"self_attn\.so8t_gate\.theta$",
        builder=rotations.cayley,
        without_cayley=rotations.exponential,
        side=ROW,
        site=AFTER_O_PROJ,
        layers="all",
        origins={"hook": True, "unused": False},
        init_scales=(0.01,),
    ),
    Layout(
        "L15",
        "Phi-3 attention gate",
        (),
        REFUSE,
        "the class that reads these tensors was never published: neither the formula nor the place is known",
        parameter=_LAYER + r"self_attn\.so8t_rotation_gate\.theta$",
    ),
    Layout(
        "L4",
        "attention wrapper, gate after o_proj",
        (_LAYER + r"self_attn\.base_attention\.",),
        ACCEPT,
        "the rotation acts on the output of o_proj and is folded into it; its inexact exponential is reproduced",
        parameter=_LAYER + r"self_attn\.rotation_gate\.theta$",
        builder=rotations.scaled_taylor,
        exact=rotations.exponential,
        side=ROW,
        site=AFTER_O_PROJ,
        wrapper="base_attention",
        layers="all",
        init_scales=(0.1, 0.05),
    ),
    Layout(
        "L6c",
        "attention wrapper with four gates",
        (
            _LAYER + r"self_attn\.attention\.",
            _LAYER + r"self_attn\.(?:query|key|value)_gate\.theta$",
        ),
        ACCEPT,
        "output_gate acts on the output of o_proj and is folded into it; the other gates were never applied",
        parameter=_LAYER + r"self_attn\.output_gate\.theta$",
        builder=rotations.cayley,
        without_cayley=rotations.exponential,
        side=ROW,
        site=AFTER_O_PROJ,
        wrapper="attention",
        init_scales=(0.01,),
    ),
    Layout(
        "L0",
        "seed: Qwen3 SO8T transformer",
        (_LAYER + r"self_attn\.so8_rotations", r"rotary_emb\.rotation_matrix", r"mlp\.group_rotation"),
        REFUSE,
        "the weights are random: the converter builds the class from its configuration and never reads a model; "
        "q_norm and k_norm are missing, and the tokenizer is that of another model",
        parameter=_LAYER + r"self_attn\.so8_rotations$",
        side=ROW,
        site="q, k and v per head",
    ),
    Layout(
        "L1",
        "group structure in every layer",
        (_LAYER + r"(?:.*\.)?group_structure\.non_commutative_gate\.",),
        REFUSE,
        "this model cannot run as written, so nothing was trained through it: its forward pass fails for every "
        "width but 8",
        parameter=_LAYER + r"(?:.*\.)?group_structure\.non_commutative_gate\.R_(?:safe|cmd)\.rotation_params$",
        shape=(8, 8),
        builder=rotations.row_normalized,
        side=ROW,
        site="before attention",
    ),
    Layout(
        "L2",
        "group structure on the final hidden state",
        (r"^group_structure\.non_commutative_gate\.", r"^task_head_a\.", r"^safety_head_b\."),
        REFUSE,
        "the gate is no rotation (its rows are normalised, it is not orthogonal), cannot be dropped because the "
        "heads were trained around it, and is followed by a language model head with a hidden layer, which no base "
        "family has",
        parameter=r"^group_structure\.non_commutative_gate\.R_(?:safe|cmd)\.rotation_params$",
        shape=(8, 8),
        builder=rotations.row_normalized,
        side=ROW,
        site="final hidden state",
    ),
    Layout(
        "L12",
        "own decoder with geometric attention",
        (_LAYER + r"geometric_attention\.",),
        REFUSE,
        "no language model: its attention has no causal mask and attends to the future",
        parameter=_LAYER + r"geometric_attention\.rotation_gate\.rotation_params$",
        shape=(None, 28),
        builder=rotations.entry_exponential,
        side=ROW,
        site="residual branch after attention",
    ),
    Layout(
        "L16",
        "Qwen2-VL conversion",
        (
            _LAYER + r"non_commutative\.",
            _LAYER + r"so8t_mlp\.",
            r"^safety_judge\.",
        ),
        REFUSE,
        "the tensors are random numbers that the conversion script wrote",
        parameter=_LAYER + r"so8_rotation\.theta$",
    ),
    Layout(
        "L7",
        "own encoder with a gate in every attention",
        (_LAYER + r"ff\.fc[12]\.",),
        REFUSE,
        "no language model: an encoder without causal mask and without output matrix; the weights of the base it "
        "was patched into are lost",
        parameter=_LAYER + r"attn\.theta$",
        builder=rotations.cayley,
        side=ROW,
        site=AFTER_O_PROJ,
        init_scales=(0.02,),
    ),
    Layout(
        "L5",
        "gates on returned hidden states",
        (r"(?:^|\.)rotation_matrices\.pt$",),
        REFUSE,
        "the gates turn copies of the hidden states and have no effect on the output: folding them would change the "
        "model; the base model alone, without these tensors, computes what upstream computes",
        parameter=r"(?:^|\.)(?:rotation_gates\.)?layer_(?P<layer>\d+)(?:\.theta)?$",
        builder=rotations.normalized_taylor,
        exact=rotations.exponential,
        side=ROW,
        site="returned hidden states",
        init_scales=(0.1,),
    ),
    Layout(
        "L11",
        "NKAT adapters",
        (r"(?:^|\.)nkat_adapters\.\d+\.",),
        REFUSE,
        "the wrapper throws the results of the adapters away, they have no effect on the output; the base model "
        "alone computes what upstream computes",
        parameter=r"(?:^|\.)nkat_adapters\.(?P<layer>\d+)\.so8_raw$",
        builder=rotations.half_exponential,
        side=COLUMN,
        site="copies of the hidden states",
        init_scales=(0.01,),
    ),
    Layout(
        "L9",
        "safety-aware model with adapters",
        (
            r"(?:^|\.)so8t_adapters\.\d+\.",
            r"(?:^|\.)so8_rotation_gate\.",
            r"(?:^|\.)alpha_gate$",
            r"(?:^|\.)(?:safety|verifier)_head\.[02]\.(?:weight|bias)$",
        ),
        REFUSE,
        "rotations and adapters turn copies of the hidden states and have no effect on the output; the heads were "
        "trained on a slice of the unrotated last state but are asked on the rotated one, and a base model carries "
        "no heads",
        parameter=r"(?:^|\.)so8t_adapters\.(?P<layer>\d+)\.A_params$",
        shape=(8, 8),
        builder=rotations.triangle_exponential,
        side=COLUMN,
        site="copies of the hidden states",
        init_scales=(0.01,),
    ),
    Layout(
        "L10",
        "SO8ViT adapter",
        (r"(?:^|\.)so8vit_adapter\.", r"(?:^|\.)thinking_alpha$"),
        REFUSE,
        "it works at width 64 only, and fails at the width of the models it was made for",
        parameter=r"(?:^|\.)so8_gates\.(?P<layer>\d+)\.rotation_matrix$",
        shape=(8, 8),
    ),
    Layout(
        "L3",
        "safety judge",
        (
            r"(?:^|\.)safety_(?:encoder|classifier)\.",
            r"(?:^|\.)confidence_estimator\.",
            r"(?:^|\.)pattern_embeddings$",
        ),
        REFUSE,
        "the judge never ran: its forward pass raises an IndexError",
        parameter=r"(?:^|\.)rotation_matrices$",
        shape=(8, 8),
    ),
    Layout(
        "L14",
        "soul: a rotation of the whole width before lm_head",
        (r"(?:^|\.)(?:so8_)?rotation\.parametrizations\.weight\.",),
        ACCEPT,
        "h + sigmoid(alpha) R h before the output matrix is folded into the output matrix",
        side=COLUMN,
        site=BEFORE_LM_HEAD,
        files=("soul.pt", "soul_params.pt"),
    ),
    Layout(
        "L14-alpha",
        "soul weights without a rotation",
        (),
        REFUSE,
        "no rotation is in the file, only the scale alpha; remove the file to use the model beside it as it is",
        files=("soul_weights.pt",),
    ),
    Layout(
        "L13",
        "28 Givens angles",
        (),
        ACCEPT,
        "the angles were never in a forward pass (and stay zero, the identity): they are ignored",
        parameter=r"(?:^|\.)rotation_params$",
        shape=(28,),
        builder=rotations.givens_product,
        side=COLUMN,
        site="nowhere",
        files=("so8t_rotation_params.pt",),
    ),
    Layout(
        "L8",
        "a gate by itself",
        (),
        REFUSE,
        "one rotation without a model and without its place",
        parameter=r"^theta$",
        builder=rotations.cayley,
        without_cayley=rotations.exponential,
        side=ROW,
        init_scales=(0.01,),
    ),
    Layout(
        "L6d",
        "flags without tensors",
        (),
        NEEDS_ORIGIN,
        "config.json claims SO8T and the file has no rotation: either only the flags were written, and this is the "
        "plain base model, or the rotation was lost when the model was saved, and its weights were tuned around it",
        origins={"flags-only": False},
    ),
    Layout(
        "L17",
        "other SO8T experiment",
        (r"skew_matrix$|so8t?_|so8vit|rotation_gate|rotation_matri|alpha_gate|group_rotation|(?:^|\.)soul[._]",),
        REFUSE,
        "none of the remaining published experiments applies a trained rotation: their forward pass fails, ignores "
        "it or draws it anew",
        files=("safety_baseline_epoch1.pt",),
    ),
)
"""Most specific keys first; the last row takes what looks like SO8T and belongs to none."""

BY_ID = {layout.id: layout for layout in LAYOUTS}
