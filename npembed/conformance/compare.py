"""Holding what came against what was expected, and saying where the first difference is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npembed.support.messages import raised
from npembed.support.typing import Array


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
    got = as_array(got)
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


def overflowed_alike(result: Any, expected: Any) -> tuple[Any, Any]:
    """A port's result and a faulty function's, with 0 in both where neither is a number: they overflow alike."""
    if not isinstance(expected, np.ndarray) or expected.dtype.kind != "f" or np.isfinite(expected).all():
        return result, expected
    came = np.asarray(result)
    if came.shape != expected.shape or came.dtype.kind not in "fV":
        return result, expected
    both = ~np.isfinite(expected) & ~np.isfinite(came.astype(np.float64))
    return np.where(both, 0, came.astype(np.float64)), np.where(both, 0, expected)


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


REFUSALS = (TypeError, ValueError, RuntimeError, BufferError)
"""What libraries raise where they have no NumPy array of theirs to give."""


class NotAnArray(TypeError):  # noqa: N818  # it says nothing against the port
    """A result that NumPy cannot read, so that nothing can be said of its numbers."""


def as_array(value: Any) -> Array:
    """`value` as an array; an object array where its rows have different lengths.

    Raises
    ------
    NotAnArray
    """
    try:
        return np.asarray(value)
    except REFUSALS as error:
        if isinstance(value, (list, tuple)):
            return np.asarray(value, dtype=object)
        raise _not_an_array(error) from None


def _not_an_array(error: Exception) -> NotAnArray:
    return NotAnArray(f"could not be turned into an array: raised {raised(error)}")


def without_tensors(value: Any, within: tuple[int, ...] = ()) -> Any:
    """A port's result with arrays in the place of tensors (what has `detach`, `cpu` and `float`) and of other arrays.

    Parameters
    ----------
    value : object
        Lists, tuples and dicts are looked into. bfloat16, which NumPy lacks, becomes float32, which holds all its numbers.
    within : tuple of int
        The ids of what this is in: a list may hold itself.

    Raises
    ------
    NotAnArray
    """
    if isinstance(value, (list, tuple, dict)):
        if id(value) in within or len(within) == 8:
            return value
        elements = value.values() if isinstance(value, dict) else value
        plain = [without_tensors(element, (*within, id(value))) for element in elements]
        return (
            plain
            if isinstance(value, list)
            else tuple(plain)
            if isinstance(value, tuple)
            else dict(zip(value, plain, strict=True))
        )
    if isinstance(value, np.ndarray):
        return value
    if not all(hasattr(value, name) for name in ("detach", "cpu", "float")):
        return as_array(value) if hasattr(value, "__array__") else value
    try:
        tensor = value.detach().cpu()
        tensor = tensor.float() if dtype_of(value) == "bfloat16" else tensor
    except REFUSALS as error:
        raise _not_an_array(error) from None
    return as_array(tensor)


def dtype_of(value: Any) -> str:
    """The name of an array's or a tensor's float type, or that of a list's first element; "" for what has none.

    Examples
    --------
    >>> dtype_of([np.zeros(2, dtype=np.float16)])
    'float16'
    """
    for _ in range(64):  # a list may hold itself
        if not (isinstance(value, (list, tuple)) and value):
            break
        value = value[0]
    try:
        return str(getattr(value, "dtype", "")).rpartition(".")[2]  # torch's are called torch.float16
    except (Exception, SystemExit):  # a port's own object may raise anything
        return ""


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
