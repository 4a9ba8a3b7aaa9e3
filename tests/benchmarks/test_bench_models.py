"""Files of a shape: what the arms share, and what each of them adds."""

import os

import pytest

from llama_so8t.benchmarks.models import ARMS, BASE, KNOWN_ARMS, PROBE, SHAPES, WEIGHTS, Arm, write_models
from llama_so8t.files.gguf_file import read_gguf

N_LAYER = SHAPES["tiny"]["num_hidden_layers"]


@pytest.fixture(scope="module")
def files(tmp_path_factory, pinned_tree):
    paths = write_models(tmp_path_factory.mktemp("models"), "tiny", "q8_0", (*ARMS, PROBE, Arm("gate,v", False)))
    return {arm: read_gguf(path) for arm, path in paths.items()}


def names(file):
    return {tensor.split(".")[2].removeprefix("so8t_") if "blk" in tensor else tensor for tensor in file.tensors}


def test_every_arm_has_the_same_bytes_of_weights(files):
    for file in files.values():
        second = file.path.with_name(file.path.name.replace("00001", "00002"))
        assert os.path.samefile(second, file.path.with_name(WEIGHTS))
        assert not set(read_gguf(second).tensors) & set(file.tensors)


def test_the_base_adds_nothing(files):
    assert not files[BASE].tensors
    assert not [key for key in files[BASE].metadata if key.startswith("so8t.")]
    assert files[BASE].get("general.architecture") == "qwen3"


@pytest.mark.parametrize("rotations", [None, "fold", "explicit"])
def test_heads_are_in_the_file_or_not_at_all(files, rotations):
    bare, full = files[Arm(rotations, False)], files[Arm(rotations, True)]
    assert set(full.tensors) - set(bare.tensors) == {
        f"so8t_head.{head}.{part}" for head in ("safety", "authority") for part in ("weight", "bias")
    }
    assert full.get("so8t.heads") == ["safety", "authority"] and bare.get("so8t.heads") is None


def test_explicit_sites_carry_their_matrices(files):
    generators = {"gen", "so8t_out_gen.weight"}
    explicit = {"gate_safe_rot", "gate_cmd_rot", "q_rot", "k_rot", "v_rot", "heads_rot", "ffn_rot"}
    assert names(files[Arm("explicit", False)]) == generators | explicit
    assert names(files[Arm("fold", False)]) == generators | {"q_rot", "k_rot"}
    assert names(files[Arm("gate,v", False)]) == generators | {"gate_safe_rot", "gate_cmd_rot", "v_rot"}
    assert files[Arm("gate,v", False)].get("so8t.rotation.explicit") == ["gate", "v"]


def test_the_probe_has_the_size_of_singprobe(files):
    assert files[PROBE].get("so8t.heads") == ["query", "response", "hallucination"]
    d, n_inner = SHAPES["tiny"]["hidden_size"], 256
    assert {name: tensor.shape for name, tensor in files[PROBE].tensors.items() if "attn" in name} == {
        "so8t_stem.probe.attn_q.weight": (n_inner, 2 * d),  # the small shape has two layers to read
        "so8t_stem.probe.attn_k.weight": (64, 2 * d),
        "so8t_stem.probe.attn_v.weight": (64, 2 * d),
        "so8t_stem.probe.attn_output.weight": (n_inner, n_inner),
    }


def test_names_are_unique():
    assert len(KNOWN_ARMS) == len(ARMS) + 1 == 7
