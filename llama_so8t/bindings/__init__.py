"""The patched llama.cpp from Python: tokens in, logits and head values out."""

from llama_so8t.bindings.session import Head, Session

__all__ = ["Head", "Session"]
