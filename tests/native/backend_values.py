"""Logits and head values of a file on a backend, in a process of its own.

A backend that is once loaded stays for all later models of a process, and a lost device ends it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llama_so8t.bindings import Session
from llama_so8t.bindings.session import F32

ROOT = Path(__file__).resolve().parents[2]
N_SINGLE = 2


def values(
    file: Path, tokens: Sequence[int], out: Path, environment: Mapping[str, str] | None = None, **options: object
) -> dict[str, np.ndarray]:
    """Values of every token: a prompt in one piece, then the last `N_SINGLE` tokens one by one.

    Args:
        file: GGUF file.
        tokens: their ids.
        out: file for the result (npz).
        environment: additional variables.
        options: of `Session`.

    Returns:
        ``task`` and each head, ``(n_tokens, n)`` float32.
    """
    result = subprocess.run(
        [sys.executable, __file__, file, json.dumps(list(tokens)), out, json.dumps(options)],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GGML_NO_BACKTRACE": "1", **(environment or {})},
    )  # fmt: skip
    assert result.returncode == 0, (result.returncode, result.stderr[-3000:])
    return dict(np.load(out))


def main() -> None:
    file, tokens, out, options = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    n_prompt = len(tokens) - N_SINGLE
    pieces = [(0, n_prompt), *((i, i + 1) for i in range(n_prompt, len(tokens)))]
    found = []
    with Session(file, **{"type_k": F32, "type_v": F32, "flash_attn": False} | options) as session:
        for start, stop in pieces:
            session.decode(tokens[start:stop], position=start)
            heads = {head.name: session.head_logits(head.name) for head in session.heads}
            found.append({"task": session.logits()} | heads)
    np.savez(out, **{name: np.concatenate([piece[name] for piece in found]) for name in found[0]})


if __name__ == "__main__":
    main()
