"""PyTorch reference of SO8T: a base decoder with SO(8) rotations at sites and verdict heads.

Norm, MLP, rotary embedding, attention kernels, masks and generation are transformers' own; every
difference from them is marked "diff with Qwen3" (or Llama, Qwen2). With all generators zero the
logits are the base model's, bit for bit.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from llama_so8t.format import (
    FINAL_NORM,
    HEAD_FORMS,
    OUT_GENERATOR,
    TAP_NORM_EPS,
    TAP_NORM_RMS,
    Family,
    HeadSpec,
    generator_name,
    head_tensor_prefix,
)
from llama_so8t.hf.configuration_so8t import SO8TTransformerConfig
from llama_so8t.hf.stems import make_stem
from llama_so8t.hf.torch_rotation import mix_heads, rotate_blocks, rotate_heads, rotation
from llama_so8t.model_spec import ModelSpec


class SO8TGenerators(nn.Module):
    """Generators of one layer, or of the heads: a parameter ``(n, 28)`` float32 for each existing site.

    They stay float32 in a model of lower precision: training moves them by less than bfloat16 resolves.
    """

    def __init__(self, spec: ModelSpec, prefix: str) -> None:
        super().__init__()
        for name, shape in spec.generator_shapes().items():
            if name.startswith(prefix):
                parameter = nn.Parameter(torch.zeros(shape, dtype=torch.float32))
                self.register_parameter(name.removeprefix(prefix), parameter)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> nn.Parameter:
            """What is no other attribute is a generator, as far as the type checker can know."""

    def rotate_gate(self, x: torch.Tensor) -> torch.Tensor:
        """Site gate: ``R_cmd R_safe x``, R_safe first. ``(..., d) -> (..., d)``."""
        if not hasattr(self, "gate_safe"):
            return x
        return rotate_blocks(x, rotation(self.gate_cmd) @ rotation(self.gate_safe))

    def rotate_ffn(self, x: torch.Tensor) -> torch.Tensor:
        """Site ffn. ``(..., d) -> (..., d)``."""
        return rotate_blocks(x, rotation(self.ffn))


class SO8TMultiHeadAttention(nn.Module):
    """Attention of the base family with the sites qk, v (one representation per head) and heads."""

    def __init__(self, config: SO8TTransformerConfig, layer_idx: int, spec: ModelSpec) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = spec.head_dim
        self.num_key_value_groups = spec.n_head // spec.n_head_kv
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.head_representation = list(spec.head_representation)
        self.head_kv_representation = list(spec.head_kv_representation)

        # diff with Qwen3: the biases are those of the family, Qwen2 has them on q, k, v and none on o
        d, width, kv_width = spec.hidden_size, spec.n_head * spec.head_dim, spec.n_head_kv * spec.head_dim
        self.q_proj = nn.Linear(d, width, bias=spec.qkv_bias)
        self.k_proj = nn.Linear(d, kv_width, bias=spec.qkv_bias)
        self.v_proj = nn.Linear(d, kv_width, bias=spec.qkv_bias)
        self.o_proj = nn.Linear(width, d, bias=spec.o_bias)
        # diff with Llama and Qwen2: Qwen3 alone has the q/k norm
        norm = spec.has_qk_norm
        self.q_norm = Qwen3RMSNorm(self.head_dim, eps=config.rms_norm_eps) if norm else nn.Identity()
        self.k_norm = Qwen3RMSNorm(self.head_dim, eps=config.rms_norm_eps) if norm else nn.Identity()
        sliding = _layer_types(config)[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if sliding else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        generators: SO8TGenerators,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``(batch, seq, d) -> (batch, seq, d)``, and the attention weights where the kernel returns them."""
        input_shape = hidden_states.shape[:-1]  # (batch, seq)
        hidden_shape = (*input_shape, -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(hidden_shape))  # (batch, seq, heads, head_dim)
        key = self.k_norm(self.k_proj(hidden_states).view(hidden_shape))  # (batch, seq, kv_heads, head_dim)
        value = self.v_proj(hidden_states).view(hidden_shape)  # (batch, seq, kv_heads, head_dim)

        # diff with Qwen3: site qk, after the norm and before RoPE; site v
        query = rotate_heads(query, rotation(generators.qk, self.head_representation))
        key = rotate_heads(key, rotation(generators.qk, self.head_kv_representation))
        value = rotate_heads(value, rotation(generators.v, self.head_kv_representation))

        query = query.transpose(1, 2)  # (batch, heads, seq, head_dim)
        key = key.transpose(1, 2)  # (batch, kv_heads, seq, head_dim)
        value = value.transpose(1, 2)  # (batch, kv_heads, seq, head_dim)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        implementation = self.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=0.0 if not self.training else self.attention_dropout,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )  # output (batch, seq, heads, head_dim)
        if hasattr(generators, "heads"):  # not `in`: PEFT may have wrapped them; diff with Qwen3: site heads
            output = mix_heads(output, rotation(generators.heads))
        output = output.reshape(*input_shape, -1).contiguous()  # (batch, seq, heads * head_dim)
        return self.o_proj(output), weights


class SO8TDecoderLayer(GradientCheckpointingLayer):
    """Layer of the base family with its generators under ``so8t``."""

    def __init__(self, config: SO8TTransformerConfig, layer_idx: int, spec: ModelSpec) -> None:
        super().__init__()
        self.self_attn = SO8TMultiHeadAttention(config, layer_idx, spec)
        self.mlp = _mlp_class(spec.family)(config)
        self.input_layernorm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.so8t = SO8TGenerators(spec, generator_name(layer_idx, ""))

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """``(batch, seq, d) -> (batch, seq, d)``."""
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states = self.so8t.rotate_gate(hidden_states)  # diff with Qwen3: site gate
        hidden_states, _ = self.self_attn(hidden_states, self.so8t, **kwargs)
        hidden_states = residual + hidden_states

        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.so8t.rotate_ffn(hidden_states)  # diff with Qwen3: site ffn
        hidden_states = self.mlp(hidden_states)
        return residual + hidden_states


class SO8TPreTrainedModel(PreTrainedModel):
    """What both models share: loading, initial weights, recorded outputs."""

    config_class = SO8TTransformerConfig
    config: SO8TTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("SO8TDecoderLayer",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # diff with Qwen3: quantizers leave these alone, as the converter does; their float32 in a model of lower
    # precision comes from the dtype that each names where it is made
    _keep_in_fp32_modules = ("so8t", "safety_head", "authority_head", "heads", "stems")
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": SO8TDecoderLayer,
        "attentions": SO8TMultiHeadAttention,
    }

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SO8TGenerators):
            for generator in module.parameters():
                init.zeros_(generator)  # the identity: a new SO8T model starts as its base
        else:
            super()._init_weights(module)


@dataclass
class SO8TModelOutput(BaseModelOutputWithPast):
    """``taps``: layer -> the residual stream that enters it, ``(batch, seq, d)``, for each layer that a head reads.

    The number of layers stands for the end of the last one, before the final norm.
    """

    taps: dict[int, torch.Tensor] | None = None


class SO8TTransformerModel(SO8TPreTrainedModel):
    """The decoder without heads."""

    def __init__(self, config: SO8TTransformerConfig) -> None:
        super().__init__(config)
        spec = config.model_spec()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            SO8TDecoderLayer(config, layer_idx, spec) for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3RotaryEmbedding(config=config)
        self.tapped = {tap for head in spec.heads.values() for tap in head.taps}
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> "SO8TModelOutput":
        """Hidden vectors ``(batch, seq, d)`` after the final norm, for ``input_ids`` ``(batch, seq)``.

        Raises:
            ValueError: there are both `input_ids` and `inputs_embeds`, or neither.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past
            position_ids = positions.unsqueeze(0)  # (1, seq)

        layer_types = _layer_types(self.config)
        masks = attention_mask  # generate may have made the masks already
        if not isinstance(masks, dict):
            mask_arguments = {
                "config": self.config,
                "inputs_embeds": inputs_embeds,
                "attention_mask": attention_mask,
                "past_key_values": past_key_values,
                "position_ids": position_ids,
            }
            masks = {"full_attention": create_causal_mask(**mask_arguments)}
            if "sliding_attention" in layer_types:
                masks["sliding_attention"] = create_sliding_window_causal_mask(**mask_arguments)

        hidden_states = inputs_embeds
        taps = {}
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for index, (layer, layer_type) in enumerate(zip(self.layers, layer_types, strict=True)):
            if index in self.tapped:  # diff with Qwen3: what heads read
                taps[index] = hidden_states
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[layer_type],
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        taps[len(self.layers)] = hidden_states
        return SO8TModelOutput(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
            taps={tap: taps[tap] for tap in self.tapped if tap != FINAL_NORM},
        )


@dataclass
class SO8TCausalLMOutput(ModelOutput):
    """Task logits as in every causal model, and the values of the heads at every position of the input.

    ``head_logits`` maps each head, in verdict order, to ``(batch, seq, labels)``; ``safety_logits`` and
    ``authority_logits`` are its entries of these names, or None. ``logits`` follows ``logits_to_keep``.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    head_logits: dict[str, torch.Tensor] | None = None
    safety_logits: torch.Tensor | None = None
    authority_logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class SO8TTransformerForCausalLM(SO8TPreTrainedModel, GenerationMixin):
    """The decoder with the task head (language model head) and the verdict heads."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: SO8TTransformerConfig) -> None:
        super().__init__(config)
        self.model = SO8TTransformerModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

        # diff with Qwen3: the out generator, stems and heads
        spec = config.model_spec()
        self.head_specs = spec.heads
        self.so8t = SO8TGenerators(spec, OUT_GENERATOR.removesuffix("out"))
        self.stems = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        for name, head in self.head_specs.items():
            read = len(head.taps) * spec.hidden_size
            width = spec.stem_sizes[head.stem] if head.stem else read
            if head.stem and head.stem not in self.stems:
                self.stems[head.stem] = make_stem(spec, head, config.rms_norm_eps)
            bias = HEAD_FORMS[head.activation].bias
            linear = nn.Linear(width, len(head.labels), bias=bias, dtype=torch.float32)
            parent, _, leaf = head_tensor_prefix(name).rpartition(".")
            self.get_submodule(parent).add_module(leaf, linear)
        self.post_init()

    def verdicts(
        self,
        hidden_states: torch.Tensor,
        taps: dict[int, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> dict[str, torch.Tensor]:
        """Values of every head: ``W z + b`` (or behind a stem), z the taps of the head one behind the other.

        A tap is ``diag(R_rep) norm(x)`` of the residual stream x; the norm is that of the head, and x of the tap -1
        the final norm.

        Args:
            hidden_states: after the final norm, ``(batch, seq, d)``.
            taps: layer -> what enters it, ``(batch, seq, d)``, for each layer that a head reads.
            attention_mask: ``(batch, past + seq)``, 0 at padding, for stems that look at other tokens.
            past_key_values: the cache of the layers, which has seen these tokens; the stems have theirs behind it.

        Returns:
            name -> ``(batch, seq, labels)``, in the dtype of the heads (float32 unless the caller cast them).
        """
        streams = {**(taps or {}), FINAL_NORM: hidden_states}
        read, stems, logits = {}, {}, {}
        for name, head in self.head_specs.items():
            source = (*head.source, head.representation)
            if source not in read:
                read[source] = torch.cat([self._tap(streams[tap], head) for tap in head.taps], dim=-1)
            features = read[source]  # (batch, seq, taps * d)
            if head.stem:
                if head.stem not in stems:
                    place = len(self.model.layers) + list(self.stems).index(head.stem)
                    stem = self.stems[head.stem]
                    stems[head.stem] = stem(features, attention_mask, past_key_values, place)  # (batch, seq, inner)
                features = stems[head.stem]
            logits[name] = self.get_submodule(head_tensor_prefix(name))(features)  # (batch, seq, labels)
        return logits

    def _tap(self, stream: torch.Tensor, head: HeadSpec) -> torch.Tensor:
        stream = stream.to(self.so8t.out.dtype)
        if head.tap_norm == TAP_NORM_RMS:
            stream = nn.functional.rms_norm(stream, stream.shape[-1:], eps=TAP_NORM_EPS)
        return rotate_blocks(stream, rotation(self.so8t.out, head.representation))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SO8TCausalLMOutput:
        """Task logits and head values for ``input_ids`` ``(batch, seq)``; ``labels`` are the task's."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state  # (batch, seq, d)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, kept])  # (batch, kept, vocab)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs)
        # diff with Qwen3; the model gives no cache back where the caller has one and asks for none
        cache = outputs.past_key_values if past_key_values is None else past_key_values
        head_logits = self.verdicts(hidden_states, outputs.taps, attention_mask, cache)
        return SO8TCausalLMOutput(
            loss=loss,
            logits=logits,
            head_logits=head_logits,
            safety_logits=head_logits.get("safety"),
            authority_logits=head_logits.get("authority"),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _mlp_class(family: Family) -> type[nn.Module]:
    # the families differ in the MLP, the biases and the q/k norm; norm, rotary embedding and attention are one code
    return getattr(import_module(f"transformers.models.{family.name}.modeling_{family.name}"), family.mlp_class)


def _layer_types(config: SO8TTransformerConfig) -> list[str]:
    # diff with Qwen3: Llama has no layer_types, all its layers see everything
    return getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
