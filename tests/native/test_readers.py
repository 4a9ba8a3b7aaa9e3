"""Programs that are not ours read our files: the same keys, the same tensors, the right names of types.

They are installed from PyPI into an environment of their own, which takes some seconds and is no part of `make setup`.
"""

import hashlib
import json
import subprocess
import venv
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from required import absent

from llama_so8t.conversion.convert import convert, heads_file
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.files.gguf_file import read_gguf
from llama_so8t.heads_file import attach

PACKAGES = (
    "gguf==0.19.0", "gguf-parser==0.1.1", "gguf-inspect==0.1.0", "modelinfo-cli==1.4.4", "c4nary==0.3.1",
    "mlx[cpu]==0.32.4",
)  # fmt: skip
OUTTYPES = ("f32", "f16", "q8_0", "q4_k_m")
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_k_m": "MOSTLY_Q4_K_M"}
DTYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_k_m": "Q4_K"}


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python that has the readers."""
    directory = tmp_path_factory.mktemp("readers") / "venv"
    venv.create(directory, with_pip=True)
    program = directory / "bin" / "python"
    command = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        absent("readers", f"pip install failed: {done.stderr.strip()[-200:]}")
    return program


@pytest.fixture(scope="module")
def files(make_model, to_gguf, runtime, tmp_path_factory) -> dict[str, Path]:
    """A model in each type of `OUTTYPES`, what llama-quantize makes of it, and a plain llama with heads attached."""
    model = make_model("llama", hidden_size=256, intermediate_size=256, head_dim=32)
    made = {outtype: to_gguf(model, "fold", outtype) for outtype in OUTTYPES}
    root = tmp_path_factory.mktemp("files")
    made["quantized"] = root / "quantized.gguf"
    subprocess.run(
        [runtime / "llama-quantize", made["f32"], made["quantized"], "Q8_0"], check=True, capture_output=True
    )
    stock = root / "stock.gguf"
    convert(ConvertOptions(model=model, outfile=stock, outtype="q8_0", arch="stock", progress=False))
    made["attached"] = root / "attached.gguf"
    attach(stock, [heads_file(stock)], made["attached"])
    return made


@pytest.fixture(scope="module")
def found(python, files) -> dict[str, dict]:
    """Name of a file -> reader -> what it found."""
    script = Path(__file__).with_name("readers.py")
    done = subprocess.run([python, script, *files.values()], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    by_path = json.loads(done.stdout)
    return {name: by_path[str(path)] for name, path in files.items()}


def test_every_reader_opens_every_file(found, files):
    """Each has the architecture and the heads, and nothing to warn of."""
    errors = [
        f"{name}: {reader}: {row}" for name, rows in found.items() for reader, row in rows.items() if type(row) is str
    ]
    assert errors == []
    for name, rows in found.items():
        architecture = "llama" if name == "attached" else "so8t"
        n_tensors = len(read_gguf(files[name]).tensors)
        for reader in ("gguf_py", "gguf_parser", "gguf_inspect", "mlx"):
            assert (rows[reader]["architecture"], rows[reader]["heads"]) == (architecture, ["safety", "authority"])
        assert rows["gguf_inspect"]["warnings"] == [] and rows["gguf_inspect"]["n_tensors"] == n_tensors
        assert rows["modelinfo"]["tensors"] == str(n_tensors)
        assert rows["modelinfo"]["architecture"].lower() == f"{architecture} (2 transformer layers)"
        assert rows["c4nary"] == {"fail": "0", "warn": "0"}


def test_every_tensor_is_the_same(found, files, gguf):
    for name, rows in found.items():
        tensors = gguf.GGUFReader(files[name]).tensors
        start = min(t.data_offset for t in tensors)
        assert rows["gguf_py"]["tensors"] == [
            [t.name, t.shape.tolist(), t.tensor_type.name, hashlib.sha256(t.data.tobytes()).hexdigest()]
            for t in tensors
        ]
        assert rows["gguf_parser"]["tensors"] == [[t.name, t.shape.tolist(), t.data_offset - start] for t in tensors]


@pytest.mark.parametrize("outtype", ["f32", "f16"])
def test_mlx_has_the_values_that_we_read(found, files, outtype):
    expected = {
        name: [list(tensor.shape), hashlib.sha256(np.ascontiguousarray(tensor.read()).tobytes()).hexdigest()]
        for name, tensor in read_gguf(files[outtype]).tensors.items()
    }
    assert found[outtype]["mlx"]["tensors"] == expected
    assert "blk.0.so8t_gen.weight" in expected


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_a_file_has_the_name_of_its_type(found, outtype):
    """modelinfo names the type of most tensors: norms, generators and heads are fewer than weights."""
    assert found[outtype]["gguf_py"]["file_type"] == FILE_TYPES[outtype]
    assert found[outtype]["modelinfo"]["dtype"] == DTYPES[outtype]


def test_generators_alone_would_hide_the_type(files, python, tmp_path):
    """The reason why they are one tensor: with six in each layer, as version 1 has them, a Q8_0 file is called F32."""
    alone = {f"blk.{layer}.so8t_{i}_gen.weight": np.zeros((1, 28), np.float32) for layer in range(2) for i in range(6)}
    path = gguf_files.copy_gguf(files["q8_0"], tmp_path / "alone.gguf", tensors=alone)
    done = subprocess.run(
        [python, Path(__file__).with_name("readers.py"), path], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)[str(path)]["modelinfo"]["dtype"] == "F32"


@pytest.mark.parametrize("name", [*OUTTYPES, "quantized", "attached"])
def test_what_belongs_to_no_layer_stands_before_the_layers(found, name):
    """gguf-parser-go, which estimates memory, takes any other tensor behind them for a layer; it knows output*."""
    names = [row[0] for row in found[name]["gguf_parser"]["tensors"]]
    first = next(i for i, tensor in enumerate(names) if tensor.startswith("blk."))
    assert {tensor for tensor in names if tensor.startswith("so8t_")} <= set(names[:first])
    assert len([tensor for tensor in names[:first] if tensor.startswith("so8t_")]) >= 4
    assert {tensor for tensor in names[first:] if not tensor.startswith("blk.")} <= {
        "output_norm.weight",
        "output.weight",
    }
