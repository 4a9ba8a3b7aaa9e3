"""LoRA adapters as PEFT saves them, with random values, and what they make of a model: by numpy alone."""

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_lora(directory: Path, model: Path, targets: Collection[str] = LINEAR, r: int = 4, **fields: Any) -> Path:
    """Writes an adapter for the modules of a checkpoint whose names end with one of ``targets``.

    Args:
        directory: where to.
        model: a checkpoint of the reference model, in one file.
        targets: ends of names, without ``.weight``.
        r: rank, of those that ``rank_pattern`` does not name.
        fields: of ``adapter_config.json``, which replace or add.
    """
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": 8, "bias": "none"} | fields
    rng = np.random.default_rng(5)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if weight.ndim == 2 and module != name and module.endswith(tuple(targets)):
            rank = _of_pattern(config.get("rank_pattern"), module, r)
            scale = np.sqrt(np.mean(weight**2)) / rank + 0.01
            tensors[f"base_model.model.{module}.lora_A.weight"] = rng.normal(size=(rank, weight.shape[1]))
            tensors[f"base_model.model.{module}.lora_B.weight"] = scale * rng.normal(size=(weight.shape[0], rank))
    directory.mkdir()
    save_file(
        {name: values.astype(np.float32) for name, values in tensors.items()}, directory / "adapter_model.safetensors"
    )
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def apply_lora(model: Path, lora: Path, out: Path) -> Path:
    """A copy of a checkpoint with ``W + alpha / r B A`` (or ``alpha / sqrt(r)``), computed in float64."""
    config = json.loads((lora / "adapter_config.json").read_text())
    shutil.copytree(model, out)
    tensors = load_file(model / "model.safetensors")
    pairs = load_file(lora / "adapter_model.safetensors")
    for name, a in pairs.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = pairs[name.replace("lora_A", "lora_B")]
        rank = len(a)
        alpha = _of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        weight = tensors[f"{module}.weight"]
        tensors[f"{module}.weight"] = (weight + scale * (b.astype(np.float64) @ a)).astype(np.float32)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def _of_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    found = [value for pattern, value in (patterns or {}).items() if re.search(rf"(^|\.)({pattern})$", module)]
    return found[0] if found else default
