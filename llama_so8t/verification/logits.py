"""Runs a short prompt through llama.cpp and through the reference model, and compares their numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from llama_so8t.algebra import N_GENERATORS
from llama_so8t.bindings import Session, library
from llama_so8t.bindings.session import F32
from llama_so8t.checkpoint import Checkpoint
from llama_so8t.checkpoint.gguf_generators import read_generators
from llama_so8t.checkpoint.names import gguf_name, layer_tensor
from llama_so8t.checkpoint.row_order import from_gguf
from llama_so8t.conversion.convert import Plan
from llama_so8t.errors import RuntimeLibraryError
from llama_so8t.format import ARCH, FORMAT_VERSION, SITES
from llama_so8t.machine import available_memory, n_cores
from llama_so8t.tensors import LazyTensor
from llama_so8t.verification.bounds import LOGITS, LOGITS_QUANTIZED
from llama_so8t.verification.report import FAILED, NOT_RUN, OK, Check

PROMPT = "The quick brown fox jumps over the lazy dog. A rotation keeps the length of every vector."
N_TOKENS = 24
TASK = "task"


def compare_logits(plan: Plan, tensors: Mapping[str, LazyTensor]) -> Check:
    """Compares task logits and head values at every position of `PROMPT`.

    The reference has the weights of the checkpoint where the file is F32, so that folding is part of the question,
    and else the dequantized weights of the file, with the rotations that the graph still has to do.

    Args:
        plan: the conversion.
        tensors: all tensors of its files, known to be complete.
    """
    try:
        library.load()
    except RuntimeLibraryError as error:
        return Check("logits", NOT_RUN, str(error))
    lacking = _lacking_memory(tensors)
    if lacking:
        return Check("logits", NOT_RUN, lacking)
    try:
        tokens, found = _of_runtime(plan.paths[0])
    except RuntimeLibraryError as error:
        return Check("logits", FAILED, "llama.cpp does not run the file", (str(error),))
    limits = {tensor.dtype: LOGITS.get(tensor.dtype, LOGITS_QUANTIZED) for tensor in tensors.values()}
    of_source = set(limits) == {"F32"}
    expected = _of_reference(plan.checkpoint, _source(plan) if of_source else _stored(plan, tensors), tokens)
    if plan.arch != ARCH:
        expected = {TASK: expected[TASK]}  # the heads are a file of their own
    source = "the checkpoint's weights" if of_source else "the weights of the file"
    return _compared(found, expected, max(limits.values()), f"{len(tokens)} tokens, {source}")


def effect_of_dropped_sites(plan: Plan) -> str:
    """What leaving out rotations does to the task logits of the reference model, in one line.

    ``RMS of the difference / RMS of the logits`` over `N_TOKENS` random tokens, float32.
    """
    checkpoint = plan.checkpoint
    lacking = _lacking_memory(checkpoint.tensors)
    if lacking:
        return f"effect on the logits not measured: {lacking}"
    tokens = np.random.default_rng(0).integers(0, checkpoint.config["vocab_size"], N_TOKENS).tolist()
    whole = _of_reference(checkpoint, checkpoint.load, tokens)[TASK]
    without = _of_reference(checkpoint, _source(plan), tokens)[TASK]
    same = int((whole.argmax(-1) == without.argmax(-1)).sum())
    return (
        f"logits change by {_rms(whole - without) / _rms(whole):.1%} of their RMS, "
        f"the likeliest token stays for {same} of {N_TOKENS} random tokens"
    )


def _lacking_memory(tensors: Mapping[str, LazyTensor]) -> str | None:
    """Why the reference model does not fit in memory, or None if it does."""
    n_values = sum(math.prod(tensor.shape) for tensor in tensors.values())
    needed, available = 4 * n_values * 5 // 4, available_memory()
    if available is not None and needed <= available:
        return None
    free = "an unknown amount is" if available is None else f"{available:,} are"
    return f"the reference model needs {needed:,} bytes of memory, {free} available"


def _of_runtime(path: Path) -> tuple[list[int], dict[str, np.ndarray]]:
    threads = min(n_cores(), 8)
    with Session(path, n_ctx=64, n_threads=threads, type_k=F32, type_v=F32, flash_attn=False) as session:
        tokens = session.tokenize(PROMPT)[:N_TOKENS]
        session.decode(tokens)
        heads = {head.name: session.head_logits(head.name) for head in session.heads}
        return tokens, {TASK: session.logits()} | heads


def _of_reference(
    checkpoint: Checkpoint, read: Callable[[str], np.ndarray], tokens: Sequence[int]
) -> dict[str, np.ndarray]:
    import torch
    from transformers.initialization import no_init_weights

    from llama_so8t.hf import SO8TTransformerConfig, SO8TTransformerForCausalLM

    config = SO8TTransformerConfig(**checkpoint.config | checkpoint.stem_fields)
    with no_init_weights():
        model = SO8TTransformerForCausalLM(config)
    model = model.float().eval()
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in checkpoint.tensors:
                parameter.copy_(torch.from_numpy(np.array(read(name))))
            else:
                parameter.zero_()  # the bias of a head is optional
        output = model(torch.tensor([list(tokens)]))
    heads = {name: values[0].numpy() for name, values in output.head_logits.items()}
    return {TASK: output.logits[0].numpy()} | heads


def _source(plan: Plan) -> Callable[[str], np.ndarray]:
    """Reads the checkpoint; sites that the file leaves out are zero."""
    kept = (*plan.folded, *plan.explicit)
    lost = {generator for name, site in SITES.items() if name not in kept for generator in site.generator_names}

    def read(name: str) -> np.ndarray:
        generator = _generator(name)
        return np.zeros(plan.checkpoint.shape(name), np.float32) if generator in lost else plan.checkpoint.load(name)

    return read


def _stored(plan: Plan, tensors: Mapping[str, LazyTensor]) -> Callable[[str], np.ndarray]:
    """Reads the file under the checkpoint's names; a generator that is folded into the weights is zero."""
    spec = plan.checkpoint.spec
    in_graph = {name for site in plan.explicit for name in SITES[site].generator_names}
    sites = (*plan.explicit, *plan.folded)

    def of_layer(layer: int) -> dict[str, tuple[str, np.ndarray]]:
        def values(name: str, _: int) -> np.ndarray:
            return tensors[name].read().reshape(-1, N_GENERATORS)

        size, n_head = spec.hidden_size, spec.n_head
        return read_generators(plan.paths[0], FORMAT_VERSION, layer, sites, size, n_head, values)

    def read(name: str) -> np.ndarray:
        shape, generator = plan.checkpoint.shape(name), _generator(name)
        if generator is None:
            tensor = tensors[gguf_name(name, spec)].renamed(name)
            return (tensor if plan.arch == ARCH else from_gguf(tensor, spec)).read().reshape(shape)
        if generator not in in_graph:
            return np.zeros(shape, dtype=np.float32)
        found = layer_tensor(name)
        assert found is not None, f"{name}: a generator in the graph is one of a layer"
        return of_layer(found[0])[generator][1].reshape(shape)

    return read


def _generator(name: str) -> str | None:
    """Name of a generator, "out" included, or None for another tensor."""
    _, found, generator = name.rpartition("so8t.")
    return generator if found else None


def _compared(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], limit: float, detail: str) -> Check:
    problems, shown = [], []
    if list(found) != list(expected):
        problems.append(f"logits: llama.cpp has {', '.join(found)}; expected {', '.join(expected)}")
    for name in expected:
        if name not in found:
            continue
        if found[name].shape != expected[name].shape:
            problems.append(
                f"logits of {name}: found shape {list(found[name].shape)}, expected {list(expected[name].shape)}"
            )
            continue
        difference, scale = _rms(found[name] - expected[name]), _rms(expected[name])
        shown.append(f"{name} {difference / (scale or 1.0):.1e}")
        if not difference <= limit * scale:
            problems.append(
                f"logits of {name}: differ from the reference by {difference / (scale or 1.0):.2g} of their RMS, "
                f"allowed: {limit:g}"
            )
    if found[TASK].shape == expected[TASK].shape:
        shown.append(f"same top token {(found[TASK].argmax(-1) == expected[TASK].argmax(-1)).mean():.0%}")
    return Check("logits", FAILED if problems else OK, f"{detail}; RMS difference {', '.join(shown)}", tuple(problems))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
