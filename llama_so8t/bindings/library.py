"""Finds and loads ``libso8t-session``; each C prototype stands above its binding."""

import ctypes as c
import functools
import os
from pathlib import Path
from typing import Any

from llama_so8t.errors import RuntimeLibraryError

VERSION = 5
"""SO8T_SESSION_VERSION of so8t-session.h."""


class SessionParams(c.Structure):
    """``struct so8t_session_params``."""

    _fields_ = [
        ("version", c.c_uint32),
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_gpu_layers", c.c_int32),
        ("flash_attn", c.c_int32),
        ("type_k", c.c_int32),
        ("type_v", c.c_int32),
        ("embeddings", c.c_bool),
        ("kv_unified", c.c_bool),
        ("split_mode", c.c_int32),
        ("rpc", c.c_char_p),
        ("tensor_split", c.POINTER(c.c_float)),
        ("n_tensor_split", c.c_int32),
        ("observe", c.c_int32),
        ("heads", c.POINTER(c.c_char_p)),
        ("n_heads", c.c_int32),
    ]


class SessionNode(c.Structure):
    """``struct so8t_session_node``."""

    _fields_ = [
        ("op", c.c_char_p),
        ("name", c.c_char_p),
        ("operand", c.c_char_p),
        ("hint", c.c_int32),
        ("seconds", c.c_double),
    ]


_INT32S = c.POINTER(c.c_int32)
_FLOATS = c.POINTER(c.c_float)

_PROTOTYPES = {
    # const char * so8t_session_error(void)
    "error": (c.c_char_p, []),
    # struct so8t_session * so8t_session_init(const char * path, const struct so8t_session_params * params)
    "init": (c.c_void_p, [c.c_char_p, c.POINTER(SessionParams)]),
    # void so8t_session_free(struct so8t_session * session)
    "free": (None, [c.c_void_p]),
    # int32_t so8t_session_n_vocab(const struct so8t_session * session)
    "n_vocab": (c.c_int32, [c.c_void_p]),
    # int32_t so8t_session_n_embd(const struct so8t_session * session)
    "n_embd": (c.c_int32, [c.c_void_p]),
    # int32_t so8t_session_n_heads(const struct so8t_session * session)
    "n_heads": (c.c_int32, [c.c_void_p]),
    # const char * so8t_session_head_name(const struct so8t_session * session, int32_t head)
    "head_name": (c.c_char_p, [c.c_void_p, c.c_int32]),
    # int32_t so8t_session_head_n_labels(const struct so8t_session * session, int32_t head)
    "head_n_labels": (c.c_int32, [c.c_void_p, c.c_int32]),
    # const char * so8t_session_label_name(const struct so8t_session * session, int32_t head, int32_t label)
    "label_name": (c.c_char_p, [c.c_void_p, c.c_int32, c.c_int32]),
    # int32_t so8t_session_tokenize(session, const char * text, bool add_special, int32_t * tokens, int32_t n_max)
    "tokenize": (c.c_int32, [c.c_void_p, c.c_char_p, c.c_bool, _INT32S, c.c_int32]),
    # int32_t so8t_session_decode(session, const int32_t * tokens, positions, sequences, const bool * outputs, n)
    "decode": (c.c_int32, [c.c_void_p, _INT32S, _INT32S, _INT32S, c.POINTER(c.c_bool), c.c_int32]),
    # double so8t_session_time(session, const int32_t * tokens, int32_t n, bool one_by_one)
    "time": (c.c_double, [c.c_void_p, _INT32S, c.c_int32, c.c_bool]),
    # void so8t_session_set_threads(struct so8t_session * session, int32_t n_threads)
    "set_threads": (None, [c.c_void_p, c.c_int32]),
    # int64_t so8t_session_n_nodes(const struct so8t_session * session)
    "n_nodes": (c.c_int64, [c.c_void_p]),
    # bool so8t_session_get_node(const struct so8t_session * session, int64_t i, struct so8t_session_node * node)
    "get_node": (c.c_bool, [c.c_void_p, c.c_int64, c.POINTER(SessionNode)]),
    # const float * so8t_session_logits(struct so8t_session * session, int32_t i)
    "logits": (_FLOATS, [c.c_void_p, c.c_int32]),
    # const float * so8t_session_embedding(struct so8t_session * session, int32_t i)
    "embedding": (_FLOATS, [c.c_void_p, c.c_int32]),
    # const float * so8t_session_head_logits(struct so8t_session * session, int32_t head, int32_t i)
    "head_logits": (_FLOATS, [c.c_void_p, c.c_int32, c.c_int32]),
    # bool so8t_session_text_probs(session, head, aggregation, int32_t i, int32_t p0, int32_t p1, float * probs)
    "text_probs": (c.c_bool, [c.c_void_p, *[c.c_int32] * 5, _FLOATS]),
    # void so8t_session_copy(session, int32_t from, int32_t to, int32_t p0, int32_t p1)
    "copy": (None, [c.c_void_p, c.c_int32, c.c_int32, c.c_int32, c.c_int32]),
    # bool so8t_session_forget(session, int32_t sequence, int32_t p0, int32_t p1, int32_t delta)
    "forget": (c.c_bool, [c.c_void_p, c.c_int32, c.c_int32, c.c_int32, c.c_int32]),
    # uint64_t so8t_session_state_size(struct so8t_session * session, int32_t sequence)
    "state_size": (c.c_uint64, [c.c_void_p, c.c_int32]),
    # uint64_t so8t_session_state_get(session, int32_t sequence, uint8_t * dst, uint64_t size)
    "state_get": (c.c_uint64, [c.c_void_p, c.c_int32, c.c_char_p, c.c_uint64]),
    # uint64_t so8t_session_state_set(session, int32_t sequence, const uint8_t * src, uint64_t size)
    "state_set": (c.c_uint64, [c.c_void_p, c.c_int32, c.c_char_p, c.c_uint64]),
    # int32_t so8t_session_lora(struct so8t_session * session, const char * path, float scale)
    "lora": (c.c_int32, [c.c_void_p, c.c_char_p, c.c_float]),
}


def library_directory() -> Path:
    """Folder of the built libraries: ``$SO8T_LIBRARY_PATH``, the installed package, or ``build/cpu/bin``.

    Raises:
        RuntimeLibraryError: none of them holds the library.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = [package / "lib", package.parent / "build" / "cpu" / "bin"]
    if "SO8T_LIBRARY_PATH" in os.environ:
        candidates = [Path(os.environ["SO8T_LIBRARY_PATH"])]
    for candidate in candidates:
        if any(candidate.glob("*so8t-session.*")):
            return candidate
    raise RuntimeLibraryError(
        f"libso8t-session: not found in {', '.join(map(str, candidates))}; run `make build`, or set SO8T_LIBRARY_PATH"
    )


@functools.cache
def load() -> c.CDLL:
    """The library, its prototypes set.

    Raises:
        RuntimeLibraryError: it is missing, or cannot be loaded.
    """
    path = next(iter(sorted(library_directory().glob("*so8t-session.*"))))
    try:
        library = c.CDLL(str(path))
    except OSError as error:
        raise RuntimeLibraryError(f"{path}: cannot be loaded: {error}; run `make build` again") from error
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, f"so8t_session_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def call(name: str, *arguments: Any) -> Any:
    """Calls ``so8t_session_NAME``; the prototype says what it takes and returns.

    Raises:
        RuntimeLibraryError: the library is missing.
    """
    return getattr(load(), f"so8t_session_{name}")(*arguments)
