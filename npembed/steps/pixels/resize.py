"""torch's way to resize bytes with antialiasing, bit for bit, by three filters (SPEC 15.1)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from npembed.support.messages import brief
from npembed.support.typing import Floats, Pixels, Size

MOST_BITS = 22
"""Of a weight's fraction, at most."""

AT_ONCE = 8
"""Places that are computed by one product of matrices: more would multiply by many zeros, fewer would take long in Python."""


def _triangle(x: Floats) -> Floats:
    return np.asarray(np.maximum(1 - np.abs(x), 0))


def _cubic(x: Floats) -> Floats:
    """Keys's cubic with slope -1/2; 0 from 2 on."""
    slope, x = -0.5, np.abs(x)
    near = ((slope + 2) * x - (slope + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * slope
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: Floats) -> Floats:
    """sinc(x) sinc(x / 3), 0 from 3 on."""
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


FILTERS: Mapping[str, tuple[int, Callable[[Floats], Floats]]] = MappingProxyType(
    {"BILINEAR": (1, _triangle), "BICUBIC": (2, _cubic), "LANCZOS": (3, _lanczos)}
)
"""By Pillow's names: how far a filter reaches, in places of the axis that has fewer, and its weight at a distance."""


def resize_bytes(pixels: Pixels, size: Size, resample: str = "BILINEAR") -> Pixels:
    """uint8 (H, W, 3) -> uint8 of that width and height: torch's `interpolate(antialias=True)` of bytes.

    The columns first, then the rows, each rounded to bytes; a side that keeps its length is left alone. It is not Pillow's
    filter of the same name, from which it differs by 1 or 2 on photos and by up to 59 on noise.

    Parameters
    ----------
    pixels : uint8 (H, W, 3)
    size : (int, int)
        Width and height of the result.
    resample : {"BILINEAR", "BICUBIC", "LANCZOS"}

    Returns
    -------
    uint8 (height, width, 3)

    Raises
    ------
    ValueError
        Another filter: torch has no other one with antialiasing.

    Notes
    -----
    Source: SPEC 15.1; torch 2.13.0 on x86-64. torchvision's `resize` takes this way for BILINEAR only where torch finds AVX2
    or AVX-512 (since 0.29 on 64-bit ARM too); elsewhere, and on a GPU, it resizes floats and rounds them, and about a fifth of
    the bytes differ by 1. To one single pixel torch itself fails.

    Examples
    --------
    >>> row = np.array([[[0] * 3, [100] * 3]], dtype=np.uint8)
    >>> [resize_bytes(row, (4, 1), resample)[0, :, 0].tolist() for resample in FILTERS]
    [[0, 25, 75, 100], [0, 21, 79, 109], [0, 23, 77, 118]]
    """
    if resample not in FILTERS:
        raise ValueError(f"resize_bytes: resample must be one of {', '.join(FILTERS)}; got {brief(resample)}")
    width, height = size
    columns = _resize_first_axis(np.array(pixels.transpose(1, 0, 2), order="C"), width, resample)  # (width, H, 3)
    return _resize_first_axis(np.ascontiguousarray(columns.transpose(1, 0, 2)), height, resample)


def _resize_first_axis(pixels: Pixels, length: int, resample: str) -> Pixels:
    """(n, X, 3) -> (length, X, 3)."""
    if len(pixels) == length:
        return pixels
    first, weights = _byte_weights(len(pixels), length, resample)
    result = np.empty((length, *pixels.shape[1:]), dtype=np.uint8)
    for start in range(0, length, AT_ONCE):
        own, begins = weights[start : start + AT_ONCE], first[start : start + AT_ONCE]
        taps = pixels[begins[0] : begins[-1] + weights.shape[1]].astype(np.float64)
        matrix = np.zeros((len(own), begins[-1] - begins[0] + weights.shape[1]))
        np.put_along_axis(matrix, (begins - begins[0])[:, None] + np.arange(weights.shape[1]), own, axis=1)
        total = np.tensordot(matrix[:, : len(taps)], taps, axes=1)  # of so few bits that no sum is rounded
        result[start : start + AT_ONCE] = np.clip(total + 0.5, 0, 255)  # cut to whole numbers
    return result


def _byte_weights(before: int, after: int, resample: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each of `after` places: the first of `before` that counts, and weights of 22 bits of fraction or fewer."""
    support, function = FILTERS[resample]
    scale = before / after
    stretch = max(scale, 1.0)
    centres = scale * (np.arange(after) + 0.5)
    first = np.maximum((centres - support * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support * stretch + 0.5).astype(np.int64), before)
    places = first[:, None] + np.arange((last - first).max())  # (after, taps)
    weights = function((places - centres[:, None] + 0.5) / stretch)
    weights[places >= last[:, None]] = 0
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]  # added in order, as torch adds them
    most = weights.max()
    bits = next((bits for bits in range(MOST_BITS) if int(0.5 + most * 2 ** (bits + 1)) >= 2**15), MOST_BITS)
    scaled = weights * 2**bits
    return first, np.trunc(scaled + np.copysign(0.5, scaled)) / 2**bits
