"""What heads keep of every token: keys and values of attention stems, values of texts. However a sequence came to be,
it has what one pass over it has."""

import gguf_files
import numpy as np
import pytest

from llama_so8t.bindings import Session
from llama_so8t.bindings.session import F16, Q8_0
from llama_so8t.errors import RuntimeLibraryError

from .conftest import MARGIN
from .tapped_models import HEADS, N_EMBD, head_keys, head_tensors
from .test_rpc import FLASH_MARGIN, endpoints, servers  # noqa: F401
from .test_taps import EXACT, assert_values, tapped, tokens_of  # noqa: F401

TEXTS = [head for head in HEADS if head.prompt_aggregation != ("token",)]
KEPT = ("looks", "looks_too", "near", "text", "text_too")
"""Heads that depend on the tokens before by more than the layers of the model."""


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def aggregate(head, how, values):
    """Probabilities over a text, from its values ``(n, labels)``: docs/format.md, written anew with scipy."""
    from scipy.signal import lfilter

    def link(x):
        x = x / head.temperature
        return softmax(x) if head.link == "softmax" else 1 / (1 + np.exp(-x))

    if how == "mean":
        return link(values.mean(0))
    if how == "ema":
        alpha = head.ema_alpha
        filtered, _ = lfilter([alpha], [1, alpha - 1], values, axis=0, zi=(1 - alpha) * values[:1])
        return link(filtered[-1])
    n = {"max": 1, "window8": 8, "window16": 16}[how]
    n = min(n, len(values))
    means = np.lib.stride_tricks.sliding_window_view(values, n, axis=0).mean(-1)
    return link(means).max(0)


def assert_texts(session, expected, spans, output=-1, shift=0):
    """Every aggregation of every head over these spans of positions; ``shift``: where the sequence stands now."""
    for head in TEXTS:
        for index, how in enumerate(head.prompt_aggregation):
            if how == "token":
                continue
            for start, stop in spans:
                found = session.text_probabilities(head.name, index, start + shift, stop + shift, output)
                assert np.abs(found - aggregate(head, how, expected[head.name][start:stop])).max() <= 5e-4, (head, how)


@pytest.mark.parametrize("n_batch", [1, 7, 512])
@pytest.mark.parametrize("arch", ["qwen3", "gemma3", "lfm2", "mamba"])
def test_texts_are_aggregated_as_the_format_says(tapped, arch, n_batch):  # noqa: F811
    model, tokens = tapped(arch), tokens_of(11, 60)
    expected = model.values(tokens)
    with Session(model.path, **EXACT) as session:
        for start in range(0, len(tokens), n_batch):
            part = tokens[start : start + n_batch]
            last = start + len(part) == len(tokens)
            session.decode(part, position=start, outputs=[last and i + 1 == len(part) for i in range(len(part))])
        assert_texts(session, expected, [(0, 60), (5, 6), (3, 12), (20, 60), (59, 60)])


def test_a_text_that_is_not_there_has_no_probabilities(tapped):  # noqa: F811
    with Session(tapped("qwen3").path, **EXACT) as session:
        session.decode(tokens_of(12, 10))
        for start, stop in ((8, 11), (-1, 3), (5, 5), (6, 5)):
            with pytest.raises(RuntimeLibraryError, match="have no values"):
                session.text_probabilities("text", 0, start, stop)


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_prefix_that_sequences_share_is_that_of_each(tapped, kv_unified):  # noqa: F811
    model, prefix = tapped("qwen3"), tokens_of(13, 20)
    tails = [tokens_of(14, 9), tokens_of(15, 9)]
    with Session(model.path, **EXACT, n_seq_max=3, kv_unified=kv_unified) as session:
        session.decode(tails[1], sequence=1)
        session.decode(prefix, sequence=0)
        session.copy(0, 2)
        for sequence, tail in ((0, tails[0]), (2, tails[1])):
            session.decode(tail, position=20, sequence=sequence)
            expected = model.values([*prefix, *tail])
            assert_values(session, expected, slice(20, None))
            assert_texts(session, expected, [(0, 29), (18, 23)])
        session.forget(0)
        session.decode(tails[0], position=20 + len(tails[1]), sequence=2)
        assert_values(session, model.values([*prefix, *tails[1], *tails[0]]), slice(29, None))


def test_a_shift_moves_positions_and_no_values(tapped):  # noqa: F811
    """As a context shift does: the model rotates its keys, which are the only ones with a position. What heads keep of
    the tokens that stay is what it was, so an aggregate over them is that of the pass before the shift."""
    model, tokens = tapped("llama"), tokens_of(16, 40)
    expected = model.values(tokens)
    with Session(model.path, **EXACT, n_seq_max=2) as session:
        session.decode(tokens)
        session.forget(0, 4, 14, shift=-10)
        session.decode(tokens_of(17, 1), position=30)
        assert_texts(session, expected, [(14, 40), (20, 31)], shift=-10)
        assert_texts(session, expected, [(0, 4)])
        with pytest.raises(RuntimeLibraryError, match="have no values"):
            session.text_probabilities("text", 0, 28, 32)


def test_a_shift_of_one_sequence_leaves_the_other(tapped):  # noqa: F811
    """Where each has its own part of the KV cache. In a unified one they share cells, which move for all of them."""
    model, tokens, more = tapped("llama"), tokens_of(18, 24), tokens_of(19, 6)
    with Session(model.path, **EXACT, n_seq_max=2, kv_unified=False) as session:
        session.decode(tokens)
        session.copy(0, 1)
        session.forget(0, 2, 12, shift=-10)
        session.decode(tokens_of(20, 3), position=14)
        session.decode(more, position=24, sequence=1)
        expected = model.values([*tokens, *more])
        assert_values(session, expected, slice(24, None))
        assert_texts(session, expected, [(0, 30)])


@pytest.mark.parametrize("arch", ["qwen3", "gemma3", "lfm2", "mamba"])
def test_a_saved_sequence_goes_on_as_another_one(tapped, arch):  # noqa: F811
    model, tokens, more = tapped(arch), tokens_of(21, 25), tokens_of(22, 6)
    expected = model.values([*tokens, *more])
    with Session(model.path, **EXACT, n_seq_max=2) as session:
        session.decode(tokens_of(23, 12), sequence=1)
        session.decode(tokens)
        state = session.save_state(0)
    with Session(model.path, **EXACT, n_seq_max=2) as session:
        session.decode(tokens_of(24, 9), sequence=0)
        session.decode(tokens_of(25, 30), sequence=1)
        session.load_state(state, 1)
        session.decode(more, position=25, sequence=1)
        assert_values(session, expected, slice(25, None))
        assert_texts(session, expected, [(0, 31), (20, 28)])
        session.decode(more, position=9, sequence=0)
        assert_values(session, model.values([*tokens_of(24, 9), *more]), slice(9, None))


def test_a_state_of_other_heads_is_refused_and_leaves_nothing_half_read(tapped):  # noqa: F811
    """A model without such heads has the same KV cache, so its state fits as far as that goes."""
    model, tokens = tapped("qwen3"), tokens_of(26, 12)
    with Session(model.path.parent / "bare.gguf", **EXACT) as session:
        session.decode(tokens)
        state = session.save_state(0)
    with Session(model.path, **EXACT) as session:
        session.decode(tokens_of(27, 5))
        with pytest.raises(RuntimeLibraryError, match="does not fit"):
            session.load_state(state, 0)
        session.forget(0)
        session.decode(tokens)
        assert_values(session, model.values(tokens))


def save(path, tokens):
    with Session(path, **EXACT) as session:
        session.decode(tokens)
        return session.save_state(0)


def test_heads_that_look_at_outputs_only_keep_nothing(tapped, tmp_path):  # noqa: F811
    model, tokens = tapped("qwen3"), tokens_of(36, 12)
    bare, heads = model.path.parent / "bare.gguf", tuple(head for head in HEADS if head.name not in KEPT)
    path = gguf_files.copy_gguf(bare, tmp_path / "few.gguf", head_keys(heads), head_tensors(heads, N_EMBD, 1))
    assert save(path, tokens) == save(bare, tokens) and len(save(model.path, tokens)) > len(save(bare, tokens))


@pytest.mark.parametrize("name", ["so8t_stem.u.attn_k.weight", "so8t_head.text.bias", "so8t_stem.w.weight"])
def test_a_state_of_heads_with_other_weights_is_refused(tapped, tmp_path, name):  # noqa: F811
    """Everything fits, and every value would be wrong."""

    def change(values):
        values.reshape(-1)[1] += 1

    model, tokens = tapped("qwen3"), tokens_of(37, 12)
    other = gguf_files.copy_gguf(model.path, tmp_path / "other.gguf", tensors={name: change})
    with Session(model.path, **EXACT) as session:
        with pytest.raises(RuntimeLibraryError, match="does not fit"):
            session.load_state(save(other, tokens), 0)
        session.load_state(save(model.path, tokens), 0)


def cells_of(state, n_tokens):
    """Where a state begins to tell of cells: behind the magic, the number of cells and the hash."""
    at = state.rindex((0x73386D31).to_bytes(4, "little") + n_tokens.to_bytes(4, "little"))
    return at + 16


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (-12, 1 << 30, "has 1073741824 tokens, more than the heads have room for"),
        (-8, 7, "is of a model with other heads"),
        (0, 0xFFFFFFFF, "has a token at position -1"),
        (4, 3, "has a token of no sequence, or of too many"),
        (8 * 12, 0x7FC00000, "has a value that is not finite"),
    ],
)
def test_a_damaged_state_is_refused_and_leaves_nothing(tapped, offset, value, words):  # noqa: F811
    model, tokens = tapped("qwen3"), tokens_of(38, 12)
    state = bytearray(save(model.path, tokens))
    at = cells_of(bytes(state), 12) + offset
    state[at : at + 4] = value.to_bytes(4, "little")
    with Session(model.path, **EXACT) as session:
        session.decode(tokens_of(39, 7))
        with pytest.raises(RuntimeLibraryError, match=words):
            session.load_state(bytes(state), 0)
        with pytest.raises(RuntimeLibraryError):
            session.load_state(bytes(state[:-9]), 0)
        session.decode(tokens)  # position 0: nothing is there
        assert_values(session, model.values(tokens))
        assert_texts(session, model.values(tokens), [(0, 12)])


@pytest.mark.parametrize(("kind", "margin"), [(F16, 5e-3), (Q8_0, 5e-2)])
def test_the_type_of_the_kv_cache_is_that_of_the_model_alone(tapped, kind, margin):  # noqa: F811
    """What heads keep is F32: their values differ no more than those of heads that keep nothing."""
    model, tokens = tapped("qwen3"), tokens_of(28, 40)
    expected = model.values(tokens)
    with Session(model.path, n_ctx=1024, type_k=kind, type_v=kind) as session:
        for start in range(0, 40, 5):
            session.decode(tokens[start : start + 5], position=start)
        error = {
            name: np.abs(session.head_logits(name) - values[35:]).max() / np.abs(values).max()
            for name, values in expected.items()
        }
    assert max(error[name] for name in KEPT) <= max(margin, 3 * max(error[n] for n in error if n not in KEPT))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_threads_change_no_value(tapped, n_threads):  # noqa: F811
    model, tokens = tapped("qwen3"), tokens_of(29, 50)
    with Session(model.path, **EXACT, n_threads=n_threads) as session:
        session.decode(tokens)
        assert_values(session, model.values(tokens))


def test_a_full_context_is_an_error_and_frees_what_it_took(tapped):  # noqa: F811
    model, tokens = tapped("qwen3"), tokens_of(30, 250)
    with Session(model.path, **EXACT | {"n_ctx": 256}) as session:
        session.decode(tokens)
        with pytest.raises(RuntimeLibraryError):
            session.decode(tokens_of(31, 20), position=250)
        session.forget(0, 20)
        session.decode(tokens[20:40], position=20)
        assert_values(session, model.values(tokens[:40]), slice(20, None))


def test_the_margin_can_fail(tapped):  # noqa: F811
    """A key that is one position late is far outside of it."""
    model, tokens = tapped("qwen3"), tokens_of(32, 30)
    expected = model.values(tokens)
    late = model.values([tokens[0], *tokens[:-1]])
    for name in KEPT:
        assert np.abs(late[name][5:] - expected[name][5:]).max() > 50 * MARGIN * np.abs(expected[name]).max()


@pytest.mark.parametrize("arch", ["qwen3", "gemma3"])
def test_two_rpc_servers_keep_what_one_process_keeps(tapped, servers, arch):  # noqa: F811
    """Layers, and with them taps and cells, are on other machines; a batch is cut, taken back and read there."""
    model, tokens = tapped(arch), tokens_of(33, 30)
    expected = model.values(tokens)
    with Session(model.path, **EXACT, rpc=endpoints(servers), n_gpu_layers=99) as session:
        session.decode(tokens[:12])
        session.decode(tokens_of(34, 5), position=12)
        session.forget(0, 12)
        session.decode(tokens[12:], position=12)
        assert_values(session, expected, slice(12, None))
        assert_texts(session, expected, [(0, 30), (9, 20)])


def test_devices_that_share_every_layer_keep_what_one_keeps(tapped, servers):  # noqa: F811
    """Split mode tensor needs flash attention, which rounds to half precision on the CPU."""
    model, tokens = tapped("qwen3"), tokens_of(35, 30)
    expected = model.values(tokens)
    where = {"rpc": endpoints(servers), "n_gpu_layers": 99, "split_mode": "tensor", "flash_attn": True}
    with Session(model.path, **EXACT | where) as session:
        session.decode(tokens)
        for name, values in expected.items():
            assert np.abs(session.head_logits(name) - values).max() <= 2 * FLASH_MARGIN * np.abs(values).max(), name
