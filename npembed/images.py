"""Picture -> slices -> pixel strips and tgt_sizes, as upstream's image processor makes them."""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from npembed import checks
from npembed.config import MINICPM_V_2_6, Config, SlicingConfig
from npembed.patches import picture_to_strip

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Size: TypeAlias = tuple[int, int]
"""(width, height) in pixels, in Pillow's order."""

EXIF_ORIENTATION = 0x0112


def _fit(length: float, unit: int) -> int:
    """The multiple of `unit` nearest to `length`, at least one; a half goes to the even multiple."""
    return max(round(length / unit) * unit, unit)


def _best_size(size: tuple[float, float], slicing: SlicingConfig, *, upscale: bool) -> Size:
    """The size with about scale_resolution**2 pixels, the same aspect and whole patches; a small picture keeps its own."""
    width, height = size
    resolution = slicing.scale_resolution
    if width * height > resolution * resolution or upscale:
        aspect = width / height
        height = int(resolution / math.sqrt(aspect))
        width = int(height * aspect)
    return _fit(width, slicing.patch_size), _fit(height, slicing.patch_size)


def _best_grid(size: Size, slicing: SlicingConfig) -> tuple[int, int] | None:
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
    def tgt_sizes(self) -> NDArray[np.int64]:
        """int64 (B, 2): rows and columns of patches per slice; the source first, then the crops row by row."""
        sizes = [self.source_size]
        if self.grid and self.refine_size:
            columns, rows = self.grid
            sizes += [(self.refine_size[0] // columns, self.refine_size[1] // rows)] * (columns * rows)
        return np.array([(height // self.patch_size, width // self.patch_size) for width, height in sizes], dtype=np.int64)


def plan_slices(size: Size, slicing: SlicingConfig = MINICPM_V_2_6.slicing) -> SlicePlan:
    """(width, height) -> what upstream's image processor makes of a picture of that size.

    Parameters
    ----------
    size : (int, int)
        Width and height in pixels.
    slicing : SlicingConfig

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
    width = checks.as_count(size[0], "width", "plan_slices")
    height = checks.as_count(size[1], "height", "plan_slices")
    grid = _best_grid((width, height), slicing)
    source_size = _best_size((width, height), slicing, upscale=grid is None)
    if grid is None:
        return SlicePlan(None, source_size, None, slicing.patch_size)
    columns, rows = grid
    cell = _best_size((_fit(width, columns) / columns, _fit(height, rows) / rows), slicing, upscale=True)
    return SlicePlan(grid, source_size, (cell[0] * columns, cell[1] * rows), slicing.patch_size)


def slice_image(
    image: "Picture | NDArray[np.uint8]", config: Config = MINICPM_V_2_6
) -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
    """Picture -> list of (3, P, L_i*P), (B, 2): the strips of its slices and their sizes in patches.

    Parameters
    ----------
    image : PIL image or uint8 (H, W, 3)
        Any mode that Pillow turns into RGB; alpha is dropped. 16- and 32-bit greyscale is refused: the conversion would
        clip it to white.
    config : Config

    Returns
    -------
    strips : list of float32 (3, P, L_i*P)
        The whole picture first, then its crops, row by row.
    tgt_sizes : int64 (B, 2)
        Rows and columns of patches per slice.

    Raises
    ------
    ValueError, TypeError
        No picture; an array of another shape or dtype; an empty picture; 16- or 32-bit greyscale; a picture whose file
        ends too soon.
    ImportError
        Without the extra `image`.

    Notes
    -----
    Source: SPEC 2; equal bit for bit to upstream's processor on the same Pillow. The EXIF orientation is ignored.

    Examples
    --------
    >>> strips, tgt_sizes = slice_image(np.zeros((480, 640, 3), dtype=np.uint8))
    >>> [strip.shape for strip in strips], tgt_sizes.tolist()
    ([(3, 14, 14504), (3, 14, 14196), (3, 14, 14196)], [[28, 37], [39, 26], [39, 26]])
    """
    picture = _as_rgb(image)
    slicing = config.slicing
    plan = plan_slices(picture.size, slicing)
    slices = [_resize(picture, plan.source_size)]
    if plan.grid and plan.refine_size:
        columns, rows = plan.grid
        slices += _cells(_resize(picture, plan.refine_size), columns, rows)
    levels = _levels(slicing.mean, slicing.std)
    return [_strip(pixels, slicing.patch_size, levels) for pixels in slices], plan.tgt_sizes.copy()


def _as_rgb(image: Any) -> "Picture":
    """The picture in mode RGB."""
    Image = _pillow()
    who = "slice_image"
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"{who}: an image array must be uint8 of shape (H, W, 3); got {image.dtype} {image.shape}")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"{who}: image must be a PIL image or a uint8 array; got {type(image).__name__}")
    if 0 in image.size:
        raise ValueError(f"{who}: image must not be empty; got size {image.size}")
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{who}: image has mode {image.mode}, 16- or 32-bit greyscale, which the conversion to RGB would clip to white; "
            "scale it to 8 bits first"
        )
    with warnings.catch_warnings():  # Pillow warns that a palette's transparency is dropped, which is what is meant
        warnings.filterwarnings("ignore", message="Palette images with Transparency", category=UserWarning)
        try:
            picture: Picture = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{who}: image cannot be decoded: {error}") from None
    return picture


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("pictures need Pillow: pip install 'npembed[image]'") from None
    return Image


def _resize(picture: "Picture", size: Size) -> NDArray[np.uint8]:
    """uint8 (H, W, 3)."""
    return np.asarray(picture.resize(size, resample=_pillow().Resampling.BICUBIC))


def _cells(pixels: NDArray[np.uint8], columns: int, rows: int) -> list[NDArray[np.uint8]]:
    """(rows*H, columns*W, 3) -> rows*columns of (H, W, 3), row by row."""
    return [cell for band in np.split(pixels, rows, axis=0) for cell in np.split(band, columns, axis=1)]


@lru_cache(maxsize=16)
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """float32 (3, 256): each byte, normalised as each channel is; every operation in float32."""
    bytes_ = np.arange(256, dtype=np.uint8).astype(np.float32) / np.float32(255)
    means, deviations = (np.array(values, dtype=np.float32)[:, None] for values in (mean, std))
    return (bytes_ - means) / deviations


def _strip(pixels: NDArray[np.uint8], patch_size: int, levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """uint8 (H, W, 3) -> float32 (3, P, L*P)."""
    strip = picture_to_strip(pixels.transpose(2, 0, 1), patch_size)
    return np.stack([np.take(channel, bytes_) for channel, bytes_ in zip(levels, strip, strict=True)])


def read_image(path: str | Path, *, upright: bool = False) -> tuple["Picture", bool]:
    """The picture in a file (of an animation, the first frame), and whether its EXIF asks for it to be turned.

    Parameters
    ----------
    path : path
    upright : bool
        Whether to turn it as its EXIF orientation says. Upstream does not.

    Returns
    -------
    picture : PIL image
    turned : bool
        Whether the file has an EXIF orientation other than upright.

    Raises
    ------
    ValueError
        A file that is missing, empty, no picture, cut short, or so large that Pillow refuses it.
    ImportError
        Without the extra `image`.
    """
    Image = _pillow()
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:  # remarks on odd metadata and large sizes
            picture.load()
            turned = picture.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9)
            if upright and turned:
                from PIL import ImageOps

                return ImageOps.exif_transpose(picture), turned
            return picture.copy(), turned
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large to decode safely: {error}") from None
    except Exception as error:  # a damaged file raises whatever its reader stumbles on
        raise ValueError(f"{path} cannot be read as an image: {error}") from None
