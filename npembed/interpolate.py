"""Two of torch's ways to resize a picture, bit for bit on x86-64: bytes by its antialiased bilinear filter, and float32
pixels by its bicubic filter without antialiasing.
"""

import numpy as np
from numpy.typing import NDArray

from npembed.typing import Pixels, Size

MOST_BITS = 22
"""Of a weight's fraction, at most."""

QUARTER_POINTS = tuple(np.float32(weight) / np.float32(32) for weight in (-3, 19, 19, -3))
"""What torch's cubic (a = -0.75) gives the four pixels around a point half way between two of them."""


def resize_bytes(pixels: Pixels, size: Size) -> Pixels:
    """uint8 (H, W, 3) -> uint8 of that width and height: torch's `interpolate(mode="bilinear", antialias=True)` of bytes.

    The columns first, then the rows, each rounded to bytes; a side that keeps its length is left alone. It is not Pillow's
    filter of the same name, and differs from it by up to 2.

    Notes
    -----
    Source: SPEC 13.7; torch 2.13.0 and 2.14.1 on x86-64. torchvision's `resize` takes this way only where torch finds AVX2
    (0.29 also: AVX-512, or 64-bit ARM). Elsewhere it resizes floats and rounds them; up to a fifth of the bytes differ by 1.

    Examples
    --------
    >>> resize_bytes(np.array([[[0] * 3, [100] * 3]], dtype=np.uint8), (4, 1))[0, :, 0].tolist()
    [0, 25, 75, 100]
    """
    width, height = size
    columns = np.ascontiguousarray(pixels.transpose(1, 0, 2))  # (W, H, 3)
    rows = np.ascontiguousarray(_resize_first_axis(columns, width).transpose(1, 0, 2))
    return _resize_first_axis(rows, height)


def _resize_first_axis(pixels: Pixels, length: int) -> Pixels:
    """(n, X, 3) -> (length, X, 3)."""
    if len(pixels) == length:
        return pixels
    starts, weights, bits = _byte_weights(len(pixels), length)
    result = np.empty((length, *pixels.shape[1:]), dtype=np.uint8)
    half = 1 << bits >> 1
    for row, start, own in zip(result, starts, weights, strict=True):
        taps = pixels[start : start + len(own)].astype(np.int32)  # the last rows have fewer, whose weights are 0
        total = np.tensordot(own[: len(taps)], taps, axes=1)
        row[:] = np.clip(total + half >> bits, 0, 255)
    return result


def _byte_weights(before: int, after: int) -> tuple[list[int], NDArray[np.int32], int]:
    """For each of `after` places: the first of `before` that counts and whole-number weights, with so many bits of fraction."""
    scale = before / after
    reach = max(scale, 1.0)
    centres = scale * (np.arange(after) + 0.5)
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach + 0.5).astype(np.int64), before)
    places = first[:, None] + np.arange((last - first).max())  # (after, taps)
    weights = np.maximum(1 - np.abs((places - centres[:, None] + 0.5) / reach), 0)
    weights[places >= last[:, None]] = 0
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]  # added in order, as torch adds them
    most = weights.max()
    bits = next((bits for bits in range(MOST_BITS) if int(0.5 + most * 2 ** (bits + 1)) >= 2**15), MOST_BITS)
    return first.tolist(), (weights * 2**bits + 0.5).astype(np.int32), bits


def shrink_bicubic(pixels: NDArray[np.float32], columns: int, rows: int) -> NDArray[np.float32]:
    """float32 (C, rows*H, columns*W) -> (C, H, W): torch's `interpolate(mode="bicubic")` by whole factors.

    Each new pixel lies in the middle of `columns` old ones: on the middle one of an odd number, between the middle two of
    an even number. The columns first, then the rows.

    Notes
    -----
    Source: SPEC 13.7; torch 2.13.0 and 2.14.1 on x86-64 with fused multiply-add.

    Examples
    --------
    >>> shrink_bicubic(np.array([[[0, 0, 1, 1]]], dtype=np.float32), 4, 1).tolist()
    [[[0.5]]]
    >>> shrink_bicubic(np.array([[[0, 1, 2]]], dtype=np.float32), 3, 1).tolist()
    [[[1.0]]]
    """
    return _shrink_last_axis(_shrink_last_axis(pixels, columns).swapaxes(1, 2), rows).swapaxes(1, 2)


def _shrink_last_axis(pixels: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """(C, X, factor*n) -> (C, X, n)."""
    middle = np.arange(pixels.shape[2] // factor) * factor + factor // 2
    if factor % 2:
        return pixels[:, :, middle]
    x0, x1, x2, x3 = (pixels[:, :, np.clip(middle + place, 0, pixels.shape[2] - 1)] for place in (-2, -1, 0, 1))
    w0, w1, w2, w3 = QUARTER_POINTS
    return _fma(x3, w3, _fma(x2, w2, _fma(x0, w0, x1 * w1)))


def _fma(x: NDArray[np.float32], weight: np.float32, more: NDArray[np.float32]) -> NDArray[np.float32]:
    """x * weight + more, rounded once: the product is exact in float64."""
    return (x.astype(np.float64) * np.float64(weight) + more).astype(np.float32)
