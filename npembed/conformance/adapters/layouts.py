"""Models of other shapes: one sequence of all slices, a canvas with a mask, pictures in place of strips; and a slicing unit."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np

from npembed.patches import picture_to_strip, strip_to_picture
from npembed.typing import Array

Function = Callable[..., Any]


def packed(function: Function) -> Function:
    """A function of one sequence -> one of a padded batch.

    Parameters
    ----------
    function : callable
        (places (sum of L_i, D), cumulative lengths int32 (B + 1,), tgt_sizes, model) -> (sum of L'_i, D'), where each slice
        keeps its number of places, or all have as many.

    Returns
    -------
    callable
        (x (B, Lmax, D), tgt_sizes, model) -> (B, most, D'): zeros where a slice has ended.

    Examples
    --------
    >>> twice = packed(lambda places, ends, sizes, model: 2 * places)
    >>> twice(np.ones((2, 2, 1)), np.array([[1, 2], [1, 1]]), None)[..., 0].tolist()
    [[2.0, 2.0], [2.0, 0.0]]
    """

    @wraps(function)
    def padded(x: Any, tgt_sizes: Any, model: Any) -> Array:
        lengths = np.prod(np.asarray(tgt_sizes), axis=1)
        places = np.concatenate([own[:length] for own, length in zip(x, lengths.tolist(), strict=True)])
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        result = np.asarray(function(places, ends, tgt_sizes, model))
        parts = np.split(result, ends[1:-1] if len(result) == len(places) else len(lengths))
        batch = np.zeros((len(parts), max(map(len, parts)), *result.shape[1:]), dtype=result.dtype)
        for row, part in zip(batch, parts, strict=True):
            row[: len(part)] = part
        return batch

    return padded


def on_canvas(function: Function) -> Function:
    """A function of pictures on one canvas -> one of strips.

    Parameters
    ----------
    function : callable
        (pixels (B, C, H, W), patch mask bool (B, H//P, W//P), model) -> (B, H//P * W//P, D), row by row of the canvas.
        Each picture lies at the top left, zeros beside it.

    Returns
    -------
    callable
        (strips, tgt_sizes, model) -> (B, Lmax, D): each slice's own places, zeros where it has ended. `embed` compares what
        upstream has in padded places; a model without such places is checked slice by slice.
    """

    @wraps(function)
    def of_strips(strips: Sequence[Any], tgt_sizes: Any, model: Any) -> Array:
        sizes, side = np.asarray(tgt_sizes).tolist(), strips[0].shape[1]
        rows, columns = (max(size[axis] for size in sizes) for axis in (0, 1))
        pixels = np.zeros((len(sizes), strips[0].shape[0], rows * side, columns * side), dtype=strips[0].dtype)
        mask = np.zeros((len(sizes), rows, columns), dtype=np.bool_)
        for number, (strip, (h, w)) in enumerate(zip(strips, sizes, strict=True)):
            pixels[number, :, : h * side, : w * side] = strip_to_picture(strip, (h, w))
            mask[number, :h, :w] = True
        result = np.asarray(function(pixels, mask, model))
        batch = np.zeros((len(sizes), max(h * w for h, w in sizes), result.shape[-1]), dtype=result.dtype)
        for row, places, own in zip(batch, result, mask.reshape(len(sizes), -1), strict=True):
            row[: own.sum()] = places[own]
        return batch

    return of_strips


def from_pictures(function: Function) -> Function:
    """A function of one picture, (pixels (C, h*P, w*P), model) -> (h*w, D) -> one of strips, slice by slice.

    Where slices have ended it holds what the model gives for a patch of zeros with id 0 only if the function says so itself;
    here they are zeros.
    """

    @wraps(function)
    def of_strips(strips: Sequence[Any], tgt_sizes: Any, model: Any) -> Array:
        sizes = [(int(h), int(w)) for h, w in np.asarray(tgt_sizes)]
        parts = [np.asarray(function(strip_to_picture(strip, size), model)) for strip, size in zip(strips, sizes, strict=True)]
        batch = np.zeros((len(parts), max(map(len, parts)), parts[0].shape[-1]), dtype=parts[0].dtype)
        for row, part in zip(batch, parts, strict=True):
            row[: len(part)] = part
        return batch

    return of_strips


def sliced(function: Function) -> Function:
    """A slicing unit that gives pictures -> `slice_image`, which gives strips and their sizes.

    Parameters
    ----------
    function : callable
        (picture, config) -> list of normalised float (C, h*P, w*P), in the family's order.

    Returns
    -------
    callable
        (picture, config=…) -> list of (C, P, L_i*P), int64 (B, 2).
    """

    @wraps(function)
    def slice_image(image: Any, config: Any) -> tuple[list[Array], Array]:
        side = config.vision.patch_size if not hasattr(config, "slicing") else config.slicing.patch_size
        pictures = [np.asarray(picture) for picture in function(image, config)]
        sizes = np.array([[picture.shape[1] // side, picture.shape[2] // side] for picture in pictures], dtype=np.int64)
        return [picture_to_strip(picture, side) for picture in pictures], sizes

    return slice_image
