"""Rotations as upstream builds them, compared with PyTorch in float64."""

import numpy as np
import pytest
from required import package

from llama_so8t.algebra import PAIRS, is_member
from llama_so8t.errors import AlgebraError
from llama_so8t.published import rotations

torch = package("torch")
import upstream_gates as upstream  # noqa: E402

SCALES = (0.0, 1e-6, 0.01, 0.1, 0.3, 1.0, 3.0)


def random_theta(scale, blocks=24, seed=3):
    return np.random.default_rng(seed).normal(0, scale, (blocks, 8, 8))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (rotations.cayley, upstream.cayley),
        (rotations.exponential, upstream.exact),
        (rotations.half_exponential, lambda theta: upstream.exact(theta / 2)),
        (rotations.scaled_taylor, upstream.exp_l4),
        (rotations.normalized_taylor, upstream.exp_l5),
    ],
)
def test_builders_compute_what_upstream_computes(ours, theirs, scale):
    theta = random_theta(scale)
    expected = theirs(torch.from_numpy(theta)).numpy()
    # L5 explodes for large angles, so its error is relative
    assert np.abs(ours(theta) - expected).max() <= 1e-12 * max(1.0, np.abs(expected).max())


def test_l4_turns_small_blocks_by_a_power_of_two_of_their_angle():
    theta = random_theta(0.05, blocks=2)
    theta[1] *= 20  # norm above 1: one or more squarings, for both blocks
    norm = np.linalg.norm(theta - theta.swapaxes(-1, -2), axis=(-2, -1))
    squarings = np.maximum(np.ceil(np.log2(norm)), 0)
    assert squarings[0] == 0 < squarings[1]
    expected = upstream.exact(torch.from_numpy(theta[:1] * 2.0 ** squarings[1])).numpy()
    assert np.abs(rotations.scaled_taylor(theta)[:1] - expected).max() < 1e-6
    assert np.abs(rotations.scaled_taylor(theta[:1]) - expected).max() > 0.1  # a block by itself is another one


def test_l5_of_zero_is_no_identity():
    # 1e-6 I is normalised too: exp(1 / sqrt(8)) I
    assert rotations.normalized_taylor(np.zeros((3, 8, 8))) == pytest.approx(
        np.exp(1 / np.sqrt(8)) * np.eye(8)[None].repeat(3, 0), abs=0.01
    )


def test_row_normalized_is_no_rotation():
    parameters = random_theta(1.0, blocks=40)
    built = rotations.row_normalized(parameters)
    rows = torch.nn.functional.normalize(torch.from_numpy(parameters), dim=-1)
    expected = [(-q if torch.det(q) < 0 else q) / torch.det(q).abs() ** 0.125 for q in rows]
    assert built == pytest.approx(torch.stack(expected).numpy(), abs=1e-12)
    assert not is_member(built).any()
    assert 0 < (np.linalg.det(built) < 0).sum() < 40


@pytest.mark.parametrize("second_order", [False, True])
def test_the_exponential_of_a_triangle_is_that_of_torch(second_order):
    parameters = random_theta(0.4)
    upper = torch.from_numpy(np.triu(parameters, 1))
    a = 0.7 * (upper - upper.transpose(-1, -2))
    expected = torch.eye(8) + a + a @ a / 2 if second_order else torch.linalg.matrix_exp(a)
    assert rotations.triangle_exponential(parameters, 0.7, second_order) == pytest.approx(expected.numpy(), abs=1e-12)


def test_entries_above_the_diagonal():
    entries = np.random.default_rng(0).normal(size=(4, 28))
    a = torch.zeros(4, 8, 8, dtype=torch.float64)
    rows, columns = torch.triu_indices(8, 8, 1)
    a[:, rows, columns] = torch.from_numpy(entries)
    expected = torch.linalg.matrix_exp(a - a.transpose(-1, -2))
    assert rotations.entry_exponential(entries) == pytest.approx(expected.numpy(), abs=1e-12)


def test_product_of_givens_rotations():
    angles = np.random.default_rng(0).normal(size=28)
    expected = torch.eye(8, dtype=torch.float64)
    for (i, j), angle in zip(PAIRS, angles, strict=True):
        turn = torch.eye(8, dtype=torch.float64)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        expected = expected @ turn
    assert rotations.givens_product(angles) == pytest.approx(expected.numpy(), abs=1e-14)


def test_trivialized_is_the_weight_of_torch():
    linear = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(24, 24, bias=False)).double()
    with torch.no_grad():
        linear.parametrizations.weight.original.add_(0.3 * torch.randn(24, 24))
        state = linear.state_dict()
        built = rotations.trivialized(
            state["parametrizations.weight.original"].numpy(), state["parametrizations.weight.0.base"].numpy()
        )
        assert built == pytest.approx(linear.weight.numpy(), abs=1e-12)
        assert np.abs(built - state["parametrizations.weight.0.base"].numpy()).max() > 0.1


def test_row_form_is_transposed():
    rotation = rotations.exponential(random_theta(0.5))
    x = np.random.default_rng(1).normal(size=(24, 8))
    rows = np.einsum("ni,nio->no", x, rotation)
    columns = np.einsum("noi,ni->no", rotations.column_form(rotation, rotations.ROW), x)
    assert columns == pytest.approx(rows, abs=1e-13)
    assert rotations.column_form(rotation, rotations.COLUMN) is rotation


@pytest.mark.parametrize("builder", [rotations.cayley, rotations.scaled_taylor, rotations.normalized_taylor])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(builder, value):
    theta = random_theta(0.1)
    theta[5, 2, 3] = value
    with pytest.raises(AlgebraError, match="NaN or infinity"):
        builder(theta)


@pytest.mark.parametrize("builder", [rotations.cayley, rotations.scaled_taylor, rotations.row_normalized])
def test_other_shapes_are_refused(builder):
    with pytest.raises(AlgebraError, match=r"\(4, 28\)"):
        builder(np.zeros((4, 28)))


def test_givens_needs_28_finite_angles():
    for angles in (np.zeros(27), np.full(28, np.nan)):
        with pytest.raises(AlgebraError, match="28"):
            rotations.givens_product(angles)
