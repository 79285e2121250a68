"""How MiniCPM-V's processors cut a picture into slices (SPEC 2); each family says how large its unit is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from npembed.records.config import SlicingConfig
from npembed.records.family import Family, Slices
from npembed.steps.pixels import PixelRule
from npembed.steps.pixels.strips import as_rgb, cells, check_resize
from npembed.support import arguments
from npembed.support.typing import Floats, Ids, Pixels, Size

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FILTER = "BICUBIC"
"""Pillow's name of the filter."""


Fit = Callable[[float, int], int]
BestGrid = Callable[[Size, SlicingConfig], Size | None]


def fit(length: float, unit: int) -> int:
    """The multiple of `unit` nearest to `length`, at least one; a half goes to the even multiple."""
    return max(round(length / unit) * unit, unit)


def _best_size(size: tuple[float, float], slicing: SlicingConfig, unit: int, fit: Fit, *, upscale: bool) -> Size:
    """The size with about scale_resolution**2 pixels, the same aspect and whole units; a small picture keeps its own."""
    width, height = size
    resolution = slicing.scale_resolution
    if width * height > resolution * resolution or upscale:
        aspect = width / height
        height = int(resolution / math.sqrt(aspect))
        width = int(height * aspect)
    return fit(width, unit), fit(height, unit)


def best_grid(size: Size, slicing: SlicingConfig) -> Size | None:
    """(columns, rows) of crops whose shape comes nearest to the picture's, or None where one slice is enough."""
    width, height = size
    ratio = width * height / (slicing.scale_resolution * slicing.scale_resolution)
    multiple = min(math.ceil(ratio), slicing.max_slice_nums)
    if multiple <= 1:
        return None
    grids = [
        (columns, count // columns)
        for count in (multiple - 1, multiple, multiple + 1)
        if 1 < count <= slicing.max_slice_nums
        for columns in range(1, count + 1)
        if count % columns == 0
    ]
    return min(grids, key=lambda grid: abs(math.log(width / height) - math.log(grid[0] / grid[1])))


@dataclass(frozen=True)
class SlicePlan:
    """What a picture of one size is resized to and cut into.

    Attributes
    ----------
    grid : (int, int) or None
        Columns and rows of crops; None where the resized picture is the only slice.
    source_size : (int, int)
        Width and height in pixels of the first slice, the whole picture.
    refine_size : (int, int) or None
        Width and height of the resized picture that the crops are cut from.
    patch_size : int
    """

    grid: tuple[int, int] | None
    source_size: Size
    refine_size: Size | None
    patch_size: int

    @cached_property
    def tgt_sizes(self) -> Ids:
        """int64 (B, 2): rows and columns of patches per slice; the source first, then the crops row by row."""
        sizes = [self.source_size]
        if self.grid and self.refine_size:
            columns, rows = self.grid
            sizes += [(self.refine_size[0] // columns, self.refine_size[1] // rows)] * (columns * rows)
        return np.array([(height // self.patch_size, width // self.patch_size) for width, height in sizes], dtype=np.int64)


def plan_slices(
    size: Size,
    slicing: SlicingConfig | None = None,
    unit: int | None = None,
    *,
    fit: Fit = fit,
    best_grid: BestGrid = best_grid,
) -> SlicePlan:
    """(width, height) -> what upstream's image processor makes of a picture of that size.

    Parameters
    ----------
    size : (int, int)
        Width and height in pixels.
    slicing : SlicingConfig, optional
        MiniCPM-V 2.6's by default. Its `slice_mode` is not looked at.
    unit : int, optional
        Of which each side of a slice is a multiple, in pixels; the patch size by default.
    fit, best_grid : callable
        How lengths are rounded and grids are chosen; others than upstream's serve to find faults.

    Returns
    -------
    SlicePlan

    Raises
    ------
    ValueError, TypeError
        A width or height below 1, or not whole.

    Notes
    -----
    Source: SPEC 2.

    Examples
    --------
    >>> plan = plan_slices((640, 480))
    >>> plan.grid, plan.tgt_sizes.tolist()
    ((2, 1), [[28, 37], [39, 26], [39, 26]])
    """
    width = arguments.as_count(size[0], "width", "plan_slices")
    height = arguments.as_count(size[1], "height", "plan_slices")
    slicing = slicing or SlicingConfig()
    unit = unit or slicing.patch_size
    grid = best_grid((width, height), slicing)
    source_size = _best_size((width, height), slicing, unit, fit, upscale=grid is None)
    if grid is None:
        return SlicePlan(None, source_size, None, slicing.patch_size)
    columns, rows = grid
    cell = _best_size((fit(width, columns) / columns, fit(height, rows) / rows), slicing, unit, fit, upscale=True)
    return SlicePlan(grid, source_size, (cell[0] * columns, cell[1] * rows), slicing.patch_size)


def whole(image: "Picture | Pixels", slicing: SlicingConfig, rule: PixelRule) -> Slices:
    """A picture -> itself as the only slice, not resized; rows and columns that fill no patch are dropped."""
    picture, side = as_rgb(image), slicing.patch_size
    columns, rows = (length // side for length in picture.size)
    if not (columns and rows):
        raise ValueError(f"slice_image: with slice_mode false a picture needs {side} x {side} pixels; got {picture.size}")
    check_resize(picture.size, (columns * side, rows * side))
    pixels = np.asarray(picture)[: rows * side, : columns * side]
    box = np.array([[0, 0, columns * side, rows * side]], dtype=np.float64)
    return Slices([rule.strip(pixels, side, slicing)], np.array([[rows, columns]]), box)


def grid_boxes(size: Size, grid: Size | None) -> Floats:
    """(width, height), (columns, rows) -> float64 (B, 4): the whole picture, then each cell of the grid, row by row.

    Examples
    --------
    >>> grid_boxes((640, 480), (2, 1)).tolist()
    [[0.0, 0.0, 640.0, 480.0], [0.0, 0.0, 320.0, 480.0], [320.0, 0.0, 640.0, 480.0]]
    """
    columns, rows = grid or (0, 0)
    cell = np.array([(c, r, c + 1, r + 1) for r in range(rows) for c in range(columns)]).reshape(-1, 4)
    return np.concatenate([[[0.0, 0.0, *size]], cell * np.tile(size, 2) / np.tile(grid or (1, 1), 2)])


class Slicing(Family):
    """A family that cuts pictures as MiniCPM-V's processors do."""

    fit = staticmethod(fit)
    best_grid = staticmethod(best_grid)
    cells = staticmethod(cells)

    def sliced(self, image: "Picture | Pixels", slicing: SlicingConfig, rule: PixelRule, unit: int | None = None) -> Slices:
        """A picture -> the whole of it, then its crops, row by row; each resized from the original."""
        picture = as_rgb(image)
        plan = plan_slices(picture.size, slicing, unit, fit=self.fit, best_grid=self.best_grid)
        arguments.as_tgt_sizes(plan.tgt_sizes, "slice_image")  # a thin picture makes slices that are too long
        pixels = [rule.resize(picture, plan.source_size, FILTER)]
        if plan.grid and plan.refine_size:
            pixels += self.cells(rule.resize(picture, plan.refine_size, FILTER), *plan.grid)
        strips = [rule.strip(piece, slicing.patch_size, slicing) for piece in pixels]
        return Slices(strips, plan.tgt_sizes.copy(), grid_boxes(picture.size, plan.grid), plan.grid)
