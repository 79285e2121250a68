"""Faults of the position ids and of what they are made of."""

from collections.abc import Callable
from functools import lru_cache, partial
from inspect import signature
from typing import Any

import numpy as np

import npembed
from npembed.conformance.filling import changed_config
from npembed.conformance.suspects.suspect import Fault, Function, Suspect, changed_result
from npembed.records.family import Family
from npembed.steps.positions.rules import RULES, Rule
from npembed.support import arguments
from npembed.support.typing import Array, Ids

ORIGINAL = "arange"
Buckets = Callable[[int, int, str], Array]
"""(n, G, rule) -> the buckets of one axis."""


def family_ids(family: Family) -> Function:
    """A family's own position ids as a function that a port has: (tgt_sizes, num_patches_per_side, rule)."""
    return partial(_family_ids, family, rule=family.rule)


def _family_ids(family: Family, tgt_sizes: Any, num_patches_per_side: int = 70, *, rule: str | None) -> Ids:
    sizes = arguments.as_tgt_sizes(tgt_sizes, "position_ids")
    own = rule if family.rule else None  # a family whose positions follow no rule takes none
    return family.position_ids(sizes, _config_of_side(family, num_patches_per_side), own)


@lru_cache(maxsize=256)
def _config_of_side(family: Family, side: int) -> Any:
    """The family's small config with a position table of so many rows per side."""
    small = family.small()
    pixels = side * small.vision.patch_size
    return changed_config(
        small, {"image_size": pixels, "size": (pixels, pixels)}
    )  # where pictures have a size, it is the table's


def rule_of(function: Function) -> str:
    """The rule that a function goes by where none is given."""
    try:
        default = signature(function).parameters["rule"].default
    except (KeyError, ValueError):
        return ORIGINAL
    return default if isinstance(default, str) else ORIGINAL


def by_rule(words: str, fault: Callable[[Rule], Fault], has: str = "name") -> tuple[Suspect, ...]:
    """The function under each rule, of which the attribute `has` is not None."""
    return tuple(
        Suspect(f"{words} `{rule.name}`", fault(rule), shipped=rule.releases[0], rule=rule.name)
        for rule in RULES.values()
        if getattr(rule, has) is not None
    )


def under(rule: Rule) -> Fault:
    """The fault of that rule, for a function that takes one."""
    return partial(partial, _under, rule.name)


def _under(rule: str, function: Function, *args: Any, **options: Any) -> Any:
    """What the function gives under a rule, whichever rule the call names."""
    base = signature(function.func if isinstance(function, partial) else function)
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in base.parameters.values()):
        return function(*args, **options | {"rule": rule})
    return function(**base.bind(*args, **options).arguments | {"rule": rule})


def _left_buckets(num_patches: int, side: int, rule: str) -> Array:
    return npembed.bucketize(npembed.fractional_coords(num_patches, rule), npembed.boundaries(side, rule))


def _buckets_of(change: int, num_patches: int, side: int, rule: str) -> Array:
    """On a table of `side + change` rows per side."""
    return npembed.bucket_coords(num_patches, max(side + change, 1), rule)


def _of_70(num_patches: int, side: int, rule: str) -> Array:
    return npembed.bucket_coords(num_patches, 70, rule)


def _clamped_table(num_patches: int, side: int, rule: str) -> Array:
    """As many buckets as the table has rows; what lies beyond takes the last."""
    buckets = npembed.bucket_coords(min(num_patches, side), side, rule)
    return np.pad(buckets, (0, num_patches - len(buckets)), mode="edge")


def _linspace(num_patches: int, side: int, rule: str) -> Array:
    return np.linspace(0, side - 1, num_patches).round().astype(np.int64)


def _searched(boundaries: Callable[..., Array], num_patches: int, side: int, rule: str) -> Array:
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
"""Kind, buckets (n, G, rule), who shipped it."""


def _buckets_by(rule: str, num_patches: int, side: int, _: str) -> Array:
    return npembed.bucket_coords(num_patches, side, rule)


class _AnyBuckets(Rule):
    """A rule whose buckets may be such as no row of the table stands for."""

    def check(self, buckets: Ids, num_patches: int, side: int, who: str) -> None:
        """Whatever they are."""


def other_buckets(buckets: Buckets) -> Fault:
    """The fault of other buckets in whatever makes ids of them; nothing checks that they fit the table."""

    def fault(function: Function) -> Function:
        def faulty(tgt_sizes: Any, side: int = 70, rule: str | None = None, **options: Any) -> Any:
            name = rule or rule_of(function)
            other = _AnyBuckets(name=name, arithmetic="", releases=(), buckets=lambda n, side: buckets(n, side, name))
            return function(tgt_sizes, side, rule=other, **options)

        return faulty

    return fault


def ids_under(rule: Rule) -> Fault:
    """The fault of ids by that rule, those too that the reference refuses because no row of the table stands for them."""
    return other_buckets(partial(_buckets_by, rule.name))


def of_buckets() -> tuple[Suspect, ...]:
    """The faults of buckets, in a function that makes ids of them."""
    return tuple(Suspect(kind, other_buckets(buckets), shipped=shipped) for kind, buckets, shipped in FAULTY_BUCKETS)


def _bucket_suspects() -> tuple[Suspect, ...]:
    def fault(buckets: Buckets) -> Fault:
        return lambda function: lambda n, side=70, rule=None: buckets(n, side, rule or rule_of(function))

    faulty = (Suspect(kind, fault(buckets), shipped=shipped) for kind, buckets, shipped in FAULTY_BUCKETS)
    return (*by_rule("matches rule", under), *faulty)


def _placed(rows: list[Array], mask: Any) -> Array:
    """The ids of each slice at its True places."""
    if mask is None:
        return npembed.pad_sequence(rows, batch_first=True)
    ids = np.zeros((len(rows), np.asarray(mask)[0].size), dtype=np.int64)
    for row, own, places in zip(ids, rows, np.asarray(mask), strict=True):
        row[places.ravel()] = own
    return ids


def _canvas_ids(function: Function) -> Function:
    """Every slice numbered by the batch's largest rows and columns."""

    def faulty(tgt_sizes: Any, side: int = 70, mask: Any = None, rule: str | None = None) -> Array:
        sizes, by = np.asarray(tgt_sizes), rule or rule_of(function)
        rows, columns = (npembed.bucket_coords(int(n), side, by) for n in sizes.max(axis=0))
        return _placed([np.add.outer(rows[:h] * side, columns[:w]).ravel() for h, w in sizes.tolist()], mask)

    return faulty


def _first_of_canvas(function: Function) -> Function:
    """On a canvas of the batch's largest rows and columns the ids stand at the first places, the patches at the mask's."""

    def faulty(tgt_sizes: Any, *args: Any, mask: Any = None, **kwargs: Any) -> Array:
        sizes, rows = np.asarray(tgt_sizes), []
        for own, (h, w) in zip(function(tgt_sizes, *args, **kwargs), sizes.tolist(), strict=True):
            canvas = np.zeros(sizes.max(axis=0).tolist(), dtype=np.int64)
            canvas.ravel()[: h * w] = own[: h * w]
            rows.append(canvas[:h, :w].ravel())
        return _placed(rows, mask)

    return faulty


def _whole_slices(function: Function) -> Function:
    """Ids by rows and columns of each slice, whatever the family's own are."""

    def faulty(tgt_sizes: Any, side: int = 70, rule: str | None = None, **options: Any) -> Array:
        return npembed.position_ids(tgt_sizes, side, rule or rule_of(function), **options)

    return faulty


def _own_lengths(function: Function) -> Function:
    """Ids along the patches of each slice by itself, as if it had one row."""

    def faulty(tgt_sizes: Any, side: int = 70, rule: str | None = None, **options: Any) -> Array:
        lengths = np.prod(tgt_sizes, axis=1)
        sizes = np.stack([np.ones_like(lengths), lengths], axis=1)
        return npembed.position_ids(sizes, side, rule or rule_of(function), **options)

    return faulty


def _counted(ids: Array, tgt_sizes: Any, *_: Any) -> Array:
    """0, 1, 2 and so on."""
    lengths = np.prod(tgt_sizes, axis=1)[:, None]
    places = np.arange(ids.shape[1])
    return np.where(places < lengths, places, 0)


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


def ids_suspects() -> tuple[Suspect, ...]:
    """The faults of position ids that are neither another rule nor other buckets."""
    return (
        Suspect("equals the reference with h and w swapped", _swapped),
        Suspect("row and column are exchanged in the id", changed_result(_by_column)),
        Suspect("the row is multiplied by G - 1, not G", changed_result(partial(_apart, -1))),
        Suspect("the row is multiplied by G + 1, not G", changed_result(partial(_apart, 1))),
        Suspect("the mask's pattern is ignored: ids at the first places", _at_first_places),
        Suspect(
            "the ids stand at the first places of a canvas, the patches at those of its mask",
            _first_of_canvas,
            shipped="mlx-vlm's Idefics3",
        ),
        Suspect("every slice is numbered by the batch's largest rows and columns", _canvas_ids),
        Suspect(
            "equals `flattened_position_ids`, the mapping along one axis",
            lambda function: lambda sizes, side=70, **_: npembed.flattened_position_ids(sizes, side, rule_of(function)),
        ),
        Suspect(
            "the ids have two dimensions, as MiniCPM-V 2.6's",
            _whole_slices,
            shipped="llama.cpp for MiniCPM-Llama3-V 2.5",
        ),
        Suspect(
            "the ids go by each slice's own number of patches",
            _own_lengths,
            shipped="vLLM for MiniCPM-Llama3-V 2.5",
        ),
        Suspect("the ids count the patches: 0, 1, 2 and so on", changed_result(_counted)),
    )


def _flattened_suspects() -> tuple[Suspect, ...]:
    first = Suspect(
        "equals `position_ids`, the mapping along two axes",
        lambda function: lambda sizes, side=70, **_: npembed.position_ids(sizes, side, rule_of(function)),
    )
    return (first, *by_rule("matches rule", ids_under), *of_buckets())


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
        *by_rule("matches the boundaries of rule", under, "boundaries"),
        Suspect("the boundaries are those of G - 1", partial(_of_another_side, -1)),
        Suspect("the boundaries are those of G + 1", partial(_of_another_side, 1)),
        Suspect("the boundaries are f32(k) * f32(1/G)", lambda function: _products),
        Suspect("the boundaries are f32(k) / f32(G)", lambda function: _divisions),
    ),
    "fractional_coords": by_rule("matches the coordinates of rule", under, "coords"),
    "bucketize": (
        Suspect("right means the opposite here: np.digitize's convention, not torch's", _opposite),
        Suspect("off by one on boundaries: searchsorted side left", _always(False)),
        Suspect("off by one on boundaries: searchsorted side right", _always(True)),
    ),
    "bucket_coords": _bucket_suspects(),
    "position_ids": (
        *ids_suspects(),
        *by_rule("matches rule", ids_under),
        *of_buckets(),
    ),
    "tgt_sizes_from_mask": (
        Suspect("equals the reference with h and w swapped", changed_result(lambda s, _: s[:, ::-1])),
        Suspect(
            "sums over the whole batch's mask, as the seed's code is printed",
            lambda function: _whole_batch_sizes,
        ),
        Suspect(
            "sums the first column and the first row over the whole batch",
            lambda function: _summed_sizes,
        ),
    ),
    "flattened_position_ids": _flattened_suspects(),
    "randomized_positions": (),
}
