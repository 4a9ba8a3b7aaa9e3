"""Models on disk: Hugging Face directories, GGUF bases and SO8T adapters behind one view."""

from llama_so8t.checkpoint.checkpoint import Checkpoint
from llama_so8t.checkpoint.open import open_checkpoint
from llama_so8t.checkpoint.vocabulary import Vocabulary

__all__ = ["Checkpoint", "Vocabulary", "open_checkpoint"]
