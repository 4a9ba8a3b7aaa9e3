"""llama.cpp's own tools on SO8T files."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from gguf_files import copy_gguf

from llama_so8t.bindings import Session
from llama_so8t.errors import RuntimeLibraryError

TEXT = "The quick brown fox jumps over the lazy dog. A rotation keeps the length of every vector. " * 60


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("qwen3", hidden_size=256, num_attention_heads=9, num_key_value_heads=3, head_dim=64)


@pytest.fixture(scope="module")
def file(model, to_gguf):
    return to_gguf(model, "explicit")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def run(runtime: Path, tool: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [runtime / tool, *map(str, arguments)],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip


def contents(path: Path) -> tuple[dict, dict]:
    """Metadata and tensors (type, shape without trailing ones, which ggml drops, bytes) of a GGUF file."""
    from llama_so8t import upstream

    reader = upstream.gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {
        t.name: (t.tensor_type.name, "x".join(map(str, t.shape)).removesuffix("x1"), t.data.tobytes())
        for t in reader.tensors
    }
    return keys, tensors


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "COPY"])
def test_quantize_keeps_every_key_and_leaves_so8t_tensors_alone(runtime, file, tmp_path, kind):
    out = tmp_path / "out.gguf"
    result = run(runtime, "llama-quantize", "--allow-requantize", file, out, kind)
    assert result.returncode == 0, result.stderr
    keys, tensors = contents(file)
    new_keys, new_tensors = contents(out)
    for key in ("general.file_type", "general.quantization_version"):
        keys.pop(key, None)
        new_keys.pop(key, None)
    assert keys == new_keys
    ours = [name for name in tensors if "so8t_" in name]
    assert len(ours) == 2 * (1 + 7) + 1 + 4
    assert all(new_tensors[name] == tensors[name] and tensors[name][0] == "F32" for name in ours)
    kinds = {new_tensors[name][0] for name in tensors if name.endswith("ffn_down.weight")}
    assert kinds == ({"F32"} if kind == "COPY" else {"Q8_0"} if kind == "Q8_0" else kinds - {"F32"})
    with Session(out) as session:
        session.decode([5, 6, 7])
        assert np.isfinite(session.logits()).all()


def test_imatrix_and_quantize_with_it(runtime, file, text, tmp_path):
    matrix = tmp_path / "imatrix.gguf"
    result = run(runtime, "llama-imatrix", "-m", file, "-f", text, "-o", matrix, "-c", 64, "--chunks", 4)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out.gguf"
    result = run(runtime, "llama-quantize", "--imatrix", matrix, file, out, "Q4_K_M")
    assert result.returncode == 0, result.stderr
    assert "so8t" not in " ".join(re.findall(r"converting to (\S+).*so8t_", result.stdout + result.stderr))


def test_bench_measures_prompt_and_generation(runtime, file):
    result = run(runtime, "llama-bench", "-m", file, "-p", 32, "-n", 8, "-r", 1, "-o", "json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(32, 0), (0, 8)]
    assert all(row["model_type"].startswith("so8t") for row in rows)


def test_perplexity_is_that_of_the_reference(runtime, model, file, text):
    """The tool's number against the same sum over the reference model's logits."""
    from .conftest import reference

    result = run(runtime, "llama-perplexity", "-m", file, "-f", text, "-c", 64, "--chunks", 3, "-fa", "off")
    found = float(re.search(r"Final estimate: PPL = ([0-9.]+)", result.stdout + result.stderr)[1])

    with Session(file) as session:
        tokens = session.tokenize(text.read_text()[: 4 * 64 * 3], add_special=True)
    losses = []
    for chunk in range(3):
        part = tokens[chunk * 64 : (chunk + 1) * 64]
        part = [tokens[0], *part[1:]]  # every chunk starts with BOS
        logits = reference(model, part)["task"].astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses += [-log_p[i, part[i + 1]] for i in range(32, 63)]
    assert found == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)


def scale(data):
    data[...] *= 1.01


def nan(data):
    data.reshape(-1)[3] = np.nan


def reflect(data):
    data.reshape(-1, 8, 8)[0, 0] *= -1


def swap_rows(data):  # still in SO(8), but not exp of the generator
    block = data.reshape(-1, 8, 8)[0]
    block[[0, 1]] = block[[1, 0]]
    block[0] *= -1


@pytest.mark.parametrize("name", ["gate_safe", "gate_cmd", "q", "k", "v", "heads", "ffn"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (scale, "is not in SO(8)"),
        (nan, "is not in SO(8)"),
        (reflect, "is not in SO(8)"),
        (swap_rows, "differs from exp of its generator"),
    ],
)
def test_loader_refuses_a_rotation_edited_out_of_the_group(runtime, file, tmp_path, name, change, words):
    tensor = f"blk.1.so8t_{name}_rot.weight"
    bad = copy_gguf(file, tmp_path / "bad.gguf", tensors={tensor: change})
    with pytest.raises(RuntimeLibraryError) as error:
        Session(bad)
    assert tensor in str(error.value) and words in str(error.value)


def test_of_several_bad_rotations_the_first_of_the_file_is_named(file, tmp_path):
    bad = copy_gguf(file, tmp_path / "later.gguf", tensors={"blk.1.so8t_gate_safe_rot.weight": nan})
    bad = copy_gguf(bad, tmp_path / "bad.gguf", tensors={"blk.0.so8t_ffn_rot.weight": swap_rows})
    for _ in range(5):  # whichever thread comes first
        with pytest.raises(RuntimeLibraryError, match=r"blk\.0\.so8t_ffn_rot\.weight"):
            Session(bad)


def turned_by(angle):
    def turn(data):  # stays in SO(8), and moves away from exp of the generator by the angle at most
        block = data.reshape(-1, 8, 8)[0]
        first, second = block[0].copy(), block[1].copy()
        block[0] = np.cos(angle) * first - np.sin(angle) * second
        block[1] = np.sin(angle) * first + np.cos(angle) * second

    return turn


def test_the_tolerance_is_that_of_the_format(file, tmp_path):
    """Largest entry of |R - exp(A)|: 1e-4; between 4e-6 and this, orthogonality and determinant are measured."""
    name = "blk.1.so8t_gate_cmd_rot.weight"
    with Session(copy_gguf(file, tmp_path / "near.gguf", tensors={name: turned_by(5e-5)})):
        pass
    bad = copy_gguf(file, tmp_path / "far.gguf", tensors={name: turned_by(4e-4)})
    with pytest.raises(RuntimeLibraryError, match="differs from exp of its generator"):
        Session(bad)


def test_a_refused_file_ends_the_tool_with_code_1(runtime, file, tmp_path):
    bad = copy_gguf(file, tmp_path / "bad.gguf", tensors={"blk.0.so8t_q_rot.weight": scale})
    result = run(runtime, "llama-completion", "-m", bad, "-p", "a", "-n", 1, "-no-cnv")
    assert result.returncode == 1
    assert "blk.0.so8t_q_rot.weight" in result.stderr


def model_type(runtime: Path, file: Path) -> str:
    """What a tool prints as the type, "?B" where it is of no known size."""
    result = run(runtime, "llama-completion", "-m", file, "-p", "a", "-n", 1, "-no-cnv", "-c", 64, "-ub", 8, "-v")
    assert result.returncode == 0, result.stderr
    return re.search(r"model type\s*= (\S+)", result.stderr)[1]


def test_the_type_of_a_model_is_a_size_of_its_family(runtime, make_model, to_gguf, tmp_path):
    """Llama 3.2 3B has the layers of Qwen3 1.7B; what tells them apart is the number of parameters."""
    assert model_type(runtime, to_gguf(make_model("llama", num_hidden_layers=28), "explicit")) == "?B"
    # two layers with 0.3e9 zeros in the feed-forward network: 50 bytes for 256 of them
    n_ff, width = 28 * 8192, 256
    ffn = {"gate": (n_ff, width), "up": (n_ff, width), "down": (width, n_ff)}
    blocks = {
        f"blk.{layer}.ffn_{name}.weight": (np.zeros((rows, columns // 256 * 50), np.uint8), "IQ1_S")
        for layer in range(2)
        for name, (rows, columns) in ffn.items()
    }
    small = to_gguf(make_model("llama", hidden_size=width), "explicit")
    large = copy_gguf(small, tmp_path / "large.gguf", {"so8t.feed_forward_length": n_ff}, blocks)
    assert model_type(runtime, large) == "360M"
