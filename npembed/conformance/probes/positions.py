"""Checks of the position ids and what they are made of."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

import npembed
from npembed.conformance import strategies as draw
from npembed.conformance.compare import Departure, as_array
from npembed.conformance.probes.probe import Call, FunctionCheck, call, refused, sizes_of

SIDE = 70
SWEEP = range(1, 129)
"""Every number of patches that the functions of one axis are asked for."""

FAR = 300
"""Up to here the sizes on which any two rules differ are asked for, too: the bfloat16 rules first differ at 260."""


LAST = 2078
"""Where the last two rules part: the float16 ones."""


def counts() -> list[int]:
    """Numbers of patches of one axis, rising."""
    return sorted({*SWEEP, *draw.parting_sizes(SIDE, FAR), LAST})


def _count_cases(most: int) -> Callable[[], st.SearchStrategy[Call]]:
    return lambda: st.one_of(draw.sides(512), st.integers(1, most)).map(call)


def _bucketize_sweep() -> Iterator[Call]:
    edges = np.array([0.5, 1.0])
    for right in (True, False):
        for values in ([0.25], [0.5], [1.0], [0.5, 2.0], [[0.5, 0.75], [1.0, 2.0]]):
            yield call(np.array(values), edges, right=right)
    edges = npembed.boundaries(SIDE)
    neighbours = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(2))])
    yield call(np.sort(neighbours), edges, right=True)


@st.composite
def _bucketize_cases(drawn: st.DrawFn) -> Call:
    quarters = st.integers(-4, 8).map(lambda k: k / 4)
    edges = sorted(drawn(st.lists(quarters, max_size=5)))
    values = drawn(st.lists(quarters, min_size=1, max_size=5))
    return call(np.array(values), np.array(edges, dtype=np.float64), right=drawn(st.booleans()))


def _bucket_sweep() -> Iterator[Call]:
    yield from (call(n, SIDE) for n in counts())
    yield from (call(n, side) for side in (1, 2, 7, 27, 64) for n in (1, 2, 7, 27, 58, 70))


def _ids_sweep() -> Iterator[Call]:
    for n in counts():
        yield call(sizes_of((1, n)), SIDE)
        yield call(sizes_of((n, 1)), SIDE)
    yield from (call(sizes_of((n, 1), (1, n)), 27) for n in (27, 41, 54, 69))
    yield call(sizes_of((2, 3), (1, 2)), SIDE)
    yield call(sizes_of((4, 2), (3, 5)), 27)
    yield call(sizes_of((1, 2)), SIDE, mask=np.array([[[True, False, True]]]))
    yield call(sizes_of((2, 1), (1, 2)), SIDE, mask=np.array([[[True, False], [True, False]], [[True, True], [False, False]]]))
    yield call(sizes_of((28, 37), (39, 26), (39, 26)), SIDE)
    yield refused(sizes_of((1, 2)), SIDE, mask=np.array([[[True, False, False]]]))


@st.composite
def _ids_cases(drawn: st.DrawFn) -> Call:
    sizes = drawn(draw.tgt_sizes(max_patches=512))
    mask = drawn(st.none() | draw.masks(sizes))
    return call(sizes, drawn(st.sampled_from((SIDE, 64, 27, 7, 1))), **({} if mask is None else {"mask": mask}))


def _flattened_sweep() -> Iterator[Call]:
    yield from (call(sizes_of((1, n)), side) for side in (SIDE, 7) for n in (1, 2, 3, 25, 49, 100))
    yield call(sizes_of((28, 37), (39, 26)), SIDE)


def _rectangle_sweep() -> Iterator[Call]:
    for h, w in ((1, 1), (1, 2), (2, 1), (2, 3)):
        mask = np.zeros((1, 3, 4), dtype=np.bool_)
        mask[0, :h, :w] = True
        yield call(mask)
    yield call(np.array([[[True, True], [False, False]], [[True, False], [True, False]]]))
    yield refused(np.array([[[True, True], [True, False]]]))
    yield refused(np.array([[[False, True], [False, True]]]))


def _examine_random(call: Call, result: Any) -> Departure | None:
    length, most = call.args
    drawn = as_array(result)
    if drawn.shape != (length,) or drawn.dtype.kind not in "iu":
        return Departure(f"dtype {drawn.dtype}, shape {drawn.shape}, should be integers of shape {(length,)}")
    if drawn.min() < 0 or drawn.max() >= most:
        return Departure(f"positions from {drawn.min()} to {drawn.max()}, should be in 0..{most - 1}")
    falls = np.flatnonzero(drawn[1:] <= drawn[:-1])
    if len(falls):
        i = int(falls[0])
        return Departure(f"elements {i} and {i + 1} are {drawn[i]} and {drawn[i + 1]}, should rise", (i,))
    return None


CHECKS = (
    FunctionCheck(name="boundaries", sweep=lambda: map(call, counts()), cases=_count_cases(1024), by_rule=True),
    FunctionCheck(name="fractional_coords", sweep=lambda: map(call, counts()), cases=_count_cases(32_768), by_rule=True),
    FunctionCheck(name="bucketize", sweep=_bucketize_sweep, cases=_bucketize_cases),
    FunctionCheck(
        name="bucket_coords",
        sweep=_bucket_sweep,
        cases=lambda: st.builds(call, draw.sides(1024), st.sampled_from((SIDE, 64, 32, 27, 26)) | st.integers(1, 256)),
        by_rule=True,
    ),
    FunctionCheck(name="position_ids", sweep=_ids_sweep, cases=_ids_cases, by_rule=True),
    FunctionCheck(name="tgt_sizes_from_mask", sweep=_rectangle_sweep, cases=lambda: draw.rectangles().map(call)),
    FunctionCheck(
        name="flattened_position_ids",
        sweep=_flattened_sweep,
        cases=lambda: st.builds(call, draw.tgt_sizes(max_patches=256), st.integers(1, 100)),
        by_rule=True,
    ),
    FunctionCheck(
        name="randomized_positions",
        sweep=lambda: (call(1, 1), call(3, 3), call(1, 2), call(40, 2000), refused(3, 2)),
        cases=lambda: st.integers(1, 50).flatmap(lambda m: st.builds(call, st.integers(1, m), st.just(m))),
        examine=_examine_random,
    ),
)
