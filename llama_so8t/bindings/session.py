"""A model and a context: decode tokens, read logits, embeddings and head values of every one of them."""

import ctypes as c
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

import numpy as np

from llama_so8t.bindings.library import VERSION, SessionNode, SessionParams, call
from llama_so8t.errors import RuntimeLibraryError

F32, F16, Q8_0 = 0, 1, 8
"""ggml types of the KV cache."""

SPLIT_MODES = ("none", "layer", "row", "tensor")
"""``llama_split_mode``: how the devices share a model."""


@dataclass(frozen=True)
class Head:
    """A classification head of the loaded file."""

    name: str
    labels: tuple[str, ...]


OBSERVE = ("no", "nodes", "times")
"""What a session records of its graph: nothing, the nodes, or also the time of each, computed alone."""

SO8_HINT = 2
"""GGML_HINT_SRC0_IS_SO8."""


@dataclass(frozen=True)
class Node:
    """One node of a graph: operation, names of result and first operand, hint of a MUL_MAT, seconds."""

    op: str
    name: str
    operand: str
    hint: int
    seconds: float

    @property
    def is_rotation(self) -> bool:
        """Whether the first operand is a stack of rotations."""
        return self.hint == SO8_HINT


class SessionSizes(TypedDict, total=False):
    """Those options of a `Session` that are numbers of tokens and threads."""

    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_threads: int


class Session:
    """The patched llama.cpp with one model loaded.

    Args:
        path: GGUF file.
        n_ctx: context length in tokens.
        n_batch: most tokens in one `decode`.
        n_ubatch: tokens evaluated at once inside it.
        n_seq_max: parallel sequences.
        n_threads: CPU threads.
        n_gpu_layers: layers on the GPU, where one is built in.
        flash_attn: None lets llama.cpp choose.
        type_k: ggml type of the key cache.
        type_v: ggml type of the value cache.
        embeddings: also compute final hidden states.
        kv_unified: one KV cache for all sequences, which share its cells; else each has its own part of ``n_ctx``.
        rpc: ``host:port`` of servers started with ``ggml-rpc-server``, which are the devices instead of this
            machine's; `n_gpu_layers` counts the layers on them.
        split_mode: one of `SPLIT_MODES`.
        tensor_split: share of each device; None goes by their free memory.
        observe: one of `OBSERVE`; what `nodes` gives.
        heads: heads files that were fitted on this model, whose heads have different names. Architecture, width and
            layers of their base are compared with the model, the hash of its tensors is not.

    Raises:
        RuntimeLibraryError: the library is missing, an RPC server cannot be reached, or llama.cpp refused the file;
            its words are in the message. A server that is lost later ends the process (SIGABRT), as in every
            program on llama.cpp.
        ValueError: no such split mode.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        n_threads: int = 2,
        n_gpu_layers: int = 0,
        flash_attn: bool | None = None,
        type_k: int = F16,
        type_v: int = F16,
        embeddings: bool = False,
        kv_unified: bool = True,
        rpc: Sequence[str] = (),
        split_mode: str = "layer",
        tensor_split: Sequence[float] = (),
        observe: str = "no",
        heads: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        params = SessionParams(
            version=VERSION,
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_seq_max=n_seq_max,
            n_threads=n_threads,
            n_gpu_layers=n_gpu_layers,
            flash_attn=-1 if flash_attn is None else int(flash_attn),
            type_k=type_k,
            type_v=type_v,
            embeddings=embeddings,
            kv_unified=kv_unified,
            split_mode=SPLIT_MODES.index(split_mode),
            rpc=",".join(rpc).encode() if rpc else None,
            tensor_split=(c.c_float * len(tensor_split))(*tensor_split) if tensor_split else None,
            n_tensor_split=len(tensor_split),
            observe=OBSERVE.index(observe),
            heads=(c.c_char_p * len(heads))(*(os.fsencode(Path(file)) for file in heads)) if heads else None,
            n_heads=len(heads),
        )
        self._handle = None
        self._handle = call("init", os.fsencode(Path(path)), c.byref(params))
        if not self._handle:
            raise RuntimeLibraryError(f"{path}: llama.cpp did not load it: {_error()}")
        self._outputs: list[int] = []
        self.n_vocab: int = call("n_vocab", self._handle)
        self.n_embd: int = call("n_embd", self._handle)
        self.heads = tuple(self._read_head(index) for index in range(call("n_heads", self._handle)))

    def _read_head(self, index: int) -> Head:
        labels = range(call("head_n_labels", self._handle, index))
        return Head(
            name=call("head_name", self._handle, index).decode(),
            labels=tuple(call("label_name", self._handle, index, label).decode() for label in labels),
        )

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of a text; special tokens in it are parsed.

        Raises:
            RuntimeLibraryError: the text has more tokens than bytes.
        """
        n_max = len(text.encode()) + 8
        tokens = (c.c_int32 * n_max)()
        n = call("tokenize", self._handle, text.encode(), add_special, tokens, n_max)
        if n < 0:
            raise RuntimeLibraryError(f"tokenize: {-n} tokens for {n_max - 8} bytes of text")
        return list(tokens[:n])

    def decode(
        self,
        tokens: Sequence[int],
        *,
        position: int = 0,
        sequence: int | Sequence[int] = 0,
        positions: Sequence[int] | None = None,
        outputs: Sequence[bool] | None = None,
    ) -> None:
        """Evaluates tokens.

        Args:
            tokens: ids, at most n_batch.
            position: position of the first token, the others follow.
            sequence: sequence of all tokens, or one for each.
            positions: a position for each token, instead of `position`.
            outputs: which tokens become outputs; all of them by default, and always with ``embeddings=True``.

        Raises:
            RuntimeLibraryError: the batch is empty, too large, or holds an id that does not exist.
        """
        n = len(tokens)
        positions = list(range(position, position + n)) if positions is None else list(positions)
        sequences = [sequence] * n if isinstance(sequence, int) else list(sequence)
        int32s = c.c_int32 * n
        flags = None if outputs is None else (c.c_bool * n)(*outputs)
        status = call("decode", self._handle, int32s(*tokens), int32s(*positions), int32s(*sequences), flags, n)
        if status != 0:
            raise RuntimeLibraryError(f"decode of {n} tokens failed with status {status}: {_error()}")
        self._outputs = [i for i in range(n) if outputs is None or outputs[i]]

    def time(self, tokens: Sequence[int], *, one_by_one: bool = False) -> float:
        """Seconds to evaluate tokens after those of sequence 0, as the tests pp and tg of llama-bench do.

        Args:
            tokens: ids, at most n_batch where they are one batch.
            one_by_one: whether each is a batch of its own; only the last of a batch becomes an output.

        Raises:
            RuntimeLibraryError: the context is full, or another failure of llama.cpp.
        """
        n = len(tokens)
        seconds = call("time", self._handle, (c.c_int32 * n)(*tokens), n, one_by_one)
        if seconds < 0:
            raise RuntimeLibraryError(f"evaluation of {n} tokens failed: {_error()}")
        return seconds

    def set_threads(self, n_threads: int) -> None:
        """CPU threads of the following evaluations."""
        call("set_threads", self._handle, n_threads)

    def nodes(self) -> list[Node]:
        """Nodes of the last `decode` or `time` in the order of their computation; needs ``observe``."""
        node, found = SessionNode(), []
        for index in range(call("n_nodes", self._handle)):
            call("get_node", self._handle, index, c.byref(node))
            found.append(Node(node.op.decode(), node.name.decode(), node.operand.decode(), node.hint, node.seconds))
        return found

    def logits(self) -> np.ndarray:
        """Task logits of the last `decode`: ``(n_outputs, n_vocab)`` float32."""
        return self._rows(self.n_vocab, lambda i: call("logits", self._handle, i))

    def embeddings(self) -> np.ndarray:
        """Hidden states after the final norm: ``(n_outputs, n_embd)`` float32; needs ``embeddings=True``."""
        return self._rows(self.n_embd, lambda i: call("embedding", self._handle, i))

    def head_logits(self, name: str) -> np.ndarray:
        """Values of one head: ``(n_outputs, n_labels)`` float32."""
        index = [head.name for head in self.heads].index(name)
        return self._rows(len(self.heads[index].labels), lambda i: call("head_logits", self._handle, index, i))

    def text_probabilities(self, name: str, aggregation: int, start: int, stop: int, output: int = -1) -> np.ndarray:
        """Probabilities of one head over a text: ``(n_labels,)`` float32.

        Args:
            name: the head.
            aggregation: index into its ``prompt_aggregation``; not that of ``token``.
            start: first position of the text.
            stop: the position behind its last.
            output: the text is in the sequence of this output of the last `decode`.

        Raises:
            RuntimeLibraryError: one of the positions has no finite values.
        """
        index = [head.name for head in self.heads].index(name)
        result = np.empty(len(self.heads[index].labels), dtype=np.float32)
        pointer = result.ctypes.data_as(c.POINTER(c.c_float))
        if not call("text_probs", self._handle, index, aggregation, self._outputs[output], start, stop, pointer):
            raise RuntimeLibraryError(f"head {name}: positions {start} to {stop} have no values")
        return result

    def _rows(self, width: int, row: Callable[[int], Any]) -> np.ndarray:
        result = np.empty((len(self._outputs), width), dtype=np.float32)
        for number, i in enumerate(self._outputs):
            pointer = row(i)
            if not pointer:
                raise RuntimeLibraryError(f"token {i} of the last decode has no such output")
            result[number] = np.ctypeslib.as_array(pointer, (width,))
        return result

    def forget(self, sequence: int = 0, start: int = 0, stop: int = -1, shift: int = 0) -> None:
        """Removes positions ``[start, stop)`` of a sequence and moves what follows by ``shift`` (context shift).

        Raises:
            RuntimeLibraryError: the memory of this model does not allow it.
        """
        if not call("forget", self._handle, sequence, start, stop, shift):
            raise RuntimeLibraryError(f"positions {start} to {stop} of sequence {sequence} cannot be removed")

    def copy(self, source: int, target: int, start: int = 0, stop: int = -1) -> None:
        """Gives positions ``[start, stop)`` of a sequence to another one as well: they are evaluated once."""
        call("copy", self._handle, source, target, start, stop)

    def save_state(self, sequence: int = -1) -> bytes:
        """The state of a sequence, or the context's whole state."""
        size = call("state_size", self._handle, sequence)
        buffer = c.create_string_buffer(size)
        n_written = call("state_get", self._handle, sequence, buffer, size)
        return buffer.raw[:n_written]

    def load_state(self, state: bytes, sequence: int = -1) -> None:
        """Restores what `save_state` gave: a sequence as this one, or the whole context.

        Raises:
            RuntimeLibraryError: it is the state of another model or context.
        """
        if call("state_set", self._handle, sequence, state, len(state)) == 0:
            raise RuntimeLibraryError(f"the state does not fit this model and context: {_error()}")

    def apply_lora(self, path: str | os.PathLike[str], scale: float = 1.0) -> None:
        """Applies a LoRA adapter in GGUF form, multiplied by ``scale``.

        Raises:
            RuntimeLibraryError: llama.cpp refuses the file.
        """
        if call("lora", self._handle, os.fsencode(Path(path)), scale) != 0:
            raise RuntimeLibraryError(f"{path}: llama.cpp did not load this LoRA adapter: {_error()}")

    def close(self) -> None:
        """Frees model and context; also done at the end of a ``with`` block."""
        if self._handle:
            call("free", self._handle)
            self._handle = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _error() -> str:
    text = call("error").decode(errors="replace")
    return "; ".join(line.strip() for line in text.splitlines() if line.strip()) or "no reason given"
