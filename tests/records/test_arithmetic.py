"""The pieces of the encoder and the resampler, against torch's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npembed.records.arithmetic import EXACT, ROWS_AT_ONCE
from tests.oracles import torch_attention, torch_gelu, torch_layer_norm

TIGHT = {np.float32: 1e-5, np.float64: 1e-13}
dtypes = st.sampled_from([np.float32, np.float64])
sizes = st.integers(1, 9)


def drawn(seed: int, dtype: type, *shapes: tuple[int, ...], scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(shape)).astype(dtype) for shape in shapes]


@given(st.integers(0, 99), dtypes, sizes, sizes, sizes)
def test_linear_is_each_row_times_each_row_plus_bias(seed, dtype, rows, inner, outer):
    x, weight, bias = drawn(seed, dtype, (rows, inner), (outer, inner), (outer,))
    result = EXACT.linear(x, weight, bias)
    naive = [[sum(x[row] * weight[out]) + bias[out] for out in range(outer)] for row in range(rows)]
    np.testing.assert_allclose(result, naive, rtol=0, atol=10 * TIGHT[dtype])
    assert result.dtype == dtype


@given(st.integers(0, 99), dtypes, sizes, st.integers(2, 40), st.sampled_from([1e-6, 1e-3, 0.5]))
def test_layer_norm_is_torchs(seed, dtype, rows, width, eps):
    x, weight, bias = drawn(seed, dtype, (rows, width), (width,), (width,))
    result = EXACT.layer_norm(x + 3, weight, bias, eps)
    np.testing.assert_allclose(result, torch_layer_norm(x + 3, weight, bias, eps), rtol=0, atol=100 * TIGHT[dtype])
    assert result.dtype == dtype


def test_layer_norm_keeps_its_precision_far_from_zero():
    """The mean is taken off before squaring: mean(x²) - mean(x)² would lose every digit here."""
    (x,) = drawn(0, np.float32, (4, 48))
    far = (x + 2**12).astype(np.float32)
    one, zero = np.ones(48, dtype=np.float32), np.zeros(48, dtype=np.float32)
    exact = torch_layer_norm(far.astype(np.float64), one.astype(np.float64), zero.astype(np.float64), 1e-6)
    np.testing.assert_allclose(EXACT.layer_norm(far, one, zero, 1e-6), exact, rtol=0, atol=1e-3)


@given(st.integers(0, 99), dtypes, st.sampled_from([1, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 3 * ROWS_AT_ONCE]))
def test_gelu_is_torchs_tanh_form_whatever_the_number_of_rows(seed, dtype, rows):
    (x,) = drawn(seed, dtype, (rows, 5), scale=4.0)
    before = x.copy()
    result = EXACT.gelu(x)
    np.testing.assert_allclose(result, torch_gelu(x), rtol=0, atol=TIGHT[dtype])
    np.testing.assert_array_equal(x, before)
    assert result.dtype == dtype


@given(st.integers(0, 99), dtypes, sizes, sizes, st.integers(1, 4), sizes)
def test_attend_is_torchs(seed, dtype, asking, asked, heads, channels):
    shapes = [(asking, heads * channels), (asked, heads * channels), (asked, heads * channels)]
    queries, keys, values = drawn(seed, dtype, *shapes)
    before = [array.copy() for array in (queries, keys, values)]
    result = EXACT.attend(queries, keys, values, heads)
    np.testing.assert_allclose(result, torch_attention(queries, keys, values, heads), rtol=0, atol=10 * TIGHT[dtype])
    for array, copy in zip((queries, keys, values), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert result.dtype == dtype


@given(st.integers(0, 99), sizes, sizes, st.integers(1, 3))
def test_attention_weights_are_shares_of_one(seed, asking, asked, heads):
    queries, keys = drawn(seed, np.float64, (asking, heads * 4), (asked, heads * 4))
    values = np.full((asked, heads * 4), 7.0)
    np.testing.assert_allclose(EXACT.attend(queries, keys, values, heads), 7.0, rtol=1e-14)


@pytest.mark.parametrize("size", [1e3, -1e3, 1e15])
def test_attend_takes_scores_whose_exponential_overflows(size):
    queries, keys = np.full((1, 1), size, dtype=np.float32), np.array([[1.0], [2.0]], dtype=np.float32)
    values = np.array([[10.0], [20.0]], dtype=np.float32)
    assert EXACT.attend(queries, keys, values, 1).tolist() == [[20.0 if size > 0 else 10.0]]
