"""Which row of the position table each patch takes."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npembed.steps.positions.rules import Rule, get_rule
from npembed.support import arguments
from npembed.support.messages import brief
from npembed.support.typing import Ids


def boundaries(num_patches_per_side: int, rule: str = "arange") -> NDArray[Any]:
    """G -> float (G-1,) or (G,): where buckets 1, 2, ... begin.

    Parameters
    ----------
    num_patches_per_side : int
        G, from 1 to 32,768.
    rule : str
        A name in `RULES`.

    Returns
    -------
    float32 (G-1,) or (G,)
        float64 for `digitize`. Under `arange` it has G elements, the last about 1.0, for G = 3, 6, 7, 14, ...

    Raises
    ------
    ValueError, TypeError
        A side out of range, an unknown rule, or `exact`, which has no boundaries.

    Notes
    -----
    Source: SPEC 5.1 and 5.2.

    Examples
    --------
    >>> boundaries(4).tolist()
    [0.25, 0.5, 0.75]
    >>> len(boundaries(70)), len(boundaries(7))
    (69, 7)
    """
    who = "boundaries"
    side = arguments.as_count(num_patches_per_side, "num_patches_per_side", who, most=arguments.MAX_SIDE)
    chosen = get_rule(rule, who)
    if chosen.boundaries is None:
        raise ValueError(
            f"{who}: rule {brief(rule)} has no boundaries; its buckets are whole-number arithmetic: {chosen.arithmetic}"
        )
    return chosen.boundaries(side)


def fractional_coords(num_patches: int, rule: str = "arange") -> NDArray[Any]:
    """n -> float (n,): where the patches of one axis begin, as fractions of it.

    Parameters
    ----------
    num_patches : int
        n, from 1 to 32,768.
    rule : str
        A name in `RULES`.

    Returns
    -------
    float32 (n,)
        float64 for `digitize`; more or fewer elements for some n from 107 on under `candle-left` and `candle-right`, as
        released.

    Raises
    ------
    ValueError, TypeError
        A number out of range, an unknown rule, or `exact`, which has no coordinates.

    Notes
    -----
    Source: SPEC 5.1 and 5.2.

    Examples
    --------
    >>> fractional_coords(4).tolist()
    [0.0, 0.25, 0.5, 0.75]
    """
    who = "fractional_coords"
    count = arguments.as_count(num_patches, "num_patches", who, most=arguments.MAX_SIDE)
    chosen = get_rule(rule, who)
    if chosen.coords is None:
        raise ValueError(
            f"{who}: rule {brief(rule)} has no coordinates; its buckets are whole-number arithmetic: {chosen.arithmetic}"
        )
    return chosen.coords(count)


def bucketize(values: ArrayLike, boundaries: ArrayLike, right: bool = False) -> Ids:
    """How many boundaries lie below each value (right=False), or below or at it (right=True).

    Parameters
    ----------
    values : numbers (...)
    boundaries : numbers (K,)
        Non-decreasing.
    right : bool
        torch's word. It is `searchsorted(side="right")`, and the opposite of `np.digitize`'s `right`.

    Returns
    -------
    int64 (...)
        From 0 to K.

    Raises
    ------
    ValueError, TypeError
        Boundaries that fall, or that are not one axis; NaN; anything that is not a number.

    Notes
    -----
    Source: `torch.bucketize`; SPEC 5.

    Examples
    --------
    >>> bucketize([0.0, 0.5, 0.7], [0.5, 1.0]).tolist()
    [0, 0, 1]
    >>> bucketize([0.0, 0.5, 0.7], [0.5, 1.0], right=True).tolist()
    [0, 1, 1]
    """
    who = "bucketize"
    from_right = arguments.as_flag(right, "right", who)
    arrays = {
        "values": arguments.as_array(values, "values", who),
        "boundaries": arguments.as_array(boundaries, "boundaries", who),
    }
    for name, array in arrays.items():
        if array.size and array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
            raise TypeError(f"{who}: {name} must hold numbers; got dtype {array.dtype}")
        missing = np.argwhere(array != array)
        if len(missing):
            raise ValueError(f"{who}: {name}[{', '.join(map(str, missing[0]))}] is NaN")
    edges = arrays["boundaries"]
    if edges.ndim != 1:
        raise ValueError(f"{who}: boundaries must have shape (K,); got {edges.shape}")
    falls = np.flatnonzero(edges[1:] < edges[:-1])
    if len(falls):
        first = falls[0]
        raise ValueError(f"{who}: boundaries must not fall; boundaries[{first}] = {edges[first]}, then {edges[first + 1]}")
    return np.asarray(np.searchsorted(edges, arrays["values"], side="right" if from_right else "left"), dtype=np.int64)


def _buckets(num_patches: int, side: int, rule: Rule) -> Ids:
    """The buckets of one axis under a rule, as released."""
    if rule.buckets is not None:
        return rule.buckets(num_patches, side)
    coords, edges = fractional_coords(num_patches, rule.name), boundaries(side, rule.name)
    return bucketize(coords, edges, right=rule.search == "right") + rule.offset


def bucket_coords(num_patches: int, num_patches_per_side: int = 70, rule: str = "arange") -> Ids:
    """n -> int64 (n,): the row (or column) of the position table for each patch of one axis.

    Parameters
    ----------
    num_patches : int
        n, from 1 to 32,768.
    num_patches_per_side : int
        G, from 1 to 32,768.
    rule : str
        A name in `RULES`. A rule that is wrong as released stays wrong here: `digitize` gives -1, `candle-*` can give
        more or fewer than n buckets, and they, `mlx` and the half-precision rules can reach G. `position_ids` refuses
        such sizes.

    Returns
    -------
    int64 (n,)
        Non-decreasing, from 0 to G - 1, for every rule that is marked sound.

    Raises
    ------
    ValueError, TypeError
        A number out of range, or an unknown rule.

    Notes
    -----
    Source: SPEC 5.

    Examples
    --------
    >>> bucket_coords(28)[:6].tolist()
    [0, 2, 5, 7, 10, 12]
    >>> bucket_coords(25)[5], bucket_coords(25, rule="exact")[5]
    (np.int64(13), np.int64(14))
    """
    who = "bucket_coords"
    count = arguments.as_count(num_patches, "num_patches", who, most=arguments.MAX_SIDE)
    side = arguments.as_count(num_patches_per_side, "num_patches_per_side", who, most=arguments.MAX_SIDE)
    return _buckets(count, side, get_rule(rule, who))


def _usable_buckets(num_patches: int, side: int, rule: Rule, who: str) -> Ids:
    """The buckets of one axis, if the rule gives n of them in [0, G-1]."""
    buckets = _buckets(num_patches, side, rule)
    rule.check(buckets, num_patches, side, who)
    return buckets


def position_ids(
    tgt_sizes: ArrayLike, num_patches_per_side: int = 70, rule: str = "arange", mask: ArrayLike | None = None
) -> Ids:
    """(B, 2) -> int64 (B, Lmax): the row of the position table for every patch, 0 where there is none.

    The id of patch (r, c) is `bucket_coords(h)[r] * G + bucket_coords(w)[c]`, row by row.

    Parameters
    ----------
    tgt_sizes : int (B, 2)
        Rows and columns of patches per slice.
    num_patches_per_side : int
        G: the table has G*G rows.
    rule : str
        A name in `RULES`.
    mask : bool (B, 1, K) or (B, H, W), optional
        Where each slice's patches are; h*w of its K = H*W places are True. Without it, the first h*w.

    Returns
    -------
    int64 (B, Lmax), or (B, K) with a mask

    Raises
    ------
    ValueError, TypeError
        Sizes, side, rule or mask that are not as above; a rule that gives no usable id for one of the sizes.

    Notes
    -----
    Source: SPEC 5 and the seed article.

    Examples
    --------
    >>> ids = position_ids([[28, 37], [39, 26], [39, 26]])
    >>> ids.shape, ids[0, :3].tolist(), ids[0, -3:].tolist(), ids[1, -3:].tolist()
    ((3, 1036), [0, 1, 3], [4754, 4756, 4758], [0, 0, 0])
    """
    who = "position_ids"
    sizes = arguments.as_tgt_sizes(tgt_sizes, who)
    side = arguments.as_count(num_patches_per_side, "num_patches_per_side", who, most=arguments.MAX_SIDE)
    chosen, lengths = get_rule(rule, who), sizes.prod(axis=1)
    buckets = {count: _usable_buckets(count, side, chosen, who) for count in np.unique(sizes).tolist()}
    ids = np.zeros((len(sizes), lengths.max()), dtype=np.int64)
    for row, (h, w) in zip(ids, sizes.tolist(), strict=True):
        row[: h * w] = np.add.outer(buckets[h] * side, buckets[w]).ravel()
    return ids if mask is None else _place(ids, lengths, arguments.as_mask(mask, who), who)


def _place(ids: Ids, lengths: Ids, mask: NDArray[np.bool_], who: str) -> Ids:
    """(B, Lmax) -> (B, K): each slice's ids, in order, at the True places of its mask."""
    if len(mask) != len(ids):
        raise ValueError(f"{who}: mask has {len(mask)} slices but tgt_sizes {len(ids)}; they must be as many")
    places = mask.reshape(len(mask), -1)  # (B, K)
    for index, (true, length) in enumerate(zip(places.sum(axis=1), lengths, strict=True)):
        if true != length:
            raise ValueError(f"{who}: mask[{index}] has {true} True places, but tgt_sizes[{index}] makes {length} patches")
    placed = np.zeros(places.shape, dtype=np.int64)
    placed[places] = ids[np.arange(ids.shape[1]) < lengths[:, None]]
    return placed


def tgt_sizes_from_mask(mask: ArrayLike) -> Ids:
    """bool (B, H, W) -> int64 (B, 2): rows and columns of patches, where only the mask is given.

    Parameters
    ----------
    mask : bool (B, H, W)
        In each slice the True places are a rectangle from the top left.

    Returns
    -------
    int64 (B, 2)

    Raises
    ------
    ValueError, TypeError
        A mask of another shape or dtype; a slice whose True places are none, or another pattern.

    Notes
    -----
    Source: SPEC 5.2; the else-branch of the seed's code, which as printed sums over the whole batch by mistake.

    Examples
    --------
    >>> mask = np.zeros((1, 3, 4), dtype=bool)
    >>> mask[0, :2, :3] = True
    >>> tgt_sizes_from_mask(mask).tolist()
    [[2, 3]]
    """
    who = "tgt_sizes_from_mask"
    places = arguments.as_mask(mask, who)
    sizes = np.stack([places[:, :, 0].sum(axis=1), places[:, 0, :].sum(axis=1)], axis=1).astype(np.int64)
    for index, (slice_mask, (h, w)) in enumerate(zip(places, sizes.tolist(), strict=True)):
        if not (h and w and slice_mask[:h, :w].all() and slice_mask.sum() == h * w):
            raise ValueError(f"{who}: the True places of mask[{index}] must be one rectangle from the top left")
    return sizes


def randomized_positions(
    length: int,
    max_length: int = 2000,
    rng: "np.random.Generator | int | None" = None,  # in quotes, so that importing npembed does not import numpy.random
) -> Ids:
    """int64 (length,), rising: positions drawn from {0, ..., max_length - 1} without replacement, then sorted.

    Parameters
    ----------
    length : int
        N, at least 1.
    max_length : int
        M, at least N; with M = N the positions are 0 ... N - 1.
    rng : numpy.random.Generator or int, optional
        A generator, or the seed of one; without it every call draws anew.

    Returns
    -------
    int64 (length,)

    Raises
    ------
    ValueError, TypeError
        A length below 1 or above `max_length`; an `rng` that is none of these.

    Notes
    -----
    Source: Ruoss et al. 2023, "Randomized Positional Encodings Boost Length Generalization of Transformers"; the seed
    article, with N = 40 and M = 2000.

    Examples
    --------
    >>> drawn = randomized_positions(40, rng=0)
    >>> len(drawn), bool((np.diff(drawn) > 0).all()), bool(drawn.max() < 2000)
    (40, True, True)
    """
    who = "randomized_positions"
    most = arguments.as_count(max_length, "max_length", who, most=2**63 - 1)
    count = arguments.as_count(length, "length", who, most=most)
    if not (rng is None or isinstance(rng, np.random.Generator)):  # NumPy crashes on a list that holds itself
        rng = arguments.as_count(rng, "rng", who, least=0)
    return np.sort(np.random.default_rng(rng).choice(most, count, replace=False).astype(np.int64))


def flattened_position_ids(tgt_sizes: ArrayLike, num_patches_per_side: int = 70, rule: str = "arange") -> Ids:
    """(B, 2) -> int64 (B, Lmax): the mapping along one axis that upstream does not use, to be compared.

    The id of patch k is `bucket_coords(h*w, G*G)[k]`. The seed's author expected this before reading the code.

    Parameters
    ----------
    tgt_sizes : int (B, 2)
        Rows and columns of patches per slice; h*w at most 32,768.
    num_patches_per_side : int
        G, at most 181, because G*G is at most 32,768.
    rule : str
        A name in `RULES`.

    Returns
    -------
    int64 (B, Lmax)
        0 where a slice has ended.

    Raises
    ------
    ValueError, TypeError
        Sizes, side or rule that are not as above; a rule that gives no usable id for one of the sizes.

    Notes
    -----
    Source: the seed article's last section; SPEC 5.3.

    Examples
    --------
    >>> flattened_position_ids([[28, 37]])[0, :4].tolist(), position_ids([[28, 37]])[0, :4].tolist()
    ([0, 4, 9, 14], [0, 1, 3, 5])
    """
    who = "flattened_position_ids"
    lengths = arguments.as_tgt_sizes(tgt_sizes, who).prod(axis=1)  # (B,)
    side = arguments.as_count(num_patches_per_side, "num_patches_per_side", who, most=int(arguments.MAX_SIDE**0.5))
    chosen = get_rule(rule, who)
    ids = np.zeros((len(lengths), lengths.max()), dtype=np.int64)
    for index, (row, length) in enumerate(zip(ids, lengths.tolist(), strict=True)):
        if length > arguments.MAX_SIDE:
            raise ValueError(f"{who}: tgt_sizes[{index}] makes {length} patches; at most {arguments.MAX_SIDE} fit on one axis")
        row[:length] = _usable_buckets(length, side * side, chosen, who)
    return ids
