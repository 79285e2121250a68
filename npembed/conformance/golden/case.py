"""What one case of a golden pack is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from npembed.family import Family, Stage
from npembed.typing import Pixels, Size

MOST_PATCHES = 1024
"""n of the tensor that holds the buckets of every n."""

BASE = "small"
"""The name of the family's own small config; the others are its `variants`."""


@dataclass(frozen=True)
class Case:
    """What one case is made of.

    Attributes
    ----------
    name : str
    about : str
        What it is there to show.
    sizes : tuple of (int, int)
        Rows and columns of patches per slice; a family with other slices takes sizes near these.
    kind : str
        What fills the strips: one of the `KINDS`.
    model : str
        One of the packs' own models.
    picture : (int, int)
        Width and height in pixels of the picture that is sliced.
    stages_of : callable
        family -> its stages, in order; all of the family's unless it says otherwise.
    needs : callable
        (case, config) -> whether it says something of that config's family at all.
    """

    name: str
    about: str
    sizes: tuple[Size, ...] = ()
    kind: str = "mixed"
    model: str = BASE
    picture: Size = (40, 30)
    stages_of: Callable[[Family], tuple[Stage, ...]] = field(default=lambda family: family.stages)
    needs: Callable[["Case", Any], bool] = field(default=lambda case, config: True)


def picture(case: Case) -> Pixels:
    """uint8 (H, W, 3): channel c at (x, y) is (7x + 13y + 50c + x*y // 97) mod 256."""
    width, height = case.picture
    y, x = np.mgrid[:height, :width]
    return np.stack([(7 * x + 13 * y + 50 * c + x * y // 97) % 256 for c in range(3)], axis=-1).astype(np.uint8)
