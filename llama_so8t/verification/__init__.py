"""Whether a GGUF file is what its checkpoint should become: every tensor, every key, rotations, logits."""

from llama_so8t.verification.checks import verify
from llama_so8t.verification.report import Check, VerifyReport, render

__all__ = ["Check", "VerifyReport", "render", "verify"]
