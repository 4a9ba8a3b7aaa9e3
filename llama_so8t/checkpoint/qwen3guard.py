"""Qwen3Guard-Stream as an SO8T model: risk and category of the prompt and of every token of the answer.

The checkpoint is a Qwen3 decoder with eight more tensors. At every position, h being the hidden state behind
the final norm, each of its two paths (query, response) computes, without biases and with eps = rms_norm_eps,

    x = RMSNorm(W_pre h),    risk = softmax(W_risk x),    category = softmax(W_category x),

and the label of each is the one with the largest probability. The category means something where the risk is not
Safe. A prompt has the risk of its last position. An answer is Unsafe where two tokens in a row are, and otherwise
Controversial where two in a row are.

As an SO8T model a path is a stem of form rmsnorm with two heads, and every generator is zero.
Sources: Qwen3Guard Technical Report, https://arxiv.org/abs/2510.14276; tensor names and labels of
Qwen/Qwen3Guard-Stream-0.6B; eval/eval_stream.py of https://github.com/QwenLM/Qwen3Guard, for what two tokens decide.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_so8t.checkpoint.adapter import so8t_config
from llama_so8t.checkpoint.checks import check_tensors
from llama_so8t.checkpoint.names import OUTPUT, Expected
from llama_so8t.errors import CheckpointError
from llama_so8t.files.json_file import read_json
from llama_so8t.format import ARGMAX, HeadSpec, head_tensor_prefix, stem_tensor_prefix
from llama_so8t.model_spec import ModelSpec
from llama_so8t.tensors import LazyTensor

ARCHITECTURE = "Qwen3ForGuardModel"

RISK_ACTIONS = {"Safe": "allow", "Unsafe": "refuse", "Controversial": "escalate"}
"""What a risk label asks for. The order of the labels is the checkpoint's: Controversial comes last there."""

MAJORITY = 0.5
"""Threshold of every label, for programs that do not know the rule ``argmax``: who reaches it is the largest."""

END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True)
class GuardPath:
    """One of the two classifiers. ``prefix`` is that of its tensors, ``debounce`` the original's."""

    name: str
    prefix: str
    scope: str
    debounce: int


PATHS = (GuardPath("query", "query_", "prompt", 1), GuardPath("response", "", "answer", 2))

OPTIONAL_COUNTS = ("guard_inner_size", *(f"num_{p.prefix}{k}" for p in PATHS for k in ("risk_level", "category")))
LABEL_MAPS = tuple(f"{p.name}_{k}_map" for p in PATHS for k in ("risk_level", "category"))


def is_guard(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is that of a Qwen3Guard-Stream model, by its class or by its label maps."""
    classes = config.get("architectures")
    return (isinstance(classes, list) and ARCHITECTURE in classes) or all(key in config for key in LABEL_MAPS)


def as_so8t(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Configuration and tensors of the same model in the form of an SO8T checkpoint; no weight is read.

    Args:
        path: directory, for errors and for the id of the token that ends a turn.
        config: ``config.json``, for which `is_guard` holds.
        tensors: of the checkpoint, by their names.

    Raises:
        CheckpointError: another base than qwen3, labels that are missing or unknown, or head tensors that are
            missing or do not fit labels and base.
        ConfigError: as `ModelSpec.from_config`.
    """
    where = path / "config.json"
    if config.get("model_type") != "qwen3":
        raise CheckpointError(
            f"{where}: found model_type {config.get('model_type')!r}, expected 'qwen3' for {ARCHITECTURE}"
        )
    hidden_size = ModelSpec.from_config(config).hidden_size
    end_of_turn = _end_of_turn(path)
    others = dict(tensors)
    moved: dict[str, LazyTensor] = {}
    heads: dict[str, dict[str, Any]] = {}
    stem_sizes: dict[str, int] = {}
    for guard in PATHS:
        labels = {kind: _labels(where, config, guard, kind) for kind in ("category", "risk_level")}
        names = _tensor_names(guard)
        found = {name: others.pop(name) for name in names if name in others}
        inner = config.get("guard_inner_size") or _rows(found.get(next(iter(names))))
        shapes = ((inner, hidden_size), (inner,), (len(labels["category"]), inner), (len(labels["risk_level"]), inner))
        check_tensors(path, found, {name: Expected(shape) for name, shape in zip(names, shapes, strict=True)})
        moved |= {new: found[old].renamed(new) for old, new in names.items()}
        stem_sizes[guard.name] = moved[f"{stem_tensor_prefix(guard.name)}.weight"].shape[0]
        heads |= _heads(where, guard, labels, end_of_turn)
    fields = {key: value for key, value in config.items() if key not in (*OPTIONAL_COUNTS, *LABEL_MAPS)}
    if OUTPUT not in tensors:
        fields["tie_word_embeddings"] = True  # the larger models have no output matrix: the guard writes no text
    result = so8t_config(
        fields,
        {
            # the sites that can be absent are, the others stay zero
            "so8t_non_commutative_gates": False,
            "so8t_cross_head_interaction": False,
            "so8t_shared_blocks": True,
            "so8t_heads": heads,
            "so8t_stem_sizes": stem_sizes,
        },
    )
    zeros = {
        name: LazyTensor.zeros(name, shape) for name, shape in ModelSpec.from_config(result).generator_shapes().items()
    }
    return result, {**others, **zeros, **moved}


def _tensor_names(guard: GuardPath) -> dict[str, str]:
    """Name in the checkpoint -> name in an SO8T checkpoint, in the order pre, norm, category, risk."""
    stem = stem_tensor_prefix(guard.name)
    return {
        f"{guard.prefix}risk_level_category_pre.weight": f"{stem}.weight",
        f"{guard.prefix}risk_level_category_layernorm.weight": f"{stem}.norm.weight",
        f"{guard.prefix}category_head.weight": f"{head_tensor_prefix(f'{guard.name}_category')}.weight",
        f"{guard.prefix}risk_level_head.weight": f"{head_tensor_prefix(f'{guard.name}_risk')}.weight",
    }


def _rows(tensor: LazyTensor | None) -> int | None:
    return tensor.shape[0] if tensor is not None and tensor.shape else None


def _labels(where: Path, config: Mapping[str, Any], guard: GuardPath, kind: str) -> list[str]:
    key, count_key = f"{guard.name}_{kind}_map", f"num_{guard.prefix}{kind}"
    labels = config.get(key)
    if not isinstance(labels, Mapping) or not all(isinstance(label, str) for label in labels.values()):
        raise CheckpointError(
            f"{where}: found {key} {labels!r}, expected an object of row numbers and labels; "
            f"the meaning of the rows cannot be guessed"
        )
    if set(labels) != {str(row) for row in range(len(labels))}:
        raise CheckpointError(
            f"{where}: found {key} with the rows {', '.join(labels)}, expected 0 to {len(labels) - 1}"
        )
    count = config.get(count_key, len(labels))
    if count != len(labels):
        raise CheckpointError(f"{where}: found {count_key} {count!r}, but {len(labels)} labels in {key}")
    return [labels[str(row)] for row in range(len(labels))]


def _heads(
    where: Path, guard: GuardPath, labels: Mapping[str, list[str]], end_of_turn: int | None
) -> dict[str, dict[str, Any]]:
    unknown = [label for label in labels["risk_level"] if label not in RISK_ACTIONS]
    if unknown:
        raise CheckpointError(
            f"{where}: {guard.name}_risk_level_map: found the label {unknown[0]!r}, "
            f"expected {', '.join(RISK_ACTIONS)}: the action of another one cannot be guessed"
        )
    actions = {
        "risk_level": [RISK_ACTIONS[label] for label in labels["risk_level"]],
        "category": ["allow"] * len(labels["category"]),  # says why, where there is a risk, and never acts
    }
    made = {}
    for kind, label_actions in actions.items():
        head = HeadSpec(
            name=f"{guard.name}_{kind.removesuffix('_level')}",
            labels=tuple(labels[kind]),
            actions=tuple(label_actions),
            thresholds=(MAJORITY,) * len(label_actions),
            activation="rmsnorm",
            stem=guard.name,
            debounce=guard.debounce,
            scope=guard.scope,
            rule=ARGMAX,
            prompt_token=end_of_turn if guard.scope == "prompt" else None,
            depends_on=f"{guard.name}_risk" if kind == "category" else None,
        )
        made[head.name] = head.to_dict()
    return made


def _end_of_turn(path: Path) -> int | None:
    """Id of `END_OF_TURN`, where the query heads were trained; None where no tokenizer.json has it."""
    if not (path / "tokenizer.json").is_file():
        return None
    added = read_json(path / "tokenizer.json").get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and token.get("content") == END_OF_TURN:
            return token.get("id")
    return None
