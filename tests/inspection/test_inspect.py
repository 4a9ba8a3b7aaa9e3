"""What `so8t inspect` says about sound, broken and foreign models. Run: pytest tests/inspection"""

import argparse
import json
import re
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from required import package

from llama_so8t.cli import inspect as command
from llama_so8t.errors import CheckpointError, So8tError
from llama_so8t.format import SITES, Keys
from llama_so8t.inspection import inspect, render

GOLDEN = Path(__file__).parents[1] / "golden"


def _run(path: Path, *options: str) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args([str(path), *options])) == 0


def test_a_sound_file_has_rotations_in_so8_that_agree_with_their_generators(write_gguf, shape, tolerance):
    report = inspect(write_gguf(explicit=SITES))
    assert report.problems == ()
    assert len(report.sites) == shape.n_layer * 6 + 1
    for site in report.sites:
        assert site.orthogonality_error < tolerance.float32
        assert site.determinant_error < tolerance.float32
        assert (site.generator_error is None) == (site.generator == "out")
        assert site.generator_error is None or site.generator_error < tolerance.float32


def test_folded_sites_are_measured_from_their_generators(write_gguf, tolerance):
    for site in inspect(write_gguf(explicit=())).sites:
        assert site.state == "folded"
        assert site.generator_error is None
        assert site.orthogonality_error < tolerance.float64


def test_triality_residual_belongs_to_the_triality_sites(write_gguf, tolerance):
    for site in inspect(write_gguf(explicit=("v",))).sites:
        assert (site.triality_residual is not None) == (site.site in ("qk", "v", "out"))
        if site.triality_residual is not None:
            assert site.triality_residual < (tolerance.float32 if site.site == "v" else tolerance.float64)


def test_commutator_norm_is_that_of_the_gates(write_gguf):
    def same_gates(metadata, tensors):
        for name in ("_gen", "_rot"):
            safe = tensors[f"blk.1.so8t_gate_safe{name}.weight"]
            tensors[f"blk.1.so8t_gate_cmd{name}.weight"] = safe

    norms = {s.layer: s.commutator_norm for s in inspect(write_gguf(edit=same_gates)).sites if s.site == "gate"}
    assert norms[1] < 1e-6 < 0.1 < norms[0]


def test_angle_of_a_planar_rotation_is_its_coefficient(write_gguf, shape):
    def one_plane(metadata, tensors):
        generator = np.zeros((shape.width // 8, 28))
        generator[4, 0] = 0.75
        tensors["blk.2.so8t_ffn_gen.weight"] = generator

    site = next(s for s in inspect(write_gguf(edit=one_plane)).sites if (s.layer, s.generator) == (2, "ffn"))
    assert site.angle_max == pytest.approx(0.75, abs=1e-6)
    assert site.angle_mean == pytest.approx(0.75 / (4 * shape.width // 8), abs=1e-6)


@pytest.mark.parametrize(
    ("tensor", "spoil"),
    [
        ("blk.1.so8t_q_rot.weight", lambda r: r[2].__imul__(1.001)),
        ("blk.2.so8t_gate_cmd_rot.weight", lambda r: r[0, 0].__imul__(-1)),
        ("blk.0.so8t_k_rot.weight", lambda r: r[1].__setitem__((0, 0), np.nan)),
        ("blk.0.so8t_gate_safe_rot.weight", lambda r: r[3].__imul__(1e30)),
    ],
)
def test_a_rotation_out_of_so8_is_named_and_the_table_still_printed(write_gguf, capsys, tensor, spoil):
    path = write_gguf(edit=lambda metadata, tensors: spoil(tensors[tensor]))
    with pytest.raises(CheckpointError) as error:
        _run(path)
    assert tensor in str(error.value) and "not in SO(8)" in str(error.value)
    assert "\n" not in str(error.value)
    printed = capsys.readouterr().out
    assert f"PROBLEM {tensor}" in printed and "gate_safe" in printed


def test_rotations_that_differ_from_their_generator_are_named(write_gguf, place):
    def swap_heads(metadata, tensors):
        rotations = tensors["blk.1.so8t_q_rot.weight"]
        rotations[[0, 1]] = rotations[[1, 0]]  # still in SO(8), but of another representation

    (problem,) = inspect(write_gguf(edit=swap_heads)).problems
    assert problem.startswith(f"blk.1.so8t_q_rot.weight: differs from exp of {place(1, 'qk')} by")


def test_transposed_rotations_differ_from_their_generator(write_gguf):
    def transpose(metadata, tensors):
        tensors["blk.0.so8t_gate_cmd_rot.weight"] = tensors["blk.0.so8t_gate_cmd_rot.weight"].swapaxes(1, 2)

    (problem,) = inspect(write_gguf(edit=transpose)).problems
    assert problem.startswith("blk.0.so8t_gate_cmd_rot.weight: differs from exp")


def test_a_generator_that_is_not_finite_is_named(write_gguf, place):
    def spoil(metadata, tensors):
        tensors["blk.1.so8t_v_gen.weight"][0, 5] = np.inf

    report = inspect(write_gguf(edit=spoil))
    assert report.problems[0].startswith(f"{place(1, 'v')}: has NaN or infinity")
    assert "nan" in render(report)


def test_a_generator_whose_exponential_no_program_knows_is_named(write_gguf, place):
    def spoil(metadata, tensors):
        tensors["blk.1.so8t_ffn_gen.weight"][0, 5] = -3e38

    (problem,) = inspect(write_gguf(edit=spoil)).problems
    assert problem == f"{place(1, 'ffn')}: has a coefficient of 3e+38, expected at most 1e+06 radians"


@pytest.mark.filterwarnings("error")
def test_a_signalling_nan_is_no_warning(write_gguf, place):
    def spoil(metadata, tensors):
        tensors["blk.1.so8t_v_gen.weight"] = np.full((1, 28), 0x7F800001, np.uint32).view(np.float32)

    assert inspect(write_gguf(edit=spoil)).problems[0].startswith(f"{place(1, 'v')}: has NaN")


def test_a_head_that_is_not_finite_is_named(write_gguf):
    def spoil(metadata, tensors):
        tensors["so8t_head.safety.weight"][1, 3] = np.nan

    (problem,) = inspect(write_gguf(edit=spoil)).problems
    assert problem == "head safety: weight or bias has NaN or infinity"


def test_json_is_one_object_without_nan_and_has_the_documented_keys(write_gguf, capsys):
    def spoil(metadata, tensors):
        tensors["blk.0.so8t_k_rot.weight"][0] = np.nan

    with pytest.raises(CheckpointError):
        _run(write_gguf(edit=spoil), "--json")
    printed = capsys.readouterr().out
    assert "NaN" not in printed and "Infinity" not in printed
    report = json.loads(printed)
    assert report["ok"] is False and report["problems"][0].startswith("blk.0.so8t_k_rot.weight")
    keys = {*report, *report["sites"][0], *report["heads"][0]}
    missing = [key for key in keys if key not in command.KEYS]
    assert missing == []
    assert report["heads"][0]["representation"] == "spinor+"


def test_an_adapter_shows_generators_and_unfitted_heads(adapter_directory, capsys, tolerance):
    _run(adapter_directory, "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "adapter" and report["ok"] and report["compensated"] is True
    assert [site["generator"] for site in report["sites"]] == [
        *(g for s in SITES.values() for g in s.generator_names),
        "out",
    ]
    assert all(site["state"] == "checkpoint" for site in report["sites"])
    assert all(site["orthogonality_error"] < tolerance.float64 for site in report["sites"])
    assert [head["fitted"] for head in report["heads"]] == [False, False]
    _run(adapter_directory)
    shown = capsys.readouterr().out
    assert shown.count("not fitted") == 2
    assert shown.count("warning: heads safety, authority have weights of zeros: they were never fitted") == 1


def test_a_head_is_fitted_as_soon_as_one_weight_is_not_zero(write_gguf):
    def zero_but_one(metadata, tensors):
        tensors["so8t_head.safety.weight"][:] = 0
        tensors["so8t_head.authority.weight"][:] = 0
        tensors["so8t_head.authority.weight"][1, 3] = 1e-45

    report = inspect(write_gguf(edit=zero_but_one))
    assert [head["fitted"] for head in report.to_dict()["heads"]] == [False, True]
    assert "warning: head safety has weights of zeros: it was never fitted and does not act; fit it" in render(report)
    assert "warning" not in render(inspect(write_gguf()))


def test_a_file_that_has_no_rule_has_thresholds(write_gguf):
    def by_argmax(metadata, tensors):
        metadata[Keys.HEAD_RULE.format(name="authority")] = "argmax"

    report = inspect(write_gguf(edit=by_argmax))
    assert [head["rule"] for head in report.to_dict()["heads"]] == ["threshold", "argmax"]
    assert "unsafe: refuse at 0.5" in render(report) and "escalate: escalate if largest" in render(report)


def test_how_positions_are_combined_is_shown(write_gguf, gguf):
    def combine(metadata, tensors):
        kinds = gguf.GGUFValueType
        metadata[Keys.FORMAT_VERSION] = 2
        del metadata[Keys.HEAD_REPRESENTATION.format(name="safety")]
        safety = {
            Keys.HEAD_TAPS: gguf.GGUFValue([0, 2], kinds.ARRAY, kinds.INT32),
            Keys.HEAD_TAP_NORM: "rms",
            Keys.HEAD_LINK: "sigmoid",
            Keys.HEAD_AGGREGATION: "window",
            Keys.HEAD_DEBOUNCE: 3,
            Keys.HEAD_WINDOW: 5,
            Keys.HEAD_EMA_ALPHA: 0.25,
            Keys.HEAD_PROMPT_AGGREGATION: ["mean", "ema"],
            Keys.HEAD_PROMPT_THRESHOLDS: gguf.GGUFValue([0.5, 0.75, 0.5, 0.875], kinds.ARRAY, kinds.FLOAT32),
        }
        metadata |= {key.format(name="safety"): value for key, value in safety.items()}
        tensors["so8t_head.safety.weight"] = np.ones((2, 2 * tensors["so8t_head.safety.weight"].shape[1]))
        metadata[Keys.HEAD_AGGREGATION.format(name="authority")] = "mean"
        metadata[Keys.HEAD_DEPENDS_ON.format(name="authority")] = "safety"

    report = inspect(write_gguf(edit=combine))
    safety, authority = (
        " ".join(line.split()) for line in render(report).splitlines() if "escalat" in line or "unsafe" in line
    )
    assert safety == (
        "safety taps 0, 2; rms linear, sigmoid safe | unsafe: refuse at 0.5 "
        "both; prompt by mean at 0.5 / 0.75, ema 0.25 at 0.5 / 0.875 3 of 5 1"
    )
    assert authority.endswith("both; where safety acts 1, mean 1")
    first, second = report.to_dict()["heads"]
    assert (first["aggregation"], first["window"], first["ema_alpha"]) == ("window", 5, 0.25)
    assert (first["prompt_aggregation"], second["depends_on"]) == (["mean", "ema"], "safety")


def test_a_missing_base_is_an_error_of_one_line(adapter_directory):
    (adapter_directory.parent / "base.gguf").unlink()
    with pytest.raises(So8tError, match="--base") as error:
        inspect(adapter_directory)
    assert "\n" not in str(error.value)


def test_a_base_model_is_no_so8t_model(adapter_directory):
    with pytest.raises(CheckpointError, match=r"architecture 'llama'.*expected an SO8T model"):
        inspect(adapter_directory.parent / "base.gguf")


def test_heads_in_a_file_of_another_architecture_are_shown(write_gguf):
    report = inspect(write_gguf(arch="qwen3"))
    assert report.sites == () and [head.spec.name for head in report.subject.heads] == ["safety", "authority"]
    assert "no rotations" in render(report)


def test_a_picture_is_written(write_gguf, tmp_path):
    package("matplotlib")
    _run(write_gguf(), "--plot", str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CheckpointError, match=r"found suffix '\.txt'"):
        _run(write_gguf(), "--plot", str(tmp_path / "out.txt"))


def test_a_picture_of_a_broken_model_marks_it(write_gguf, tmp_path):
    package("matplotlib")
    from llama_so8t.inspection.plot import _broken, draw

    def spoil(metadata, tensors):
        tensors["blk.1.so8t_k_rot.weight"][0] = np.nan

    report = inspect(write_gguf(edit=spoil))
    assert _broken(report) == {(1, "qk")}
    draw(report, tmp_path / "out.png")


def test_a_head_is_as_wide_as_its_taps(write_gguf):
    report = inspect(write_gguf(edit=_spoiled(lambda m, t: m.update(_version_2("safety.taps", [1, 2])))))
    assert report.problems == ("head safety: weight has shape [2, 72], expected [2, 144]",)


def _looking_back(change=lambda metadata, tensors: None):
    """Both heads behind one stem of the form attention: 3 heads of 4 on two taps."""

    def edit(metadata, tensors):
        rng = np.random.default_rng(0)
        metadata.update({Keys.FORMAT_VERSION: 2})
        for name in ("safety", "authority"):
            metadata |= {
                f"so8t.head.{name}.activation": "attention",
                f"so8t.head.{name}.form": "attention",
                f"so8t.head.{name}.stem": "s",
                f"so8t.head.{name}.taps": [1, 2],
                f"so8t.head.{name}.sliding_window": 16,
            }
            tensors[f"so8t_head.{name}.weight"] = rng.normal(size=(2, 12))
        shapes = {"attn_q": (12, 144), "attn_k": (4, 144), "attn_v": (4, 144), "attn_output": (12, 12), "norm": (12,)}
        tensors |= {f"so8t_stem.s.{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
        change(metadata, tensors)

    return edit


def test_a_head_that_looks_back_is_shown_with_what_it_sees(write_gguf):
    def change(metadata, tensors):
        metadata |= {
            "so8t.head.safety.aggregation": "window",
            "so8t.head.safety.window": 5,
            "so8t.head.safety.debounce": 2,
            "so8t.head.authority.aggregation": "ema",
            "so8t.head.authority.ema_alpha": 0.25,
            "so8t.head.authority.prompt_aggregation": ["mean", "max"],
            "so8t.head.authority.depends_on": "safety",
        }

    report = inspect(write_gguf(edit=_looking_back(change)))
    assert not report.problems
    rows = {line.split()[0]: line for line in render(report).splitlines() if line.startswith(("safety", "authority"))}
    assert "attention (s), last 16" in rows["safety"] and re.search(r" both +2 of 5 +1$", rows["safety"])
    assert " both; prompt by mean, max; where safety acts  1, ema 0.25  1" in rows["authority"]
    assert report.to_dict()["heads"][0]["sliding_window"] == 16


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("attn_q", None, "tensor so8t_stem.s.attn_q.weight is missing"),
        ("attn_q", np.zeros((12, 72)), r"so8t_stem.s.attn_q.weight has dimensions \[72, 12\], expected \[144, n\]"),
        ("attn_k", np.zeros((4, 72)), r"so8t_stem.s.attn_k.weight has dimensions \[72, 4\], expected \[144, n\]"),
        ("attn_v", np.zeros((6, 144)), r"so8t_stem.s.attn_v.weight has dimensions \[144, 6\], expected \[144, 4\]"),
        ("attn_output", np.zeros((12, 8)), r"attn_output.weight has dimensions \[8, 12\], expected \[12, 12\]"),
        ("norm", np.zeros(11), r"so8t_stem.s.norm.weight has dimensions \[11\], expected \[12\]"),
        ("norm", np.full(12, np.nan), r"'so8t_stem.s.norm.weight': found nan at \[0\], expected finite numbers"),
    ],
)
def test_a_stem_that_does_not_fit_is_an_error_of_one_line(write_gguf, name, values, message):
    def change(metadata, tensors):
        tensors[f"so8t_stem.s.{name}.weight"] = values
        if values is None:
            del tensors[f"so8t_stem.s.{name}.weight"]

    with pytest.raises(So8tError, match=message) as error:
        inspect(write_gguf(edit=_looking_back(change)))
    assert "\n" not in str(error.value)


def test_a_stem_of_attention_has_whole_heads(write_gguf):
    def change(metadata, tensors):
        for name in ("attn_k", "attn_v"):
            tensors[f"so8t_stem.s.{name}.weight"] = np.ones((5, 144))

    with pytest.raises(So8tError, match="found keys of 5 and the width 12, expected a multiple"):
        inspect(write_gguf(edit=_looking_back(change)))


@pytest.mark.parametrize("version", [1, 2])
def test_a_heads_file_is_shown_with_its_base(version, capsys):
    file = GOLDEN / f"format-{version}.heads.gguf"
    _run(file, "--json")
    shown = json.loads(capsys.readouterr().out)
    assert (shown["format"], shown["ok"], shown["n_head"]) == ("heads", True, None)
    of_model = inspect(GOLDEN / f"format-{version}.gguf").to_dict()
    assert shown["heads"] == of_model["heads"]
    assert (shown["base_architecture"], shown["hidden_size"]) == (of_model["base_architecture"], 16)
    assert shown["n_layer"] == (None if version == 1 else of_model["n_layer"])
    assert f"format-{version}.heads.gguf: heads for {of_model['base_architecture']} of width 16" in render(
        inspect(file)
    )


def test_a_heads_file_that_does_not_fit_is_an_error_of_one_line(tmp_path, gguf):
    bad = gguf_files.copy_gguf(
        GOLDEN / "format-2.heads.gguf", tmp_path / "bad.gguf", tensors={"so8t_head.safety.weight": None}
    )
    with pytest.raises(So8tError, match=r"tensor so8t_head.safety.weight is missing"):
        inspect(bad)


# --- hostile files ---------------------------------------------------------------------------


def _sharing(*activations):
    pairs = zip(("safety", "authority"), activations, strict=True)
    return {
        key.format(name=name): value
        for name, activation in pairs
        for key, value in {Keys.HEAD_STEM: "s", Keys.HEAD_ACTIVATION: activation}.items()
    }


def _spoiled(change):
    return lambda metadata, tensors: change(metadata, tensors)


def _version_2(key, value):
    return {Keys.FORMAT_VERSION: 2, f"so8t.head.{key}": value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, t: m.pop(Keys.FORMAT_VERSION), Keys.FORMAT_VERSION),
        (lambda m, t: m.update({Keys.FORMAT_VERSION: 3}), "found so8t.format_version 3, this program reads 1 to 2"),
        (lambda m, t: m.update({"so8t.head.safety.width": 1}), "the unknown key 'so8t.head.safety.width'"),
        (lambda m, t: m.update({"so8t.head.other.rule": "argmax"}), "of a head that so8t.heads does not name"),
        (
            lambda m, t: m.update({"so8t.head.safety.link": "sigmoid", Keys.FORMAT_VERSION: 1}),
            "came with version 2, in a file of version 1",
        ),
        (lambda m, t: m.update(_version_2("safety.form", "mlp")), "found form 'mlp', expected 'linear'"),
        (lambda m, t: m.update(_version_2("safety.tap_norm", "layer")), "found tap_norm 'layer'"),
        (lambda m, t: m.update(_version_2("safety.taps", [9])), "found tap 9, expected -1 to 3"),
        (lambda m, t: m.update(_version_2("safety.taps", [1, 1])), "expected different layers"),
        (lambda m, t: m.update(_version_2("safety.provenance", "[]")), "expected a JSON object"),
        (lambda m, t: m.update({Keys.ROTATION_DIMENSION: 16}), Keys.ROTATION_DIMENSION),
        (lambda m, t: m.update({"so8t.block_count": 4_000_000_000}), "so8t.block_count"),
        (lambda m, t: m.update({"so8t.attention.head_count": 0}), "so8t.attention.head_count"),
        (lambda m, t: m.update({Keys.ATTN_HEAD_REPRESENTATION: [0, 1]}), Keys.ATTN_HEAD_REPRESENTATION),
        (
            lambda m, t: m.update({Keys.ATTN_HEAD_KV_REPRESENTATION: [0, 1, 7]}),
            Keys.ATTN_HEAD_KV_REPRESENTATION,
        ),
        (lambda m, t: m.update({Keys.ROTATION_FOLDED: ["gate"]}), "as explicit and as folded"),
        (lambda m, t: m.update({Keys.ROTATION_EXPLICIT: ["attention"]}), "names site 'attention'"),
        (lambda m, t: m.update({Keys.ROTATION_FOLDED: ["out"]}), "names site 'out'"),
        (lambda m, t: m.update({Keys.ROTATION_FOLDED: ["v", "v"]}), "names site v twice"),
        (lambda m, t: m.update({"so8t.pooling_type": 1}), "found key so8t.pooling_type, the mark of an embedding"),
        (lambda m, t: m.update({Keys.HEADS: ["safety", "safety"]}), "names 'safety' twice"),
        (lambda m, t: m.update(_sharing("gelu", "tanh")), "share the stem s: found activations gelu and tanh"),
        (lambda m, t: m.update({Keys.HEADS: ["x" * 3]}), "so8t.head.xxx.labels"),
        (lambda m, t: m.update({Keys.HEAD_ACTIONS.format(name="safety"): ["allow", "explode"]}), "'explode'"),
        (lambda m, t: t.pop("blk.0.so8t_k_rot.weight"), "blk.0.so8t_k_rot.weight is missing"),
        (lambda m, t: t.update({"blk.0.so8t_k_rot.weight": np.zeros((5, 8, 8))}), r"dimensions \[8, 8, 5\]"),
        (lambda m, t: t.pop("so8t_head.safety.weight"), "so8t_head.safety.weight is missing"),
    ],
)
def test_a_contradiction_is_an_error_of_one_line(write_gguf, change, message):
    with pytest.raises(So8tError, match=message) as error:
        inspect(write_gguf(edit=_spoiled(change)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


# generators of a layer: gate_safe, gate_cmd and ffn have 9 rows each, qk, v and heads have one
@pytest.mark.parametrize(
    ("version", "change", "message"),
    [
        (1, lambda t: t.pop("blk.2.so8t_ffn_gen.weight"), "tensor blk.2.so8t_ffn_gen.weight is missing"),
        (1, lambda t: t.update({"blk.1.so8t_qk_gen.weight": np.zeros((1, 27))}), r"expected \[28, n\]"),
        (1, lambda t: t.update({"blk.1.so8t_ffn_gen.weight": np.zeros((4000, 28))}), "n from 1 to 9"),
        (
            2,
            lambda t: t.pop("blk.2.so8t_ffn_gen.weight"),
            "blk.2.so8t_gen.weight has 21 rows, expected 6 or 30 for the",
        ),
        (2, lambda t: t.update({"blk.1.so8t_gen.weight": np.zeros((30, 27))}), r"expected \[28, n\]"),
        (2, lambda t: t.update({"blk.1.so8t_gen.weight": np.zeros((4000, 28))}), "n from 1 to 30"),
        (2, lambda t: t.update({"blk.1.so8t_gen.weight": np.zeros(28)}), "has 1 rows, expected 6 or 30"),
    ],
    indirect=["version"],
)
def test_generators_that_contradict_the_file_are_an_error(write_gguf, change, message):
    with pytest.raises(So8tError, match=message) as error:
        inspect(write_gguf(edit=lambda metadata, tensors: change(tensors)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", [2], indirect=True)
def test_tensors_of_the_other_version_are_not_those_of_a_layer(write_gguf):
    path = write_gguf(edit=lambda metadata, tensors: metadata.update({Keys.FORMAT_VERSION: 1}))
    assert inspect(path).subject.format_version == 1
    gguf_files.copy_gguf(path, path, {Keys.FORMAT_VERSION: 2})
    with pytest.raises(So8tError, match=r"tensor blk.0.so8t_gen.weight is missing"):
        inspect(path)


@pytest.mark.parametrize("version", [2], indirect=True)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("absent", [[], ["gate"], ["qk", "heads"], ["ffn", "gate"], list(SITES)])
def test_sites_that_a_file_lacks_have_no_rows(write_gguf, shared, absent):
    """The generators of the others are found where they stand, one row for all blocks or one for each."""
    expected = {}

    def edit(metadata, tensors):
        used = [site for site in SITES if site not in absent]
        metadata[Keys.ROTATION_FOLDED] = used
        for layer in range(3):
            for site in SITES:
                for name in SITES[site].generator_names:
                    values = tensors.pop(f"blk.{layer}.so8t_{name}_gen.weight")
                    if site in used:
                        kept = values[:1] if shared else values
                        tensors[f"blk.{layer}.so8t_{name}_gen.weight"] = expected[layer, name] = kept
        if not used:
            del metadata[Keys.ROTATION_FOLDED]

    found = {(g.layer, g.name): g.coefficients for g in inspect(write_gguf((), edit)).subject.generators}
    assert len(found.pop((None, "out"))) == 9
    assert list(found) == list(expected)
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], np.float32(values))


def test_every_truncation_is_an_error_and_never_another_exception(write_gguf, tmp_path):
    whole = write_gguf(explicit=("qk",)).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(64), *range(64, len(whole) - 64, 509)]:
        cut.write_bytes(whole[:size])
        with pytest.raises(So8tError):
            inspect(cut)


def test_flipped_bytes_never_raise_another_exception(write_gguf, tmp_path, rng):
    whole = write_gguf().read_bytes()
    header = whole.index(b"so8t_out_gen.weight") + 2000
    path = tmp_path / "flipped.gguf"
    refused = 0
    for _ in range(150):
        spoiled = bytearray(whole)
        for at in rng.integers(4, header, size=3):
            spoiled[at] = rng.integers(256)
        path.write_bytes(spoiled)
        try:
            refused += bool(inspect(path).problems)
        except So8tError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50


def test_absurd_counts_cost_no_memory(write_gguf, tmp_path):
    import tracemalloc

    whole = bytearray(write_gguf().read_bytes())
    path = tmp_path / "absurd.gguf"
    for at in (8, 16, 24):  # tensor count, key count, length of the first key
        spoiled = bytearray(whole)
        spoiled[at : at + 8] = (1 << 40).to_bytes(8, "little")
        path.write_bytes(spoiled)
        tracemalloc.start()
        with pytest.raises(So8tError):
            inspect(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        tracemalloc.stop()


def test_a_directory_or_file_that_is_something_else_is_an_error(tmp_path):
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "empty.gguf").write_bytes(b"")
    for path in (tmp_path, tmp_path / "text.gguf", tmp_path / "empty.gguf", tmp_path / "absent"):
        with pytest.raises(So8tError):
            inspect(path)


def test_every_representation_in_use_is_measured(write_gguf):
    report = inspect(write_gguf(explicit=()))
    (v,) = (g for g in report.subject.generators if (g.layer, g.name) == (0, "v"))
    (out,) = (g for g in report.subject.generators if g.name == "out")
    assert set(v.tensors[0].representations) == {0, 1, 2}
    assert set(out.tensors[0].representations) == {1, 2}  # safety reads spinor+, authority spinor-
