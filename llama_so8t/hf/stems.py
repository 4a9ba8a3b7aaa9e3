"""Stems of heads: what stands between the taps of a head and its linear map."""

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from llama_so8t.format import ATTENTION, HEAD_FORMS, TAP_NORM_EPS, HeadSpec
from llama_so8t.model_spec import ModelSpec

# of the stems of the form mlp, by the name of the activation
STEM_ACTIVATIONS = {"gelu": nn.GELU(), "tanh": nn.Tanh(), "rmsnorm": nn.Identity()}


def make_stem(spec: ModelSpec, head: HeadSpec, eps: float) -> nn.Module:
    """The stem of a head that has one.

    Args:
        spec: has the sizes of the stem.
        head: whose taps it reads.
        eps: of the norm of a stem of the form mlp: that of the norms of the model.
    """
    n_in, inner = len(head.taps) * spec.hidden_size, spec.stem_sizes[str(head.stem)]
    if head.form == ATTENTION:
        return SO8TAttentionStem(n_in, inner, spec.stem_head_dims[str(head.stem)], head.sliding_window)
    return SO8TStem(n_in, inner, head.activation, eps)


class SO8TStem(nn.Linear):
    """First layer of MLP heads: ``act(W1 z + b1)``, or ``rmsnorm(W1 z)``. ``(..., d) -> (..., inner)``."""

    def __init__(self, d: int, inner: int, activation: str, eps: float) -> None:
        form = HEAD_FORMS[activation]
        super().__init__(d, inner, bias=form.bias, dtype=torch.float32)
        self.activation = STEM_ACTIVATIONS[activation]
        self.norm = Qwen3RMSNorm(inner, eps=eps).float() if form.norm else nn.Identity()

    def forward(self, z: torch.Tensor, *past: object) -> torch.Tensor:
        return self.norm(self.activation(super().forward(z)))


class SO8TAttentionStem(nn.Module):
    """First layer of heads of the form attention: what a token asks of all before it, and of itself.

    With ``q = W_q z`` (n_head heads), ``k = W_k z`` and ``v = W_v z`` (one key and value for all heads), without
    biases and without RoPE: ``rmsnorm(W_o concat_h(softmax(q_h k / sqrt(head_dim)) v) + q) * norm``.
    """

    def __init__(self, d: int, inner: int, head_dim: int, sliding_window: int) -> None:
        super().__init__()
        self.head_dim, self.sliding_window = head_dim, sliding_window
        self.attn_q = nn.Linear(d, inner, bias=False, dtype=torch.float32)
        self.attn_k = nn.Linear(d, head_dim, bias=False, dtype=torch.float32)
        self.attn_v = nn.Linear(d, head_dim, bias=False, dtype=torch.float32)
        self.attn_output = nn.Linear(inner, inner, bias=False, dtype=torch.float32)
        self.norm = Qwen3RMSNorm(inner, eps=TAP_NORM_EPS).float()

    def forward(
        self, z: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None, cache_index: int
    ) -> torch.Tensor:
        """``(batch, seq, d) -> (batch, seq, inner)``.

        Args:
            z: what the head reads of the new tokens.
            attention_mask: ``(batch, past + seq)``, 0 at padding, which no other token sees; None: there is none.
            cache: has the keys and values of the past tokens, and gets those of the new ones.
            cache_index: their place in the cache, behind the layers of the model.

        Raises:
            ValueError: `attention_mask` has another form.
        """
        if attention_mask is not None and (isinstance(attention_mask, dict) or attention_mask.ndim != 2):
            raise ValueError(
                "attention_mask: found one that is made for the layers, expected (batch, tokens) for heads of the "
                "form attention; generate with a dynamic cache"
            )
        query = self.attn_q(z)  # (batch, seq, inner)
        key, value = self.attn_k(z).unsqueeze(1), self.attn_v(z).unsqueeze(1)  # (batch, 1, seq, head_dim)
        if cache is not None:
            # the layers that the configuration of the model has made do not count the stems
            while len(cache.layers) <= cache_index:
                cache.layers.append(DynamicLayer())
            key, value = cache.layers[cache_index].update(key, value)
        seen = self._seen(z.shape[1], key.shape[2], attention_mask, z.device)
        heads = query.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, seq, head_dim)
        scores = heads @ key.transpose(-1, -2) * self.head_dim**-0.5  # (batch, heads, seq, past + seq)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
        read = (weights @ value).transpose(1, 2).flatten(2)  # (batch, seq, inner)
        return self.norm(self.attn_output(read) + query)

    def _seen(self, n_new: int, n_all: int, attention_mask: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """Which tokens each new token sees, ``(batch or 1, 1, new, all)``; itself in any case, even where padding."""
        tokens = torch.arange(n_all, device=device)
        distance = tokens[n_all - n_new :, None] - tokens  # (new, all)
        seen = distance >= 0
        if self.sliding_window:
            seen &= distance < self.sliding_window
        if attention_mask is not None:
            seen = seen & attention_mask[:, None, None, :].bool() | (distance == 0)
        return seen
