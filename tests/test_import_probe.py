"""SingProbe directories as heads files: rows, labels and actions, what binds them to a base, and what is refused."""

import json
import subprocess
import sys

import gguf_files
import numpy as np
import pytest
from probe_models import LABELS, REMOVED, ROWS, ProbeShape, random_tensors, write_probe
from required import package
from tiny_models import base_config, write_base

from llama_so8t.checkpoint.singprobe import open_probe
from llama_so8t.cli import main
from llama_so8t.errors import So8tError
from llama_so8t.files.gguf_file import read_gguf
from llama_so8t.files.tensor_hash import model_sha256
from llama_so8t.format import Keys
from llama_so8t.heads_file import attach, detach
from llama_so8t.inspection import inspect
from llama_so8t.inspection.gguf_heads import read_heads

torch = package("torch")

WIDTH, N_LAYER = 64, 4
ATTN = ProbeShape("attn", WIDTH, (1, 2, 3), n_head=2, head_dim=8, window=16)
MLP = ProbeShape("mlp", WIDTH, (0, 3), inner=24)
STEM = {
    "attn": {
        "so8t_stem.singprobe.attn_q.weight": "proj_q.weight",
        "so8t_stem.singprobe.attn_k.weight": "proj_k.weight",
        "so8t_stem.singprobe.attn_v.weight": "proj_v.weight",
        "so8t_stem.singprobe.attn_output.weight": "o_proj.weight",
        "so8t_stem.singprobe.norm.weight": "norm.weight",
    },
    "mlp": {"so8t_stem.singprobe.weight": "fc1.weight", "so8t_stem.singprobe.bias": "fc1.bias"},
}


@pytest.fixture
def base(tmp_path, gguf):
    """A file with what binds heads to a base; nothing else of a model is read."""
    keys = {
        "general.architecture": "gemma3",
        "gemma3.embedding_length": WIDTH,
        "gemma3.block_count": N_LAYER,
        "gemma3.attention.head_count": 4,
    }
    tensors = {"token_embd.weight": np.arange(3 * WIDTH, dtype=np.float32).reshape(3, WIDTH)}
    return gguf_files.write_gguf(tmp_path / "base.gguf", "gemma3", keys, tensors)


def run(*arguments):
    return main(["import-probe", *map(str, arguments)])


def test_the_tensors_are_all_that_a_published_probe_has():
    """The card of Ling-3.0-flash-singprobe, layers 13, 26 and 40 of width 2560, says 5,182,986 parameters."""
    shape = ProbeShape("attn", 2560, (13, 26, 40), n_head=8)
    assert sum(np.prod(size) for size in shape.shapes.values()) == 5_182_986


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [ATTN, MLP], ids=["attn", "mlp"])
def test_every_tensor_arrives_with_its_values(tmp_path, base, shape, dtype):
    tensors = random_tensors(shape, dtype=dtype)
    out = tmp_path / "probe.heads.gguf"
    assert run(write_probe(tmp_path / "probe", shape, tensors), "--base", base, "--out", out) == 0
    file = read_gguf(out)
    rows = "classifier" if shape.form == "attn" else "fc2"
    expected = {new: tensors[old] for new, old in STEM[shape.form].items()}
    for head, part in ROWS.items():
        expected |= {f"so8t_head.{head}.{kind}": tensors[f"{rows}.{kind}"][part] for kind in ("weight", "bias")}
    assert list(file.tensors) == list(expected)
    for name, values in expected.items():
        assert file.tensors[name].dtype == "F32"
        np.testing.assert_array_equal(file.tensors[name].read(), values.float().numpy())


def test_the_heads_are_those_of_the_report(tmp_path, base):
    out = tmp_path / "probe.heads.gguf"
    run(write_probe(tmp_path / "probe", ATTN), "--base", base, "--out", out)
    heads = read_heads(read_gguf(out), N_LAYER)
    assert list(heads) == ["query", "response", "hallucination"]
    assert {name: (head.labels, head.actions, head.scope) for name, head in heads.items()} == {
        "query": (LABELS[:8], ("refuse",) * 7 + ("allow",), "prompt"),
        "response": (("unsafe",), ("refuse",), "answer"),
        "hallucination": (("hallucination",), ("allow",), "answer"),
    }
    for head in heads.values():
        assert (head.form, head.activation, head.stem) == ("attention", "attention", "singprobe")
        assert (head.taps, head.tap_norm, head.sliding_window) == ((1, 2, 3), "rms", 16)
        assert (head.link, head.rule, set(head.thresholds)) == ("sigmoid", "threshold", {0.5})
        assert (head.debounce, head.aggregation, head.prompt_aggregation) == (1, "run", ("token",))
        assert json.loads(head.provenance) == {
            "made_by": "SingProbe",
            "paper": "arXiv:2608.30703",
            "base": "somebody/some-model",
        }


def test_a_probe_without_attention_is_an_mlp(tmp_path, base):
    out = tmp_path / "probe.heads.gguf"
    run(write_probe(tmp_path / "probe", MLP), "--base", base, "--out", out)
    for head in read_heads(read_gguf(out), N_LAYER).values():
        assert (head.form, head.activation, head.taps, head.sliding_window) == ("mlp", "gelu", (0, 3), 0)


@pytest.mark.parametrize("window", [None, REMOVED, 0])
def test_without_a_window_a_token_sees_all_before_it(tmp_path, window):
    probe = open_probe(write_probe(tmp_path / "probe", ATTN, config={"sliding_window": window}))
    assert {head.sliding_window for head in probe.heads} == {0}


def test_labels_are_those_of_the_directory_where_it_has_them(tmp_path):
    labels = ["weapons", "drugs", *"cdefg", "fine", "harm = harm", "made up"]
    actions = {"drugs": "escalate", "harm = harm": "allow", "made up": "refuse"}
    probe = open_probe(write_probe(tmp_path / "probe", ATTN, config={"labels": labels}), actions)
    query, response, hallucination = probe.heads
    assert query.labels == tuple(labels[:8]) and query.actions == ("refuse", "escalate", *["refuse"] * 5, "allow")
    assert (response.labels, response.actions) == (("harm = harm",), ("allow",))
    assert (hallucination.labels, hallucination.actions) == (("made up",), ("refuse",))


def test_the_operator_chooses_the_actions(tmp_path, base):
    out, directory = tmp_path / "probe.heads.gguf", write_probe(tmp_path / "probe", ATTN)
    assert run(directory, "--out", out, "--action", "B=escalate", "--action", "hallucination=escalate") == 0
    assert read_gguf(out).get("so8t.head.query.actions") == ["refuse", "escalate", *["refuse"] * 5, "allow"]
    assert read_gguf(out).get("so8t.head.hallucination.actions") == ["escalate"]


def test_the_file_is_bound_to_its_base(tmp_path, base, gguf):
    directory, out = write_probe(tmp_path / "probe", ATTN), tmp_path / "probe.heads.gguf"
    run(directory, "--base", base, "--out", out)
    file = read_gguf(out)
    assert file.get("general.type") == "heads" and file.get(Keys.FORMAT_VERSION) == 2
    assert file.get(Keys.BASE_ARCHITECTURE) == "gemma3" and file.get(Keys.BASE_SHA256) == model_sha256(base)
    assert (file.get("so8t.embedding_length"), file.get("so8t.block_count")) == (WIDTH, N_LAYER)
    run(directory, "--out", out)
    file = read_gguf(out)
    assert file.get("so8t.embedding_length") == WIDTH
    assert not {Keys.BASE_ARCHITECTURE, Keys.BASE_SHA256, "so8t.block_count"} & set(file.metadata)


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (base_config("llama", num_hidden_layers=N_LAYER), "llama"),
        (base_config("qwen3", num_hidden_layers=N_LAYER) | {"model_type": "so8t", "base_model_type": "qwen3"}, "qwen3"),
        (
            {
                "architectures": ["Gemma3ForConditionalGeneration"],
                "model_type": "gemma3",
                "text_config": {"hidden_size": WIDTH, "num_hidden_layers": N_LAYER},
            },
            "gemma3",
        ),
        (
            {
                "architectures": ["GptOssForCausalLM"],
                "model_type": "gpt_oss",
                "hidden_size": WIDTH,
                "num_hidden_layers": N_LAYER,
            },
            "gpt-oss",
        ),
    ],
    ids=["llama", "so8t", "gemma3", "gpt-oss"],
)
def test_a_base_may_be_a_directory(tmp_path, pinned_tree, config, architecture):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    out = tmp_path / "probe.heads.gguf"
    assert run(write_probe(tmp_path / "probe", ATTN), "--base", tmp_path / "base", "--out", out) == 0
    file = read_gguf(out)
    assert file.get(Keys.BASE_ARCHITECTURE) == architecture and file.get("so8t.block_count") == N_LAYER
    assert Keys.BASE_SHA256 not in file.metadata


def test_what_is_imported_is_attached_and_detached(tmp_path, base):
    out, full = tmp_path / "probe.heads.gguf", tmp_path / "full.gguf"
    run(write_probe(tmp_path / "probe", ATTN), "--base", base, "--out", out)
    assert attach(base, [out], full) == ("query", "response", "hallucination")
    report = inspect(full)
    assert [head.spec.form for head in report.subject.heads] == ["attention"] * 3 and not report.problems
    again, taken = tmp_path / "again.gguf", tmp_path / "taken.heads.gguf"
    detach(full, again, taken)
    assert again.read_bytes() == base.read_bytes()
    one, two = read_gguf(out), read_gguf(taken)
    assert one.metadata == two.metadata and list(one.tensors) == list(two.tensors)
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor.read(), two.tensors[name].read())
    other = gguf_files.copy_gguf(base, tmp_path / "other.gguf", tensors={"token_embd.weight": np.ones((3, WIDTH))})
    with pytest.raises(So8tError, match="whose tensors have the hash"):
        attach(other, [out], tmp_path / "no.gguf")


def spoiled(name, change):
    """Tensors of an attention probe, one of them changed or gone."""
    tensors = random_tensors(ATTN)
    tensors[name] = change(tensors[name]) if name in tensors else change(None)
    return {key: value for key, value in tensors.items() if value is not None}


REFUSED = {
    "no config": (None, None, "config.json: no such file"),
    "another model": ({"model_type": "qwen3"}, None, "found model_type 'qwen3', expected sing_probe_attn or sing_pr"),
    "no type": ({"model_type": REMOVED}, None, "found model_type None"),
    "a list as type": ({"model_type": ["sing_probe_attn"]}, None, "found model_type ['sing_probe_attn']"),
    "the other form": ({"model_type": "sing_probe_mlp"}, None, "found the tensors "),
    "no layers": ({"base_model_layer_ids": REMOVED}, None, "found base_model_layer_ids None"),
    "layers twice": ({"base_model_layer_ids": [1, 1, 2]}, None, "found base_model_layer_ids [1, 1, 2]"),
    "a layer below 0": ({"base_model_layer_ids": [-1, 1, 2]}, None, "found base_model_layer_ids [-1, 1, 2]"),
    "a layer that is true": ({"base_model_layer_ids": [True, 2, 3]}, None, "found base_model_layer_ids [True, 2, 3]"),
    "fewer layers": (
        {"base_model_layer_ids": [1, 2]},
        None,
        "'proj_q.weight': found shape [16, 192], expected [16, 128]",
    ),
    "five layers": ({"base_model_layer_ids": [0, 1, 2, 3, 4]}, None, "a multiple of the 5 base_model_layer_ids"),
    "a layer behind": ({"base_model_layer_ids": [1, 2, 4]}, None, "found the taps [1, 2, 4], expected 0 to 3"),
    "another width": ({"hidden_size": 32}, None, "found shape [16, 192], expected [16, 96]"),
    "a width of text": ({"hidden_size": "64"}, None, "found hidden_size '64', expected a whole number from 1 on"),
    "heads of another size": ({"head_dim": 4}, None, "found shape [16, 192], expected [8, 192]"),
    "no heads": ({"num_attention_heads": 0}, None, "found num_attention_heads 0, expected a whole number from 1 on"),
    "other rows": ({"num_labels": 9}, None, "found num_labels 9, expected 10; the meaning of other rows cannot be"),
    "a window below 0": ({"sliding_window": -1}, None, "found sliding_window -1, expected a whole number from 0 on"),
    "half a window": ({"sliding_window": 0.5}, None, "found sliding_window 0.5"),
    "nine labels": (
        {"labels": list("abcdefghi")},
        None,
        "found labels ['a', 'b', 'c', 'd', 'e', 'f', ...], expected a list of 10",
    ),
    "one label twice": ({"labels": [*"aacdefghij"]}, None, "found labels with 'a' twice"),
    "labels that are numbers": ({"labels": list(range(10))}, None, "found labels (0, 1, 2"),
    "a tensor less": ({}, ("proj_k.weight", lambda t: None), "found the tensors classifier.bias [10], "),
    "a tensor more": ({}, ("proj_q.bias", lambda t: torch.zeros(16)), "proj_q.bias [16]"),
    "keys of another width": (
        {},
        ("proj_k.weight", lambda t: t[:, :64].contiguous()),
        "found shape [8, 64], expected [8, 192]",
    ),
    "values without rows": ({}, ("proj_v.weight", lambda t: t.new_zeros(())), "found shape [], expected [8, 192]"),
    "keys without rows": ({"head_dim": REMOVED}, ("proj_k.weight", lambda t: t.new_zeros((0, 192))), "expected "),
    "a query without columns": ({}, ("proj_q.weight", lambda t: t[0]), "found shape [192], expected a matrix"),
    "a norm of another width": ({}, ("norm.weight", lambda t: t[:8]), "found shape [8], expected [16]"),
    "nine rows": ({}, ("classifier.weight", lambda t: t[:9]), "found shape [9, 16], expected [10, 16]"),
    "nine biases": ({}, ("classifier.bias", lambda t: t[:9]), "found shape [9], expected [10]"),
    "integers": (
        {},
        ("o_proj.weight", lambda t: t.to(torch.int32)),
        "'o_proj.weight': found type I32, expected F32, F16",
    ),
    "eight bits": ({}, ("o_proj.weight", lambda t: t.to(torch.float8_e4m3fn)), "found type F8_E4M3, expected F32"),
    "NaN": (
        {},
        ("norm.weight", lambda t: t * float("nan")),
        "'norm.weight': found nan at [0], expected finite numbers",
    ),
    "infinity": ({}, ("classifier.bias", lambda t: t / 0), "'classifier.bias': found -inf at [0]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, base, capsys, name):
    config, tensor, words = REFUSED[name]
    directory, out = tmp_path / "probe", tmp_path / "out.heads.gguf"
    write_probe(directory, ATTN, None if tensor is None else spoiled(*tensor), config or {})
    if config is None:
        (directory / "config.json").unlink()
    assert run(directory, "--base", base, "--out", out) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said, said
    assert not out.exists() and {path.name for path in tmp_path.iterdir()} == {"probe", "base.gguf"}


@pytest.mark.parametrize("activation", ["relu", "gelu_new", None, 3])
def test_an_activation_that_no_head_has_is_refused(tmp_path, activation):
    directory = write_probe(tmp_path / "probe", MLP, config={"hidden_act": activation})
    with pytest.raises(So8tError, match=f"found hidden_act {activation!r}, expected 'gelu'"):
        open_probe(directory)


def test_the_weights_are_in_one_file(tmp_path):
    directory = write_probe(tmp_path / "probe", ATTN)
    write_probe(directory, ATTN, file="other.safetensors")
    with pytest.raises(
        So8tError, match=r"found the safetensors files model.safetensors, other.safetensors, expected one"
    ):
        open_probe(directory)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(So8tError, match="found the safetensors files none, expected one"):
        open_probe(directory)
    (directory / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(So8tError, match="truncated or of another kind"):
        open_probe(directory)


def test_a_prefix_of_all_names_is_none_of_theirs(tmp_path):
    tensors = {f"module.{name}": tensor for name, tensor in random_tensors(ATTN).items()}
    found = {tensor.name for tensor in open_probe(write_probe(tmp_path / "probe", ATTN, tensors)).tensors}
    assert found > set(STEM["attn"])


def test_sizes_that_the_directory_does_not_say_are_those_of_the_tensors(tmp_path):
    silent = dict.fromkeys(("hidden_size", "num_attention_heads", "head_dim", "num_labels"), REMOVED)
    probe = open_probe(write_probe(tmp_path / "probe", ATTN, config=silent))
    assert probe.hidden_size == WIDTH


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--action", "B"], "--action B: expected LABEL=ACTION"),
        (["--action", "B=block"], "found the action 'block' for 'B', expected one of allow, escalate, refuse"),
        (["--action", "H=refuse"], "found an action for the label 'H', expected one of A, B, C"),
        (["--action", "B=allow", "--action", "B=refuse"], "--action B=refuse: expected LABEL=ACTION, once for each"),
        (["--base", "missing.gguf"], "missing.gguf"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(tmp_path, capsys, pinned_tree, arguments, words):
    out = tmp_path / "out.gguf"
    assert run(write_probe(tmp_path / "probe", ATTN), "--out", out, *arguments) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said, said
    assert not out.exists()


def test_another_base_is_refused_with_what_differs(tmp_path, base, capsys):
    directory, out = write_probe(tmp_path / "probe", ATTN), tmp_path / "out.gguf"
    wide = gguf_files.copy_gguf(base, tmp_path / "wide.gguf", {"gemma3.embedding_length": 72})
    short = gguf_files.copy_gguf(base, tmp_path / "short.gguf", {"gemma3.block_count": 3})
    model = write_base(tmp_path / "llama", "llama", hidden_size=72)
    for path, words in (
        (wide, "reads a base of the width 64, "),
        (short, "found the taps [1, 2, 3], expected 0 to 2"),
        (model, "reads a base of the width 64, "),
        (tmp_path, "config.json: no such file"),
    ):
        assert run(directory, "--base", path, "--out", out) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and words in said, said
    assert not out.exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": WIDTH, "num_hidden_layers": 4, "architectures": ["NoModel"]}, "found the class 'NoModel'"),
        ({"hidden_size": WIDTH, "num_hidden_layers": 4, "architectures": [[1]]}, "found the class [1]"),
        ({"hidden_size": WIDTH, "num_hidden_layers": 4}, "found the class None"),
        ({"hidden_size": WIDTH, "model_type": "llama"}, "found num_hidden_layers None"),
        ({"text_config": [], "model_type": "llama"}, "found hidden_size None"),
        ({"hidden_size": 2**40, "num_hidden_layers": 4, "model_type": "llama"}, "found hidden_size 1099511627776"),
    ],
)
def test_a_directory_that_is_no_model_is_refused(tmp_path, pinned_tree, capsys, config, words):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out.gguf"
    assert run(write_probe(tmp_path / "probe", ATTN), "--base", tmp_path / "base", "--out", out) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said, said


def test_the_command_says_what_it_wrote(tmp_path, base):
    out = tmp_path / "probe.heads.gguf"
    done = subprocess.run(
        [sys.executable, "-m", "llama_so8t", "import-probe", write_probe(tmp_path / "probe", MLP), "--out", out],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"wrote {out} with the heads query, response, hallucination\n" and not done.stderr
