"""The torch twin of the algebra: equal to it, differentiable, exact at zero."""

import numpy as np
import pytest
from properties import assert_in_so8, assert_triality
from required import package

torch = package("torch")

from llama_so8t import algebra  # noqa: E402
from llama_so8t.hf.torch_rotation import mix_heads, rotate_blocks, rotate_heads, rotation  # noqa: E402

ALL = (algebra.VECTOR, algebra.SPINOR_PLUS, algebra.SPINOR_MINUS)


def generators(rng, *shape, scale=1.0):
    return torch.from_numpy(algebra.random_generators(rng, shape, scale))


@pytest.mark.parametrize("representation", ALL)
@pytest.mark.parametrize("scale", [1e-6, 0.3, 4.0])
def test_rotation_equals_the_algebra(rng, tolerance, representation, scale):
    generator = generators(rng, 6, scale=scale)
    expected = algebra.rotation(generator.numpy(), representation)
    found = rotation(generator, representation)
    assert found.dtype == torch.float64
    assert_in_so8(found, tolerance.float64)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance.float64)
    found = rotation(generator.float(), representation)  # stored as float32: rounded once, then float64
    expected = algebra.rotation(generator.float().double().numpy(), representation)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance.float64)


@pytest.mark.parametrize("scale", [1e-6, 0.3, 4.0])
def test_the_three_rotations_of_a_generator_satisfy_triality(rng, tolerance, scale):
    generator = generators(rng, 6, scale=scale)
    assert_triality(*(rotation(generator, t) for t in ALL), tolerance.float64)


def test_list_of_representations_gives_each_entry_its_own(rng):
    one, each = generators(rng, 1), generators(rng, 4)
    order = [2, 0, 1, 0]
    for index, t in enumerate(order):
        assert torch.equal(rotation(one, order)[index], rotation(one[0], t))
        assert torch.equal(rotation(each, order)[index], rotation(each[index], t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("representation", ALL)
def test_zero_generator_is_exactly_the_identity(rng, representation, dtype):
    generator = generators(rng, 3).to(dtype)
    generator[1] = 0
    generator[2] = -0.0
    found = rotation(generator, representation)
    eye = torch.eye(8, dtype=torch.float64)
    assert torch.equal(found[1], eye) and torch.equal(found[2], eye)
    assert not torch.equal(found[0], eye)


@pytest.mark.parametrize("representation", ALL)
@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_gradient_of_the_rotation_is_exact_at_zero_and_elsewhere(rng, representation, scale):
    generator = generators(rng, 2, scale=scale).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: rotation(g, representation), generator)


@pytest.mark.parametrize("n", [1, 3])
def test_rotate_blocks_equals_the_algebra(rng, tolerance, n):
    rotations, x = rotation(generators(rng, n)), rng.normal(size=(2, 5, 24))
    expected = algebra.rotate_blocks(x, rotations.numpy())
    found = rotate_blocks(torch.from_numpy(x), rotations)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance.float64)


def test_rotate_heads_gives_every_block_of_a_head_the_rotation_of_that_head(rng, tolerance):
    rotations, x = rotation(generators(rng, 5)), rng.normal(size=(2, 3, 5, 16))
    found = rotate_heads(torch.from_numpy(x), rotations)
    for head in range(5):
        expected = algebra.rotate_blocks(x[..., head, :], rotations[head : head + 1].numpy())
        np.testing.assert_allclose(found[..., head, :], expected, rtol=0, atol=tolerance.float64)


def test_mix_heads_rotates_full_groups_and_leaves_the_rest(rng, tolerance):
    rotations, x = rotation(generators(rng, 2)).numpy(), rng.normal(size=(2, 3, 19, 4))
    found = mix_heads(torch.from_numpy(x), torch.from_numpy(rotations)).numpy()
    for g in range(2):
        for i in range(8):
            expected = sum(rotations[g, i, k] * x[..., 8 * g + k, :] for k in range(8))
            np.testing.assert_allclose(found[..., 8 * g + i, :], expected, rtol=0, atol=tolerance.float64)
    np.testing.assert_array_equal(found[..., 16:, :], x[..., 16:, :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_identity_changes_no_bit_and_keeps_dtype_and_layout(dtype):
    x = torch.randn(2, 7, 10, 16).to(dtype)
    eye = torch.eye(8, dtype=torch.float64)
    one, each = eye[None], eye.expand(10, 8, 8)
    for found in (rotate_heads(x, each), mix_heads(x, one), rotate_blocks(x, one)):
        assert found.dtype == dtype and found.is_contiguous()
        assert torch.equal(found, x)


def test_low_precision_rotates_in_float32_and_rounds_once(rng):
    rotations = rotation(generators(rng, 4))
    x = torch.randn(50, 32).bfloat16()
    expected = rotate_blocks(x.double(), rotations).bfloat16()
    plain = rotate_blocks(x, rotations)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = rotate_blocks(x, rotations)
        assert torch.equal(rotation(torch.ones(28)), rotation(torch.ones(28).double()))
    for found in (plain, autocast):
        # a value next to a tie may round the other way; a rotation rounded to bfloat16 moves a third of them
        assert (found != expected).float().mean() < 0.005
