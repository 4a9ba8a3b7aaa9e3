"""The graph has the nodes that the architecture needs and not one more: a copy that creeps in costs every token."""

from collections import Counter

import pytest

from llama_so8t.benchmarks.guard import without_heads
from llama_so8t.benchmarks.models import SHAPES, Arm, write_models
from llama_so8t.bindings import Session
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions

from .test_qwen3guard_heads import make_guard

N_LAYER = SHAPES["tiny"]["num_hidden_layers"]
STOCK = Arm(None, False)

# nodes that a site adds to each layer; a RESHAPE, VIEW or PERMUTE computes nothing
SITES = {
    "gate": {"MUL_MAT": 2, "RESHAPE": 4},
    "qk": {"MUL_MAT": 2, "VIEW": 2, "RESHAPE": 2},
    "v": {"MUL_MAT": 1, "VIEW": 1, "RESHAPE": 1},
    "heads": {"MUL_MAT": 1, "CONT": 1, "CPY": 1, "VIEW": 2, "PERMUTE": 2},
    "ffn": {"MUL_MAT": 1, "RESHAPE": 2},
}
TWO_HEADS = {"MUL_MAT": 2, "ADD": 2, "CONCAT": 1}
TWO_STEMS = {"MUL_MAT": 2, "RMS_NORM": 2, "MUL": 2}
FOUR_HEADS_ON_THEM = {"MUL_MAT": 4, "CONCAT": 3}
"""Qwen3Guard-Stream: heads of one stem share its nodes, and no head has a bias."""


def nodes(file, n_tokens=1):
    with Session(file, n_ctx=64, n_threads=1, observe="nodes") as session:
        session.time(list(range(1, n_tokens + 1)))
        return session.nodes()


def ops(file, n_tokens=1):
    return Counter(node.op for node in nodes(file, n_tokens))


def added(file, base, n_tokens=1):
    """Nodes by operation that a file has more than another; none may be missing."""
    found, expected = ops(file, n_tokens), ops(base, n_tokens)
    assert not expected - found
    return found - expected


def per_layer(*counts, layers=N_LAYER):
    total = Counter()
    for count in counts:
        for op, n in count.items():
            total[op] += layers * n
    return total


@pytest.fixture(scope="module", params=[False, True], ids=["per-block", "shared"])
def files(request, tmp_path_factory, pinned_tree):
    arms = [STOCK, *(Arm(sites, heads) for sites in ("", "fold", "explicit", *SITES) for heads in (False, True))]
    arms.append(Arm(None, True))
    return write_models(tmp_path_factory.mktemp("nodes"), "tiny", "q8_0", arms, shared_blocks=request.param)


@pytest.mark.parametrize("n_tokens", [1, 5])
def test_folded_sites_add_nothing(files, n_tokens):
    assert added(files[Arm("", False)], files[STOCK], n_tokens) == Counter()


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("site", SITES)
def test_an_explicit_site_adds_its_nodes(files, site, n_tokens):
    assert added(files[Arm(site, False)], files[STOCK], n_tokens) == per_layer(SITES[site])


@pytest.mark.parametrize("n_tokens", [1, 5])
def test_explicit_is_the_sum_of_its_sites(files, n_tokens):
    assert added(files[Arm("explicit", False)], files[STOCK], n_tokens) == per_layer(*SITES.values())


def test_fold_leaves_qk_in_the_graph_of_a_base_with_norms_there(files):
    assert added(files[Arm("fold", False)], files[STOCK]) == per_layer(SITES["qk"])


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("rotations", [None, "", "fold", "explicit"])
def test_two_linear_heads_add_five_nodes(files, rotations, n_tokens):
    found = added(files[Arm(rotations, True)], files[Arm(rotations, False)], n_tokens)
    assert found == TWO_HEADS


@pytest.mark.parametrize("n_tokens", [1, 5])
def test_heads_on_a_stem_share_it(tmp_path, to_gguf, runtime, n_tokens):
    model = make_guard(tmp_path / "guard", 40, "float32")
    found = added(to_gguf(model), without_heads(to_gguf(model), tmp_path / "bare.gguf"), n_tokens)
    assert found == Counter(TWO_STEMS) + Counter(FOUR_HEADS_ON_THEM)


def test_every_rotation_has_the_hint_that_the_fast_path_needs(files):
    """... and its operand is a tensor of the file: no rotation is computed in the graph."""
    found = [node.operand for node in nodes(files[Arm("explicit", False)]) if node.is_rotation]
    names = ("gate_safe", "gate_cmd", "q", "k", "v", "heads", "ffn")
    assert sorted(found) == sorted(f"blk.{i}.so8t_{name}_rot.weight" for i in range(N_LAYER) for name in names)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_folded_model_has_the_graph_of_its_base(make_model, to_gguf, family):
    model = make_model(family)
    stock = model.parent / "stock.gguf"
    convert(ConvertOptions(model=model, outfile=stock, outtype="f32", arch="stock", progress=False))
    assert added(to_gguf(model, "fold"), stock) == TWO_HEADS


def test_heads_past_the_last_group_add_nothing(make_model, to_gguf):
    fields = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "hidden_size": 72}
    model = make_model("llama", **fields)
    found = added(to_gguf(model, "explicit"), to_gguf(model, "fold"))
    assert found == per_layer(*SITES.values(), layers=2)
