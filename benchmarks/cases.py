"""The batches that are embedded: sizes, and pictures made from a seed."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]

PATCH = 14
CHANNELS = 3

SEED = ((28, 37), (39, 26), (39, 26))
"""The seed article's batch: a picture of 640 x 480 pixels."""

RAGGED = (
    (32, 32),
    *((2, 2), (2, 3), (3, 5), (4, 4), (5, 7), (6, 6), (4, 9), (7, 8), (8, 10), (6, 14)),
    *((9, 25), (10, 12), (12, 20), (11, 27), (12, 30)),
)
"""One whole slice and fifteen small ones: 2,634 patches among 16,384 places. At 25 columns the rules differ."""

BATCHES = {"seed": SEED, "one": ((32, 32),), "many": ((32, 32),) * 64, "ragged": RAGGED}
"""Name -> (rows, columns) of patches per slice."""

ENCODER_SIZE = (28, 37)
JPEG_SIZE = (4000, 3000)


def mixed_sizes(slices: int = 256) -> list[tuple[int, int]]:
    """(rows, columns) of slices of about 1,024 patches and of every shape up to 1:2, as slicing makes them."""
    rows = np.random.default_rng(0).integers(23, 45, size=slices, endpoint=True).tolist()
    return [(h, round(1024 / h)) for h in rows]


@dataclass(frozen=True)
class Batch:
    """Pictures of one case.

    Attributes
    ----------
    sizes : sequence of (int, int)
        Rows and columns of patches per slice.
    pictures : list of float32 (3, h*P, w*P)
        As normalisation leaves them: 256 levels from -1 to 1.
    """

    sizes: tuple[tuple[int, int], ...]
    pictures: list[Floats]

    @cached_property
    def strips(self) -> list[Floats]:
        """list of (3, P, L_i*P), as slices are stored."""
        return [cells(picture).transpose(0, 2, 1, 3, 4).reshape(CHANNELS, PATCH, -1) for picture in self.pictures]

    @cached_property
    def patches(self) -> Floats:
        """(sum of L, C*P*P): all slices, a patch a row."""
        rows = [cells(picture).transpose(1, 3, 0, 2, 4).reshape(-1, CHANNELS * PATCH * PATCH) for picture in self.pictures]
        return np.concatenate(rows)

    @property
    def lengths(self) -> list[int]:
        """L, the patches of each slice."""
        return [h * w for h, w in self.sizes]


def cells(picture: Floats) -> Floats:
    """(C, h*P, w*P) -> (C, h, P, w, P)."""
    channels, height, width = picture.shape
    return picture.reshape(channels, height // PATCH, PATCH, width // PATCH, PATCH)


def make_batch(sizes: tuple[tuple[int, int], ...]) -> Batch:
    """Random pictures of these sizes."""
    rng = np.random.default_rng(0)
    levels = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    pictures = [levels[rng.integers(256, size=(CHANNELS, h * PATCH, w * PATCH), dtype=np.uint8)] for h, w in sizes]
    return Batch(sizes, pictures)
