"""Rows of cells as text."""

from llama_so8t.text_table import aligned, markdown

ROWS = [("part", "us"), ("head", "3.5"), ("a", "100.0")]


def test_columns_are_as_wide_as_their_widest_cell():
    assert aligned(ROWS, left=1) == ["part     us", "head    3.5", "a     100.0"]
    assert aligned(ROWS, left=2) == ["part  us", "head  3.5", "a     100.0"]


def test_the_first_row_is_the_head():
    assert markdown(ROWS) == ["| part | us |", "| --- | --- |", "| head | 3.5 |", "| a | 100.0 |"]
