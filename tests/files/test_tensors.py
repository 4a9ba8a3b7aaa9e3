"""A tensor that is read when asked for: what each way to derive one keeps, and what it changes."""

import numpy as np
import pytest

from llama_so8t.tensors import LazyTensor

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def tensor():
    return LazyTensor("w", (4, 3), "BF16", lambda: VALUES, lambda start, stop: VALUES[start:stop])


def test_another_type_keeps_the_values_and_the_parts(tensor):
    plain = tensor.as_type("F32")
    assert (plain.name, plain.shape, plain.dtype) == ("w", (4, 3), "F32")
    np.testing.assert_array_equal(plain.read(), VALUES)
    np.testing.assert_array_equal(plain.read_rows(1, 3), VALUES[1:3])


def test_a_function_of_rows_knows_which_rows_it_gets(tensor):
    numbered = tensor.mapped_rows(
        lambda rows, start: rows + 100 * (start + np.arange(len(rows), dtype=np.float32))[:, None]
    )
    assert numbered.dtype == "F32"
    np.testing.assert_array_equal(numbered.read_rows(2, 4), numbered.read()[2:4])


def test_a_function_of_the_whole_is_never_given_a_part(tensor):
    turned = tensor.mapped(lambda whole: whole[::-1])
    assert turned.read_rows is None
    np.testing.assert_array_equal(turned.read(), VALUES[::-1])


def test_values_in_memory_and_zeros():
    assert LazyTensor.of("w", VALUES).read() is VALUES
    zeros = LazyTensor.zeros("z", (2, 5))
    assert zeros.read().dtype == np.float32 and not zeros.read().any() and zeros.read().shape == zeros.shape
    assert not zeros.exact and LazyTensor.of("w", VALUES, exact=True).exact
