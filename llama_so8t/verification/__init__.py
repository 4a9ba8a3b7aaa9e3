"""Whether a GGUF file is what its checkpoint should become: every tensor, every key, rotations, logits."""

from llama_so8t.verification.checks import verify
from llama_so8t.verification.logits import effect_of_dropped_sites
from llama_so8t.verification.report import Check, VerifyReport, render

__all__ = ["Check", "VerifyReport", "effect_of_dropped_sites", "render", "verify"]
