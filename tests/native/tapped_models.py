"""Tiny random models of many architectures, converted by upstream, with heads that read their layers.

`REFERENCE` values come from transformers: a hook sees what enters each layer and the final norm. Taps and heads are
then numpy, in float64.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np

from llama_so8t.format import ATTENTION, FORMAT_VERSION, HEAD_KEYS, HeadSpec, Keys, Tensors

N_VOCAB = 128
N_EMBD = 64
N_LAYER = 4
N_INNER = 12
N_HEAD = 3  # of an attention stem

_SIZES = {
    "vocab_size": N_VOCAB,
    "hidden_size": N_EMBD,
    "intermediate_size": 96,
    "num_hidden_layers": N_LAYER,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "num_local_experts": 4}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}),
    "qwen3moe": (
        "Qwen3MoeForCausalLM",
        {"head_dim": 16, "moe_intermediate_size": 32, "norm_topk_prob": True, **_EXPERTS},
    ),
    "llama": ("LlamaForCausalLM", {}),
    "gemma2": ("Gemma2ForCausalLM", {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "Gemma3ForCausalLM",
        {"head_dim": 16, "sliding_window": 16, "sliding_window_pattern": 6, "query_pre_attn_scalar": 16},
    ),
    "phi3": ("Phi3ForCausalLM", {"tie_word_embeddings": False}),
    "granite": (
        "GraniteForCausalLM",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.6, "logits_scaling": 2.0, "attention_multiplier": 0.2},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        {
            "head_dim": 16,
            "sliding_window": 16,
            "intermediate_size": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "lfm2": (
        "Lfm2ForCausalLM",
        {
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "conv_L_cache": 3,
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "mamba": (
        "MambaForCausalLM",
        {"state_size": 16, "time_step_rank": 4, "intermediate_size": 128, "use_mambapy": False},
    ),
}
"""Architecture of llama.cpp -> class of transformers and the fields of its configuration."""

HEADS = (
    HeadSpec("final", ("a", "b"), ("allow", "refuse"), (0.5, 0.5)),
    HeadSpec(
        "risks",
        ("a", "b", "c"),
        ("refuse", "escalate", "refuse"),
        (0.5, 0.5, 0.5),
        taps=(1, N_LAYER - 1, N_LAYER),
        tap_norm="rms",
        link="sigmoid",
    ),
    HeadSpec("embedding", ("a", "b"), ("allow", "refuse"), (0.5, 0.5), taps=(0,)),
    HeadSpec("end", ("only",), ("refuse",), (0.5,), taps=(N_LAYER,), link="sigmoid"),
    HeadSpec("first", ("a", "b"), ("allow", "refuse"), (0.5, 0.5), taps=(-1, 2), stem="s", activation="gelu"),
    HeadSpec("second", ("a", "b", "c"), ("allow",) * 3, (0.5,) * 3, taps=(-1, 2), stem="s", activation="gelu"),
    HeadSpec(
        "looks",
        ("only",),
        ("refuse",),
        (0.5,),
        taps=(1, 3),
        tap_norm="rms",
        link="sigmoid",
        stem="u",
        activation="attention",
    ),
    HeadSpec(
        "looks_too",
        ("a", "b"),
        ("allow", "refuse"),
        (0.5, 0.5),
        taps=(1, 3),
        tap_norm="rms",
        stem="u",
        activation="attention",
        prompt_aggregation=("mean",),
    ),
    HeadSpec(
        "near",
        ("a", "b"),
        ("allow", "refuse"),
        (0.5, 0.5),
        taps=(2,),
        stem="v",
        activation="attention",
        sliding_window=5,
    ),
    HeadSpec(
        "text",
        ("a", "b", "c"),
        ("refuse",) * 3,
        (0.5,) * 3,
        taps=(2, 0),
        tap_norm="rms",
        temperature=1.5,
        prompt_aggregation=("mean", "ema", "max", "window8", "window16"),
        ema_alpha=0.3,
    ),
    HeadSpec(
        "text_too",
        ("only",),
        ("refuse",),
        (0.5,),
        taps=(3,),
        tap_norm="rms",
        stem="w",
        activation="tanh",
        link="sigmoid",
        prompt_aggregation=("token", "max"),
    ),
    HeadSpec(
        "normed", ("a", "b"), ("allow", "refuse"), (0.5, 0.5), taps=(2, 0), tap_norm="rms", stem="t", activation="tanh"
    ),
)


@dataclass(frozen=True)
class TappedModel:
    """A GGUF file with `HEADS`, and the model of transformers that it was converted from."""

    path: Path
    net: Any
    heads: tuple[HeadSpec, ...]
    tensors: Mapping[str, np.ndarray]

    def values(self, tokens: Sequence[int]) -> dict[str, np.ndarray]:
        """Values of every head at every token, ``(n, labels)``, as transformers and numpy compute them."""
        return head_values(self.heads, self.tensors, streams(self.net, tokens))


def make(directory: Path, arch: str, heads: tuple[HeadSpec, ...] = HEADS, seed: int = 3) -> TappedModel:
    """A random model of an architecture of `ARCHITECTURES`, and its file."""
    net, bare = make_bare(directory, arch, seed)
    tensors = head_tensors(heads, N_EMBD, seed)
    path = gguf_files.copy_gguf(bare, directory / f"{arch}.gguf", head_keys(heads), tensors)
    return TappedModel(path, net, heads, tensors)


def make_bare(directory: Path, arch: str, seed: int = 3, **sizes: int) -> tuple[Any, Path]:
    """A random model of an architecture without heads, and its file; ``sizes`` are fields of its configuration."""
    import torch
    import transformers

    class_name, fields = ARCHITECTURES[arch]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(seed)
    net = model_class(model_class.config_class(**_SIZES | fields | sizes)).float().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1:  # norms of all ones and biases of zero would hide mistakes
                parameter += torch.randn_like(parameter) * 0.1
            elif "conv" not in name and "A_log" not in name:
                parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)
    net.save_pretrained(directory)
    _complete(directory, fields)
    _round_gelu(net)
    return net, convert(directory, class_name, directory / "bare.gguf")


def _complete(directory: Path, fields: Mapping[str, Any]) -> None:
    """What upstream's converter reads beside the weights, as the published models have it."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {key: value for key, value in fields.items() if key == "layer_types"}))
    vocabulary = {"model": {"vocab": {str(i): i for i in range(N_VOCAB)}}, "added_tokens": []}
    (directory / "tokenizer.json").write_text(json.dumps(vocabulary))


def _round_gelu(net: Any) -> None:
    """ggml looks the GELU of Gemma up in a table of half precision on the CPU; the reference does the same."""
    import torch

    class Gelu(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
            return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, inside))

    for module in net.modules():
        if getattr(getattr(module, "config", None), "hidden_activation", None) and hasattr(module, "act_fn"):
            module.act_fn = Gelu()


def convert(directory: Path, class_name: str, outfile: Path) -> Path:
    """Runs upstream's converter on a directory that has no tokenizer."""
    from llama_so8t.upstream import conversion, gguf

    base = conversion.get_model_class(class_name)

    def set_vocab(model: Any) -> None:
        model.gguf_writer.add_tokenizer_model("no_vocab")
        model.gguf_writer.add_vocab_size(N_VOCAB)

    model_class = type(base.__name__, (base,), {"model_arch": base.model_arch, "set_vocab": set_vocab})
    model_class(directory, gguf.LlamaFileType.ALL_F32, outfile).write()
    return outfile


def head_keys(heads: Sequence[HeadSpec], version: int | None = FORMAT_VERSION) -> dict[str, Any]:
    """Keys of the heads with the types of the format."""
    from llama_so8t.upstream import gguf

    types = {"str": "STRING", "u32": "UINT32", "i32": "INT32", "f32": "FLOAT32"}
    keys: dict[str, Any] = {Keys.HEADS: [head.name for head in heads]}
    if version is not None:
        keys[Keys.FORMAT_VERSION] = version
    for head in heads:
        for key in HEAD_KEYS.values():
            value, kind = getattr(head, key.field), gguf.GGUFValueType[types[key.type.removesuffix("[]")]]
            if value is not None:
                array = (gguf.GGUFValueType.ARRAY, kind) if key.type.endswith("[]") else (kind, None)
                keys[key.of(head.name)] = gguf.GGUFValue(list(value) if isinstance(value, tuple) else value, *array)
    return keys


def head_tensors(heads: Sequence[HeadSpec], n_embd: int, seed: int) -> dict[str, np.ndarray]:
    """Random tensors of the heads and their stems."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for head in heads:
        n_in = len(head.taps) * n_embd
        if head.stem is not None:
            for name, shape in _stem_shapes(head, n_in).items():
                tensors.setdefault(name.format(stem=head.stem), _random(rng, *shape))
            n_in = N_INNER
        tensors[Tensors.HEAD_WEIGHT.format(name=head.name)] = _random(rng, len(head.labels), n_in)
        tensors[Tensors.HEAD_BIAS.format(name=head.name)] = _random(rng, len(head.labels))
    return tensors


def _stem_shapes(head: HeadSpec, n_in: int) -> dict[str, tuple[int, ...]]:
    if head.form != ATTENTION:
        return {Tensors.STEM_WEIGHT: (N_INNER, n_in), Tensors.STEM_BIAS: (N_INNER,)}
    return {
        Tensors.STEM_ATTN_Q: (N_INNER, n_in),
        Tensors.STEM_ATTN_K: (N_INNER // N_HEAD, n_in),
        Tensors.STEM_ATTN_V: (N_INNER // N_HEAD, n_in),
        Tensors.STEM_ATTN_OUTPUT: (N_INNER, N_INNER),
        Tensors.STEM_NORM: (N_INNER,),
    }


def _random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)


def streams(net: Any, tokens: Sequence[int]) -> dict[int, np.ndarray]:
    """The residual stream by tap, ``(n, d)``: what enters each layer, the end of the last one, the final norm."""
    import torch

    body = getattr(net, "model", None) or net.backbone
    norm = next(getattr(body, name) for name in ("norm", "norm_f", "embedding_norm") if hasattr(body, name))
    found: dict[int, torch.Tensor] = {}

    def keep(tap: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple, kwargs: dict) -> None:
            found[tap] = args[0] if args else kwargs["hidden_states"]

        return hook

    hooks = [layer.register_forward_pre_hook(keep(tap), with_kwargs=True) for tap, layer in enumerate(body.layers)]
    hooks.append(norm.register_forward_pre_hook(keep(len(body.layers)), with_kwargs=True))
    hooks.append(norm.register_forward_hook(lambda module, args, output: found.__setitem__(-1, output)))
    with torch.no_grad():
        net(torch.tensor([list(tokens)]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {tap: stream[0].double().numpy() for tap, stream in found.items()}


def head_values(
    heads: Sequence[HeadSpec], tensors: Mapping[str, np.ndarray], taps: Mapping[int, np.ndarray]
) -> dict[str, np.ndarray]:
    """``W act(W1 z + b1) + b`` or ``W z + b`` of the taps z, ``(n, labels)`` float64."""
    from scipy.special import erf

    activate = {"gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2, "tanh": np.tanh}
    values = {}
    for head in heads:
        read = [taps[tap] for tap in head.taps]
        if head.tap_norm == "rms":
            read = [x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) for x in read]
        z = np.concatenate(read, axis=-1)
        if head.form == ATTENTION:
            z = _attend(head, tensors, z)
        elif head.stem is not None:
            weight, bias = (tensors[name.format(stem=head.stem)] for name in (Tensors.STEM_WEIGHT, Tensors.STEM_BIAS))
            z = activate[head.activation](z @ weight.T.astype(np.float64) + bias)
        weight, bias = (tensors[name.format(name=head.name)] for name in (Tensors.HEAD_WEIGHT, Tensors.HEAD_BIAS))
        values[head.name] = z @ weight.T.astype(np.float64) + bias
    return values


def _attend(head: HeadSpec, tensors: Mapping[str, np.ndarray], z: np.ndarray) -> np.ndarray:
    """The stem of the form attention, one query head after the other: ``(n, N_INNER)`` float64."""
    names = (Tensors.STEM_ATTN_Q, Tensors.STEM_ATTN_K, Tensors.STEM_ATTN_V, Tensors.STEM_ATTN_OUTPUT, Tensors.STEM_NORM)
    w_q, w_k, w_v, w_o, norm = (tensors[name.format(stem=head.stem)].astype(np.float64) for name in names)
    q, k, v = z @ w_q.T, z @ w_k.T, z @ w_v.T
    n, head_dim = k.shape
    result = np.zeros_like(q)
    for t in range(n):
        first = max(0, t + 1 - head.sliding_window) if head.sliding_window else 0
        for h in range(q.shape[1] // head_dim):
            part = slice(h * head_dim, (h + 1) * head_dim)
            scores = k[first : t + 1] @ q[t, part] / np.sqrt(head_dim)
            weights = np.exp(scores - scores.max())
            result[t, part] = (weights / weights.sum()) @ v[first : t + 1]
    y = result @ w_o.T + q
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * norm
