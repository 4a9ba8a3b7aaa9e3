"""From SO8T checkpoint to GGUF file."""
