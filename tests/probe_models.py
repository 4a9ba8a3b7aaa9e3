"""SingProbe with random weights: directories as its authors publish them, and what they compute.

Written from the description in the report (https://arxiv.org/abs/2608.30703) token by token in PyTorch, in float64.
Of the package nothing is used. Names and fields are those of the class SingProbeAttnModel or SingProbeMlpModel.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

N_ROWS = 10
LABELS = ("A", "B", "C", "D", "E", "F", "G", "safe", "unsafe", "hallucination")
QUERY, RESPONSE, HALLUCINATION = slice(0, 8), slice(8, 9), slice(9, 10)
ROWS = {"query": QUERY, "response": RESPONSE, "hallucination": HALLUCINATION}


@dataclass(frozen=True)
class ProbeShape:
    """Sizes of a probe. ``inner`` is that of the form mlp; an attention probe has ``n_head * head_dim``."""

    form: str
    hidden: int
    layers: tuple[int, ...]
    n_head: int = 4
    head_dim: int = 64
    window: int | None = None
    inner: int = 1024

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor -> shape."""
        read, q = self.hidden * len(self.layers), self.n_head * self.head_dim
        if self.form == "mlp":
            return {
                "fc1.weight": (self.inner, read),
                "fc1.bias": (self.inner,),
                "fc2.weight": (N_ROWS, self.inner),
                "fc2.bias": (N_ROWS,),
            }
        return {
            "proj_q.weight": (q, read),
            "proj_k.weight": (self.head_dim, read),
            "proj_v.weight": (self.head_dim, read),
            "o_proj.weight": (q, q),
            "norm.weight": (q,),
            "classifier.weight": (N_ROWS, q),
            "classifier.bias": (N_ROWS,),
        }

    @property
    def config(self) -> dict[str, Any]:
        """``config.json``."""
        own: dict[str, Any] = {"intermediate_size": self.inner, "hidden_act": "gelu"}
        if self.form == "attn":
            own = {
                "num_attention_heads": self.n_head,
                "head_dim": self.head_dim,
                "sliding_window": self.window,
            }
        return {
            "architectures": [f"SingProbe{self.form.title()}Model"],
            "model_type": f"sing_probe_{self.form}",
            "hidden_size": self.hidden,
            "base_model_layer_ids": list(self.layers),
            **own,
            "num_labels": N_ROWS,
            "base_model_name": "somebody/some-model",
            "torch_dtype": "float32",
        }


HIDDEN = 1024
LAYERS = (1, 3, 4)
SHAPES = {
    "attn-4": ProbeShape("attn", HIDDEN, LAYERS, n_head=4),
    "attn-8": ProbeShape("attn", HIDDEN, LAYERS, n_head=8),
    "attn-2048": ProbeShape("attn", HIDDEN, LAYERS, n_head=4, window=2048),
    "attn-5": ProbeShape("attn", HIDDEN, LAYERS, n_head=4, window=5),
    "mlp": ProbeShape("mlp", HIDDEN, LAYERS),
}
"""The published sizes: hidden 1024 and three layers of five, 4 or 8 heads of 64, windows, and the MLP."""


def random_tensors(shape: ProbeShape, seed: int = 0, dtype: str = "float32") -> dict[str, Any]:
    """Weights of which every part shows in the values: queries and keys that agree somewhere, an uneven norm."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in shape.shapes.items():
        values = torch.randn(size, generator=generator)
        if len(size) == 2:
            values *= size[1] ** -0.5 * (2.0 if name in ("proj_q.weight", "proj_k.weight") else 1.0)
        else:
            values = 1 + 0.3 * values if name == "norm.weight" else 0.3 * values
        tensors[name] = values.to(getattr(torch, dtype))
    return tensors


def write_probe(
    directory: Path,
    shape: ProbeShape,
    tensors: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    file: str = "model.safetensors",
) -> Path:
    """Writes a directory; ``config`` has fields to change, None removes one."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(random_tensors(shape) if tensors is None else tensors), directory / file, {"format": "pt"})
    fields = shape.config | dict(config or {})
    (directory / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if v is not _REMOVED}))
    return directory


_REMOVED = object()
REMOVED = _REMOVED
"""Value of a field that is not there."""


def features(streams: Mapping[int, Any], layers: Sequence[int]) -> Any:
    """What a probe reads, ``(n, taps * hidden)`` float64: ``streams`` are what enters each layer, ``(n, hidden)``."""
    import torch

    parts = []
    for layer in layers:
        x = torch.as_tensor(streams[layer]).double()
        parts.append(x / torch.sqrt((x * x).mean(dim=1, keepdim=True) + 1e-6))
    return torch.cat(parts, dim=1)


def probe_logits(shape: ProbeShape, tensors: Mapping[str, Any], read: Any) -> Any:
    """Logits of the ten rows at every token, ``(n, 10)`` float64, of what the probe reads, ``(n, taps * hidden)``."""
    import torch

    w = {name: tensor.double() for name, tensor in tensors.items()}
    if shape.form == "mlp":
        inside = read @ w["fc1.weight"].T + w["fc1.bias"]
        inside = inside * (1 + torch.erf(inside / math.sqrt(2))) / 2
        return inside @ w["fc2.weight"].T + w["fc2.bias"]
    rows = []
    keys, values = read @ w["proj_k.weight"].T, read @ w["proj_v.weight"].T
    for token in range(len(read)):
        first = 0 if shape.window is None else max(0, token - shape.window + 1)
        seen_keys, seen_values = keys[first : token + 1], values[first : token + 1]
        query = w["proj_q.weight"] @ read[token]
        heads = []
        for head in range(shape.n_head):
            q = query[head * shape.head_dim : (head + 1) * shape.head_dim]
            weights = torch.softmax(seen_keys @ q / math.sqrt(shape.head_dim), dim=0)
            heads.append(weights @ seen_values)
        state = w["o_proj.weight"] @ torch.cat(heads) + query
        state = state / torch.sqrt((state * state).mean() + 1e-6) * w["norm.weight"]
        rows.append(w["classifier.weight"] @ state + w["classifier.bias"])
    return torch.stack(rows)
