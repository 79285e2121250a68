"""Models of other layouts: one sequence of all slices, a canvas with a mask, one slice at a time, pictures in place of strips.

Each adapter makes a public function of a port out of the model's own: it lays the numbers out as the model takes them, and
back as the kit compares them. What it cannot lay out, a strip of another size than is said, it refuses.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any

import numpy as np

from npembed.steps.patches import picture_to_strip, strip_to_picture
from npembed.support.typing import Array, Size

Function = Callable[..., Any]
Sizes = list[Size]


def sizes_in(tgt_sizes: Any) -> Sizes:
    """(B, 2) -> rows and columns of each slice; an error where one is not positive."""
    sizes = [(int(h), int(w)) for h, w in np.asarray(tgt_sizes).tolist()]
    if not sizes or min(map(min, sizes)) < 1:
        raise ValueError(f"tgt_sizes must be positive; got {sizes}")
    return sizes


def batch_of(parts: Iterable[Any], filling: Any = 0) -> Array:
    """Each slice's own (L_i, ...) -> (B, Lmax, ...); `filling`, one for all or (B, 1, ...), where a slice has ended.

    Examples
    --------
    >>> batch_of([[1, 2], [3]]).tolist()
    [[1, 2], [3, 0]]
    """
    arrays = [np.asarray(part) for part in parts]
    batch = np.empty((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), dtype=arrays[0].dtype)
    batch[:] = filling
    for row, array in zip(batch, arrays, strict=True):
        row[: len(array)] = array
    return batch


def _own(x: Any, sizes: Sizes) -> list[Array]:
    """(B, Lmax, D) -> each slice's own (L_i, D)."""
    return [np.asarray(row)[: h * w] for row, (h, w) in zip(x, sizes, strict=True)]


def _cut(rows: Any, sizes: Sizes) -> list[Array]:
    """(sum of L_i, ...) -> each slice's own."""
    ends = np.cumsum([h * w for h, w in sizes])
    if len(rows) != ends[-1]:
        raise ValueError(f"the model gave {len(rows)} places for slices of {sizes}, which have {ends[-1]}")
    return np.split(np.asarray(rows), ends[:-1])


def checked_sizes(strips: Sequence[Any], tgt_sizes: Any) -> Sizes:
    """Rows and columns of each strip; an error where a strip has another number of patches."""
    sizes = sizes_in(tgt_sizes)
    for strip, (h, w) in zip(strips, sizes, strict=True):
        if np.shape(strip)[2] != h * w * np.shape(strip)[1]:
            raise ValueError(f"a strip of shape {np.shape(strip)} has no {h} x {w} patches")
    return sizes


def _embeddings(parts: Iterable[Any], model: Any, sizes: Sizes) -> Array:
    """As `embed` gives them: where a slice has ended, what upstream has in padded places, which such a model lacks."""
    return batch_of(parts, model.config.family.vision_stages[0].padding(model, np.array(sizes)))


def _ids(parts: Iterable[Any], mask: Any) -> Array:
    """Each slice's ids -> int64 (B, Lmax), or (B, K) where a mask says which of K places they take."""
    rows = [np.asarray(ids, dtype=np.int64) for ids in parts]
    if mask is None:
        return batch_of(rows)
    places = np.asarray(mask).reshape(len(rows), -1)
    result = np.zeros(places.shape, dtype=np.int64)
    for row, here, ids in zip(result, places, rows, strict=True):
        row[here] = ids  # an error where the mask has another number of places
    return result


# One sequence


def packed(function: Function, after: Callable[[Sizes, Any], Sizes] | None = None) -> Function:
    """A function of one sequence -> one of a padded batch, as `encode` and `resample` are.

    Parameters
    ----------
    function : callable
        (places (sum of L_i, D), cumulative lengths int32 (B + 1,), tgt_sizes, model) -> (sum of L'_i, D').
    after : callable, optional
        (sizes, model) -> rows and columns of each slice in the result; without it each keeps its own. Tokens are
        `[(model.config.query_num, 1)] * len(sizes)`.

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
        sizes = sizes_in(tgt_sizes)
        places = np.concatenate(_own(x, sizes))
        ends = np.cumsum([0, *(h * w for h, w in sizes)]).astype(np.int32)
        result = np.asarray(function(places, ends, np.array(sizes), model))
        return batch_of(_cut(result, sizes if after is None else after(sizes, model)))

    return padded


def packed_strips(function: Function) -> Function:
    """A function of all strips end to end, (pixels (1, C, P, sum of L_i*P), tgt_sizes, model) -> (sum of L_i, D) -> `embed`."""

    @wraps(function)
    def embed(strips: Sequence[Any], tgt_sizes: Any, model: Any, rule: str | None = None) -> Array:
        sizes = checked_sizes(strips, tgt_sizes)
        pixels = np.concatenate([np.asarray(strip) for strip in strips], axis=-1)[None]
        return _embeddings(_cut(function(pixels, np.array(sizes), model), sizes), model, sizes)

    return embed


def packed_ids(function: Function) -> Function:
    """A function (tgt_sizes, G) -> ids of all slices end to end, (sum of L_i,) -> `position_ids`."""

    @wraps(function)
    def position_ids(tgt_sizes: Any, num_patches_per_side: int = 70, rule: str = "", mask: Any = None) -> Array:
        sizes = sizes_in(tgt_sizes)
        return _ids(_cut(function(np.array(sizes), num_patches_per_side), sizes), mask)

    return position_ids


# A canvas


def canvas_mask(tgt_sizes: Any) -> Array:
    """bool (B, Hmax, Wmax): each slice's patches at the top left of one canvas.

    Examples
    --------
    >>> canvas_mask([[1, 2], [2, 1]]).astype(int).tolist()
    [[[1, 1], [0, 0]], [[1, 0], [1, 0]]]
    """
    sizes = sizes_in(tgt_sizes)
    rows, columns = (max(size[axis] for size in sizes) for axis in (0, 1))
    mask = np.zeros((len(sizes), rows, columns), dtype=np.bool_)
    for places, (h, w) in zip(mask, sizes, strict=True):
        places[:h, :w] = True
    return mask


def _taken(rows: Any, mask: Array) -> list[Array]:
    """(B, H*W, ...) -> each slice's own places."""
    return [np.asarray(row)[page.ravel()] for row, page in zip(rows, mask, strict=True)]


def on_canvas(function: Function) -> Function:
    """A function of pictures on one canvas -> `embed`.

    Parameters
    ----------
    function : callable
        (pixels (B, C, H, W), patch mask bool (B, H//P, W//P), model) -> (B, H//P * W//P, D), row by row of the canvas.
        Each picture lies at the top left, zeros beside it.

    Returns
    -------
    callable
        (strips, tgt_sizes, model) -> (B, Lmax, D): each slice's own places; where it has ended, the bias and the first row of
        positions, as upstream has them, because a canvas has no such places.
    """

    @wraps(function)
    def embed(strips: Sequence[Any], tgt_sizes: Any, model: Any, rule: str | None = None) -> Array:
        sizes, mask = checked_sizes(strips, tgt_sizes), canvas_mask(tgt_sizes)
        channels, side, _ = np.shape(strips[0])
        shape = (len(sizes), channels, mask.shape[1] * side, mask.shape[2] * side)
        pixels = np.zeros(shape, dtype=np.asarray(strips[0]).dtype)
        for page, strip, (h, w) in zip(pixels, strips, sizes, strict=True):
            page[:, : h * side, : w * side] = strip_to_picture(np.asarray(strip), (h, w))
        return _embeddings(_taken(function(pixels, mask, model), mask), model, sizes)

    return embed


def places_on_canvas(function: Function) -> Function:
    """A tower on a canvas, (places (B, H*W, D), mask bool (B, H, W), model) -> (B, H*W, D) -> `encode`."""

    @wraps(function)
    def encode(embeddings: Any, tgt_sizes: Any, model: Any) -> Array:
        given, mask = np.asarray(embeddings), canvas_mask(tgt_sizes)
        places = np.zeros((len(mask), mask[0].size, given.shape[-1]), dtype=given.dtype)
        for row, own, page in zip(places, given, mask, strict=True):
            row[page.ravel()] = own[: page.sum()]
        return batch_of(_taken(function(places, mask, model), mask))

    return encode


def ids_on_canvas(function: Function) -> Function:
    """A function (mask bool (B, H, W), G) -> the ids of each place, (B, H*W) -> `position_ids`."""

    @wraps(function)
    def position_ids(tgt_sizes: Any, num_patches_per_side: int = 70, rule: str = "", mask: Any = None) -> Array:
        page = canvas_mask(tgt_sizes)
        return _ids(_taken(function(page, num_patches_per_side), page), mask)

    return position_ids


# One slice at a time, pictures


def slice_by_slice(function: Function) -> Function:
    """A function of one slice, (places (L, D), (h, w), model) -> (L', D') -> one of a padded batch, as `encode` is.

    Examples
    --------
    >>> first = slice_by_slice(lambda places, size, model: places[:1])
    >>> first(np.array([[[1.0], [2.0]], [[3.0], [9.0]]]), [[1, 2], [1, 1]], None)[..., 0].tolist()
    [[1.0], [3.0]]
    """

    @wraps(function)
    def padded(x: Any, tgt_sizes: Any, model: Any) -> Array:
        sizes = sizes_in(tgt_sizes)
        return batch_of(function(own, size, model) for own, size in zip(_own(x, sizes), sizes, strict=True))

    return padded


def strip_by_strip(function: Function) -> Function:
    """A function of one strip, (strip (C, P, L*P), (h, w), model) -> (L, D) -> `embed`.

    Where slices have ended it holds the bias and the first row of positions, as upstream does.
    """

    @wraps(function)
    def embed(strips: Sequence[Any], tgt_sizes: Any, model: Any, rule: str | None = None) -> Array:
        sizes = checked_sizes(strips, tgt_sizes)
        parts = [function(np.asarray(strip), size, model) for strip, size in zip(strips, sizes, strict=True)]
        return _embeddings(parts, model, sizes)

    return embed


def from_pictures(function: Function) -> Function:
    """A function of one picture, (pixels (C, h*P, w*P), model) -> (h*w, D) -> `embed`, as `strip_by_strip`."""
    return strip_by_strip(wraps(function)(lambda strip, size, model: function(strip_to_picture(strip, size), model)))


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
        side = config.cut_patch_size
        pictures = [np.asarray(picture) for picture in function(image, config)]
        sizes = np.array([[picture.shape[1] // side, picture.shape[2] // side] for picture in pictures], dtype=np.int64)
        return [picture_to_strip(picture, side) for picture in pictures], sizes

    return slice_image
