"""Random base models of a few kB: by numpy alone, or by transformers with a sentencepiece tokenizer."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llama_so8t import format
from llama_so8t.checkpoint.names import OUTPUT, base_tensors
from llama_so8t.files import safetensors_writer
from llama_so8t.model_spec import ModelSpec
from llama_so8t.tensors import LazyTensor

FAMILIES = tuple(format.FAMILIES)
VOCABULARY_SIZE = 320

TEXT = (
    "The quick brown fox jumps over the lazy dog.",
    "A rotation keeps the length of every vector.",
    "The head decides, the gate enforces, the log remembers.",
    "Octonions are neither commutative nor associative.",
    "Zwei Drehungen hintereinander sind eine Drehung.",
)


def base_config(family: str = "qwen3", **fields: Any) -> dict[str, Any]:
    """``config.json`` of a tiny base model; ``fields`` replace or add."""
    config = {
        "architectures": [format.FAMILIES[family].architecture],
        "model_type": family,
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 8 if family == "qwen2" else 16,  # follows from hidden_size in this family
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return config | fields


def write_base(directory: Path, family: str = "qwen3", dtype: str = "F32", seed: int = 0, **fields: Any) -> Path:
    """Writes a random base model without tokenizer and without torch."""
    config = base_config(family, **fields)
    rng = np.random.default_rng(seed)
    tensors = []
    for name, expected in base_tensors(config, ModelSpec.from_config(config)).items():
        if name == OUTPUT and config["tie_word_embeddings"]:
            continue
        values = rng.normal(0.0, 0.3, expected.shape).astype(np.float32)
        tensors.append(stored(name, values, dtype))
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    safetensors_writer.write_sharded(directory, tensors)
    return directory


def stored(name: str, values: np.ndarray, dtype: str = "F32") -> LazyTensor:
    """An array as a tensor that can be written; for BF16 the lower half of each value is cut off."""
    if dtype == "BF16":
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return LazyTensor(name, values.shape, dtype, lambda: values)


@cache
def tokenizer_model() -> bytes:
    """A sentencepiece BPE model with bytes as fallback, so that every text has tokens."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=written,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        byte_fallback=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    return written.getvalue()


def make_base(directory: Path, family: str = "qwen3", dtype: str = "float32", **fields: Any) -> Path:
    """Writes a random base model as transformers saves it, with a tokenizer.

    Args:
        directory: where to; its name becomes the name of the model.
        family: one of `FAMILIES`.
        dtype: of the weights.
        fields: replace fields of the configuration.
    """
    import torch
    import transformers

    config = base_config(family, dtype=dtype, **fields)
    for key in ("architectures", "model_type") + (("head_dim",) if family == "qwen2" else ()):
        del config[key]
    model_class = getattr(transformers, format.FAMILIES[family].architecture)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms of all ones and biases of zero would hide mistakes
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    (directory / "tokenizer.model").write_bytes(tokenizer_model())
    return directory
