"""Faults of the position ids and of what they are made of."""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

import npembed
from npembed.conformance.suspects.suspect import Fault, Function, Suspect, changed_result
from npembed.positions.rules import RULES
from npembed.typing import Array

ORIGINAL = "arange"
Buckets = Callable[[int, int], Array]


def by_rule(base: Function, words: str, has: str = "name") -> tuple[Suspect, ...]:
    """The function under every other rule, of which the attribute `has` is not None."""
    return tuple(
        Suspect(
            f"{words} `{rule.name}`, not `{ORIGINAL}`",
            base,
            partial(partial, _under, rule.name),
            shipped=rule.releases[0],
            rule=rule.name,
        )
        for rule in RULES.values()
        if rule.name != ORIGINAL and getattr(rule, has) is not None
    )


def _under(rule: str, function: Function, *args: Any, **options: Any) -> Any:
    """What the function gives under a rule, whichever rule the call names."""
    base = signature(function.func if isinstance(function, partial) else function)
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in base.parameters.values()):
        return function(*args, **options | {"rule": rule})
    return function(**base.bind(*args, **options).arguments | {"rule": rule})


def _left_buckets(num_patches: int, side: int) -> Array:
    return npembed.bucketize(npembed.fractional_coords(num_patches), npembed.boundaries(side))


def _buckets_of(change: int, num_patches: int, side: int) -> Array:
    """On a table of `side + change` rows per side."""
    return npembed.bucket_coords(num_patches, max(side + change, 1))


def _of_70(num_patches: int, side: int) -> Array:
    return npembed.bucket_coords(num_patches, 70)


def _clamped_table(num_patches: int, side: int) -> Array:
    """As many buckets as the table has rows; what lies beyond takes the last."""
    buckets = npembed.bucket_coords(min(num_patches, side), side)
    return np.pad(buckets, (0, num_patches - len(buckets)), mode="edge")


def _linspace(num_patches: int, side: int) -> Array:
    return np.linspace(0, side - 1, num_patches).round().astype(np.int64)


def _searched(boundaries: Callable[..., Array], num_patches: int, side: int) -> Array:
    """The original coordinates among other boundaries."""
    return npembed.bucketize(npembed.fractional_coords(num_patches), boundaries(side), right=True)


def _products(count: int, *_: Any) -> Array:
    """f32(k) * f32(1/G), k = 1 ... G - 1."""
    return np.arange(1, count, dtype=np.float32) * (np.float32(1) / np.float32(count))


def _divisions(count: int, *_: Any) -> Array:
    """f32(k) / f32(G), k = 1 ... G - 1."""
    return np.arange(1, count, dtype=np.float32) / np.float32(count)


FAULTY_BUCKETS: tuple[tuple[str, Buckets, str], ...] = (
    ("off by one on boundaries: searchsorted side left", _left_buckets, ""),
    ("the boundaries are those of G - 1", partial(_buckets_of, -1), ""),
    ("the boundaries are those of G + 1", partial(_buckets_of, 1), ""),
    ("the boundaries are f32(k) * f32(1/G)", partial(_searched, _products), ""),
    ("the boundaries are f32(k) / f32(G)", partial(_searched, _divisions), ""),
    ("G is taken as 70, whatever is given", _of_70, "llama.cpp"),
    ("patches beyond the table's side are clamped to its last row", _clamped_table, ""),
    ("the buckets are spread evenly from 0 to G - 1 and rounded", _linspace, ""),
)
"""Kind, buckets (n, G), who shipped it."""


def _buckets_by(rule: str, num_patches: int, side: int) -> Array:
    return npembed.bucket_coords(num_patches, side, rule)


def unchecked(base: Function, words: str, fault: Callable[[Buckets], Fault]) -> tuple[Suspect, ...]:
    """The rules of which the reference refuses some sizes, as a port has them: their buckets as they are."""
    return tuple(
        Suspect(
            f"{words} `{rule.name}`, not `{ORIGINAL}`",
            base,
            fault(partial(_buckets_by, rule.name)),
            shipped=rule.releases[0],
            rule=rule.name,
        )
        for rule in RULES.values()
        if not rule.sound
    )


def _bucket_suspects() -> tuple[Suspect, ...]:
    def fault(buckets: Buckets) -> Fault:
        return lambda function: lambda n, side=70, **_: buckets(n, side)

    faulty = (
        Suspect(kind, npembed.bucket_coords, fault(buckets), shipped=shipped) for kind, buckets, shipped in FAULTY_BUCKETS
    )
    return (*by_rule(npembed.bucket_coords, "matches rule"), *faulty)


def _ids_of(buckets: Buckets, tgt_sizes: Any, side: int = 70, mask: Any = None, **_: Any) -> Array:
    """Position ids made of other buckets."""
    rows = [np.add.outer(buckets(h, side) * side, buckets(w, side)).ravel() for h, w in np.asarray(tgt_sizes).tolist()]
    return _placed(rows, mask)


def _placed(rows: list[Array], mask: Any) -> Array:
    """The ids of each slice at its True places."""
    if mask is None:
        return npembed.pad_sequence(rows, batch_first=True)
    ids = np.zeros((len(rows), np.asarray(mask)[0].size), dtype=np.int64)
    for row, own, places in zip(ids, rows, np.asarray(mask), strict=True):
        row[places.ravel()] = own
    return ids


def _canvas_ids(tgt_sizes: Any, side: int = 70, mask: Any = None, **_: Any) -> Array:
    """Every slice numbered by the batch's largest rows and columns."""
    sizes = np.asarray(tgt_sizes)
    rows, columns = (npembed.bucket_coords(int(n), side) for n in sizes.max(axis=0))
    return _placed([np.add.outer(rows[:h] * side, columns[:w]).ravel() for h, w in sizes.tolist()], mask)


def _swapped(function: Function) -> Function:
    return lambda tgt_sizes, *args, **kwargs: function(np.asarray(tgt_sizes)[:, ::-1], *args, **kwargs)


def _at_first_places(function: Function) -> Function:
    """The mask's pattern is not looked at, only its number of places."""

    def faulty(tgt_sizes: Any, *args: Any, mask: Any = None, **kwargs: Any) -> Any:
        ids = function(tgt_sizes, *args, **kwargs)
        return ids if mask is None else np.pad(ids, ((0, 0), (0, np.asarray(mask)[0].size - ids.shape[1])))

    return faulty


def _by_column(ids: Array, tgt_sizes: Any, side: int = 70, *_: Any) -> Array:
    """The ids with row and column exchanged: bucket_w * G + bucket_h."""
    return np.asarray(ids % side * side + ids // side)


def _apart(change: int, ids: Array, tgt_sizes: Any, side: int = 70, *_: Any) -> Array:
    """Rows of ids `side + change` apart."""
    return np.asarray(ids + change * (ids // side))


def _ids_suspects() -> tuple[Suspect, ...]:
    base = npembed.position_ids

    def fault(buckets: Buckets) -> Fault:
        return lambda function: partial(_ids_of, buckets)

    return (
        Suspect("equals the reference with h and w swapped", base, _swapped),
        Suspect("row and column are exchanged in the id", base, changed_result(_by_column)),
        Suspect("the row is multiplied by G - 1, not G", base, changed_result(partial(_apart, -1))),
        Suspect("the row is multiplied by G + 1, not G", base, changed_result(partial(_apart, 1))),
        Suspect("the mask's pattern is ignored: ids at the first places", base, _at_first_places),
        Suspect(
            "every slice is numbered by the batch's largest rows and columns",
            base,
            lambda function: _canvas_ids,
            shipped="mlx-vlm's Idefics3",
        ),
        *by_rule(base, "matches rule"),
        *unchecked(base, "matches rule", fault),
        *(Suspect(kind, base, fault(buckets), shipped=shipped) for kind, buckets, shipped in FAULTY_BUCKETS),
        Suspect(
            "equals `flattened_position_ids`, the mapping along one axis",
            base,
            lambda function: lambda sizes, side=70, **_: npembed.flattened_position_ids(sizes, side),
        ),
    )


def _flattened_of(buckets: Buckets, tgt_sizes: Any, side: int, **_: Any) -> Array:
    """The mapping along one axis, made of other buckets."""
    lengths = np.prod(tgt_sizes, axis=1).tolist()
    return npembed.pad_sequence([buckets(length, side * side) for length in lengths], batch_first=True)


def _flattened_by(buckets: Buckets) -> Fault:
    return lambda function: partial(_flattened_of, buckets)


def _flattened_suspects() -> tuple[Suspect, ...]:
    base = npembed.flattened_position_ids
    first = Suspect(
        "equals `position_ids`, the mapping along two axes",
        base,
        lambda function: lambda sizes, side=70, **_: npembed.position_ids(sizes, side),
    )
    faulty = (Suspect(kind, base, _flattened_by(buckets), shipped=shipped) for kind, buckets, shipped in FAULTY_BUCKETS)
    more = unchecked(base, "matches rule", lambda buckets: lambda function: partial(_flattened_of, buckets))
    return (first, *by_rule(base, "matches rule"), *more, *faulty)


def _opposite(function: Function) -> Function:
    return lambda values, boundaries, right=False: function(values, boundaries, right=not right)


def _always(side: bool) -> Fault:
    return lambda function: lambda values, boundaries, right=False: function(values, boundaries, right=side)


def _of_another_side(change: int, function: Function) -> Function:
    return lambda side, **options: function(max(side + change, 1), **options)


def _summed_sizes(mask: Any) -> Array:
    """Rows and columns of all slices, summed."""
    return np.array([(int(mask[:, :, 0].sum()), int(mask[:, 0].sum()))] * len(mask), dtype=np.int64)


def _whole_batch_sizes(mask: Any) -> Array:
    """The seed's else-branch as it is printed: the mask of the whole batch, in place of the slice's."""
    return np.array([(int(mask[:, 0].sum()), int(mask[0].sum())) for _ in mask], dtype=np.int64)


SUSPECTS: dict[str, tuple[Suspect, ...]] = {
    "boundaries": (
        *by_rule(npembed.boundaries, "matches the boundaries of rule", "boundaries"),
        Suspect("the boundaries are those of G - 1", npembed.boundaries, partial(_of_another_side, -1)),
        Suspect("the boundaries are those of G + 1", npembed.boundaries, partial(_of_another_side, 1)),
        Suspect("the boundaries are f32(k) * f32(1/G)", npembed.boundaries, lambda function: _products),
        Suspect("the boundaries are f32(k) / f32(G)", npembed.boundaries, lambda function: _divisions),
    ),
    "fractional_coords": by_rule(npembed.fractional_coords, "matches the coordinates of rule", "coords"),
    "bucketize": (
        Suspect("right means the opposite here: np.digitize's convention, not torch's", npembed.bucketize, _opposite),
        Suspect("off by one on boundaries: searchsorted side left", npembed.bucketize, _always(False)),
        Suspect("off by one on boundaries: searchsorted side right", npembed.bucketize, _always(True)),
    ),
    "bucket_coords": _bucket_suspects(),
    "position_ids": _ids_suspects(),
    "tgt_sizes_from_mask": (
        Suspect(
            "equals the reference with h and w swapped", npembed.tgt_sizes_from_mask, changed_result(lambda s, _: s[:, ::-1])
        ),
        Suspect(
            "sums over the whole batch's mask, as the seed's code is printed",
            npembed.tgt_sizes_from_mask,
            lambda function: _whole_batch_sizes,
        ),
        Suspect(
            "sums the first column and the first row over the whole batch",
            npembed.tgt_sizes_from_mask,
            lambda function: _summed_sizes,
        ),
    ),
    "flattened_position_ids": _flattened_suspects(),
    "randomized_positions": (),
}
