"""Probes of the published shapes through the runtime, against a token-by-token computation of what they read."""

import numpy as np
import pytest
from probe_models import HIDDEN, ROWS, SHAPES, features, probe_logits, random_tensors, write_probe

from llama_so8t.bindings import Session
from llama_so8t.bindings.session import F32
from llama_so8t.checkpoint.singprobe import open_probe
from llama_so8t.heads_file import Base, write_heads_file

from .conftest import MARGIN
from .tapped_models import N_VOCAB, make_bare, streams

SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": 5, "max_position_embeddings": 4096}

EXACT = {"n_ctx": 4096, "n_batch": 4096, "type_k": F32, "type_v": F32, "flash_attn": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory, pinned_tree):
    """A qwen3 of the width of the published base, with few layers: the model of transformers, and its file."""
    from llama_so8t import upstream

    upstream.gguf  # before transformers, which would import another one  # noqa: B018
    return make_bare(tmp_path_factory.mktemp("base"), "qwen3", **SIZES)


@pytest.fixture(scope="module")
def probed(base, tmp_path_factory):
    """Name of a shape -> the heads file of a probe, and a function from tokens to its values."""
    net, path = base
    made = {}

    def get(name):
        if name not in made:
            shape, directory = SHAPES[name], tmp_path_factory.mktemp(name)
            tensors = random_tensors(shape)
            probe = open_probe(write_probe(directory / "probe", shape, tensors))
            file = directory / "probe.heads.gguf"
            write_heads_file(file, Base.of(path), probe.heads, probe.tensors)

            def values(tokens):
                logits = probe_logits(shape, tensors, features(streams(net, tokens), shape.layers)).numpy()
                return {head: logits[:, rows] for head, rows in ROWS.items()}

            made[name] = file, values
        return made[name]

    return get


def tokens_of(seed, n):
    return np.random.default_rng(seed).integers(3, N_VOCAB, n).tolist()


def assert_values(session, expected, rows=slice(None), outputs=slice(None)):
    """What `session` has of its last outputs, against rows of ``expected``."""
    assert [head.name for head in session.heads] == list(expected)
    for name, values in expected.items():
        found = session.head_logits(name)[outputs]
        assert found.shape == values[rows].shape
        assert np.abs(found - values[rows]).max() <= MARGIN * np.abs(values).max(), name


@pytest.mark.parametrize("name", SHAPES)
def test_every_token_has_the_logits_of_the_report(base, probed, name):
    file, values = probed(name)
    tokens = tokens_of(1, 2100 if name == "attn-2048" else 70)
    with Session(base[1], **EXACT, heads=[file]) as session:
        session.decode(tokens)
        assert_values(session, values(tokens))


@pytest.mark.parametrize("n_batch", [1, 7, 512])
@pytest.mark.parametrize("name", ["attn-4", "attn-8", "attn-5", "mlp"])
def test_batches_of_any_size_give_the_same(base, probed, name, n_batch):
    file, values = probed(name)
    tokens = tokens_of(2, 50)
    expected = values(tokens)
    with Session(base[1], **EXACT, heads=[file]) as session:
        for start in range(0, 50, n_batch):
            part = tokens[start : start + n_batch]
            session.decode(part, position=start)
            assert_values(session, expected, slice(start, start + n_batch))


@pytest.mark.parametrize("name", ["attn-4", "attn-5", "mlp"])
def test_the_last_token_knows_those_without_outputs(base, probed, name):
    """As a prompt is read: nothing but the last of its tokens is an output."""
    file, values = probed(name)
    tokens = tokens_of(3, 40)
    with Session(base[1], **EXACT, heads=[file]) as session:
        session.decode(tokens[:33], outputs=[False] * 33)
        session.decode(tokens[33:], position=33, outputs=[False] * 6 + [True])
        assert_values(session, values(tokens), slice(39, 40))


@pytest.mark.parametrize("name", ["attn-4", "attn-5", "mlp"])
def test_eight_sequences_with_drafts_that_are_taken_back(base, probed, name):
    """Each sequence gets two tokens a round, of which the second is a wrong draft and is taken back."""
    file, values = probed(name)
    n, n_tokens = 8, 12
    texts = [tokens_of(10 + sequence, n_tokens) for sequence in range(n)]
    drafts = [tokens_of(50 + sequence, n_tokens) for sequence in range(n)]
    expected = [values(tokens) for tokens in texts]
    with Session(base[1], **EXACT, heads=[file], n_seq_max=n) as session:
        for position in range(n_tokens):
            session.decode(
                [token for s in range(n) for token in (texts[s][position], drafts[s][position])],
                positions=[position, position + 1] * n,
                sequence=[s for s in range(n) for _ in range(2)],
            )
            for s in range(n):
                assert_values(session, expected[s], slice(position, position + 1), slice(2 * s, 2 * s + 1))
                session.forget(s, start=position + 1)
