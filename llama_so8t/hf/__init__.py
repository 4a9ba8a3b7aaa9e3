"""SO8T on PyTorch and transformers: the reference model. The import registers it with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llama_so8t.hf.configuration_so8t import SO8TTransformerConfig
from llama_so8t.hf.modeling_so8t import (
    SO8TCausalLMOutput,
    SO8TMultiHeadAttention,
    SO8TTransformerForCausalLM,
    SO8TTransformerModel,
)

__all__ = [
    "SO8TCausalLMOutput",
    "SO8TMultiHeadAttention",
    "SO8TTransformerConfig",
    "SO8TTransformerForCausalLM",
    "SO8TTransformerModel",
]

AutoConfig.register(SO8TTransformerConfig.model_type, SO8TTransformerConfig)
AutoModel.register(SO8TTransformerConfig, SO8TTransformerModel)
AutoModelForCausalLM.register(SO8TTransformerConfig, SO8TTransformerForCausalLM)
