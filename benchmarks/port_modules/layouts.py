"""What the port modules share: a ragged batch in the layout that a release takes, and back in the layout that the kit compares.

A port module gives `position_ids`, `embed` and `encode` under npembed's names. The release's own code is called in all three:
here is only what lays numbers out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import npembed
from npembed.patches import strip_to_picture

Array = NDArray[Any]
Sizes = list[tuple[int, int]]


def pairs(tgt_sizes: Any) -> Sizes:
    """(B, 2) -> rows and columns of each slice."""
    sizes = [(int(h), int(w)) for h, w in np.asarray(tgt_sizes).tolist()]
    if not sizes or min(map(min, sizes)) < 1:
        raise ValueError(f"tgt_sizes must be positive; got {sizes}")
    return sizes


def checked(strips: Sequence[Any], tgt_sizes: Any) -> Sizes:
    """Rows and columns of each strip, or an error where a strip has another number of patches: releases take what they get."""
    sizes = pairs(tgt_sizes)
    for strip, (h, w) in zip(strips, sizes, strict=True):
        if np.shape(strip)[2] != h * w * np.shape(strip)[1]:
            raise ValueError(f"a strip of shape {np.shape(strip)} has no {h} x {w} patches")
    return sizes


def grid_mask(sizes: Sizes) -> NDArray[np.bool_]:
    """bool (B, Hmax, Wmax): each slice's patches in the top left corner of one canvas."""
    rows, columns = (max(size[axis] for size in sizes) for axis in (0, 1))
    mask = np.zeros((len(sizes), rows, columns), dtype=np.bool_)
    for places, (h, w) in zip(mask, sizes, strict=True):
        places[:h, :w] = True
    return mask


def canvas(strips: Sequence[Any], sizes: Sizes) -> Array:
    """list of (C, P, L*P) -> float32 (B, C, Hmax*P, Wmax*P): pictures on zeros."""
    channels, side, _ = np.shape(strips[0])
    _, rows, columns = grid_mask(sizes).shape
    pixels = np.zeros((len(sizes), channels, rows * side, columns * side), dtype=np.float32)
    for page, strip, (h, w) in zip(pixels, strips, sizes, strict=True):
        page[:, : h * side, : w * side] = strip_to_picture(np.asarray(strip), (h, w))
    return pixels


def ragged(rows: Iterable[Array], filling: Any = 0.0, longest: int = 0) -> Array:
    """B of (L, ...) -> (B, Lmax, ...): what is beyond a slice's own holds `filling`, which is no release's doing."""
    arrays = [np.asarray(row) for row in rows]
    places = max(longest, *map(len, arrays))
    result = np.empty((len(arrays), places, *arrays[0].shape[1:]), dtype=arrays[0].dtype)
    result[:] = filling
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return result


def bias_and_first(model: npembed.Model) -> Array:
    """(D,): what npembed's embeddings hold where there is no patch."""
    names = ("patch_embedding.bias", "position_embedding.weight")
    bias, table = (model.weights[f"{model.tower}embeddings.{name}"] for name in names)
    return np.asarray(bias + table[0], dtype=np.float32)


def in_places(slices: Iterable[Array], mask: Any) -> Array:
    """Each slice's ids -> int64 (B, Lmax), or (B, K) where a mask says which of K places they take."""
    rows = [np.asarray(ids, dtype=np.int64) for ids in slices]
    if mask is None:
        return ragged(rows, 0)
    places = np.asarray(mask).reshape(len(rows), -1)
    result = np.zeros(places.shape, dtype=np.int64)
    for row, here, ids in zip(result, places, rows, strict=True):
        row[here] = ids  # an error where the mask has another number of places
    return result


@dataclass(frozen=True)
class Canvas:
    """A release that takes pictures on one canvas and a mask of their patches.

    Attributes
    ----------
    ids : callable
        (side, mask (B, H, W)) -> (B, H*W): the rows of the position table that the release's embeddings look up.
    embeddings : callable
        (model, pixels (B, C, H*P, W*P), mask) -> (B, H*W, D).
    tower : callable
        (model, embeddings (B, H*W, D), mask) -> (B, H*W, D).
    """

    ids: Callable[..., Array]
    embeddings: Callable[..., Array]
    tower: Callable[..., Array]

    def position_ids(self, tgt_sizes: Any, side: int = 70, rule: str = "", mask: Any = None) -> Array:
        """As npembed's; the release has one rule."""
        grid = grid_mask(pairs(tgt_sizes))
        return in_places(self._taken(self.ids(side, grid), grid), mask)

    def embed(self, strips: Sequence[Any], tgt_sizes: Any, model: npembed.Model, rule: str | None = None) -> Array:
        """As npembed's."""
        sizes = checked(strips, tgt_sizes)
        grid = grid_mask(sizes)
        return ragged(self._taken(self.embeddings(model, canvas(strips, sizes), grid), grid), bias_and_first(model))

    def encode(self, embeddings: Any, tgt_sizes: Any, model: npembed.Model) -> Array:
        """As npembed's."""
        grid = grid_mask(pairs(tgt_sizes))
        given = np.zeros((len(grid), grid[0].size, np.shape(embeddings)[-1]), dtype=np.float32)
        for row, places, page in zip(given, np.asarray(embeddings, dtype=np.float32), grid, strict=True):
            row[page.ravel()] = places[: page.sum()]
        return ragged(self._taken(self.tower(model, given, grid), grid), longest=np.shape(embeddings)[1])

    @staticmethod
    def _taken(rows: Array, grid: NDArray[np.bool_]) -> Iterator[Array]:
        """(B, H*W, ...) -> each slice's own places."""
        return (np.asarray(row)[page.ravel()] for row, page in zip(rows, grid, strict=True))


@dataclass(frozen=True)
class Packed:
    """A release that takes the strips of a batch end to end, and their sizes.

    Attributes
    ----------
    ids : callable
        (side, sizes) -> (sum of L,).
    embeddings : callable
        (model, pixels (1, C, P, (sum of L)*P), sizes) -> (sum of L, D).
    tower : callable
        (model, embeddings (sum of L, D), sizes) -> (sum of L', D).
    after : callable
        (model, sizes) -> rows and columns of each slice after the tower.
    """

    ids: Callable[..., Array]
    embeddings: Callable[..., Array]
    tower: Callable[..., Array]
    after: Callable[..., Sizes] = lambda model, sizes: sizes

    def position_ids(self, tgt_sizes: Any, side: int = 70, rule: str = "", mask: Any = None) -> Array:
        """As npembed's; the release has one rule."""
        sizes = pairs(tgt_sizes)
        return in_places(self._cut(self.ids(side, sizes), sizes), mask)

    def embed(self, strips: Sequence[Any], tgt_sizes: Any, model: npembed.Model, rule: str | None = None) -> Array:
        """As npembed's."""
        sizes = checked(strips, tgt_sizes)
        pixels = np.concatenate([np.asarray(strip, dtype=np.float32) for strip in strips], axis=-1)[None]
        return ragged(self._cut(self.embeddings(model, pixels, sizes), sizes), bias_and_first(model))

    def encode(self, embeddings: Any, tgt_sizes: Any, model: npembed.Model) -> Array:
        """As npembed's."""
        sizes = pairs(tgt_sizes)
        given = np.asarray(embeddings, dtype=np.float32)
        rows = np.concatenate([row[: h * w] for row, (h, w) in zip(given, sizes, strict=True)])
        after = self.after(model, sizes)
        longest = given.shape[1] if after == sizes else 0
        return ragged(self._cut(self.tower(model, rows, sizes), after), longest=longest)

    @staticmethod
    def _cut(rows: Array, sizes: Sizes) -> list[Array]:
        """(sum of L, ...) -> each slice's own."""
        return np.split(np.asarray(rows), np.cumsum([h * w for h, w in sizes])[:-1])


@dataclass(frozen=True)
class Alone:
    """A release that takes one slice at a time, or whose batch has slices of one size.

    Attributes
    ----------
    tower : callable
        (model, embeddings (L, D)) -> (L, D).
    """

    tower: Callable[..., Array]

    def encode(self, embeddings: Any, tgt_sizes: Any, model: npembed.Model) -> Array:
        """As npembed's."""
        given = np.asarray(embeddings, dtype=np.float32)
        rows = [self.tower(model, row[: h * w]) for row, (h, w) in zip(given, pairs(tgt_sizes), strict=True)]
        return ragged(rows, longest=given.shape[1])
