"""What every stage checks of its arguments, and the words in which it says no.

Each function takes the caller's name as `who`, so that a message names the function, the argument, what was expected,
what came and which element.
"""

import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npembed.support.messages import brief, raised

MAX_SIDE = 32_768
"""Patches along one side, at most: beyond it torch's own arange depends on its number of threads (SPEC 5.1)."""


def as_count(value: Any, name: str, who: str, *, least: int = 1, most: int | None = None) -> int:
    """A whole number from `least` to `most`, as an int; bools and floats are refused."""
    span = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        count = operator.index(value)
    except Exception:  # an object's own __index__ may raise anything
        raise TypeError(f"{who}: {name} must be {span}; got {brief(value)}") from None
    if count < least or (most is not None and count > most):
        raise ValueError(f"{who}: {name} must be {span}; got {brief(count)}")
    if count.bit_length() > 1024:
        raise ValueError(f"{who}: {name} is far too large; got {brief(count)}")
    return count


def as_flag(value: Any, name: str, who: str) -> bool:
    """True or False, as Python's or NumPy's bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{who}: {name} must be True or False; got {brief(value)}")
    return bool(value)


def as_path(value: Any, name: str, who: str) -> Path:
    """A path, given as text or as a path."""
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{who}: {name} must be a path; got {brief(value)}")
    return Path(value)


def as_array(value: ArrayLike, name: str, who: str) -> NDArray[Any]:
    """`value` as an array, or an error that names it: when its rows have different lengths, or its own code fails."""
    try:
        return np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # an object's own __array__ may raise anything
        raise ValueError(f"{who}: {name} must be an array; {raised(error)}") from None


def as_floats(value: ArrayLike, name: str, who: str) -> NDArray[Any]:
    """float32 and float64 as they are, float16 and bfloat16 widened to float32, whole numbers to float64."""
    array = as_array(value, name, who)
    if array.dtype.name in ("float16", "bfloat16", "float32"):
        return array.astype(np.float32, copy=False)
    if array.dtype.name == "float64" or array.dtype.kind in "iu":
        return array.astype(np.float64, copy=False)
    raise TypeError(f"{who}: {name} must hold floats; got dtype {array.dtype}")


def as_integers(value: ArrayLike, name: str, who: str) -> NDArray[np.int64]:
    """An int64 array; fractions, NaN and numbers that int64 can't hold are refused with their place."""
    array = as_array(value, name, who)
    fits = array.dtype.kind in "iu" and (array.dtype != np.uint64 or not np.any(array > np.iinfo(np.int64).max))
    if fits or not array.size:
        return array.astype(np.int64, copy=False)
    place = _first_wrong(array)
    if place is None:
        raise TypeError(f"{who}: {name} must hold whole numbers; got dtype {array.dtype} of shape {array.shape}")
    element = array[place].item() if isinstance(array[place], np.generic) else array[place]
    at = name + (f"[{', '.join(map(str, place))}]" if place else "")
    if _is_whole(element):  # NumPy makes a float of it when smaller numbers stand beside it
        raise ValueError(f"{who}: {at} is {brief(int(element))}, which is too large for int64")
    raise TypeError(f"{who}: {at} is {brief(element)}; {name} must hold whole numbers")


def _first_wrong(array: NDArray[Any]) -> tuple[int, ...] | None:
    """The place of the first element that int64 can't hold as it is."""
    if array.dtype.kind == "f":
        wrong = ~np.isfinite(array) | (array != np.floor(array)) | (array < -(2.0**63)) | (array >= 2.0**63)
    elif array.dtype == np.uint64:
        wrong = array > np.iinfo(np.int64).max
    else:  # objects, truth values, texts
        number = next((i for i, one in enumerate(array.flat) if not (_is_whole(one) and -(2**63) <= one < 2**63)), None)
        return None if number is None else tuple(map(int, np.unravel_index(number, array.shape)))
    return tuple(map(int, np.unravel_index(wrong.argmax(), array.shape))) if wrong.any() else None


def _is_whole(element: Any) -> bool:
    whole = isinstance(element, (int, float, np.integer, np.floating)) and not isinstance(element, bool)
    return bool(whole and element % 1 == 0)


def as_tgt_sizes(value: ArrayLike, who: str) -> NDArray[np.int64]:
    """(B, 2) rows and columns of patches per slice: at least one slice, each side from 1 to `MAX_SIDE`."""
    sizes = as_integers(value, "tgt_sizes", who)
    if sizes.ndim != 2 or sizes.shape[1] != 2 or not len(sizes):
        raise ValueError(f"{who}: tgt_sizes must have shape (B, 2) with B >= 1; got {sizes.shape}")
    for index, (h, w) in enumerate(sizes.tolist()):
        if not (1 <= h <= MAX_SIDE and 1 <= w <= MAX_SIDE):
            raise ValueError(f"{who}: tgt_sizes[{index}] is ({h}, {w}); each side must be from 1 to {MAX_SIDE}")
    return sizes


def as_mask(value: ArrayLike, who: str) -> NDArray[np.bool_]:
    """(B, H, W) of bool, with no empty axis."""
    mask = as_array(value, "mask", who)
    if mask.dtype != np.bool_:
        raise TypeError(f"{who}: mask must be of bool; got dtype {mask.dtype}")
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"{who}: mask must have shape (B, H, W) and no empty axis; got {mask.shape}")
    return mask


def as_list(value: Iterable[Any], name: str, who: str) -> list[Any]:
    """A list with at least one element."""
    try:
        elements = list(value)
    except MemoryError:
        raise
    except Exception:  # an object's own __iter__ may raise anything
        raise TypeError(f"{who}: {name} must be a sequence of arrays; got {type(value).__name__}") from None
    if not elements:
        raise ValueError(f"{who}: {name} is empty; at least one is needed")
    return elements


def as_strips(
    value: Iterable[ArrayLike], who: str, channels: int | None = None, patch_size: int | None = None
) -> list[NDArray[Any]]:
    """Strips of floats, each (C, P, L*P) with L >= 1; C and P as given, or else those of the first strip."""
    strips = []
    for index, each in enumerate(as_list(value, "strips", who)):
        strip = as_floats(each, f"strips[{index}]", who)
        if strip.ndim != 3 or 0 in strip.shape:
            raise ValueError(f"{who}: strips[{index}] must have shape (C, P, L*P) and no empty axis; got {strip.shape}")
        channels, patch_size = channels or strip.shape[0], patch_size or strip.shape[1]
        if strip.shape[:2] != (channels, patch_size):
            raise ValueError(
                f"{who}: strips[{index}] must have {channels} channels and {patch_size} rows; got shape {strip.shape}"
            )
        if strip.shape[2] % patch_size:
            raise ValueError(
                f"{who}: the width of strips[{index}] must be a multiple of the patch size {patch_size}; got {strip.shape[2]}"
            )
        strips.append(strip)
    return strips


def check_strips_fit(strips: Sequence[NDArray[Any]], tgt_sizes: NDArray[np.int64], who: str) -> None:
    """As many strips as rows of tgt_sizes, and h*w patches in each."""
    if len(strips) != len(tgt_sizes):
        raise ValueError(f"{who}: {len(strips)} strips but {len(tgt_sizes)} rows of tgt_sizes; they must be as many")
    for index, (strip, (h, w)) in enumerate(zip(strips, tgt_sizes.tolist(), strict=True)):
        patches = strip.shape[2] // strip.shape[1]
        if patches != h * w:
            raise ValueError(f"{who}: strips[{index}] has {patches} patches, but tgt_sizes[{index}] = ({h}, {w}) makes {h * w}")


def check_shape(array: NDArray[Any], name: str, shape: tuple[int | None, ...], who: str, axes: str) -> None:
    """The array has this shape, where None stands for any length of at least one; `axes` spells it for the message."""
    fits = array.ndim == len(shape) and all(
        got >= 1 if expected is None else got == expected for got, expected in zip(array.shape, shape, strict=False)
    )
    if not fits:
        raise ValueError(f"{who}: {name} must have shape {axes}; got {array.shape}")


def as_patches(
    value: ArrayLike, name: str, tgt_sizes: NDArray[np.int64], width: int, who: str, sizes_name: str = "tgt_sizes"
) -> NDArray[Any]:
    """(B, K, width) of floats, with a place for each of the h*w patches, or merged patches, of every slice."""
    array, batch = as_floats(value, name, who), len(tgt_sizes)
    check_shape(array, name, (batch, None, width), who, f"(B, Lmax, D) = ({batch}, Lmax, {width})")
    for index, (h, w) in enumerate(tgt_sizes.tolist()):
        if h * w > array.shape[1]:
            raise ValueError(f"{who}: {name} has {array.shape[1]} places, but {sizes_name}[{index}] = ({h}, {w}) makes {h * w}")
    return array


def as_token_counts(value: ArrayLike, who: str, count: int | None = None) -> NDArray[np.int64]:
    """(N,) vision tokens per slice, each at least 1; N as given."""
    counts = as_integers(value, "token_counts", who)
    if counts.ndim != 1 or (count is not None and len(counts) != count):
        raise ValueError(f"{who}: token_counts must have shape ({'N' if count is None else count},); got {counts.shape}")
    for index, number in enumerate(counts.tolist()):
        if number < 1:
            raise ValueError(f"{who}: token_counts[{index}] is {number}; a slice has at least 1 vision token")
    return counts
