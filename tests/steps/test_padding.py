"""Padding and the mask: torch's pad_sequence, the seed's own steps, and what is refused."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from npembed import pad_pixel_values, pad_sequence, patch_attention_mask
from npembed.conformance import strategies as draw
from tests.oracles import seed_mask, seed_pixel_values, torch_pad_sequence

DTYPES = [np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_]
SMALL = st.integers(1, 5)


def ramp(shape: tuple[int, ...], dtype: type = np.float64, start: int = 1) -> NDArray[np.generic]:
    """start, start + 1, ...: every element another, and none 0 while they are fewer than the dtype holds."""
    return (np.arange(np.prod(shape)) + start).reshape(shape).astype(dtype)


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    trailing=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    dtype=st.sampled_from(DTYPES),
    batch_first=st.booleans(),
    side=st.sampled_from(["right", "left"]),
    value=st.sampled_from([0, 1]),
)
def test_equals_torch(
    lengths: list[int], trailing: tuple[int, ...], dtype: type, batch_first: bool, side: str, value: int
) -> None:
    sequences = [ramp((length, *trailing), dtype, start=10 * number + 1) for number, length in enumerate(lengths)]
    found = pad_sequence(sequences, batch_first=batch_first, padding_value=value, padding_side=side)
    expected = torch_pad_sequence(sequences, batch_first=batch_first, padding_value=value, padding_side=side)
    assert found.dtype == expected.dtype == dtype
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)
    assert found.flags.c_contiguous


@pytest.mark.parametrize("value", [0.1, -2.5, np.inf, -np.inf, np.nan, 1e-50])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_padding_values_equal_torchs(value: float, dtype: type) -> None:
    sequences = [np.ones(2, dtype=dtype), np.ones(1, dtype=dtype)]
    found = pad_sequence(sequences, batch_first=True, padding_value=value)
    assert np.array_equal(found, torch_pad_sequence(sequences, batch_first=True, padding_value=value), equal_nan=True)


def test_the_defaults_are_torchs() -> None:
    sequences = [ramp((3, 2)), ramp((1, 2))]
    assert np.array_equal(pad_sequence(sequences), torch_pad_sequence(sequences))
    assert pad_sequence(sequences).shape == (3, 2, 2)
    assert pad_sequence(iter([[1, 2], [3]])).tolist() == [[1, 3], [2, 0]]


def test_sequences_of_no_length_make_an_empty_batch() -> None:
    assert pad_sequence([np.zeros((0, 3)), np.zeros((0, 3))], batch_first=True).shape == (2, 0, 3)
    assert pad_sequence([np.zeros(0), np.ones(1)], batch_first=True, padding_side="left", padding_value=7.0).tolist() == [
        [7],
        [1],
    ]


SEQUENCES = [
    ([], ValueError, "sequences is empty; at least one is needed"),
    (3, TypeError, "sequences must be a sequence of arrays; got int"),
    (None, TypeError, "sequences must be a sequence of arrays; got NoneType"),
    ([1.0], ValueError, "sequences[0] must have shape (L,) as sequences[0] has; got ()"),
    ([[1.0], 2.0], ValueError, "sequences[1] must have shape (L,) as sequences[0] has; got ()"),
    ([np.ones((1, 2)), np.ones((1, 3))], ValueError, "sequences[1] must have shape (L, 2) as sequences[0] has; got (1, 3)"),
    ([np.ones((1, 2)), np.ones(2)], ValueError, "sequences[1] must have shape (L, 2) as sequences[0] has; got (2,)"),
    ([[1.0], [1]], TypeError, "sequences[1] must be of dtype float64 as sequences[0] is; got int64"),
    ([[[1], [1, 2]]], ValueError, "sequences[0] must be an array; "),
]


@pytest.mark.parametrize(("sequences", "error", "message"), SEQUENCES)
def test_sequences_that_do_not_go_together_are_refused(sequences: object, error: type, message: str) -> None:
    with pytest.raises(error, match="^pad_sequence: " + re.escape(message)):
        pad_sequence(sequences)


@pytest.mark.parametrize("side", ["Right", "", None, True])
def test_a_side_that_is_none_is_refused(side: object) -> None:
    with pytest.raises(ValueError, match=rf"^pad_sequence: padding_side must be 'right' or 'left'; got {side!r}$"):
        pad_sequence([[1]], padding_side=side)


TOO_MUCH = [
    (np.int64, 0.5),
    (np.uint8, -1),
    (np.uint8, 256),
    (np.int8, 300),
    (np.bool_, 2),
    (np.int64, np.inf),
    (np.int64, np.nan),
]
TOO_MUCH += [(np.float16, 1e5), (np.float32, 1e60), (np.float32, -1e60)]


@pytest.mark.parametrize(("dtype", "value"), TOO_MUCH)
def test_a_padding_value_that_the_dtype_cannot_hold_is_refused(dtype: type, value: float) -> None:
    message = re.escape(f"pad_sequence: padding_value {value!r} is no value of dtype {np.dtype(dtype)}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        pad_sequence([np.zeros(1, dtype=dtype)], padding_value=value)


@given(
    sizes=draw.tgt_sizes(max_slices=4, max_patches=9),
    channels=SMALL,
    side=SMALL,
    dtype=st.sampled_from([np.float32, np.float64]),
    data=st.data(),
)
def test_pixels_equal_the_seeds_steps(
    sizes: NDArray[np.int64], channels: int, side: int, dtype: type, data: st.DataObject
) -> None:
    strips, lengths = data.draw(draw.strips(sizes, channels, side, dtype)), sizes.prod(axis=1).tolist()
    found, expected = pad_pixel_values(strips), seed_pixel_values(strips)
    assert found.dtype == dtype
    assert found.shape == expected.shape == (len(lengths), channels, side, max(lengths) * side)
    assert np.array_equal(found, expected)
    for row, strip in zip(found, strips, strict=True):
        assert np.array_equal(row[:, :, : strip.shape[2]], strip)
        assert not row[:, :, strip.shape[2] :].any()


STRIPS = [
    ([], ValueError, "strips is empty; at least one is needed"),
    (7, TypeError, "strips must be a sequence of arrays; got int"),
    ([np.ones((14, 28))], ValueError, "strips[0] must have shape (C, P, L*P) and no empty axis; got (14, 28)"),
    ([np.ones((3, 14, 0))], ValueError, "strips[0] must have shape (C, P, L*P) and no empty axis; got (3, 14, 0)"),
    ([np.ones((0, 14, 14))], ValueError, "strips[0] must have shape (C, P, L*P) and no empty axis; got (0, 14, 14)"),
    (
        [np.ones((3, 14, 28)), np.ones((14, 28))],
        ValueError,
        "strips[1] must have shape (C, P, L*P) and no empty axis; got (14, 28)",
    ),
    (
        [np.ones((3, 14, 28)), np.ones((1, 14, 28))],
        ValueError,
        "strips[1] must have 3 channels and 14 rows; got shape (1, 14, 28)",
    ),
    (
        [np.ones((3, 14, 28)), np.ones((3, 7, 28))],
        ValueError,
        "strips[1] must have 3 channels and 14 rows; got shape (3, 7, 28)",
    ),
    (
        [np.ones((3, 14, 28)), np.ones((3, 14, 29))],
        ValueError,
        "the width of strips[1] must be a multiple of the patch size 14; got 29",
    ),
    ([np.ones((3, 14, 28), dtype=bool)], TypeError, "strips[0] must hold floats; got dtype bool"),
    ([np.full((3, 14, 28), "a")], TypeError, "strips[0] must hold floats; got dtype <U1"),
    ([np.ones((3, 14, 28)), [[1, 2], [3]]], ValueError, "strips[1] must be an array; "),
    (
        [np.ones((3, 14, 28), dtype=np.float32), np.ones((3, 14, 28))],
        TypeError,
        "strips[1] must be of dtype float32 as strips[0] is; got float64",
    ),
]


@pytest.mark.parametrize(("strips", "error", "message"), STRIPS)
def test_strips_that_do_not_go_together_are_refused(strips: object, error: type, message: str) -> None:
    with pytest.raises(error, match="^pad_pixel_values: " + re.escape(message)):
        pad_pixel_values(strips)


@given(sizes=draw.tgt_sizes(max_slices=5, max_patches=40))
def test_the_mask_equals_the_seeds_loop(sizes: NDArray[np.int64]) -> None:
    mask = patch_attention_mask(sizes)
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, seed_mask(sizes))
    assert mask.shape == (len(sizes), 1, max(h * w for h, w in sizes))
    assert mask.sum(axis=(1, 2)).tolist() == [h * w for h, w in sizes]


def test_the_seeds_mask() -> None:
    mask = patch_attention_mask([[28, 37], [39, 26], [39, 26]])
    assert mask.shape == (3, 1, 1036)
    assert mask[0].all()
    assert mask[1, 0, :1014].all()
    assert not mask[1:, 0, 1014:].any()


def test_the_mask_refuses_sizes_that_are_none() -> None:
    with pytest.raises(
        ValueError, match=r"^patch_attention_mask: tgt_sizes\[0\] is \(0, 3\); each side must be from 1 to 32768$"
    ):
        patch_attention_mask([[0, 3]])
    with pytest.raises(
        TypeError, match=r"^patch_attention_mask: tgt_sizes\[0, 1\] is 1\.5; tgt_sizes must hold whole numbers$"
    ):
        patch_attention_mask([[1, 1.5]])
    with pytest.raises(ValueError, match=r"^patch_attention_mask: tgt_sizes must have shape \(B, 2\) with B >= 1; got \(0,\)$"):
        patch_attention_mask([])


def test_inputs_are_not_changed_and_results_are_new() -> None:
    strip = ramp((3, 2, 4), np.float32)
    strip.flags.writeable = False
    for result in (pad_sequence([strip]), pad_sequence([strip], batch_first=True), pad_pixel_values([strip])):
        assert not np.shares_memory(result, strip)
        result[:] = 0
    assert np.array_equal(strip, ramp((3, 2, 4), np.float32))
