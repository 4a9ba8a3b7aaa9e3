"""Heads that read layers, in many architectures, against transformers and numpy."""

import json
import subprocess
from collections import Counter
from pathlib import Path

import gguf_files
import numpy as np
import pytest
import required
from safetensors.numpy import load_file, save_file

from llama_so8t.bindings import Session
from llama_so8t.bindings.session import F32
from llama_so8t.conversion.convert import plan, run
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.errors import RuntimeLibraryError
from llama_so8t.format import HeadSpec
from llama_so8t.inspection import inspect
from llama_so8t.verification import verify

from .conftest import MARGIN, reference, tokens_for
from .tapped_models import (
    ARCHITECTURES,
    HEADS,
    N_EMBD,
    N_LAYER,
    N_VOCAB,
    convert,
    head_keys,
    head_tensors,
    head_values,
    make,
    streams,
)

GOLDEN = Path(__file__).parents[1] / "golden"
N_TOKENS = 30

EXACT = {"n_ctx": 1024, "type_k": F32, "type_v": F32, "flash_attn": False}


@pytest.fixture(scope="session")
def tapped(tmp_path_factory, pinned_tree):
    """A model of an architecture with `HEADS`, made once."""
    from llama_so8t import upstream

    upstream.gguf  # before transformers, which would import another one  # noqa: B018
    made = {}

    def get(arch):
        if arch not in made:
            made[arch] = make(tmp_path_factory.mktemp(arch), arch)
        return made[arch]

    return get


def tokens_of(seed, n=N_TOKENS):
    return np.random.default_rng(seed).integers(3, N_VOCAB, n).tolist()


def assert_values(session, expected, rows=slice(None)):
    """Head by head: what `session` has of its last outputs against rows of ``expected``, by its largest value."""
    assert [head.name for head in session.heads] == list(expected)
    for name, values in expected.items():
        found = session.head_logits(name)
        assert found.shape == values[rows].shape
        assert np.abs(found - values[rows]).max() <= MARGIN * np.abs(values).max(), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_heads_on_layers_are_those_of_transformers(tapped, arch):
    model, tokens = tapped(arch), tokens_of(1)
    expected = model.values(tokens)
    with Session(model.path, **EXACT) as session:
        session.decode(tokens)
        assert_values(session, expected)


@pytest.mark.parametrize("n_batch", [1, 7, 512])
@pytest.mark.parametrize("arch", ["qwen3", "gemma3", "gpt-oss", "lfm2", "mamba"])
def test_batches_of_any_size_and_any_outputs_give_the_same(tapped, arch, n_batch):
    """Outputs at the end, in the middle, everywhere and nowhere: the rows of a tap are those of the outputs."""
    model, tokens = tapped(arch), tokens_of(2)
    expected = model.values(tokens)
    for wanted in ({N_TOKENS - 1}, {3, 4, 17, 29}, set(range(N_TOKENS)), {0}):
        with Session(model.path, **EXACT) as session:
            for start in range(0, N_TOKENS, n_batch):
                part = range(start, min(start + n_batch, N_TOKENS))
                outputs = [i in wanted for i in part]
                session.decode(tokens[start : part.stop], position=start, outputs=outputs)
                if any(outputs):
                    assert_values(session, expected, [i for i in part if i in wanted])


@pytest.mark.parametrize("arch", ["qwen3", "gemma3", "gpt-oss", "lfm2", "mamba"])
def test_more_tokens_than_a_ubatch_holds(tapped, arch):
    model, tokens = tapped(arch), tokens_of(3, 300)
    expected = model.values(tokens)
    with Session(model.path, **EXACT, n_ubatch=64) as session:
        session.decode(tokens)
        assert_values(session, expected)


@pytest.mark.parametrize("arch", ["qwen3", "gemma3", "gpt-oss", "lfm2", "mamba"])
def test_sequences_beside_each_other_do_not_mix(tapped, arch):
    model = tapped(arch)
    texts = [tokens_of(4, 12), tokens_of(5, 12), tokens_of(6, 12)]
    expected = [model.values(tokens) for tokens in texts]
    with Session(model.path, **EXACT, n_seq_max=3) as session:
        for position in range(12):  # a batch has one token of each sequence, of which two are outputs
            session.decode(
                [tokens[position] for tokens in texts],
                positions=[position] * 3,
                sequence=[0, 1, 2],
                outputs=[True, False, True],
            )
            found = {head.name: session.head_logits(head.name) for head in session.heads}
            for name, values in found.items():
                for row, sequence in ((0, 0), (1, 2)):
                    difference = np.abs(values[row] - expected[sequence][name][position]).max()
                    assert difference <= MARGIN * np.abs(expected[sequence][name]).max(), name


@pytest.mark.parametrize("file", ["bare.gguf", "qwen3.gguf"])
def test_outputs_that_are_put_in_order(tapped, file):
    """llama.cpp evaluates the sequences of a batch one after the other and swaps outputs: with heads and without."""
    path, texts = tapped("qwen3").path.parent / file, [tokens_of(40, 9), tokens_of(41, 9), tokens_of(42, 9)]
    alone = []
    for tokens in texts:
        with Session(path, **EXACT) as session:
            session.decode(tokens)
            alone.append(session.logits())
    with Session(path, **EXACT, n_seq_max=3, kv_unified=False) as session:
        session.decode(
            [tokens[position] for position in range(9) for tokens in texts],
            positions=[position for position in range(9) for _ in texts],
            sequence=[0, 1, 2] * 9,
        )
        found = session.logits()
    for sequence, expected in enumerate(alone):
        assert np.abs(found[sequence::3] - expected).max() <= MARGIN * np.abs(expected).max()


def test_embeddings_change_no_value(tapped):
    model, tokens = tapped("llama"), tokens_of(7)
    with Session(model.path, **EXACT, embeddings=True) as session:
        session.decode(tokens)
        assert_values(session, model.values(tokens))


def test_tokens_that_are_taken_back_leave_nothing(tapped):
    model, tokens = tapped("qwen3"), tokens_of(8)
    with Session(model.path, **EXACT) as session:
        session.decode([*tokens[:20], *tokens_of(9, 5)])
        session.forget(start=20)
        state = session.save_state()
        session.decode(tokens[20:], position=20)
        assert_values(session, model.values(tokens), slice(20, None))
    with Session(model.path, **EXACT) as session:
        session.load_state(state)
        session.decode(tokens[20:], position=20)
        assert_values(session, model.values(tokens), slice(20, None))


# --- the graph -----------------------------------------------------------------------------------


def nodes(path, n_tokens):
    with Session(path, **EXACT, observe="nodes") as session:
        session.time(tokens_of(1, n_tokens))
        return Counter(node.op for node in session.nodes())


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("arch", ["qwen3", "gpt-oss", "mamba"])
def test_a_tap_is_its_rows_and_its_norm(tapped, tmp_path, arch, n_tokens):
    """No copy of a layer, and nothing twice: two heads on tap 1 with a norm share it, the end has its rows already."""
    heads = (
        HeadSpec("a", ("x", "y"), ("allow", "refuse"), (0.5, 0.5), taps=(1, N_LAYER), tap_norm="rms"),
        HeadSpec("b", ("x", "y"), ("allow", "refuse"), (0.5, 0.5), taps=(1, 2), tap_norm="rms"),
    )
    bare = tapped(arch).path.parent / "bare.gguf"
    path = gguf_files.copy_gguf(bare, tmp_path / "taps.gguf", head_keys(heads), head_tensors(heads, N_EMBD, 1))
    found = nodes(path, n_tokens) - nodes(bare, n_tokens)
    # gpt-oss reduces the rows after its last layer, so the tap there picks them, unless all of them are outputs
    picked = 3 if arch == "gpt-oss" and n_tokens > 1 else 2
    assert found == {"GET_ROWS": picked, "RMS_NORM": 3, "CONCAT": 3, "MUL_MAT": 2, "ADD": 2}


@pytest.mark.parametrize("n_tokens", [1, 5])
def test_attention_is_a_few_nodes_on_one_input(tapped, tmp_path, n_tokens):
    """Two heads on one stem, which is computed once; both taps are there for every token, and only z is picked."""
    heads = tuple(head for head in HEADS if head.name in ("looks",))
    heads += (HeadSpec(**{**vars(heads[0]), "name": "second"}),)
    bare = tapped("qwen3").path.parent / "bare.gguf"
    path = gguf_files.copy_gguf(bare, tmp_path / "looks.gguf", head_keys(heads), head_tensors(heads, N_EMBD, 1))
    found = nodes(path, n_tokens) - nodes(bare, n_tokens)
    assert {op: n for op, n in found.items() if op not in ("VIEW", "RESHAPE", "PERMUTE")} == {
        "RMS_NORM": 3, "CONCAT": 2, "CLAMP": 2, "GET_ROWS": 1, "MUL_MAT": 8, "SET_ROWS": 2, "SOFT_MAX": 1, "CONT": 1,
        "MUL": 1, "ADD": 3,
    }  # fmt: skip


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("arch", ["qwen3", "gpt-oss", "mamba"])
def test_heads_on_the_final_norm_have_no_node_more_than_in_version_1(tapped, tmp_path, arch, n_tokens):
    heads = (HEADS[0],)
    bare = tapped(arch).path.parent / "bare.gguf"
    path = gguf_files.copy_gguf(bare, tmp_path / "final.gguf", head_keys(heads), head_tensors(heads, N_EMBD, 1))
    assert nodes(path, n_tokens) - nodes(bare, n_tokens) == {"MUL_MAT": 1, "ADD": 1}


# --- what is refused -----------------------------------------------------------------------------


def refusal(tapped, tmp_path, keys=None, tensors=None, arch="qwen3"):
    bad = gguf_files.copy_gguf(tapped(arch).path, tmp_path / "bad.gguf", keys, tensors)
    with pytest.raises(RuntimeLibraryError) as error:
        Session(bad)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("risks.taps", [1, 1, 4], "key 'so8t.head.risks.taps' has 1, expected different layers from -1 to 4"),
        ("risks.taps", [1, 3, 5], "has 5, expected different layers from -1 to 4"),
        ("risks.taps", [1, 3, -2], "has -2, expected different layers from -1 to 4"),
        ("risks.taps", [1, 3], "so8t_head.risks.weight"),
        ("risks.taps", ["1"], "is array of str, expected array of i32"),
        ("risks.tap_norm", "layer", "is 'layer', expected none or rms"),
        ("risks.link", "tanh", "is 'tanh', expected softmax or sigmoid"),
        ("risks.form", "mlp", "is 'mlp', expected 'linear' for a head with this stem and activation"),
        ("first.form", "linear", "is 'linear', expected 'mlp' for a head with this stem and activation"),
        ("first.form", "attention", "is 'attention', expected 'mlp' for a head with this stem and activation"),
        ("second.taps", [2, -1], "head 'second' shares the stem 's' and has other taps or another norm"),
        ("end.link", "softmax", "head 'end' has 1 label, expected two or more with the link 'softmax'"),
        ("risks.rule", "argmax", "has the link 'sigmoid' and the rule 'argmax', expected the rule 'threshold'"),
        ("risks.debounce", 4294967295, "so8t.head.risks.debounce' is 4294967295, expected 1 to 65536"),
        ("risks.representation", -1, "so8t.head.risks.representation' is -1, expected 0, 1 or 2"),
        ("risks.prompt_token", -1, "so8t.head.risks.prompt_token' is -1, expected a token of the vocabulary, 0 to 127"),
        ("risks.prompt_token", 128, "so8t.head.risks.prompt_token' is 128, expected a token"),
        ("risks.provenance", "fitted by hand", "is 'fitted by hand', expected a JSON object"),
        ("risks.provenance", b'{"a": "\xff"}', "expected a JSON object in UTF-8"),
        ("risks.width", 3, "key 'so8t.head.risks.width' is unknown, expected 'so8t.head.NAME.' and labels, actions"),
        ("looks.sliding_window", 7, "head 'looks_too' shares the stem 'u' and has the sliding_window 0, expected 7"),
        ("near.sliding_window", 1 << 31, "sliding_window' is 2147483648, expected"),
        ("risks.sliding_window", 3, "sliding_window' is 3, expected 0 for the form 'linear'"),
        ("looks.taps", [1, 4], "head 'looks' reads every token and has the tap 4, expected 0 to 3"),
        ("text.taps", [2, -1], "head 'text' reads every token and has the tap -1, expected 0 to 3"),
        ("risks.aggregation", "sum", "is 'sum', expected run, window, ema, mean or max"),
        ("risks.aggregation", "ema", "ema_alpha' is 0 or missing, expected a number above 0, at most 1"),
        ("risks.ema_alpha", 0.5, "ema_alpha' is 0.5"),
        ("text.ema_alpha", 1.5, "ema_alpha' is 1.5"),
        ("text.ema_alpha", float("nan"), "ema_alpha' is nan"),
        ("risks.aggregation", "window", "key 'so8t.head.risks.window' is missing"),
        ("risks.window", 3, "key 'so8t.head.risks.window' is there, expected one with the aggregation 'window' only"),
        ("text.prompt_aggregation", ["mean", "mean"], "has 'mean', expected different ones of token, mean"),
        ("text.prompt_aggregation", ["median"], "has 'median', expected different ones of token, mean"),
        ("text.prompt_thresholds", [0.5, 0.5], "has 2 values, expected 15 that are finite"),
        ("text_too.prompt_thresholds", [0.5, float("nan")], "has 2 values, expected 2 that are finite"),
        ("final.depends_on", "risks", "depends_on' is 'risks', expected the name of a head before it in this file"),
        ("final.depends_on", "final", "depends_on' is 'final', expected the name of a head before it in this file"),
        ("risks", 3, "key 'so8t.head.risks' is unknown"),
        ("other.rule", "argmax", "key 'so8t.head.other.rule' is of a head that 'so8t.heads' does not name"),
    ],
)
def test_the_loader_names_the_key_that_is_wrong(tapped, tmp_path, key, value, words):
    from llama_so8t.upstream import gguf

    if key.endswith("prompt_token"):
        value = gguf.GGUFValue(value, gguf.GGUFValueType.INT32)
    if value == ["1"]:
        value = gguf.GGUFValue(value, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
    if isinstance(value, bytes):
        value = gguf.GGUFValue(value, gguf.GGUFValueType.STRING)
    assert words in refusal(tapped, tmp_path, {f"so8t.head.{key}": value})


@pytest.mark.parametrize("version", [0, 3, 4294967295])
def test_a_version_that_is_not_known_is_refused_by_its_number(tapped, tmp_path, version):
    said = refusal(tapped, tmp_path, {"so8t.format_version": version})
    assert f"key 'so8t.format_version' is {version}, this program reads version 1 to 2" in said


@pytest.mark.parametrize("version", [1, None])
def test_a_key_of_version_2_is_none_of_version_1(tapped, tmp_path, version):
    """Nor of a file without a version, which is of the first."""
    said = refusal(tapped, tmp_path, {"so8t.format_version": version})
    assert "came with version 2 of the format, the file is of version 1" in said


@pytest.mark.parametrize("name", ["attn_q", "attn_k", "attn_v", "attn_output", "norm"])
def test_a_stem_of_attention_is_finite(tapped, tmp_path, name):
    def spoil(values):
        values.reshape(-1)[2] = np.nan

    said = refusal(tapped, tmp_path, tensors={f"so8t_stem.u.{name}.weight": spoil})
    assert f"tensor 'so8t_stem.u.{name}.weight' has nan at 2, expected finite numbers" in said


def test_a_stem_is_as_wide_as_its_taps(tapped, tmp_path):
    said = refusal(tapped, tmp_path, tensors={"so8t_stem.s.weight": np.zeros((12, N_EMBD), np.float32)})
    assert "so8t_stem.s.weight" in said


def test_an_architecture_that_names_no_layer_is_refused_by_its_name(tmp_path, pinned_tree):
    """Before the first token: the context of the model is not made. Heads on the final norm work there."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=N_VOCAB, hidden_size=N_EMBD, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    bare = convert(tmp_path, "BertModel", tmp_path / "bare.gguf")
    keys = {"tokenizer.ggml.token_type_count": 2}
    for taps, words in (((1,), "head 'h' has the tap 1, but the architecture 'bert' does not tell"), ((-1,), None)):
        heads = (HeadSpec("h", ("a", "b"), ("allow", "refuse"), (0.5, 0.5), taps=taps),)
        path = gguf_files.copy_gguf(bare, tmp_path / "h.gguf", keys | head_keys(heads), head_tensors(heads, N_EMBD, 1))
        if words is None:
            with Session(path, n_ctx=64, embeddings=True) as session:
                assert [head.name for head in session.heads] == ["h"]
        else:
            with pytest.raises(RuntimeLibraryError, match=words):
                Session(path, n_ctx=64, embeddings=True)


# --- heads beside a model ------------------------------------------------------------------------


def heads_file(path, heads, keys=None, **tensors):
    """A heads file for the models here."""
    bound = {"general.type": "heads", "so8t.embedding_length": N_EMBD, "so8t.block_count": N_LAYER}
    weights = head_tensors(heads, N_EMBD, 3) | tensors
    return gguf_files.write_gguf(path, "so8t", bound | head_keys(heads) | (keys or {}), weights)


def test_heads_beside_a_model_have_the_values_that_they_have_inside(tapped, tmp_path):
    """In one file or in several, also where two files call different stems by one name."""
    model, tokens = tapped("qwen3"), tokens_of(1)
    bare = model.path.parent / "bare.gguf"
    expected = model.values(tokens)
    whole = heads_file(tmp_path / "heads.gguf", HEADS, {"so8t.base_architecture": "qwen3"})
    with Session(bare, **EXACT, heads=[whole]) as session:
        session.decode(tokens)
        assert_values(session, expected)
    parts = [heads_file(tmp_path / f"{head.name}.gguf", (head,), **tensors_of(model, head)) for head in HEADS]
    with Session(bare, **EXACT, heads=parts) as session:
        session.decode(tokens)
        assert_values(session, expected)
    one = (HeadSpec("one", ("a", "b"), ("allow", "refuse"), (0.5, 0.5), taps=(0, 1), stem="s", activation="tanh"),)
    with Session(model.path, **EXACT, heads=[heads_file(tmp_path / "one.gguf", one)]) as session:
        session.decode(tokens)
        assert_values(session, expected | head_values(one, head_tensors(one, N_EMBD, 3), streams(model.net, tokens)))


def tensors_of(model, head):
    return {
        name: values for name, values in model.tensors.items() if f".{head.name}." in name or f".{head.stem}." in name
    }


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"so8t.base_architecture": "llama"}, "belong to a base of the architecture 'llama', the model is of 'qwen3'"),
        ({"so8t.embedding_length": 72}, "belong to a base with 'so8t.embedding_length' 72, the model has 64"),
        ({"so8t.block_count": 5}, "belong to a base with 'so8t.block_count' 5, the model has 4"),
        ({"general.type": "model"}, "is no heads file"),
        ({"so8t.format_version": 3}, "this program reads version 1 to 2"),
        ({"so8t.heads": ["final"]}, "is of a head that 'so8t.heads' does not name"),
        ({"so8t.head.end.width": 3}, "key 'so8t.head.end.width' is unknown"),
    ],
)
def test_heads_of_another_base_are_refused_with_what_differs(tapped, tmp_path, keys, words):
    bare = tapped("qwen3").path.parent / "bare.gguf"
    with pytest.raises(RuntimeLibraryError) as error:
        Session(bare, heads=[heads_file(tmp_path / "heads.gguf", HEADS, keys)])
    assert words in str(error.value) and "\n" not in str(error.value)


def test_heads_files_are_checked_as_models_are(tapped, tmp_path):
    bare = tapped("qwen3").path.parent / "bare.gguf"
    heads = HEADS[:1]
    weight = "so8t_head.final.weight"
    for tensors, words in (
        ({weight: np.zeros((2, 65), np.float32)}, "tensor 'so8t_head.final.weight' is"),
        ({weight: np.zeros((2, N_EMBD), np.float16)}, "is f16, expected f32"),
        ({weight: np.full((2, N_EMBD), np.nan, np.float32)}, "expected finite numbers"),
    ):
        with pytest.raises(RuntimeLibraryError) as error:
            Session(bare, heads=[heads_file(tmp_path / "bad.gguf", heads, **tensors)])
        assert words in str(error.value), str(error.value)
    file = heads_file(tmp_path / "good.gguf", heads)
    with pytest.raises(RuntimeLibraryError, match="the model has a head 'final' already"):
        Session(bare, heads=[file, file])
    with pytest.raises(RuntimeLibraryError, match="cannot be read as GGUF"):
        Session(bare, heads=[tmp_path / "missing.gguf"])


# --- models of ours ------------------------------------------------------------------------------


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
@pytest.mark.parametrize("shared_blocks", [False, True])
def test_rotations_before_taps_are_those_of_the_reference_model(make_model, to_gguf, rotations, shared_blocks):
    """z = [R norm(x_0), R norm(x_1), ...]: the rotation is folded into every part of a head or stem."""
    model = make_model("llama", shared_blocks=shared_blocks)
    tapped_checkpoint(model)
    tokens = tokens_for(model, 33)
    expected = reference(model, tokens)
    with Session(to_gguf(model, rotations), **EXACT) as session:
        session.decode(tokens)
        for name, values in expected.items():
            found = session.logits() if name == "task" else session.head_logits(name)
            assert np.abs(found - values).max() <= MARGIN * np.abs(values).max(), name


def test_verification_compares_heads_that_read_layers(make_model, tmp_path):
    """Where the configuration leaves the sizes of the stems to their tensors, too."""
    model = make_model("llama")
    tapped_checkpoint(model)
    config = json.loads((model / "config.json").read_text())
    silent = {key: value for key, value in config.items() if not key.startswith("so8t_stem_")}
    (model / "config.json").write_text(json.dumps(silent))
    made = plan(ConvertOptions(model=model, outfile=tmp_path / "out.gguf", outtype="f32", progress=False))
    run(made)
    report = verify(made)
    assert report.ok, report.problems
    assert all(f"{name} " in report.checks[-1].detail for name in ("safety", "one", "two", "look"))


def tapped_checkpoint(model):
    """Gives a checkpoint of two layers heads that read them."""
    config = json.loads((model / "config.json").read_text())
    labels = {"labels": ["safe", "unsafe"], "actions": ["allow", "refuse"], "thresholds": [0.5, 0.5]}
    stem = labels | {"taps": [1, -1], "stem": "s", "activation": "gelu", "representation": 2}
    attention = {"taps": [1, 0], "tap_norm": "rms", "stem": "a", "activation": "attention", "representation": 1}
    attention["sliding_window"] = 7
    config["so8t_heads"] = {
        "safety": labels | {"taps": [0, 2, 1], "tap_norm": "rms", "representation": 1, "link": "sigmoid"},
        "one": stem,
        "two": stem,
        "look": labels | attention,
    }
    config["so8t_stem_sizes"] = {"s": 6, "a": 24}
    config["so8t_stem_head_dims"] = {"a": 8}
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    tensors = {k: v for k, v in tensors.items() if not k.startswith(("safety_head", "authority_head"))}
    rng, width = np.random.default_rng(4), config["hidden_size"]
    shapes = {"safety_head": (2, 3 * width), "heads.one": (2, 6), "heads.two": (2, 6), "stems.s": (6, 2 * width)}
    shapes["heads.look"] = (2, 24)
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = rng.normal(0, shape[1] ** -0.5, shape).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
    shapes = {"attn_q": (24, 2 * width), "attn_k": (8, 2 * width), "attn_v": (8, 2 * width), "attn_output": (24, 24)}
    for name, shape in shapes.items():
        tensors[f"stems.a.{name}.weight"] = rng.normal(0, 2 * shape[1] ** -0.5, shape).astype(np.float32)
    tensors["stems.a.norm.weight"] = rng.normal(1, 0.3, 24).astype(np.float32)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def test_smollm2_reads_its_layers_as_transformers_does(runtime, tmp_path):
    """The demo's base, at float32: taps at the embedding, in the middle, at the end and behind the final norm."""
    import torch
    import transformers

    from llama_so8t.checkpoint import open_checkpoint

    source = required.smollm2()
    base = tmp_path / "base-f32.gguf"
    tool = runtime / "llama-quantize"
    subprocess.run([tool, "--allow-requantize", source, base, "F32"], check=True, capture_output=True)
    labels = {"labels": ("a", "b"), "actions": ("allow", "refuse"), "thresholds": (0.5, 0.5)}
    heads = (
        HeadSpec("middle", **labels, taps=(16,), tap_norm="rms"),
        HeadSpec("four", **labels, taps=(0, 10, 30, -1), tap_norm="rms"),
        HeadSpec("end", **labels, taps=(30,)),
    )
    tensors = head_tensors(heads, 576, 1)
    path = gguf_files.copy_gguf(base, tmp_path / "tapped.gguf", head_keys(heads), tensors)

    checkpoint = open_checkpoint(base)
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**checkpoint.config)).eval()
    weights = {name: torch.from_numpy(np.array(checkpoint.load(name))) for name in checkpoint.tensors}
    missing, unexpected = net.load_state_dict(weights, strict=False)
    assert (set(missing) <= {"lm_head.weight"}) and not unexpected
    with Session(path, **EXACT) as session:
        tokens = session.tokenize("<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\nBecause")
        assert len(tokens) > 12
        session.decode(tokens, outputs=[i >= 4 for i in range(len(tokens))])
        assert_values(session, head_values(heads, tensors, streams(net, tokens)), slice(4, None))


# --- files of each version -----------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_each_version_has_the_values_that_it_had(runtime, version):
    """tests/golden/format-N.gguf was written by its version; its values are those of the reference model of then."""
    golden = json.loads((GOLDEN / f"format-{version}.json").read_text())
    path = GOLDEN / f"format-{version}.gguf"
    assert inspect(path).subject.format_version == version and not inspect(path).problems
    with Session(path, **EXACT) as session:
        session.decode(golden["tokens"])
        assert ["task", *(head.name for head in session.heads)] == list(golden["values"]) and len(session.heads) == 4
        for name, values in golden["values"].items():
            expected = np.array(values)
            found = session.logits()[-3:, :8] if name == "task" else session.head_logits(name)
            assert np.abs(found - expected).max() <= MARGIN * np.abs(expected).max(), name


def test_version_1_inspects_as_it_did(runtime):
    subject = inspect(GOLDEN / "format-1.gguf").subject
    assert subject.format_version == 1
    heads = {head.spec.name: head.spec for head in subject.heads}
    assert heads["safety"] == HeadSpec(
        "safety",
        ("safe", "unsafe"),
        ("allow", "refuse"),
        (0.5, float(np.float32(0.85))),
        representation=1,
        debounce=3,
        temperature=2.0,
    )
    assert (heads["risk"].rule, heads["risk"].prompt_token, heads["risk"].scope) == ("argmax", 7, "prompt")
    assert (heads["risk"].form, heads["risk"].activation, heads["authority"].activation) == ("mlp", "gelu", "rmsnorm")
    assert {head.taps for head in heads.values()} == {(-1,)} and {head.link for head in heads.values()} == {"softmax"}


def test_quantizing_keeps_the_heads_and_their_version(runtime, tapped, tmp_path):
    source = tapped("qwen3").path
    out = tmp_path / "q8_0.gguf"
    subprocess.run([runtime / "llama-quantize", source, out, "Q8_0"], check=True, capture_output=True)
    old, new = inspect(source).subject, inspect(out).subject
    assert [head.spec for head in new.heads] == [head.spec for head in old.heads] and len(new.heads) == len(HEADS)
    tokens = tokens_of(1)
    with Session(source, **EXACT) as exact, Session(out, **EXACT) as session:
        for each in (exact, session):
            each.decode(tokens)
        for head in HEADS:
            expected = exact.head_logits(head.name)
            assert np.abs(session.head_logits(head.name) - expected).max() <= 0.1 * np.abs(expected).max()
