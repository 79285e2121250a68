"""Arrays -> what a page can hold: numbers as JSON, pixels as pictures."""

import base64
import io
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npembed.records.family import Slices
from npembed.steps.patches import strip_to_picture
from npembed.steps.pixels.strips import as_rgb
from npembed.support.typing import Array, Floats, Pixels

SHOWN = 960
"""Pixels of the longer side of the user's picture as a page shows it, at most."""

EXACT_BYTES = 2_700_000
"""For pixels whose numbers a page can show, at most, so that it stays below 5 MB; base64 makes a third more of them."""


def numbers(array: Array) -> list[Any]:
    """An array -> nested lists, each number in the fewest digits that give it back in its own type.

    Examples
    --------
    >>> numbers(np.array([0.1], dtype=np.float32)), np.array([0.1], dtype=np.float32).tolist()
    ([0.1], [0.10000000149011612])
    """
    if array.dtype.kind != "f":
        whole: list[Any] = array.tolist()
        return whole
    words = array.astype(str)  # NumPy writes the fewest digits of the dtype
    shortest: list[Any] = words.astype(np.float64).tolist()
    return shortest


def packed(array: Array) -> dict[str, Any]:
    """A float array as float32 bytes in base64, with its shape, its least and its greatest number: for many numbers."""
    single = array.astype("<f4")
    least, most = numbers(np.array([single.min(), single.max()]))
    return {"shape": list(array.shape), "float32": base64_of(single), "least": least, "most": most}


def shades(weights: Floats) -> dict[str, Any]:
    """(Q, L) -> each row as bytes, 255 its greatest, to be looked at; and the greatest and the sum of each row."""
    most = weights.max(axis=1)
    scaled = weights / np.where(most > 0, most, 1)[:, None]
    return {
        "bytes": base64_of(np.rint(scaled * 255).astype(np.uint8)),
        "most": numbers(most),
        "sum": numbers(weights.sum(axis=1).round(4)),
    }


def spread(values: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly spaced, the first and the last among them.

    Examples
    --------
    >>> spread(range(5), 3), spread(range(2), 3)
    ([0, 2, 4], [0, 1])
    """
    places = np.arange(len(values)) if len(values) <= most else np.linspace(0, len(values) - 1, most).round().astype(int)
    return [values[place] for place in places.tolist()]


def base64_of(array: Array) -> str:
    """An array's bytes, as they lie in memory, in base64."""
    return _base64(array.tobytes())


def picture_uri(picture: Any) -> str:
    """A picture -> a data URI of it, made smaller than `SHOWN` and lossy: to be looked at only."""
    small = as_rgb(picture).copy()  # `thumbnail` changes the picture itself
    small.thumbnail((SHOWN, SHOWN))
    return _jpeg_uri(np.asarray(small))


def _jpeg_uri(pixels: Pixels) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + _base64(file.getvalue())


def png_bytes(pixels: Pixels) -> bytes:
    """uint8 (H, W, 3) -> a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def png_uri(pixels: Pixels) -> str:
    """uint8 (H, W, 3) -> a data URI that loses nothing."""
    return "data:image/png;base64," + _base64(png_bytes(pixels))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def slice_pictures(slices: Slices, most: int = EXACT_BYTES) -> list[dict[str, Any]]:
    """Each slice's pixels as a picture, and the numbers that its bytes stand for.

    Where a channel of a slice has at most 256 different numbers, as every picture of bytes has after it is normalised, byte b
    of the picture stands for the b-th of them, `levels`: nothing is lost. `check` is the CRC-32 of the bytes, red, green, blue,
    row by row, so that a page can tell a browser that changes pixels. Slices beyond so many bytes, and those with more numbers
    than bytes, are shown without their numbers: `levels` is None.
    """
    found: list[dict[str, Any]] = []
    left = most
    for strip, size in zip(slices.strips, slices.tgt_sizes.tolist(), strict=True):
        picture = strip_to_picture(strip, tuple(size)).transpose(1, 2, 0)  # (H, W, C)
        coded = as_levels(picture)
        file = png_bytes(coded[0]) if coded else b""
        if coded is None or len(file) > left:
            found.append({"image": _jpeg_uri(as_bytes(picture)), "levels": None, "check": 0})
            continue
        left -= len(file)
        codes, levels = coded
        image = "data:image/png;base64," + _base64(file)
        found.append({"image": image, "levels": [numbers(each) for each in levels], "check": zlib.crc32(codes.tobytes())})
    return found


def as_levels(picture: Floats) -> tuple[Pixels, list[Floats]] | None:
    """float (H, W, 3) -> uint8 (H, W, 3) and per channel the number of each byte; None if there are more than 256.

    The bytes are about as bright as the numbers, so that the picture can be looked at.

    Examples
    --------
    >>> codes, levels = as_levels(np.array([[[-1.0, 0.0, 0.5]], [[1.0, 0.0, 0.75]]]))
    >>> codes[:, 0, 0].tolist(), levels[0][[0, 255]].tolist()
    ([0, 255], [-1.0, 1.0])
    """
    lows, highs = picture.min(axis=(0, 1)), picture.max(axis=(0, 1))
    low, high = min(-1.0, float(lows.min())), max(1.0, float(highs.max()))
    codes, levels = np.empty(picture.shape, dtype=np.uint8), []
    for channel in range(picture.shape[2]):
        values = np.unique(picture[:, :, channel])
        bytes_ = _distinct_bytes(values, low, high)
        if bytes_ is None:
            return None
        table = np.zeros(256, dtype=picture.dtype)
        table[bytes_] = values
        codes[:, :, channel] = bytes_[np.searchsorted(values, picture[:, :, channel])]  # faster than `return_inverse`
        levels.append(table)
    return codes, levels


def _distinct_bytes(values: Floats, low: float, high: float) -> NDArray[np.uint8] | None:
    """Rising numbers -> rising bytes, each its own, near its number's brightness; None for more than 256 numbers."""
    if len(values) > 256:
        return None
    wanted = np.rint((values.astype(np.float64) - low) / (high - low) * 255)
    upward = np.maximum.accumulate(wanted - np.arange(len(values))) + np.arange(len(values))  # each above the one before
    most = 255 - np.arange(len(values))[::-1]  # and room for those that follow
    return np.minimum(upward, most).astype(np.uint8)


def as_bytes(picture: Floats) -> Pixels:
    """float (H, W, 3) -> uint8: -1 or its least number black, 1 or its greatest white; to be looked at only."""
    low, high = min(-1.0, float(picture.min())), max(1.0, float(picture.max()))
    return np.rint((picture - low) / (high - low) * 255).astype(np.uint8)


def fixed(value: float, digits: int = 2) -> str:
    """A number for a sentence: whole where it is whole.

    Examples
    --------
    >>> fixed(640.0), fixed(12.346)
    ('640', '12.35')
    """
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:.{digits}f}"
