"""Holding what came against what was expected, and saying where the first difference is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npembed.typing import Array


@dataclass(frozen=True)
class Departure:
    """How a result differs from the expected one.

    Attributes
    ----------
    what : str
        In words.
    index : tuple of int or None
        The first element that differs; None where the shape or the kind is wrong.
    worst : float or None
        The largest error in units of the allowed one; infinite where nothing is allowed; None as for `index`.
    path : tuple of int
        Which of several results, from outside in.
    """

    what: str
    index: tuple[int, ...] | None = None
    worst: float | None = None
    path: tuple[int, ...] = ()


def compare(got: Any, expected: Any, allowed: Any = None, places: Array | None = None) -> Departure | None:
    """None if `got` is as it should be, or else the first difference.

    Parameters
    ----------
    got : array-like, str or sequence of such
    expected : array, str or sequence of such
    allowed : float or array, optional
        The largest distance, element by element; without it the two must be equal.
    places : bool (B, L), optional
        Which rows of a (B, L, D) result count.
    """
    if isinstance(expected, (list, tuple)):
        return _compare_each(got, expected, allowed)
    if isinstance(expected, str):
        return None if got == expected else Departure(_first_difference_in_text(got, expected))
    got = _array(got)
    if got.shape != expected.shape:
        return Departure(f"shape {got.shape}, should be {expected.shape}")
    if _kind(got) != _kind(expected):
        return Departure(f"dtype {got.dtype}, should be {_kind(expected)}")
    counts = np.ones(got.shape, dtype=bool) if places is None else np.broadcast_to(places[..., None], got.shape)
    if allowed is None:
        return _unequal(got, expected, (got != expected) & counts)
    error = np.abs(got.astype(np.float64) - expected)
    limit = np.broadcast_to(np.asarray(allowed, dtype=np.float64), got.shape)
    return _too_far(got, expected, error, limit, ~(error <= limit) & counts)


def _compare_each(got: Any, expected: Sequence[Any], allowed: Any) -> Departure | None:
    """The first departure among several results, with its place."""
    if not isinstance(got, (list, tuple)) or len(got) != len(expected):
        came = f"{len(got)} results" if isinstance(got, (list, tuple)) else f"a {type(got).__name__}"
        return Departure(f"{came}, should be {len(expected)} results")
    for number, (one, other) in enumerate(zip(got, expected, strict=True)):
        departure = compare(one, other, allowed)
        if departure is not None:
            return replace(departure, what=f"result {number}: {departure.what}", path=(number, *departure.path))
    return None


def _array(value: Any) -> Array:
    """`value` as an array; an object array where its rows have different lengths."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.asarray(value, dtype=object)


def _kind(array: Array) -> str:
    """The kinds that are told apart: a bool is no number, an id no float."""
    if array.dtype.name == "bfloat16":
        return "float"
    return {"b": "bool", "i": "integer", "u": "integer", "f": "float"}.get(array.dtype.kind, str(array.dtype))


def _unequal(got: Array, expected: Array, wrong: NDArray[np.bool_]) -> Departure | None:
    if not wrong.any():
        return None
    index = _first(wrong)
    what = f"element {list(index)} is {got[index]}, should be {expected[index]}"
    return Departure(f"{what} ({_share(wrong)})", index, np.inf)


def _too_far(got: Array, expected: Array, error: Array, limit: Array, wrong: NDArray[np.bool_]) -> Departure | None:
    if not wrong.any():
        return None
    index = _first(wrong)
    with np.errstate(divide="ignore", invalid="ignore"):
        units = np.where(wrong, error / limit, 0)
    worst = float(np.max(np.where(np.isnan(units), np.inf, units)))
    what = f"element {list(index)} is {float(got[index]):.9g}, should be {float(expected[index]):.9g} ± {limit[index]:.3g}"
    far = (
        "not a number"
        if not np.isfinite(got[wrong].astype(np.float64)).all()
        else f"at worst {worst:.3g} times the allowed error"
    )
    return Departure(f"{what} ({_share(wrong)}, {far})", index, worst)


def _first(wrong: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(wrong)[0])


def _share(wrong: NDArray[np.bool_]) -> str:
    return f"{int(wrong.sum())} of {wrong.size} elements differ"


def _first_difference_in_text(got: Any, expected: str) -> str:
    if not isinstance(got, str):
        return f"a {type(got).__name__}, should be text"
    shared = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected)))
    return (
        f"the text differs from character {shared}: {got[shared : shared + 24]!r}, should be {expected[shared : shared + 24]!r}"
    )


AROUND = 4
"""Elements shown on either side of the first difference."""


def around(value: Any, departure: Departure, describe: Callable[[Any], str]) -> str:
    """A result for a person; a large array by the row of the first difference, from a few elements before it to a few after."""
    index = departure.index
    if departure.path and isinstance(value, (list, tuple)) and departure.path[0] < len(value):
        inner = around(value[departure.path[0]], replace(departure, path=departure.path[1:]), describe)
        return f"result {departure.path[0]}: {inner}"
    if not isinstance(value, (np.ndarray, list)) or index is None:
        return describe(value)
    array = _array(value)
    if array.size <= 40 or array.ndim != len(index) or array.dtype == object:
        return describe(value)
    *row, place = index
    start, stop = max(place - AROUND, 0), min(place + AROUND + 1, array.shape[-1])
    place_in: Any = (*row, slice(start, stop))
    numbers = np.array2string(array[place_in], precision=9, separator=", ", max_line_width=200)
    where = ", ".join([*map(str, row), f"{start}:{stop}"])
    return f"[{where}] is {numbers} ({array.dtype}, shape {array.shape})"
