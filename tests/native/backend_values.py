"""``python backend_values.py FILE OUT N_GPU_LAYERS TOKEN...``: logits and head values of a prompt as OUT (npz).

A process of its own: a backend that is once loaded stays for all later models.
"""

import sys

import numpy as np

from llama_so8t.bindings import Session
from llama_so8t.bindings.session import F32


def main() -> None:
    file, out, n_gpu_layers, *tokens = sys.argv[1:]
    with Session(file, n_gpu_layers=int(n_gpu_layers), type_k=F32, type_v=F32, flash_attn=False) as session:
        session.decode([int(token) for token in tokens])
        prompt = {"task": session.logits()} | {head.name: session.head_logits(head.name) for head in session.heads}
        session.decode([int(tokens[0])], position=len(tokens))
        prompt["next"] = session.logits()
    np.savez(out, **prompt)


if __name__ == "__main__":
    main()
