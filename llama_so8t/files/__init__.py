"""Files: JSON, GGUF, safetensors and torch archives read as untrusted input; files written whole or not at all."""
