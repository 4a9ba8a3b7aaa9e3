"""Four files beside a GGUF, as the first SO8T converter wrote them: metadata, int8 weights, scales, tokenizer."""
