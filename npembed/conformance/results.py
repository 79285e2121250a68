"""The two results of a failure, for a picture of where they differ; and their way from one process to another."""

import base64
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npembed.support.typing import Array, Ids

MAX_NUMBERS = 500_000
"""Numbers of a result that is kept for a picture, at most."""


WITH_PLACES = ("position_ids", "flattened_position_ids", "patch_attention_mask", "embed", "encode")
"""Functions whose results have a place for each of `tgt_sizes`' rows and columns."""


@dataclass(frozen=True, eq=False)
class Results:
    """What came and what should have, for a picture of where they differ.

    Attributes
    ----------
    came, expected : array
    allowed : array or None
        The largest distance, element by element; None where the two must be equal.
    sizes : int64 (N, 2) or None
        Rows and columns of the places of each result along the first axis.
    first : int
        The number of the first of these results, where others before it are left out.
    """

    came: Array
    expected: Array
    allowed: Array | None = None
    sizes: Ids | None = None
    first: int = 0


def results_of(
    function: Callable[..., Any], args: Sequence[Any], came: Any, expected: Any, allowed: Any, path: Sequence[int]
) -> Results | None:
    """The results of one call that departs, or those of its parts that `path` leads to; None where they make no picture.

    Parameters
    ----------
    function : callable
        The reference, whose parameters say which argument is which.
    args : sequence
    came, expected : object
        What came is a port's, and may be anything.
    allowed : array or None
        As for `Results`.
    path : sequence of int
        Which of several results, from outside in.

    Examples
    --------
    >>> import npembed
    >>> found = results_of(npembed.position_ids, ([[1, 2]],), [[0, 1]], npembed.position_ids([[1, 2]]), None, ())
    >>> found.came.tolist(), found.expected.tolist(), found.sizes.tolist()
    ([[0, 1]], [[0, 35]], [[1, 2]])
    """
    whole = expected
    try:
        for number in path:
            came, expected = came[number], expected[number]
        one, other = _plain(came), _plain(expected)
        if one is None or other is None or one.shape != other.shape or not 1 < one.size <= MAX_NUMBERS:
            return None
        limits = None if allowed is None else np.broadcast_to(np.asarray(allowed, dtype=np.float64), one.shape)
        if function.__name__ == "patch_conv":  # (B, D, H, W) -> (B, H*W, D), as the results of slices are
            sizes = np.tile(one.shape[2:], (len(one), 1))
            last = None if limits is None else _channels_last(limits)
            return Results(_channels_last(one), _channels_last(other), last, sizes)
        return Results(one, other, limits, _sizes(function, args, whole, path), path[-1] if len(path) > 1 else 0)
    except (Exception, SystemExit):  # a port's own object may raise anything
        return None


def _plain(value: Any) -> Array | None:
    """An array of float64, int64 or bool; None for what has no numbers."""
    array = np.asarray(value)
    if array.dtype.name == "bfloat16" or array.dtype.kind == "f":
        return array.astype(np.float64)
    return array if array.dtype.kind == "b" else array.astype(np.int64) if array.dtype.kind in "iu" else None


def _channels_last(array: Array) -> Array:
    return np.moveaxis(array, 1, -1).reshape(len(array), -1, array.shape[1])


def _sizes(function: Callable[..., Any], args: Sequence[Any], whole: Any, path: Sequence[int]) -> Ids | None:
    """Rows and columns of each result's places, as far as the call says them."""
    given = dict(zip(inspect.signature(function).parameters, args, strict=False))
    if len(path) > 1 and isinstance(whole, tuple) and len(whole) > 1:  # a strip of `slice_image`
        return np.asarray(whole[1])[[path[1]]]
    if "strips" in given and "tgt_sizes" not in given:  # each strip as it is: one row of patches
        return np.array([[1, strip.shape[2] // strip.shape[1]] for strip in given["strips"]])
    if "tgt_sizes" not in given or function.__name__ not in WITH_PLACES:
        return None
    sizes, model = np.asarray(given["tgt_sizes"], dtype=np.int64), given.get("model")
    if function.__name__ != "encode" or model is None:
        return sizes
    after: Ids = model.config.family.stage("hidden", "check").sizes_of(sizes, model.config)
    return after


def as_words(results: Results | None) -> dict[str, Any] | None:
    """The results as JSON can say them."""
    if results is None:
        return None
    arrays = {name: value for name, value in vars(results).items() if isinstance(value, np.ndarray)}
    packed = {
        name: (array.dtype.str, array.shape, base64.b64encode(np.ascontiguousarray(array).tobytes()).decode())
        for name, array in arrays.items()
    }
    return {"first": results.first, "arrays": packed}


def from_words(words: Mapping[str, Any] | None) -> Results | None:
    """What `as_words` was given.

    Examples
    --------
    >>> from_words(as_words(Results(np.array([1, 2]), np.array([1, 3])))).expected.tolist()
    [1, 3]
    """
    if words is None:
        return None
    arrays = {
        name: np.frombuffer(base64.b64decode(content), dtype=np.dtype(dtype)).reshape(shape)
        for name, (dtype, shape, content) in words["arrays"].items()
    }
    return Results(**arrays, first=words["first"])
