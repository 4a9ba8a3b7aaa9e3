"""Heads that look back, in llama-server: slots, batches, drafts, caches and saved slots change no value.

The expected values are those of one pass over the whole sequence, prompt and answer, in a session of its own;
`test_taps` and `test_token_memory` compare such a pass with numpy.
"""

import random
from concurrent.futures import ThreadPoolExecutor

import gguf_files
import numpy as np
import pytest

from llama_so8t.bindings import Session
from llama_so8t.files.gguf_file import read_gguf
from llama_so8t.format import HeadSpec

from .guard_server import Server
from .tapped_models import head_keys, head_tensors
from .test_taps import EXACT

N_SLOTS = 8
N_PREDICT = 12
MARGIN = 5e-4
HEADS = (
    HeadSpec("looks", ("a", "b"), ("allow", "allow"), (0.5, 0.5), taps=(1,), stem="u", activation="attention"),
    HeadSpec(
        "near", ("a", "b", "c"), ("allow", "allow", "allow"), (0.5, 0.5, 0.5), taps=(0, 1), tap_norm="rms", stem="v",
        activation="attention", sliding_window=9,
    ),
    HeadSpec("inside", ("a", "b"), ("allow", "allow"), (0.5, 0.5), taps=(1,), tap_norm="rms"),
)  # fmt: skip

ITSELF = "the model"
FLAGS = {
    "a slot": ("-np", "1"),
    "slots": ("-np", str(N_SLOTS), "-kvu"),
    "slots of their own": ("-np", str(N_SLOTS), "-no-kvu"),
    "batches of 7": ("-np", "4", "-b", "7", "-ub", "7"),
    "two threads": ("-np", str(N_SLOTS), "-t", "2"),
    "drafts": ("-np", str(N_SLOTS), "--spec-type", "ngram-simple"),
    "a draft model": ("-np", "4", "-md", ITSELF, "--spec-type", "draft-simple", "--spec-draft-n-max", "4"),
}


@pytest.fixture(scope="module")
def file(make_model, to_gguf, tmp_path_factory):
    source = to_gguf(make_model("qwen3"))
    read = read_gguf(source)
    keys = dict.fromkeys(key for key in read.metadata if key.startswith("so8t.head"))
    tensors = dict.fromkeys(name for name in read.tensors if name.startswith("so8t_head."))
    n_embd = read.get("so8t.embedding_length")
    out = tmp_path_factory.mktemp("look-back") / "model.gguf"
    return gguf_files.copy_gguf(source, out, keys | head_keys(HEADS), tensors | head_tensors(HEADS, n_embd, 5))


@pytest.fixture(scope="module", params=FLAGS.values(), ids=FLAGS)
def server(request, runtime, file, tmp_path_factory):
    flags = [file if flag is ITSELF else flag for flag in request.param]
    saved = tmp_path_factory.mktemp("slots")
    exact = ("-c", "4096", "-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-warmup", "--slot-save-path", saved)
    with Server(runtime / "llama-server", "-m", file, "--so8t-policy", "monitor", *exact, *flags) as server:
        yield server


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def alone(file):
    """Probabilities of every head at every position of a sequence, in one pass."""
    with Session(file, **EXACT | {"n_ctx": 2048}) as session:

        def read(tokens):
            session.forget()
            session.decode(tokens)
            return {head.name: softmax(session.head_logits(head.name).astype(np.float64)) for head in HEADS}

        yield read


def prompts():
    """Some share a beginning, some repeat their own words, some are longer than a batch."""
    rng = random.Random(11)
    words = [rng.choices(range(20, 200), k=rng.randint(5, 40)) for _ in range(6)]
    some = [words[i % 3] + words[3 + i % 3] + rng.choices(range(20, 200), k=4) for i in range(12)]
    return [*some, *(words[i] * 4 for i in range(4)), rng.choices(range(20, 200), k=150)]


def ask(server, prompt, **more):
    body = {"prompt": prompt, "n_predict": N_PREDICT, "temperature": 0, "ignore_eos": True, "so8t": {"trace": True}}
    return server.post("/completion", body | {"return_tokens": True} | more)


def check(reply, prompt, alone):
    """The trace of a reply: its first entry is the end of the prompt, the others are tokens of the answer."""
    trace = reply["so8t"]["trace"]
    assert [entry["part"] for entry in trace] == ["prompt", *["answer"] * (N_PREDICT - 1)]
    assert [entry["id"] for entry in trace[1:]] == reply["tokens"][:-1]
    expected = alone([*prompt, *reply["tokens"][:-1]])
    for head in HEADS:
        found = np.array([list(entry["heads"][head.name].values()) for entry in trace])
        assert np.abs(found - expected[head.name][len(prompt) - 1 :]).max() <= MARGIN, head.name


def test_requests_beside_each_other_have_the_values_of_each_alone(server, alone):
    """Twice: the second time most of a prompt is in some slot, and behind it stands what another answer left."""
    wanted = prompts()
    for _ in range(2):
        with ThreadPoolExecutor(N_SLOTS) as pool:
            replies = list(pool.map(lambda prompt: ask(server, prompt), wanted))
        for prompt, reply in zip(wanted, replies, strict=True):
            check(reply, prompt, alone)
    assert any(reply["timings"]["cache_n"] > 0 for reply in replies)


def test_a_conversation_that_goes_on_keeps_what_it_had(server, alone):
    prompt = prompts()[0]
    for turn in range(4):
        reply = ask(server, prompt, id_slot=0, cache_prompt=True)
        check(reply, prompt, alone)
        assert (reply["timings"]["cache_n"] > 0) or turn == 0
        prompt = [*prompt, *reply["tokens"], 30 + turn, 40, 41]


@pytest.mark.parametrize("server", [flags for name, flags in FLAGS.items() if name != "a draft model"], indirect=True)
def test_a_saved_slot_goes_on_in_another_one(server, alone):
    """Without a draft model: llama-server answers 500 behind a restored slot if it has one, for every model."""
    prompt = prompts()[-1]
    check(ask(server, prompt, id_slot=0), prompt, alone)
    n_saved = server.post("/slots/0?action=save", {"filename": "slot.bin"})["n_saved"]
    assert n_saved >= len(prompt)
    ask(server, prompts()[1], id_slot=0)
    server.post("/slots/0?action=restore", {"filename": "slot.bin"})
    longer = [*prompt, 50, 51, 52]
    reply = ask(server, longer, id_slot=0, cache_prompt=True)
    assert reply["timings"]["cache_n"] >= len(prompt) - 1
    check(reply, longer, alone)


def test_choices_that_share_a_prompt_have_their_own_values(server, alone):
    """``n`` copies the prompt's cells to other slots; each answer then goes its own way."""
    prompt = prompts()[2]
    n_choices = min(4, server.get("/props")["total_slots"])
    body = {
        "prompt": prompt,
        "n": n_choices,
        "max_tokens": N_PREDICT,
        "temperature": 2.0,
        "seed": 3,
        "so8t": {"trace": True},
    }
    reply = server.post("/v1/completions", body | {"return_tokens": True, "verbose": True, "ignore_eos": True})
    verdicts = [reply["so8t"], *(choice["so8t"] for choice in reply["choices"] if choice["index"] > 0)]
    answers = set()
    for verdict in verdicts:
        ids = [entry["id"] for entry in verdict["trace"][1:]]
        answers.add(tuple(ids))
        expected = alone([*prompt, *ids])
        for head in HEADS:
            found = np.array([list(entry["heads"][head.name].values()) for entry in verdict["trace"]])
            assert np.abs(found - expected[head.name][len(prompt) - 1 :]).max() <= MARGIN, head.name
    assert len(verdicts) == n_choices and len(answers) == n_choices
