"""torch's resize of bytes: equal to torch bit for bit in each filter, and to sums written one number at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from npembed.steps.pixels import resize_bytes
from npembed.steps.pixels.resize import FILTERS
from tests.synthetic import synthetic_picture

torch.set_num_threads(1)

native_only = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="on this processor torch resizes by other arithmetic",
)

long_sides, short_sides = st.integers(1, 2000), st.integers(1, 40)


def torch_resize(pixels, size, resample):
    """uint8 (H, W, 3) -> uint8 (height, width, 3)."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()[None]
    new = torch.nn.functional.interpolate(planes, size[::-1], mode=resample.lower(), antialias=True)
    return new[0].permute(1, 2, 0).numpy()


def noise(width, height, seed, hard):
    """Random bytes, or black and white alone, which is where a filter with negative weights goes beyond 0 and 255."""
    rng = np.random.default_rng(seed)
    bytes_ = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(bytes_ < 128, np.uint8(0), np.uint8(255)) if hard else bytes_


@native_only
@pytest.mark.parametrize("resample", FILTERS)
@given(st.tuples(long_sides, short_sides), st.tuples(long_sides, short_sides), st.booleans(), st.booleans(), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_bytes_are_resized_as_torch_does(resample, size, wanted, turned, hard, seed):
    size, wanted = (size[::-1], wanted[::-1]) if turned else (size, wanted)
    if wanted == (1, 1):
        return  # torch fails there
    pixels = noise(*size, seed, hard)
    np.testing.assert_array_equal(resize_bytes(pixels, wanted, resample), torch_resize(pixels, wanted, resample))


@native_only
@pytest.mark.parametrize("resample", FILTERS)
def test_both_long_sides_are_resized_as_torch_does(resample):
    for size, wanted in [
        ((1999, 1400), (300, 211)),
        ((700, 900), (2000, 1701)),
        ((640, 480), (640, 100)),
        ((50, 60), (49, 60)),
    ]:
        pixels = noise(*size, 7, hard=False)
        np.testing.assert_array_equal(resize_bytes(pixels, wanted, resample), torch_resize(pixels, wanted, resample))


WEIGHTS = {
    "BILINEAR": (1, lambda x: max(1 - abs(x), 0)),
    "BICUBIC": (
        2,
        lambda x: (
            1.5 * abs(x) ** 3 - 2.5 * x * x + 1
            if abs(x) < 1
            else -0.5 * abs(x) ** 3 + 2.5 * x * x - 4 * abs(x) + 2
            if abs(x) < 2
            else 0
        ),
    ),
    "LANCZOS": (3, lambda x: 1 if x == 0 else 3 * math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x) ** 2),
}


def real_row(row, length, resample):
    """The row resized in real numbers: what any rounding must be near to."""
    reach, weight = WEIGHTS[resample]
    scale = len(row) / length
    stretch = max(scale, 1)
    result = []
    for place in range(length):
        offsets = [(x + 0.5 - scale * (place + 0.5)) / stretch for x in range(len(row))]
        weights = [weight(offset) if abs(offset) < reach else 0 for offset in offsets]
        result.append(sum(w * float(v) for w, v in zip(weights, row, strict=True)) / sum(weights))
    return np.clip(result, 0, 255)


@pytest.mark.parametrize("resample", FILTERS)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=60), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_a_row_is_within_a_level_of_the_real_numbers(resample, row, length):
    pixels = np.repeat(np.array(row, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert np.abs(resize_bytes(pixels, (length, 1), resample)[0, :, 0] - real_row(row, length, resample)).max() < 1


@pytest.mark.parametrize("resample", FILTERS)
@given(long_sides, long_sides, st.integers(0, 255))
@settings(max_examples=30, deadline=None)
def test_one_colour_stays_the_same(resample, before, after, level):
    pixels = np.full((1, before, 3), level, dtype=np.uint8)
    assert np.array_equal(np.unique(resize_bytes(pixels, (after, 1), resample)), [level])


@pytest.mark.parametrize("resample", FILTERS)
def test_a_side_that_keeps_its_length_is_left_alone(resample):
    pixels = noise(30, 20, 1, hard=False)
    assert np.array_equal(resize_bytes(pixels, (30, 20), resample), pixels)
    flipped = resize_bytes(pixels[::-1], (17, 20), resample)
    assert np.array_equal(flipped[::-1], resize_bytes(pixels, (17, 20), resample))


def test_the_columns_are_resized_before_the_rows():
    pixels = noise(64, 48, 3, hard=False)
    columns = resize_bytes(pixels, (31, 48), "LANCZOS")
    assert np.array_equal(resize_bytes(pixels, (31, 17), "LANCZOS"), resize_bytes(columns, (31, 17), "LANCZOS"))
    rows_first = resize_bytes(resize_bytes(pixels, (64, 17), "LANCZOS"), (31, 17), "LANCZOS")
    assert (rows_first != resize_bytes(pixels, (31, 17), "LANCZOS")).any()


@pytest.mark.parametrize(("resample", "most"), [("BILINEAR", 1), ("BICUBIC", 2), ("LANCZOS", 2)])
def test_pillows_filter_of_the_same_name_differs_by_a_level_or_two(resample, most):
    photo = Image.fromarray(synthetic_picture(300, 200))
    pillow = np.asarray(photo.resize((131, 97), Image.Resampling[resample])).astype(int)
    differences = np.abs(pillow - resize_bytes(np.asarray(photo), (131, 97), resample))
    assert 1 <= differences.max() <= most


@pytest.mark.parametrize("size", [(30, 20), (30, 1), (1, 20), (1, 1)])
def test_what_it_is_given_is_not_changed(size):
    pixels = noise(*size, 1, hard=False)
    before = pixels.copy()
    resize_bytes(pixels, (11, 7), "BICUBIC")
    resize_bytes(pixels, size, "BICUBIC")[:] = 0
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("resample", ["NEAREST", "bicubic", 3, None])
def test_another_filter_is_refused(resample):
    with pytest.raises(ValueError, match=r"^resize_bytes: resample must be one of BILINEAR, BICUBIC, LANCZOS; got "):
        resize_bytes(np.zeros((2, 2, 3), np.uint8), (1, 1), resample)
