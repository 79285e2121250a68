"""Strips, patches and pictures are one another's views; the convolution is torch's and SciPy's."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from npembed import pad_pixel_values, patch_conv
from npembed.steps.patches import patches_to_strip, picture_to_strip, strip_to_patches, strip_to_picture
from tests.oracles import float32_gamma, scipy_conv, torch_conv
from tests.tensors import dtype_of

SMALL = st.integers(1, 5)
Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def drawn(seed: int, *shapes: tuple[int, ...], dtype: type = np.float64, positive: bool = False) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    return [(np.abs(array) if positive else array).astype(dtype) for array in arrays]


# Strips, patches, pictures


@given(channels=SMALL, side=SMALL, h=SMALL, w=SMALL)
def test_a_picture_survives_the_strip_and_the_patches(channels: int, side: int, h: int, w: int) -> None:
    picture = np.arange(channels * h * side * w * side).reshape(channels, h * side, w * side)
    strip = picture_to_strip(picture, side)
    assert strip.shape == (channels, side, h * w * side)
    assert np.array_equal(strip_to_picture(strip, (h, w)), picture)
    patches = strip_to_patches(strip)
    assert patches.shape == (h * w, channels * side * side)
    assert np.array_equal(patches_to_strip(patches, side), strip)


@given(channels=SMALL, side=SMALL, h=SMALL, w=SMALL)
def test_patch_l_is_the_block_at_its_row_and_column(channels: int, side: int, h: int, w: int) -> None:
    picture = np.arange(channels * h * side * w * side).reshape(channels, h * side, w * side)
    strip = picture_to_strip(picture, side)
    patches = strip_to_patches(strip)
    for place in range(h * w):
        r, c = divmod(place, w)
        block = picture[:, r * side : (r + 1) * side, c * side : (c + 1) * side]
        assert np.array_equal(strip[:, :, place * side : (place + 1) * side], block)
        assert np.array_equal(patches[place], block.ravel())


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_the_views_keep_the_dtype(dtype: type) -> None:
    strip = picture_to_strip(np.ones((3, 4, 6), dtype=dtype), 2)
    assert strip.dtype == strip_to_picture(strip, (2, 3)).dtype == strip_to_patches(strip).dtype == dtype
    assert patches_to_strip(strip_to_patches(strip), 2).dtype == dtype


# The convolution


@st.composite
def cases(draw: st.DrawFn, dtype: type = np.float64, divisible: bool = False) -> Arrays:
    """Pixels, weight and bias that fit; rows and columns left over unless `divisible`, and sizes of one among them."""
    batch, channels, features, side = draw(SMALL), draw(SMALL), draw(SMALL), draw(SMALL)
    spare = st.integers(0, 0 if divisible else side - 1)
    rows, columns = draw(st.integers(1, 4)) * side + draw(spare), draw(st.integers(1, 4)) * side + draw(spare)
    shapes = (batch, channels, rows, columns), (features, channels, side, side), (features,)
    pixels, weight, bias = drawn(draw(st.integers(0, 2**32)), *shapes, dtype=dtype, positive=draw(st.booleans()))
    return pixels, weight, bias


@given(case=cases())
def test_float64_equals_torch(case: Arrays) -> None:
    pixels, weight, bias = case
    found = patch_conv(pixels, weight, bias)
    assert found.dtype == np.float64
    assert found.shape == (len(pixels), len(weight), *(length // weight.shape[-1] for length in pixels.shape[2:]))
    assert np.allclose(found, torch_conv(pixels, weight, bias), rtol=1e-13, atol=1e-13)
    assert np.allclose(patch_conv(pixels, weight), torch_conv(pixels, weight), rtol=1e-13, atol=1e-13)


@settings(max_examples=50)
@given(case=cases())
def test_float64_equals_scipys_correlation(case: Arrays) -> None:
    assert np.allclose(patch_conv(*case), scipy_conv(*case), rtol=1e-13, atol=1e-13)


@given(case=cases(dtype=np.float32))
def test_float32_lies_within_highams_bound(case: Arrays) -> None:
    pixels, weight, bias = case
    found = patch_conv(pixels, weight, bias)
    assert found.dtype == np.float32
    terms = weight[0].size + 2
    magnitude = torch_conv(*map(np.abs, case))
    assert (np.abs(found - torch_conv(*case)) <= float32_gamma(terms) * magnitude).all()


def test_the_models_own_size_lies_within_highams_bound() -> None:
    shapes = (2, 3, 14, 14 * 30), (64, 3, 14, 14), (64,)
    for positive in (False, True):
        case = drawn(0, *shapes, dtype=np.float32, positive=positive)
        error = np.abs(patch_conv(*case) - torch_conv(*case))
        assert (error <= float32_gamma(3 * 14 * 14 + 2) * torch_conv(*map(np.abs, case))).all()


@given(
    lengths=st.lists(SMALL, min_size=2, max_size=4), seed=st.integers(0, 2**32), dtype=st.sampled_from([np.float32, np.float64])
)
def test_padding_becomes_the_bias_exactly(lengths: list[int], seed: int, dtype: type) -> None:
    weight, bias, *strips = drawn(seed, (4, 3, 2, 2), (4,), *((3, 2, 2 * length) for length in lengths), dtype=dtype)
    found = patch_conv(pad_pixel_values(strips), weight, bias)
    assert found.shape == (len(lengths), 4, 1, max(lengths))
    for row, length in zip(found, lengths, strict=True):
        assert (row[:, 0, length:] == bias[:, None]).all()
    without = patch_conv(pad_pixel_values(strips), weight)
    assert all((row[:, 0, length:] == 0).all() for row, length in zip(without, lengths, strict=True))


def test_rows_and_columns_that_fill_no_patch_are_never_read() -> None:
    pixels, weight, bias = drawn(1, (1, 2, 7, 8), (3, 2, 3, 3), (3,))
    spoilt = pixels.copy()
    spoilt[:, :, 6:], spoilt[:, :, :, 6:] = np.nan, np.inf
    assert np.array_equal(patch_conv(spoilt, weight, bias), patch_conv(pixels[:, :, :6, :6], weight, bias))


def test_one_pixel_one_channel_one_feature() -> None:
    assert patch_conv([[[[3.0]]]], [[[[2.0]]]], [1.0]).tolist() == [[[[7.0]]]]
    assert patch_conv([[[[3.0]]]], [[[[2.0]]]]).tolist() == [[[[6.0]]]]


@pytest.mark.parametrize(
    ("pixels", "weight", "result"),
    [
        (np.float32, np.float32, np.float32),
        (np.float64, np.float32, np.float32),
        (np.float32, np.float64, np.float64),
        (np.float16, np.float16, np.float32),
        ("bfloat16", "bfloat16", np.float32),
        (np.uint8, np.float32, np.float32),
        (np.int64, np.float32, np.float32),
        (np.uint8, np.float64, np.float64),
    ],
)
def test_the_weights_type_is_the_results(pixels: type, weight: type, result: type) -> None:
    array = np.arange(16).reshape(1, 1, 4, 4)
    found = patch_conv(array.astype(dtype_of(pixels)), np.ones((1, 1, 2, 2), dtype=dtype_of(weight)), np.ones(1))
    assert found.dtype == result
    assert found.tolist() == [[[[11, 19], [43, 51]]]]


def test_inputs_are_not_changed_and_the_result_is_new() -> None:
    case = drawn(2, (1, 1, 1, 1), (1, 1, 1, 1), (1,))
    copies = [array.copy() for array in case]
    for array in case:
        array.flags.writeable = False
    for result in (patch_conv(*case), patch_conv(*case[:2])):
        assert not any(np.shares_memory(result, array) for array in case)
        result[:] = 9
        assert result.flags.c_contiguous
    assert all(np.array_equal(array, copy) for array, copy in zip(case, copies, strict=True))


PIXELS, WEIGHT, BIAS = np.ones((1, 3, 4, 4)), np.ones((5, 3, 2, 2)), np.ones(5)
WRONG = [
    (PIXELS[0], WEIGHT, BIAS, ValueError, "pixel_values must have shape (B, 3, H, W); got (3, 4, 4)"),
    (PIXELS[:, :2], WEIGHT, BIAS, ValueError, "pixel_values must have shape (B, 3, H, W); got (1, 2, 4, 4)"),
    (PIXELS[:0], WEIGHT, BIAS, ValueError, "pixel_values must have shape (B, 3, H, W); got (0, 3, 4, 4)"),
    (
        PIXELS[:, :, :1],
        WEIGHT,
        BIAS,
        ValueError,
        "pixel_values must hold at least one patch of 2 x 2; got shape (1, 3, 1, 4)",
    ),
    (
        PIXELS[..., :1],
        WEIGHT,
        BIAS,
        ValueError,
        "pixel_values must hold at least one patch of 2 x 2; got shape (1, 3, 4, 1)",
    ),
    (PIXELS, WEIGHT[0], BIAS, ValueError, "weight must have shape (D, C, P, P); got (3, 2, 2)"),
    (PIXELS, WEIGHT[:0], BIAS, ValueError, "weight must have shape (D, C, P, P); got (0, 3, 2, 2)"),
    (PIXELS, WEIGHT[..., :1], BIAS, ValueError, "weight must have square kernels (D, C, P, P); got (5, 3, 2, 1)"),
    (PIXELS, WEIGHT, BIAS[:4], ValueError, "bias must have shape (5,); got (4,)"),
    (PIXELS, WEIGHT, BIAS[:, None], ValueError, "bias must have shape (5,); got (5, 1)"),
    (PIXELS, WEIGHT, 1.0, ValueError, "bias must have shape (5,); got ()"),
    (PIXELS > 0, WEIGHT, BIAS, TypeError, "pixel_values must hold floats; got dtype bool"),
    (PIXELS, WEIGHT * 1j, BIAS, TypeError, "weight must hold floats; got dtype complex128"),
    (PIXELS, WEIGHT, ["a"] * 5, TypeError, "bias must hold floats; got dtype <U1"),
    ([[1], [1, 2]], WEIGHT, BIAS, ValueError, "pixel_values must be an array; "),
]


@pytest.mark.parametrize(("pixels", "weight", "bias", "error", "message"), WRONG, ids=[row[4] for row in WRONG])
def test_what_does_not_fit_is_refused(pixels: object, weight: object, bias: object, error: type, message: str) -> None:
    with pytest.raises(error, match="^patch_conv: " + re.escape(message)):
        patch_conv(pixels, weight, bias)
