"""`so8t diagnose`: models, single files, and what upstream's scripts wrote under the name of GGUF."""

import argparse
import json
import struct
import zipfile
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from required import package
from tiny_models import stored, write_base

from llama_so8t.checkpoint import adapter
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.cli import diagnose as command
from llama_so8t.diagnosis import diagnose, render
from llama_so8t.errors import CheckpointError
from llama_so8t.files import safetensors_file, safetensors_writer

GOLDEN = Path(__file__).parents[1] / "golden"

GATE = "model.layers.{}.self_attn.rotation_gate.theta"


@pytest.fixture
def run(capsys):
    """Runs the command; returns exit code, JSON and text."""

    def call(path):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        codes = [command.run(parser.parse_args([str(path), *options])) for options in ([], ["--json"])]
        text, _, rest = capsys.readouterr().out.partition("{")
        assert codes[0] == codes[1]
        return codes[0], json.loads("{" + rest), text

    return call


@pytest.fixture
def l4(tmp_path, rng):
    """Factory: a base model of random numbers with the gates of layout L4."""

    def make(change=None, scale=0.3, **config):
        directory = write_base(tmp_path / "l4")
        tensors = {
            name.replace(".self_attn.", ".self_attn.base_attention."): tensor.read()
            for name, tensor in safetensors_file.read_sharded(directory).items()
        }
        for layer in (0, 1):
            tensors[GATE.format(layer)] = rng.normal(0, scale, (8, 8, 8)).astype(np.float32)
        if change:
            change(tensors)
        safetensors_writer.write_sharded(
            directory, [stored(name, np.array(values)) for name, values in tensors.items()]
        )
        if config:
            file = directory / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return directory

    return make


# --- directories -----------------------------------------------------------------------------


def test_a_layout_that_can_be_used(run, l4):
    code, found, text = run(l4())
    assert (code, found["layout"], found["verdict"], found["usable"]) == (0, "L4", "accept", True)
    assert (found["site"], found["side"]) == ("after o_proj", "xR")
    assert [gate["blocks"] for gate in found["gates"]] == [8, 8]
    assert all(gate["orthogonality_error"] < 1e-6 for gate in found["gates"])
    assert not found["problems"] and not found["notes"]
    assert "layout L4" in text and text.endswith("  usable\n")


def test_zero_and_untrained_gates_are_noted(l4, tmp_path):
    def zero(tensors):
        for layer in (0, 1):
            tensors[GATE.format(layer)][:] = 0

    found = diagnose(l4(zero))
    assert found.usable and any("identity" in note for note in found.notes)


@pytest.mark.parametrize(("scale", "noted"), [(0.1, True), (0.05, True), (0.2, False)])
def test_gates_with_the_statistics_of_the_start_are_noted(l4, scale, noted):
    found = diagnose(l4(scale=scale))
    assert found.usable
    assert any("look untrained" in note for note in found.notes) is noted


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.pop(GATE.format(1)), "found gates in layers 0, expected gates in layers 0, 1"),
        (lambda t: t[GATE.format(1)].__setitem__((2, 3, 4), np.nan), "NaN or infinity"),
        (lambda t: t[GATE.format(1)].__setitem__((2, 3, 4), 1e12), "not a rotation"),
        (lambda t: t["model.norm.weight"].__setitem__(5, np.inf), "NaN or infinity in 'model.norm.weight'"),
        (lambda t: t.pop("model.norm.weight"), "'model.norm.weight' is missing"),
        (lambda t: t.update({"surprise.weight": np.zeros(3, np.float32)}), "'surprise.weight' is not expected"),
    ],
)
def test_what_is_wrong_with_a_layout_is_said(run, l4, change, why):
    code, found, _ = run(l4(change))
    assert code == 1 and found["layout"] == "L4"
    assert any(why in problem for problem in found["problems"]), found["problems"]


def test_linear_maps_that_nothing_was_loaded_into(run, l4):
    def fresh(tensors):
        rng = np.random.default_rng(0)
        for name, values in tensors.items():
            if name.endswith("_proj.weight"):
                bound = values.shape[1] ** -0.5
                values[:] = rng.uniform(-bound, bound, values.shape)

    code, found, _ = run(l4(fresh))
    assert code == 1 and any("14 of 14 linear maps are uniform" in problem for problem in found["problems"])


def test_layers_that_config_names(l4):
    found = diagnose(l4(layer_indices=[0]))
    assert not found.usable and "expected gates in layers 0" in found.problems[0]


def test_claims_beside_the_tensors_are_compared(l4):
    directory = l4()
    (directory / "so8t_integration_info.json").write_text(json.dumps({"layers_modified": 2, "so8t_params": 128}))
    found = diagnose(directory)
    assert found.usable
    assert found.notes == ("so8t_integration_info.json: says so8t_params 128, the file has 1024",)


@pytest.mark.parametrize("name", ["burnin_metadata.json", "burn_in_report.json"])
def test_a_model_said_to_be_baked_cannot_be_told(run, tmp_path, name):
    directory = write_base(tmp_path / "baked")
    (directory / name).write_text("{}")
    code, found, _ = run(directory)
    assert code == 1 and "fold on the wrong side" in found["problems"][0]


def test_flags_without_tensors_ask_for_their_origin(run, tmp_path):
    directory = write_base(tmp_path / "flags", so8t_integrated=True)
    code, found, _ = run(directory)
    assert (code, found["layout"]) == (1, "L6d")
    assert "so8t_layout_origin" in found["problems"][0]
    (directory / "config.json").write_text(
        json.dumps(json.loads((directory / "config.json").read_text()) | {"so8t_layout_origin": "flags-only"})
    )
    assert run(directory)[0] == 0


def test_another_family_is_no_base(l4):
    found = diagnose(l4(model_type="phi3"))
    assert found.layout.id == "L4" and not found.usable
    assert "found model_type 'phi3'" in found.problems[0]


def test_plain_models_and_this_project_s_own(run, tmp_path):
    base = write_base(tmp_path / "base")
    code, found, _ = run(base)
    assert (code, found["layout"], found["meaning"]) == (0, None, "a model of 'qwen3' without SO8T")
    initialize(InitializeOptions(str(base), tmp_path / "full", rotations="random"))
    initialize(InitializeOptions(str(base), tmp_path / "adapter", adapter=True))
    assert run(tmp_path / "full")[1]["meaning"] == "an SO8T model of this project"
    assert run(tmp_path / "full")[0] == run(tmp_path / "adapter")[0] == 0
    (tmp_path / "base" / "model.safetensors").write_bytes(b"")
    assert run(tmp_path / "adapter")[0] == 1


def test_peft_adapter_has_no_rotation(run, tmp_path):
    (tmp_path / adapter.CONFIG_NAME).write_text(json.dumps({"peft_type": "LORA"}))
    code, found, _ = run(tmp_path)
    assert code == 1 and "carries no rotations" in found["problems"][0]


def test_directories_without_a_model(run, tmp_path):
    code, found, _ = run(tmp_path)
    assert code == 1 and found["meaning"] == "a directory without files"
    (tmp_path / "a.gguf").write_bytes(b"# Placeholder GGUF file")
    (tmp_path / "config.json").write_text("{}")
    code, found, _ = run(tmp_path)
    assert code == 1 and any("text placeholder" in note for note in found["notes"])


def test_truncated_weights_are_said(run, l4):
    directory = l4()
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    code, found, _ = run(directory)
    assert code == 1 and str(file) in found["problems"][0]


def test_a_path_with_nothing_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or directory"):
        diagnose(tmp_path / "absent")


# --- files of torch ----------------------------------------------------------------------------


@pytest.fixture
def torch():
    return package("torch")


def test_torch_files_are_read_without_running_them(run, tmp_path, torch):
    torch.save({f"layer_{i}": torch.randn(8, 8, 8) * 0.1 for i in range(4)}, tmp_path / "rotations.pt")
    code, found, _ = run(tmp_path / "rotations.pt")
    assert (code, found["layout"]) == (1, "L5")
    # the series of L5 is none: what it makes of small angles is orthogonal to a few digits only
    assert len(found["gates"]) == 4 and max(gate["orthogonality_error"] for gate in found["gates"]) > 1e-7
    torch.save({"rotation_params": torch.zeros(28)}, tmp_path / "so8t_rotation_params.pt")
    code, found, _ = run(tmp_path / "so8t_rotation_params.pt")
    assert (code, found["layout"]) == (1, "L13") and "identity" in found["notes"][0]
    torch.save(torch.eye(8).repeat(4, 1, 1), tmp_path / "rotation_matrices.pt")
    assert run(tmp_path / "rotation_matrices.pt")[1]["layout"] == "L5"
    torch.save({"theta": torch.randn(4, 8, 8)}, tmp_path / "gate.pt")
    assert run(tmp_path / "gate.pt")[1]["layout"] == "L8"


def test_a_soul_is_recognised(run, tmp_path, torch):
    linear = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(16, 16, bias=False))
    torch.save({"alpha": torch.tensor(1.618), "so8_rotation": linear.state_dict()}, tmp_path / "soul.pt")
    _, found, _ = run(tmp_path / "soul.pt")
    assert found["layout"] == "L14" and "alpha 1.618" in found["notes"][0]
    torch.save({"alpha": torch.tensor(float("nan")), "rotation": linear.state_dict()}, tmp_path / "soul_params.pt")
    _, found, _ = run(tmp_path / "soul_params.pt")
    assert found["layout"] == "L14" and any("alpha nan" in problem for problem in found["problems"])
    torch.save({"alpha": torch.tensor(1.618)}, tmp_path / "soul_weights.pt")
    assert run(tmp_path / "soul_weights.pt")[1]["layout"] == "L14-alpha"
    torch.save(
        {"model_state_dict": {f"rotation.{key}": value for key, value in linear.state_dict().items()}, "alpha": 1.0},
        tmp_path / "so8t_final_model.pt",
    )
    assert run(tmp_path / "so8t_final_model.pt")[1]["layout"] == "L14"


def test_torch_files_that_run_code_are_not_run(run, tmp_path, torch):
    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("run").touch, ())

    for name in ("soul.pt", "model.gguf", "model.bin"):
        torch.save({"theta": Hostile(), "fill": torch.zeros(4096)}, tmp_path / name)
        code, found, _ = run(tmp_path / name)
        assert code == 1 and found["problems"]
    torch.save(Hostile(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert run(tmp_path / "old.pt")[1]["kind"] == "pickle"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("padding", [0, 1 << 16])
def test_a_zip_bomb_is_not_opened(run, tmp_path, torch, padding):
    torch.save({"theta": torch.zeros(64, 8, 8)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for item in plain.infolist():
            bomb.writestr(item.filename, plain.read(item), compress_type=zipfile.ZIP_DEFLATED)
        bomb.writestr("padding", bytes(padding))  # a file larger than any of its members
    code, found, _ = run(tmp_path / "bomb.pt")
    assert code == 1 and "is compressed" in found["problems"][0]


def test_a_view_larger_than_its_file(run, tmp_path, torch):
    torch.save({"theta": torch.zeros(1).expand(1 << 20, 8, 8)}, tmp_path / "view.pt")
    code, found, _ = run(tmp_path / "view.pt")
    assert code == 1 and "which the file cannot hold" in found["problems"][0]


# --- what looks like GGUF ------------------------------------------------------------------------


def v1(tensors=3):
    """The header that upstream's scripts wrote by hand: counts swapped, lengths of 4 bytes."""
    text = b"".join(struct.pack("<I", len(word)) + word for word in (b"general.architecture", b"so8t"))
    return b"GGUF" + struct.pack("<IQQ", 1, 27, tensors) + text


ARTEFACTS = {
    "empty": (b"", "empty file"),
    "text": (b"# Placeholder GGUF file for model\n", "no GGUF: text placeholder"),
    "json": (b'\xef\xbb\xbf {"weights": [127]}', "no GGUF: JSON"),
    "pickle": (b"\x80\x02}q\x00.", "no GGUF: pickle"),
    "handwritten": (v1(), "no GGUF: hand-written GGUF version 1"),
    "handwritten, cut off": (v1()[:10], "no GGUF: hand-written GGUF version 1"),
    "zip, cut off": (b"PK\x03\x04" + bytes(40), "no GGUF: zip, damaged"),
    "magic alone": (b"GGUF", "GGUF, damaged"),
    "version 9": (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "GGUF, damaged"),
    "huge counts": (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "GGUF, damaged"),
    "cut off": (b"GGUF" + struct.pack("<IQQ", 3, 1, 1), "GGUF, damaged"),
    "no architecture": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "GGUF"),
    "noise": (bytes(range(200, 256)), "no GGUF: unknown"),
}


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_files_that_only_look_like_gguf(run, tmp_path, artefact):
    content, kind = ARTEFACTS[artefact]
    (tmp_path / "model.gguf").write_bytes(content)
    code, found, text = run(tmp_path / "model.gguf")
    assert (code, found["kind"], found["usable"]) == (1, kind, False)
    assert found["problems"] and "not usable as it is" in text


def test_a_pickle_beside_a_false_gguf_is_named(run, tmp_path):
    (tmp_path / "model.gguf").write_text("{}")
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04.")
    assert "model.pkl beside it" in run(tmp_path / "model.gguf")[1]["meaning"]


def test_torch_pickles_named_gguf_are_listed(run, tmp_path, torch):
    torch.save({"weight": torch.zeros(4096)}, tmp_path / "model.gguf")
    code, found, _ = run(tmp_path / "model.gguf")
    assert (code, found["kind"]) == (1, "no GGUF: torch pickle")
    assert "data.pkl" in found["notes"][0]
    torch.save({"checkpoint": "models/final"}, tmp_path / "path.gguf")
    assert run(tmp_path / "path.gguf")[1]["kind"] == "no GGUF: torch path holder"
    with zipfile.ZipFile(tmp_path / "zip.gguf", "w") as archive:
        archive.writestr("\x1b[31m.txt", "x")
    code, found, text = run(tmp_path / "zip.gguf")
    assert found["kind"] == "no GGUF: zip" and "\x1b" not in text


@pytest.fixture
def write_gguf(gguf, tmp_path):
    """Writes a GGUF file with upstream's own writer."""

    def write(arch="qwen3", blocks=2, width=64, vocabulary=320, keys=(), tensors=1):
        shape = {f"{arch}.block_count": blocks, f"{arch}.embedding_length": width, f"{arch}.vocab_size": vocabulary}
        norms = {f"blk.{index}.attn_norm.weight": np.ones(width, np.float32) for index in range(tensors)}
        return gguf_files.write_gguf(tmp_path / f"{arch}.gguf", arch, shape | dict(keys), norms)

    return write


def test_a_correct_gguf_is_said_to_be_one(run, write_gguf):
    code, found, _ = run(write_gguf())
    assert (code, found["kind"], found["layout"]) == (0, "GGUF", None)
    assert found["meaning"] == "a correct GGUF version 3: architecture qwen3, 2 layers, 1 tensors"


def test_heads_without_a_model_are_said_to_be_some(run, gguf):
    code, found, _ = run(GOLDEN / "format-2.heads.gguf")
    assert code == 0 and found["meaning"].startswith("a correct GGUF version 3: heads without a model, ")


def test_a_gguf_of_random_numbers(run, write_gguf):
    code, found, _ = run(write_gguf("llama", 4, 512, 1000))
    assert code == 1 and "random numbers" in found["problems"][0]
    assert run(write_gguf("llama", 4, 512, 32000))[0] == 0


def test_keys_of_the_fork_prove_nothing(run, write_gguf):
    keys = [("so8t.group_structure", "SO8"), ("so8t.triality_enabled", "true")]
    code, found, _ = run(write_gguf(keys=keys))
    assert code == 0 and "no evidence" in found["notes"][0]
    code, found, _ = run(write_gguf("so8t", keys=keys))
    assert code == 1 and "fork" in found["problems"][0]


def test_an_so8t_gguf_is_inspected(run, write_gguf):
    code, found, _ = run(write_gguf("so8t"))
    assert code == 1 and found["problems"]


def test_a_gguf_without_tensors(run, write_gguf):
    code, found, _ = run(write_gguf(tensors=0))
    assert code == 1 and "no tensors" in found["problems"][0]


# --- the seed --------------------------------------------------------------------------------------


def seed(path, uniform):
    rng = np.random.default_rng(0)
    draw = (lambda: rng.uniform(-1, 1, (96, 128))) if uniform else (lambda: rng.normal(size=(96, 128)))
    arrays = {"model.layers.0.self_attn.so8_rotations": np.zeros((4, 8, 8), np.int8)}
    for name in ("q", "k", "v"):
        weight = draw()
        arrays[f"model.layers.0.self_attn.{name}_proj.weight"] = np.round(weight / np.abs(weight).max() * 127).astype(
            np.int8
        )
    np.savez_compressed(path / "model_tensors_8bit.npz", **arrays)
    info = {name: {"scale": 0.0 if "rotations" in name else 0.01, "zero_point": 0} for name in arrays}
    (path / "quantization_info.json").write_text(json.dumps(info))


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("as_directory", [True, False])
def test_the_files_of_the_seed(run, tmp_path, uniform, as_directory):
    seed(tmp_path, uniform)
    code, found, _ = run(tmp_path if as_directory else tmp_path / "model_tensors_8bit.npz")
    assert (code, found["layout"]) == (1, "L0")
    assert any("3 of 3 linear maps are uniform" in problem for problem in found["problems"]) is uniform
    assert any("scale 0" in problem and "so8_rotations" in problem for problem in found["problems"])


def test_npz_that_holds_objects_or_is_cut_off(run, tmp_path):
    path = tmp_path / "model.npz"
    np.savez(path, **{"a.q_proj.weight": np.array([{"x": 1}], dtype=object)})
    assert run(path)[0] == 1
    path.write_bytes(path.read_bytes()[:-30])
    code, found, _ = run(path)
    assert (code, found["kind"]) == (1, "npz, damaged")


# --- safetensors and others ---------------------------------------------------------------------------


def test_a_safetensors_file_by_itself(run, tmp_path):
    safetensors_writer.write_file(
        tmp_path / "gates.safetensors", [stored(GATE.format(0), np.zeros((4, 8, 8), np.float32))]
    )
    code, found, _ = run(tmp_path / "gates.safetensors")
    assert (code, found["layout"]) == (1, "L4") and "without a model" in found["problems"][0]
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "gates.safetensors").read_bytes()[:20])
    assert "truncated" in run(tmp_path / "cut.safetensors")[1]["problems"][0]


def test_other_files_are_unknown(run, tmp_path):
    (tmp_path / "notes.txt").write_text("SO8T")
    code, found, _ = run(tmp_path / "notes.txt")
    assert (code, found["kind"]) == (1, "unknown")


def test_names_cannot_control_the_terminal(tmp_path):
    name = "model.layers.0.self_attn.rotation_gate.theta\x1b[2J"
    safetensors_writer.write_file(tmp_path / "x.safetensors", [stored(name, np.zeros((4, 8, 8), np.float32))])
    assert "\x1b" not in render(diagnose(tmp_path / "x.safetensors"))
