"""The native kernels give the bytes of their numpy twins, and the latter are right."""

import numpy as np
import pytest
import torch

from llama_so8t import kernels, upstream
from llama_so8t.errors import ConversionError

TYPES = ["F32", "F16", "BF16", "Q8_0"]


@pytest.fixture
def both(monkeypatch, pinned_tree):
    """Runs a function with the native kernels and with numpy; returns both results."""
    assert kernels.library() is not None

    def run(function):
        native = function()
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "library", lambda: None)
            return native, function()

    return run


def rows(rng, scale=1.0):
    """Numbers of many magnitudes, halves between two steps, zeros of both signs, rows of zeros, tiny rows."""
    values = (rng.standard_normal((64, 96)) * 10.0 ** rng.uniform(-6, 4, (64, 96)) * scale).astype(np.float32)
    values[0] = 0.0
    values[1] = -0.0
    values[2] = np.float32(1e-30)
    values[3, :32] = np.arange(-16, 16) + 0.5
    values[3, 0] = 127.0
    values[4:20] = np.round(values[4:20]) / 2
    return values


def test_float8_is_what_torch_says(both):
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = torch.from_numpy(raw).view(torch.float8_e4m3fn).float().numpy()
    for found in both(lambda: kernels.from_e4m3(raw)):
        np.testing.assert_array_equal(found, expected)


def test_bfloat16_is_what_torch_says(both):
    raw = np.arange(65536, dtype=np.uint16)
    expected = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16).float().numpy()
    for found in both(lambda: kernels.from_bf16(raw)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_the_first_number_that_is_not_finite_is_found(both, rng, value):
    values = rng.standard_normal((7, 13)).astype(np.float32)
    assert both(lambda: kernels.first_nonfinite(values)) == (None, None)
    values[3, 4] = values[5, 0] = value
    assert both(lambda: kernels.first_nonfinite(values)) == (43, 43)


@pytest.mark.parametrize("stride", [1, 4, 16])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("with_rows", [True, False])
def test_rotations_are_the_product_and_equal_in_every_bit(both, rng, stride, shared, with_rows):
    groups, rest = 3, 5
    values = rng.standard_normal((32, 8 * stride * groups + rest)).astype(np.float32)
    matrices = rng.standard_normal((1 if shared else groups, 8, 8))
    columns = kernels.ColumnRotation(matrices, groups, stride)
    row_matrices = rng.standard_normal((4, 8, 8)) if with_rows else None
    native, twin = both(lambda: kernels.rotate(values, columns, row_matrices))
    assert native.tobytes() == twin.tobytes()
    whole = np.eye(values.shape[1])
    for g in range(groups):
        at = slice(8 * stride * g, 8 * stride * (g + 1))
        whole[at, at] = np.kron(matrices[0 if shared else g], np.eye(stride))
    expected = values.astype(np.float64) @ whole
    if with_rows:
        expected = np.concatenate([m @ expected[8 * b : 8 * b + 8] for b, m in enumerate(row_matrices)])
    np.testing.assert_allclose(native, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TYPES)
def test_types_of_both_kernels_are_equal_in_every_byte(both, rng, name):
    values = rows(rng)
    if name == "F16":
        values = np.clip(values, -60000, 60000)
    kind = upstream.gguf.GGMLQuantizationType[name]
    native, twin = both(lambda: kernels.quantize(values, kind))
    assert native.shape == twin.shape == (64, upstream.gguf.quant_shape_to_byte_shape((96,), kind)[0])
    assert native.tobytes() == twin.tobytes()
    assert native.tobytes() == upstream.gguf.quantize(values, kind).tobytes()


def test_a_value_beyond_float16_is_an_error_unless_allowed(both):
    values = np.full((8, 32), 70000.0, np.float32)
    kind = upstream.gguf.GGMLQuantizationType.F16
    for library in (kernels.library(), None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "library", lambda library=library: library)
            with pytest.raises(ConversionError, match="70000, which do not fit F16"):
                kernels.quantize(values, kind)
            assert np.isinf(kernels.quantize(values, kind, check=False).view(np.float16)).all()


def test_types_that_need_the_build_say_so(rng, monkeypatch):
    kind = upstream.gguf.GGMLQuantizationType.Q4_K
    values = rng.standard_normal((2, 256)).astype(np.float32)
    assert kernels.quantize(values, kind).shape == (2, 144)
    monkeypatch.setattr(kernels, "library", lambda: None)
    with pytest.raises(ConversionError, match=r"Q4_K needs the native kernels: .*make build"):
        kernels.quantize(values, kind)
