"""Models on disk: Hugging Face directories, GGUF bases and SO8T adapters behind one view."""

from llama_so8t.checkpoint.checkpoint import Checkpoint, Vocabulary
from llama_so8t.checkpoint.open import open_checkpoint

__all__ = ["Checkpoint", "Vocabulary", "open_checkpoint"]
