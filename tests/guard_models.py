"""Random Qwen3Guard-Stream heads: tensor names, configuration keys and labels of the published 0.6B model."""

from typing import Any

import numpy as np

RISKS = ["Safe", "Unsafe", "Controversial"]
CATEGORIES = [
    '"Violent"',  # the quotes are part of the published label
    "Sexual Content or Sexual Acts",
    "Suicide & Self-Harm",
    "Politically Sensitive Topics",
    "PII",
    "Copyright Violation",
    "Non-violent Illegal Acts",
    "Unethical Acts",
]


def guard_config(base: dict[str, Any], inner: int) -> dict[str, Any]:
    """``config.json`` of a guard model on a qwen3 base."""

    def rows(labels: list[str]) -> dict[str, str]:
        return {str(row): label for row, label in enumerate(labels)}

    return base | {
        "architectures": ["Qwen3ForGuardModel"],
        "auto_map": {"AutoModel": "modeling_qwen3_guard.Qwen3ForGuardModel"},
        "guard_inner_size": inner,
        "num_risk_level": 3,
        "num_category": 8,
        "num_query_risk_level": 3,
        "num_query_category": 9,
        "response_risk_level_map": rows(RISKS),
        "response_category_map": rows(CATEGORIES),
        "query_risk_level_map": rows(RISKS),
        "query_category_map": rows([*CATEGORIES, "Jailbreak"]),
    }


def guard_tensors(rng: np.random.Generator, hidden: int, inner: int) -> dict[str, np.ndarray]:
    """The eight head tensors, float32, none of them symmetric or near 1."""
    shapes = {
        "risk_level_category_pre.weight": (inner, hidden),
        "risk_level_category_layernorm.weight": (inner,),
        "risk_level_head.weight": (3, inner),
        "category_head.weight": (8, inner),
        "query_risk_level_category_pre.weight": (inner, hidden),
        "query_risk_level_category_layernorm.weight": (inner,),
        "query_risk_level_head.weight": (3, inner),
        "query_category_head.weight": (9, inner),
    }
    return {name: rng.normal(0.5, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
