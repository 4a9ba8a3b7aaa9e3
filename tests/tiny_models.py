"""Random base models of a few kB with a real sentencepiece tokenizer."""

import io
from functools import cache
from pathlib import Path

TEXT = (
    "The quick brown fox jumps over the lazy dog.",
    "A rotation keeps the length of every vector.",
    "The head decides, the gate enforces, the log remembers.",
    "Octonions are neither commutative nor associative.",
    "Zwei Drehungen hintereinander sind eine Drehung.",
)

FAMILIES = ("qwen3", "llama", "qwen2")
VOCABULARY_SIZE = 320


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


def make_base(
    directory: Path, family: str = "qwen3", dtype: str = "float32", seed: int = 0, **fields: object
) -> Path:
    """Writes a random base model as transformers saves it.

    Args:
        directory: where to; its name becomes the name of the model.
        family: one of `FAMILIES`.
        dtype: of the weights.
        seed: of the weights.
        fields: replace fields of the configuration.
    """
    import torch
    import transformers

    shape = dict(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        dtype=dtype,
    )
    if family == "qwen2":
        del shape["head_dim"]  # follows from hidden_size in this family
    prefix = {"qwen3": "Qwen3", "llama": "Llama", "qwen2": "Qwen2"}[family]
    config = getattr(transformers, f"{prefix}Config")(**(shape | fields))
    torch.manual_seed(seed)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms of all ones and biases of zero would hide mistakes
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    (directory / "tokenizer.model").write_bytes(tokenizer_model())
    return directory
