"""Checks of the position ids and what they are made of."""

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
from hypothesis import strategies as st

import npembed
from npembed.conformance import strategies as draw
from npembed.conformance.compare import Departure
from npembed.conformance.probes.probe import Array, Call, FunctionCheck, Suspect, call, sizes_of
from npembed.positions.rules import RULES

SIDE = 70
SWEEP = range(1, 129)
"""Every number of patches that the functions of one axis are asked for."""


def _bits_sweep() -> Iterator[Call]:
    yield from map(call, SWEEP)


def _count_cases(most: int) -> Callable[[], st.SearchStrategy[Call]]:
    return lambda: st.one_of(draw.sides(512), st.integers(1, most)).map(call)


def _by_rule(function: Callable[..., Any], words: str, has: str) -> tuple[Suspect, ...]:
    """The function under every other rule, of which the attribute `has` is not None."""
    names = [rule.name for rule in RULES.values() if rule.name != "arange" and getattr(rule, has) is not None]
    return tuple(Suspect(f"{words} `{name}`, not `arange`", partial(_under, name, function)) for name in names)


def _under(rule: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What the function gives under a rule, whichever rule the call names."""
    arguments = signature(function).bind(*args, **options).arguments
    return function(**arguments | {"rule": rule})


def _bucketize_sweep() -> Iterator[Call]:
    edges = np.array([0.5, 1.0])
    for right in (True, False):
        for values in ([0.25], [0.5], [1.0], [0.5, 2.0]):
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


def _other_side(values: Any, boundaries: Any, right: bool = False) -> Any:
    return npembed.bucketize(values, boundaries, right=not right)


def _always_left(values: Any, boundaries: Any, right: bool = False) -> Any:
    return npembed.bucketize(values, boundaries, right=False)


def _bucket_sweep() -> Iterator[Call]:
    yield from (call(n, SIDE) for n in SWEEP)
    yield from (call(n, side) for side in (1, 2, 7, 27, 64) for n in (1, 2, 7, 27, 58, 70))


def _bucket_cases() -> st.SearchStrategy[Call]:
    return st.builds(call, draw.sides(1024), st.sampled_from((SIDE, 64, 32, 27, 26)) | st.integers(1, 256))


Buckets = Callable[[int, int], Array]


def _left_buckets(num_patches: int, side: int) -> Array:
    return npembed.bucketize(npembed.fractional_coords(num_patches), npembed.boundaries(side))


def _buckets_of(change: int, num_patches: int, side: int) -> Array:
    """On a table of `side + change` rows per side."""
    return npembed.bucket_coords(num_patches, max(side + change, 1))


_FAULTY_BUCKETS: tuple[tuple[str, Buckets], ...] = (
    ("off by one on boundaries: searchsorted side left", _left_buckets),
    ("the boundaries are those of G - 1", partial(_buckets_of, -1)),
    ("the boundaries are those of G + 1", partial(_buckets_of, 1)),
)

_BUCKET_SUSPECTS = (
    *_by_rule(npembed.bucket_coords, "matches rule", "name"),
    *(
        Suspect(words, lambda n, side=70, rule="arange", buckets=buckets: buckets(n, side))
        for words, buckets in _FAULTY_BUCKETS
    ),
)


def _ids_of(buckets: Buckets, tgt_sizes: Any, side: int = 70, rule: str = "arange") -> Array:
    """Position ids made of other buckets."""
    rows = [np.add.outer(buckets(h, side) * side, buckets(w, side)).ravel() for h, w in np.asarray(tgt_sizes).tolist()]
    return npembed.pad_sequence(rows, batch_first=True)


def _ids_sweep() -> Iterator[Call]:
    for n in SWEEP:
        yield call(sizes_of((1, n)), SIDE)
        yield call(sizes_of((n, 1)), SIDE)
    yield from (call(sizes_of((n, 1), (1, n)), 27) for n in (27, 41, 54, 69))
    yield call(sizes_of((2, 3), (1, 2)), SIDE)
    yield call(sizes_of((1, 2)), SIDE, mask=np.array([[[True, False, True]]]))
    yield call(sizes_of((28, 37), (39, 26), (39, 26)), SIDE)


@st.composite
def _ids_cases(drawn: st.DrawFn) -> Call:
    sizes = drawn(draw.tgt_sizes(max_patches=512))
    mask = drawn(st.none() | draw.masks(sizes))
    return call(sizes, drawn(st.sampled_from((SIDE, 64, 27, 7, 1))), **({} if mask is None else {"mask": mask}))


def _swapped_ids(tgt_sizes: Any, side: int = 70, rule: str = "arange", mask: Any = None) -> Any:
    return npembed.position_ids(np.asarray(tgt_sizes)[:, ::-1], side, rule, mask)


def _ids_with(change: int, tgt_sizes: Any, side: int = 70, rule: str = "arange", mask: Any = None) -> Any:
    """Rows of ids `side + change` apart."""
    ids = npembed.position_ids(tgt_sizes, side, rule, mask)
    return ids + change * (ids // side)


def _column_major_ids(tgt_sizes: Any, side: int = 70, rule: str = "arange", mask: Any = None) -> Any:
    """The ids with row and column exchanged: bucket_w * G + bucket_h."""
    ids = npembed.position_ids(tgt_sizes, side, rule, mask)
    return ids % side * side + ids // side


IDS_SUSPECTS = (
    Suspect("equals the reference with h and w swapped", _swapped_ids),
    Suspect("row and column are exchanged in the id", _column_major_ids),
    Suspect("the row is multiplied by G - 1, not G", partial(_ids_with, -1)),
    Suspect("the row is multiplied by G + 1, not G", partial(_ids_with, 1)),
    *_by_rule(npembed.position_ids, "matches rule", "name"),
    *(Suspect(words, partial(_ids_of, buckets)) for words, buckets in _FAULTY_BUCKETS),
    Suspect(
        "equals `flattened_position_ids`, the mapping along one axis",
        lambda s, side=70, **_: npembed.flattened_position_ids(s, side),
    ),
)


def _flattened_sweep() -> Iterator[Call]:
    yield from (call(sizes_of((1, n)), side) for side in (SIDE, 7) for n in (1, 2, 3, 25, 49, 100))
    yield call(sizes_of((28, 37), (39, 26)), SIDE)


def _flattened_cases() -> st.SearchStrategy[Call]:
    return st.builds(call, draw.tgt_sizes(max_patches=256), st.integers(1, 100))


def _flattened_of(buckets: Buckets, tgt_sizes: Any, side: int) -> Array:
    """The mapping along one axis, made of other buckets."""
    lengths = np.prod(tgt_sizes, axis=1).tolist()
    return npembed.pad_sequence([buckets(length, side * side) for length in lengths], batch_first=True)


def _rectangle_sweep() -> Iterator[Call]:
    for h, w in ((1, 1), (1, 2), (2, 1), (2, 3)):
        mask = np.zeros((1, 3, 4), dtype=np.bool_)
        mask[0, :h, :w] = True
        yield call(mask)
    yield call(np.array([[[True, True], [False, False]], [[True, False], [True, False]]]))


def _whole_batch_sizes(mask: Any) -> Array:
    """The seed's else-branch as it is printed: the mask of the whole batch, in place of the slice's."""
    return np.array([(int(mask[:, 0].sum()), int(mask[0].sum())) for _ in mask], dtype=np.int64)


def _random_calls() -> Iterator[Call]:
    yield from (call(n, m) for n, m in ((1, 1), (3, 3), (1, 2), (40, 2000)))


def _random_cases() -> st.SearchStrategy[Call]:
    return st.integers(1, 50).flatmap(lambda m: st.builds(call, st.integers(1, m), st.just(m)))


def _examine_random(call: Call, result: Any) -> Departure | None:
    length, most = call.args
    drawn = np.asarray(result)
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
    FunctionCheck(
        name="boundaries",
        sweep=_bits_sweep,
        cases=_count_cases(1024),
        suspects=_by_rule(npembed.boundaries, "matches the boundaries of rule", "boundaries"),
    ),
    FunctionCheck(
        name="fractional_coords",
        sweep=_bits_sweep,
        cases=_count_cases(32_768),
        suspects=_by_rule(npembed.fractional_coords, "matches the coordinates of rule", "coords"),
    ),
    FunctionCheck(
        name="bucketize",
        sweep=_bucketize_sweep,
        cases=_bucketize_cases,
        suspects=(
            Suspect("right means the opposite here: np.digitize's convention, not torch's", _other_side),
            Suspect("off by one on boundaries: searchsorted side left", _always_left),
        ),
    ),
    FunctionCheck(name="bucket_coords", sweep=_bucket_sweep, cases=_bucket_cases, suspects=_BUCKET_SUSPECTS),
    FunctionCheck(name="position_ids", sweep=_ids_sweep, cases=_ids_cases, suspects=IDS_SUSPECTS),
    FunctionCheck(
        name="tgt_sizes_from_mask",
        sweep=_rectangle_sweep,
        cases=lambda: draw.rectangles().map(call),
        suspects=(
            Suspect("equals the reference with h and w swapped", lambda mask: npembed.tgt_sizes_from_mask(mask)[:, ::-1]),
            Suspect("sums over the whole batch's mask, as the seed's code is printed", _whole_batch_sizes),
        ),
    ),
    FunctionCheck(
        name="flattened_position_ids",
        sweep=_flattened_sweep,
        cases=_flattened_cases,
        suspects=(
            Suspect("equals `position_ids`, the mapping along two axes", npembed.position_ids),
            *_by_rule(npembed.flattened_position_ids, "matches rule", "name"),
            *(
                Suspect(words, lambda s, side=70, rule="arange", buckets=buckets: _flattened_of(buckets, s, side))
                for words, buckets in _FAULTY_BUCKETS
            ),
        ),
    ),
    FunctionCheck(name="randomized_positions", sweep=_random_calls, cases=_random_cases, examine=_examine_random),
)
