"""Which part of a profile a node belongs to."""

import pytest

from llama_so8t.benchmarks.profile import HEADS, ROTATIONS, VIEWS, part_of
from llama_so8t.bindings.session import SO8_HINT, Node


def node(op, name="node_7", operand="", hint=0):
    return Node(op, name, operand, hint, 0.0)


@pytest.mark.parametrize(
    ("found", "part"),
    [
        (node("MUL_MAT", operand="blk.3.ffn_up.weight"), "MUL_MAT ffn_up"),
        (node("MUL_MAT", operand="token_embd.weight"), "MUL_MAT output"),
        (node("MUL_MAT", operand="output.weight"), "MUL_MAT output"),
        (node("MUL_MAT", operand="kq-3"), "MUL_MAT"),
        (node("MUL_MAT", operand="blk.3.so8t_q_rot.weight", hint=SO8_HINT), ROTATIONS),
        (node("MUL_MAT", operand="so8t_head.safety.weight"), HEADS),
        (node("MUL_MAT", operand="so8t_stem.response.weight"), HEADS),
        (node("ADD", name="so8t_head"), HEADS),
        (node("CONCAT", name="so8t_heads"), HEADS),
        (node("CONT", name="so8t_heads_mixed-3"), "CONT"),
        (node("MUL", operand="blk.3.attn_norm.weight"), "MUL"),
        (node("RESHAPE", name="so8t_head"), VIEWS),
        (node("VIEW"), VIEWS),
    ],
)
def test_a_node_belongs_to_the_part_of_its_name(found, part):
    assert part_of(found) == part


def test_each_site_is_a_part_where_asked():
    assert part_of(node("MUL_MAT", operand="blk.3.so8t_q_rot.weight", hint=SO8_HINT), sites=True) == "so8t_q"
