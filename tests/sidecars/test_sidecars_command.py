"""`so8t convert` with a configuration file and with sidecar files."""

import pytest
import yaml

from llama_so8t import cli
from llama_so8t.files.gguf_file import read_gguf
from llama_so8t.sidecars.writing import NAMES


@pytest.fixture
def convert(tmp_path, capfd):
    """Runs it with a file of the given groups: ``convert(groups, *arguments)`` gives exit code, stdout, stderr."""

    def run(groups, *arguments):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(groups))
        code = cli.main(["convert", "--config", str(path), *map(str, arguments)])
        out, err = capfd.readouterr()
        return code, out.splitlines(), err

    return run


@pytest.fixture
def groups(models, tmp_path):
    return {
        "model": {"model_path": str(models["qwen3"]), "hidden_size": 64, "rms_norm_eps": 1e-5},
        "so8t": {"rotation_dim": 8, "triality_symmetry": True, "pet_lambda": 0.01},
        "quantization": {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "safety_head"]},
        "gguf": {"output_dir": str(tmp_path), "filename": "x.gguf", "quantization": "8bit"},
    }


def test_the_file_is_enough(convert, groups, sidecars, tmp_path):
    code, out, err = convert(groups, "--sidecars", tmp_path / "files")
    assert code == 0 and out[0].startswith(f"wrote {tmp_path / 'x.gguf'} ")
    assert out[1] == f"wrote {tmp_path / 'Modelfile'}"
    assert [line.split()[1] for line in out[2:]] == [str(tmp_path / "files" / name) for name in NAMES]
    assert "so8t.pet_lambda has no effect" in err
    types = {name: tensor.dtype for name, tensor in read_gguf(tmp_path / "x.gguf").tensors.items()}
    assert (types["blk.0.ffn_up.weight"], types["output.weight"]) == ("Q8_0", "F16")
    for name in NAMES:
        assert (tmp_path / "files" / name).read_bytes() == (sidecars["qwen3"] / name).read_bytes()


def test_the_command_line_comes_first(convert, groups, models, tmp_path):
    del groups["model"]["hidden_size"]
    code, _, _ = convert(groups, models["qwen2"], "--outtype", "f32", "--outfile", tmp_path / "y.gguf")
    assert code == 0 and not (tmp_path / "x.gguf").exists()
    file = read_gguf(tmp_path / "y.gguf")
    assert file.get("so8t.base_architecture") == "qwen2" and file.tensors["blk.0.ffn_up.weight"].dtype == "F32"


def test_a_file_written_for_another_model_is_refused(convert, groups, tmp_path):
    groups["model"]["hidden_size"] = 2560
    code, out, err = convert(groups)
    assert (code, out) == (1, []) and "found hidden_size 64, but the configuration file says 2560" in err
    assert not (tmp_path / "x.gguf").exists()


def test_without_a_model_there_is_nothing_to_convert(convert):
    code, _, err = convert({"gguf": {"quantization": "8bit"}})
    assert code == 1 and "model.model_path" in err
