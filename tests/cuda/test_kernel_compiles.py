"""The CUDA kernel and its call site compile, into what the design says. Needs nvcc; nothing here runs on a GPU."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from required import absent

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "llama_so8t" / "csrc" / "ggml"
KERNEL = CSRC / "ggml-so8t-cuda.cu"

ARCHITECTURES = ["75", "80", "90", "120"]
"""Turing, the oldest that nvcc 13 knows, to Blackwell."""

FLAGS = ["-std=c++17", "-O3", "-use_fast_math", "-extended-lambda"]
"""As ggml-cuda's CMakeLists.txt sets them."""

RUNTIME = {"cudaLaunchKernelExC", "cudaFuncGetAttributes", "cudaGetLastError", "cudaGetErrorString"}
"""What a launch calls. cudaStreamCreateWithFlags is the first use of a stream, before any CUDA graph."""

MAX_REGISTERS = 64
"""With 256 threads in a block, 65536 registers hold four blocks: every thread of a Turing multiprocessor."""


@pytest.fixture(scope="module")
def compile_cuda(pinned_tree, tmp_path_factory):
    """Runs nvcc on a source: ``compile_cuda(source, *flags)``, the object's path and what the compiler said."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        absent("nvcc", "no nvcc on PATH: the CUDA sources were not compiled")
    ggml = pinned_tree / "ggml"
    folders = [ggml / "include", ggml / "src", ggml / "src" / "ggml-cuda", CSRC]
    # cuBLAS and CCCL, which a toolkit of packages lacks (requirements-cuda.txt)
    folders += sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/include"))
    includes = [f"-I{folder}" for folder in folders]

    def run(source: Path, *flags: str) -> tuple[Path, str]:
        output = tmp_path_factory.mktemp(source.stem) / "output"
        command = [nvcc, *FLAGS, *includes, *flags, str(source), "-o", str(output)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, (
            f"{' '.join(command)}\n{result.stderr}\nA missing header: `make test-quick` installs requirements-cuda.txt"
        )
        return output, result.stdout + result.stderr

    return run


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_kernel_keeps_its_matrices_in_registers(compile_cuda, architecture):
    _, text = compile_cuda(KERNEL, f"-arch=sm_{architecture}", "-Xptxas", "-v", "-c", "-Werror", "all-warnings")
    kernels = re.findall(r"Compiling entry function '(\w*so8t_rotate\w*)' for 'sm_(\d+)\w?'", text)
    assert len(kernels) == 2  # vectors of four floats, and single floats
    assert {found for _, found in kernels} == {architecture}
    assert (
        re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        == [("0", "0", "0")] * 2
    )
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", text)]
    assert len(registers) == 2
    assert max(registers) <= MAX_REGISTERS


def test_memory_is_read_and_written_in_vectors(compile_cuda):
    output, _ = compile_cuda(KERNEL, "-arch=sm_90", "-ptx")
    entries = re.split(r"\.entry ", output.read_text())[1:]
    aligned = next(text for text in entries if text.startswith("_Z15so8t_rotate_f32ILb1E"))
    loads = re.findall(r"\bld\.(global|shared)\S*?(\.v[24])?\.\w+ ", aligned)
    stores = re.findall(r"\bst\.(global)\S*?(\.v[24])?\.\w+ ", aligned)
    assert {width for _, width in loads + stores} == {".v4"}
    # four floats of the matrix to shared memory, eight times four back; a row has two loads and one store
    n_rows = stores.count(("global", ".v4"))
    assert n_rows > 0
    assert loads.count(("global", ".v4")) == 1 + 2 * n_rows
    assert loads.count(("shared", ".v4")) == 8
    # 32 products for half a column, four of which start a sum
    assert len(re.findall(r"\bfma\.rn\S*", aligned)) == 28 * n_rows


def test_a_rotation_only_launches(compile_cuda):
    """No memory, no copy, no synchronization: a CUDA graph can hold it."""
    output, _ = compile_cuda(KERNEL, "-arch=sm_90", "-c")
    symbols = subprocess.run(["nm", "-u", output], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"\bcuda\w+", symbols)) == RUNTIME | {"cudaStreamCreateWithFlags"}


@pytest.mark.parametrize("architecture", ["75", "90"])
def test_the_call_site_compiles_and_calls_the_kernel(compile_cuda, pinned_tree, architecture):
    source = pinned_tree / "ggml" / "src" / "ggml-cuda" / "ggml-cuda.cu"
    output, _ = compile_cuda(source, f"-arch=sm_{architecture}", "-c")
    assert b"ggml_so8t_cuda_rotate" in output.read_bytes()
