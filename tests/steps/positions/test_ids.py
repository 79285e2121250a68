"""Position ids: against torch and the seed's own loop, at the boundaries, and what is refused."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from npembed import (
    boundaries,
    bucket_coords,
    bucketize,
    flattened_position_ids,
    fractional_coords,
    position_ids,
    randomized_positions,
    tgt_sizes_from_mask,
)
from npembed.conformance import strategies as draw
from npembed.steps.positions.arange import torch_arange
from tests.oracles import seed_mask, seed_position_ids, torch_arange_coords, torch_boundaries, torch_bucketize

MAX_SIDE = 32_768
sides = st.integers(1, MAX_SIDE) | st.integers(1, 100)
batches = draw.tgt_sizes(max_slices=4, max_patches=400)


def bits(values: NDArray[np.float32]) -> NDArray[np.int32]:
    assert values.dtype == np.float32
    return values.view(np.int32)


def masks_for(sizes: NDArray[np.int64], seed: int, spare: tuple[int, int]) -> NDArray[np.bool_]:
    """bool (B, H, W) with room to spare, h*w random places of each slice True."""
    rows, columns = (max(side) + more for side, more in zip(zip(*sizes, strict=True), spare, strict=True))
    mask = np.zeros((len(sizes), rows * columns), dtype=bool)
    for places, (h, w) in zip(mask, sizes, strict=True):
        places[np.random.default_rng(seed).choice(rows * columns, h * w, replace=False)] = True
    return mask.reshape(len(sizes), rows, columns)


# In range, rising


@given(n=sides, side=sides)
def test_buckets_are_n_rising_numbers_from_0_below_the_side(n: int, side: int) -> None:
    buckets = bucket_coords(n, side)
    assert buckets.dtype == np.int64
    assert buckets.shape == (n,)
    assert buckets[0] == 0
    assert buckets[-1] <= side - 1
    assert (np.diff(buckets) >= 0).all()


@given(h=st.integers(1, 60), w=st.integers(1, 60), side=sides)
def test_ids_stay_in_the_table_and_rise_along_each_axis(h: int, w: int, side: int) -> None:
    ids = position_ids([[h, w]], side)
    assert ids.dtype == np.int64
    assert ids.shape == (1, h * w)
    grid = ids.reshape(h, w)
    assert grid.min() == grid[0, 0] == 0
    assert grid.max() <= side * side - 1
    assert (np.diff(grid // side, axis=0) >= 0).all()
    assert (np.diff(grid % side, axis=1) >= 0).all()
    assert (grid // side == grid[:, :1] // side).all()
    assert (grid % side == grid[:1] % side).all()


@pytest.mark.parametrize("size", [(1, MAX_SIDE), (MAX_SIDE, 1), (1, 1)])
@pytest.mark.parametrize("side", [1, 2, 7, 70, MAX_SIDE])
def test_ids_stay_in_the_table_at_the_ends_of_the_range(size: tuple[int, int], side: int) -> None:
    ids = position_ids([size], side)[0]
    assert 0 == ids[0] <= ids[-1] < side * side
    assert (np.diff(ids) >= 0).all()


@given(side=st.integers(1, 400))
def test_a_slice_as_large_as_the_table_takes_each_row_once(side: int) -> None:
    buckets = bucket_coords(side, side)
    assert np.abs(buckets - np.arange(side)).max() <= 1  # rounding moves a patch by one bucket at most
    if side == 70:
        assert buckets.tolist() == list(range(70))


# Against torch


def test_every_n_to_4096_equals_torch_at_a_side_of_70() -> None:
    edges = torch_boundaries(70)
    for n in range(1, 4097):
        coords = torch_arange_coords(n)
        assert np.array_equal(bits(fractional_coords(n)), bits(coords)), n
        assert np.array_equal(bucket_coords(n), torch_bucketize(coords, edges, right=True)), n


def test_the_boundaries_of_every_side_to_4096_equal_torchs() -> None:
    for side in range(1, 4097):
        assert np.array_equal(bits(boundaries(side)), bits(torch_boundaries(side))), side


@given(n=sides, side=sides)
def test_any_n_and_side_equal_torch(n: int, side: int) -> None:
    coords, edges = torch_arange_coords(n), torch_boundaries(side)
    assert np.array_equal(bits(fractional_coords(n)), bits(coords))
    assert np.array_equal(bits(boundaries(side)), bits(edges))
    assert np.array_equal(bucket_coords(n, side), torch_bucketize(coords, edges, right=True))


@given(sizes=batches, side=st.integers(1, 80))
def test_ids_equal_the_seeds_loop(sizes: NDArray[np.int64], side: int) -> None:
    expected = seed_position_ids(sizes, side, seed_mask(sizes))
    assert np.array_equal(position_ids(sizes, side), expected)
    assert np.array_equal(position_ids(sizes, side, mask=seed_mask(sizes)), expected)


@given(sizes=batches, side=st.integers(1, 80), seed=st.integers(0, 99), spare=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_ids_go_to_the_true_places_of_a_mask_as_in_the_seeds_loop(
    sizes: NDArray[np.int64], side: int, seed: int, spare: tuple[int, int]
) -> None:
    mask = masks_for(sizes, seed, spare)
    expected = seed_position_ids(sizes, side, mask)
    assert np.array_equal(position_ids(sizes, side, mask=mask), expected)
    flat = mask.reshape(len(mask), 1, -1)
    assert np.array_equal(position_ids(sizes, side, mask=flat), expected)


# bucketize


@pytest.mark.parametrize("right", [True, False])
@given(side=st.integers(2, 2000))
def test_values_on_each_boundary_and_one_ulp_to_either_side(right: bool, side: int) -> None:
    edges = boundaries(side)
    for values in (edges, np.nextafter(edges, np.float32(-1)), np.nextafter(edges, np.float32(2))):
        assert np.array_equal(bucketize(values, edges, right=right), torch_bucketize(values, edges, right))
    k = np.arange(len(edges))
    assert np.array_equal(bucketize(edges, edges, right=right), k + right)
    assert np.array_equal(bucketize(np.nextafter(edges, np.float32(-1)), edges, right=right), k)
    assert np.array_equal(bucketize(np.nextafter(edges, np.float32(2)), edges, right=right), k + 1)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32])
@given(data=st.data())
def test_bucketize_equals_torchs(right: bool, dtype: type, data: st.DataObject) -> None:
    numbers = st.integers(-5, 5)
    edges = np.array(sorted(data.draw(st.lists(numbers, max_size=8))), dtype=dtype) / dtype(1)
    values = np.array(data.draw(st.lists(numbers, min_size=6, max_size=6)), dtype=dtype).reshape(2, 3)
    found = bucketize(values, edges.astype(dtype), right=right)
    assert found.dtype == np.int64
    assert np.array_equal(found, torch_bucketize(values, edges.astype(dtype), right))


@given(values=st.lists(st.floats(-2, 2), min_size=1), edges=st.lists(st.floats(-2, 2), min_size=1))
def test_bucketize_counts_boundaries(values: list[float], edges: list[float]) -> None:
    edges = sorted(edges)
    assert bucketize(values, edges, right=True).tolist() == [sum(edge <= value for edge in edges) for value in values]
    assert bucketize(values, edges).tolist() == [sum(edge < value for edge in edges) for value in values]


def test_bucketize_takes_infinities_scalars_repeated_boundaries_and_none_at_all() -> None:
    assert bucketize([-np.inf, np.inf], [0.0, 1.0]).tolist() == [0, 2]
    assert bucketize([1.0], [1.0, 1.0, 1.0], right=True).tolist() == [3]
    assert bucketize(0.5, [0.0, 1.0]).shape == ()
    assert bucketize([0.1, 0.2], []).tolist() == [0, 0]
    assert bucketize([], [0.1]).shape == (0,)


def test_bucketize_right_is_the_opposite_of_digitizes() -> None:
    values, edges = [0.0, 0.5, 1.0], [0.0, 0.5, 1.0]
    assert bucketize(values, edges, right=True).tolist() == np.digitize(values, edges, right=False).tolist()
    assert bucketize(values, edges, right=True).tolist() != np.digitize(values, edges, right=True).tolist()


# The figures of the seed and of SPEC 5.1


def test_the_seeds_figures() -> None:
    rows = [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37, 40, 42, 45, 47, 50, 52, 55, 57, 60, 62, 65, 67]
    columns = [0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 18, 20, 22, 24, 26, 28, 30, 32, 34, 35, 37, 39, 41, 43, 45, 47, 49, 51]
    columns += [52, 54, 56, 58, 60, 62, 64, 66, 68]
    assert bucket_coords(28).tolist() == rows
    assert bucket_coords(37).tolist() == columns
    ids = position_ids([[28, 37], [39, 26], [39, 26]])
    assert ids.shape == (3, 1036)
    grid = ids[0].reshape(28, 37)
    assert grid.tolist() == [[70 * row + column for column in columns] for row in rows]
    assert [line[:3].tolist() for line in grid[:3]] == [[0, 1, 3], [140, 141, 143], [350, 351, 353]]
    assert grid[-1, -3:].tolist() == [4754, 4756, 4758]
    assert ids[1, :2].tolist() == [0, 2]
    assert ids[1, 39 * 26 :].tolist() == [0] * 22


def test_where_the_original_is_not_the_exact_floor() -> None:
    assert [n for n in range(1, 71) if bucket_coords(n).tolist() != [70 * i // n for i in range(n)]] == [25, 49, 50, 55, 58]
    expected = [0, 2, 5, 8, 11, 13, 16, 19, 22, 25, 27, 30, 33, 36, 39, 41, 44, 47, 50, 53, 55, 58, 61, 64, 67]
    assert bucket_coords(25).tolist() == expected
    exact = [70 * i // 25 for i in range(25)]
    assert [i for i in range(25) if expected[i] != exact[i]] == [5, 10, 15, 20]


def differing_under(lanes: int) -> list[int]:
    """The n <= 1024 whose ids at a side of 70 other vectors than 8 lanes change."""
    edges = torch_arange(1 / 70, 1.0, 1 / 70, lanes=lanes)
    coords = {n: torch_arange(0.0, 1 - 1e-6, float(np.float32(1) / np.float32(n)), lanes=lanes) for n in range(1, 1025)}
    return [n for n, c in coords.items() if not np.array_equal(bucket_coords(n), np.searchsorted(edges, c, side="right"))]


def test_other_vectors_than_8_lanes_give_other_ids() -> None:
    assert differing_under(8) == []
    assert differing_under(4)[:4] == [49, 50, 58, 77]
    assert len(differing_under(4)) == 138
    assert differing_under(1)[:3] == [49, 58, 77]


def test_114_sides_to_1024_have_as_many_boundaries_as_buckets() -> None:
    full = [side for side in range(1, 1025) if len(boundaries(side)) != side - 1]
    assert full[:10] == [3, 6, 7, 14, 19, 24, 27, 28, 54, 63]
    assert len(full) == 114
    for side in full:
        assert len(boundaries(side)) == side
        assert boundaries(side)[-1] == pytest.approx(1.0, abs=1e-6)


def test_a_float64_step_would_be_another_formula() -> None:
    steps = {n: torch_arange(0.0, 1 - 1e-6, 1 / n) for n in range(1, 1025)}
    ids = {n: bucketize(coords, boundaries(70), right=True) for n, coords in steps.items()}
    assert sum(not np.array_equal(bucket_coords(n), buckets) for n, buckets in ids.items()) == 217


# Sizes from a mask


@given(draw.rectangles(max_slices=4, max_side=40))
def test_sizes_are_read_off_a_mask(mask: NDArray[np.bool_]) -> None:
    found = tgt_sizes_from_mask(mask)
    assert found.dtype == np.int64
    assert found.tolist() == [[int(places[:, 0].sum()), int(places[0].sum())] for places in mask]


@pytest.mark.parametrize(
    "places",
    [
        [[0, 0], [0, 0]],
        [[0, 1], [0, 1]],
        [[0, 0], [1, 1]],
        [[1, 1], [1, 0]],
        [[1, 0], [0, 1]],
    ],
    ids=["none", "not from the left", "not from the top", "a corner is missing", "a diagonal"],
)
def test_a_mask_that_is_no_rectangle_from_the_top_left_is_refused(places: list[list[int]]) -> None:
    mask = np.array([[[1, 1], [1, 1]], places], dtype=bool)
    with pytest.raises(ValueError, match=r"^tgt_sizes_from_mask: the True places of mask\[1\] must be one rectangle from the"):
        tgt_sizes_from_mask(mask)


def test_a_row_with_a_gap_is_refused_though_it_counts_right() -> None:
    with pytest.raises(ValueError, match=r"mask\[0\] must be one rectangle"):
        tgt_sizes_from_mask(np.array([[[1, 0, 1], [1, 0, 1]]], dtype=bool))


# Randomized positions


@given(length=st.integers(1, 300), more=st.integers(0, 2000), seed=st.integers(0, 2**32))
def test_randomized_positions_rise_and_stay_below_the_most(length: int, more: int, seed: int) -> None:
    drawn = randomized_positions(length, length + more, rng=seed)
    assert drawn.dtype == np.int64
    assert drawn.shape == (length,)
    assert (np.diff(drawn) > 0).all()
    assert 0 <= drawn[0] <= drawn[-1] < length + more
    assert np.array_equal(drawn, randomized_positions(length, length + more, rng=seed))


def test_as_many_randomized_positions_as_there_are_give_them_all() -> None:
    assert randomized_positions(50, 50).tolist() == list(range(50))


def test_every_set_of_randomized_positions_is_as_likely() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(tuple(randomized_positions(2, 4, rng=rng).tolist()) for _ in range(3000))
    assert sorted(counts) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert all(400 <= count <= 600 for count in counts.values())  # 500 each, and five standard deviations to either side


def test_randomized_positions_draw_anew_and_most_is_2000() -> None:
    draws = [randomized_positions(40) for _ in range(50)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 50
    assert 1500 < max(draw[-1] for draw in draws) < 2000


def test_more_randomized_positions_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^randomized_positions: length must be a whole number from 1 to 2000; got 2001$"):
        randomized_positions(2001)
    with pytest.raises(ValueError, match=r"^randomized_positions: length must be a whole number from 1 to 5; got 0$"):
        randomized_positions(0, 5)
    with pytest.raises(ValueError, match=r"^randomized_positions: max_length must be a whole number from 1 to \d+; got 0$"):
        randomized_positions(1, 0)
    with pytest.raises(TypeError, match=r"^randomized_positions: length must be a whole number from 1 to 2000; got 2\.5$"):
        randomized_positions(2.5)  # type: ignore[arg-type]


# The flattened mapping


@given(sizes=batches, side=st.integers(1, 181))
def test_flattened_ids_are_one_axis_of_side_squared_buckets(sizes: NDArray[np.int64], side: int) -> None:
    ids = flattened_position_ids(sizes, side)
    assert ids.dtype == np.int64
    assert ids.shape == (len(sizes), max(h * w for h, w in sizes))
    edges = torch_boundaries(side * side)
    for row, (h, w) in zip(ids, sizes, strict=True):
        assert np.array_equal(row[: h * w], torch_bucketize(torch_arange_coords(h * w), edges, right=True))
        assert not row[h * w :].any()


def test_flattened_ids_are_not_what_upstream_uses() -> None:
    assert flattened_position_ids([[28, 37]])[0, :4].tolist() == [math.floor(4900 * k / 1036) for k in range(4)]
    assert not np.array_equal(flattened_position_ids([[28, 37]]), position_ids([[28, 37]]))


def test_flattened_ids_that_no_axis_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^flattened_position_ids: tgt_sizes\[1\] makes 33000 patches; at most 32768 fit on"):
        flattened_position_ids([[1, 1], [1000, 33]])
    message = r"^flattened_position_ids: num_patches_per_side must be a whole number from 1 to 181; got 182$"
    with pytest.raises(ValueError, match=message):
        flattened_position_ids([[1, 1]], 182)
    with pytest.raises(ValueError, match=r"^flattened_position_ids: rule must be one of arange, .*; got 'none'$"):
        flattened_position_ids([[1, 1]], rule="none")
    with pytest.raises(ValueError, match=r"^flattened_position_ids: rule 'digitize', as released, gives bucket -1, outside 0"):
        flattened_position_ids([[1, 1]], rule="digitize")
    with pytest.raises(ValueError, match=r"^flattened_position_ids: tgt_sizes must have shape \(B, 2\)"):
        flattened_position_ids([1, 1])


# Nothing given is changed, nothing returned is shared


def test_inputs_are_not_changed() -> None:
    sizes, mask = np.array([[2, 3], [1, 4]]), np.ones((2, 1, 6), dtype=bool)
    mask[1, 0, 4:] = False
    values, edges = np.array([0.5, 0.1]), np.array([0.1, 0.2])
    copies = [array.copy() for array in (sizes, mask, values, edges)]
    for array in (sizes, mask, values, edges):
        array.flags.writeable = False
    position_ids(sizes, mask=mask)
    flattened_position_ids(sizes)
    bucketize(values, edges)
    tgt_sizes_from_mask(mask[:1])
    for array, copy in zip((sizes, mask, values, edges), copies, strict=True):
        assert np.array_equal(array, copy)


@pytest.mark.parametrize("rule", ["arange", "exact"])
def test_what_is_returned_can_be_written_to_without_changing_later_answers(rule: str) -> None:
    first = bucket_coords(28, rule=rule)
    kept = first.copy()
    first[:] = -7
    ids = position_ids([[28, 1]], rule=rule)
    ids[:] = -7
    flat = flattened_position_ids([[28, 1]], rule=rule)
    flat[:] = -7
    assert np.array_equal(bucket_coords(28, rule=rule), kept)
    assert np.array_equal(position_ids([[28, 1]], rule=rule)[0], kept * 70)
    assert flattened_position_ids([[28, 1]], rule=rule)[0, 0] == 0


# What is refused


COUNTS = [
    (0, ValueError, "0"),
    (-1, ValueError, "-1"),
    (32_769, ValueError, "32769"),
    (2**70, ValueError, str(2**70)),
    (1.0, TypeError, "1.0"),
    (math.nan, TypeError, "nan"),
    (True, TypeError, "True"),
    (np.True_, TypeError, "np.True_"),
    ("70", TypeError, "'70'"),
    (None, TypeError, "None"),
]


@pytest.mark.parametrize(("value", "error", "shown"), COUNTS, ids=repr)
def test_a_side_or_a_number_of_patches_that_is_none_is_refused(value: object, error: type, shown: str) -> None:
    calls = {
        "boundaries: num_patches_per_side": lambda: boundaries(value),
        "fractional_coords: num_patches": lambda: fractional_coords(value),
        "bucket_coords: num_patches": lambda: bucket_coords(value),
        "bucket_coords: num_patches_per_side": lambda: bucket_coords(1, value),
        "position_ids: num_patches_per_side": lambda: position_ids([[1, 1]], value),
    }
    for named, call in calls.items():
        with pytest.raises(error, match=f"^{named} must be a whole number from 1 to 32768; got {re.escape(shown)}$"):
            call()


def test_numpy_integers_are_whole_numbers() -> None:
    assert np.array_equal(bucket_coords(np.int32(25), np.uint8(70)), bucket_coords(25, 70))


SIZES = [
    ([], ValueError, r"tgt_sizes must have shape \(B, 2\) with B >= 1; got \(0,\)"),
    (np.zeros((0, 2), dtype=int), ValueError, r"tgt_sizes must have shape \(B, 2\) with B >= 1; got \(0, 2\)"),
    ([28, 37], ValueError, r"tgt_sizes must have shape \(B, 2\) with B >= 1; got \(2,\)"),
    ([[1, 2, 3]], ValueError, r"tgt_sizes must have shape \(B, 2\) with B >= 1; got \(1, 3\)"),
    ([[1, 2], [3]], ValueError, r"tgt_sizes must be an array; .*inhomogeneous"),
    ([[1, 1], [0, 5]], ValueError, r"tgt_sizes\[1\] is \(0, 5\); each side must be from 1 to 32768"),
    ([[-1, 5]], ValueError, r"tgt_sizes\[0\] is \(-1, 5\); each side must be from 1 to 32768"),
    ([[1, 32_769]], ValueError, r"tgt_sizes\[0\] is \(1, 32769\); each side must be from 1 to 32768"),
    ([[1, 2**63]], ValueError, rf"tgt_sizes\[0, 1\] is {2**63}, which is too large for int64"),
    ([[-(2**63) - 1, 1]], ValueError, rf"tgt_sizes\[0, 0\] is -{2**63 + 1}, which is too large for int64"),
    ([[1, 10**30]], ValueError, rf"tgt_sizes\[0, 1\] is {10**30}, which is too large for int64"),
    (np.array([[1, 2**64 - 1]], dtype=np.uint64), ValueError, rf"tgt_sizes\[0, 1\] is {2**64 - 1}, which is too large for"),
    ([[1, 2], [1.5, 2]], TypeError, r"tgt_sizes\[1, 0\] is 1\.5; tgt_sizes must hold whole numbers"),
    ([[1, math.nan]], TypeError, r"tgt_sizes\[0, 1\] is nan; tgt_sizes must hold whole numbers"),
    ([[1, math.inf]], TypeError, r"tgt_sizes\[0, 1\] is inf; tgt_sizes must hold whole numbers"),
    ([[1.0, 2.0]], TypeError, r"tgt_sizes must hold whole numbers; got dtype float64 of shape \(1, 2\)"),
    ([[True, True]], TypeError, r"tgt_sizes\[0, 0\] is True; tgt_sizes must hold whole numbers"),
    ([["1", "2"]], TypeError, r"tgt_sizes\[0, 0\] is '1'; tgt_sizes must hold whole numbers"),
    (None, TypeError, r"tgt_sizes is None; tgt_sizes must hold whole numbers"),
]


@pytest.mark.parametrize(("sizes", "error", "message"), SIZES, ids=[repr(row[0]) for row in SIZES])
def test_sizes_that_are_none_are_refused(sizes: object, error: type, message: str) -> None:
    with pytest.raises(error, match="^position_ids: " + message):
        position_ids(sizes)


MASKS = [
    (np.ones((1, 6), dtype=bool), ValueError, r"mask must have shape \(B, H, W\) and no empty axis; got \(1, 6\)"),
    (np.ones((1, 0, 6), dtype=bool), ValueError, r"mask must have shape \(B, H, W\) and no empty axis; got \(1, 0, 6\)"),
    (np.ones((1, 1, 6)), TypeError, r"mask must be of bool; got dtype float64"),
    (np.ones((1, 1, 6), dtype=int), TypeError, r"mask must be of bool; got dtype int64"),
    ([[[True]], [[True, False]]], ValueError, r"mask must be an array; .*inhomogeneous"),
]


@pytest.mark.parametrize(("mask", "error", "message"), MASKS)
def test_masks_that_are_none_are_refused(mask: object, error: type, message: str) -> None:
    with pytest.raises(error, match="^position_ids: " + message):
        position_ids([[2, 3]], mask=mask)
    with pytest.raises(error, match="^tgt_sizes_from_mask: " + message):
        tgt_sizes_from_mask(mask)


def test_a_mask_that_does_not_fit_the_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^position_ids: mask has 2 slices but tgt_sizes 1; they must be as many$"):
        position_ids([[2, 3]], mask=np.ones((2, 1, 6), dtype=bool))
    mask = np.ones((2, 2, 4), dtype=bool)
    for true in (5, 7):
        mask[1] = np.arange(8).reshape(2, 4) < true
        message = rf"^position_ids: mask\[1\] has {true} True places, but tgt_sizes\[1\] makes 6 patches$"
        with pytest.raises(ValueError, match=message):
            position_ids([[2, 4], [2, 3]], mask=mask)


BUCKETIZE = [
    ([0.5, math.nan], [0.1], ValueError, r"values\[1\] is NaN"),
    ([[0.5], [math.nan]], [0.1], ValueError, r"values\[1, 0\] is NaN"),
    ([0.5], [0.1, math.nan], ValueError, r"boundaries\[1\] is NaN"),
    ([0.5], [[0.1]], ValueError, r"boundaries must have shape \(K,\); got \(1, 1\)"),
    ([0.5], 0.1, ValueError, r"boundaries must have shape \(K,\); got \(\)"),
    ([0.5], [0.1, 0.3, 0.2], ValueError, r"boundaries must not fall; boundaries\[1\] = 0\.3, then 0\.2"),
    (["a"], [0.1], TypeError, r"values must hold numbers; got dtype <U1"),
    ([True], [0.1], TypeError, r"values must hold numbers; got dtype bool"),
    ([1j], [0.1], TypeError, r"values must hold numbers; got dtype complex128"),
    ([0.5], ["a"], TypeError, r"boundaries must hold numbers; got dtype <U1"),
    ([[1], [1, 2]], [0.1], ValueError, r"values must be an array; .*inhomogeneous"),
]


@pytest.mark.parametrize(("values", "edges", "error", "message"), BUCKETIZE)
def test_what_cannot_be_bucketed_is_refused(values: object, edges: object, error: type, message: str) -> None:
    with pytest.raises(error, match="^bucketize: " + message):
        bucketize(values, edges)


@settings(max_examples=20)
@given(values=st.lists(st.integers(-9, 9), min_size=1))
def test_half_precision_values_are_bucketed_as_the_numbers_they_are(values: list[int]) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for half in (np.float16, ml_dtypes.bfloat16):
        assert np.array_equal(
            bucketize(np.array(values, dtype=half), [-3.0, 0.0, 4.0], right=True), bucketize(values, [-3, 0, 4], right=True)
        )
