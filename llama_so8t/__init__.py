"""SO8T for llama.cpp: SO(8) rotations and verdict heads, from checkpoint to GGUF to runtime."""

__version__ = "0.1.0"
