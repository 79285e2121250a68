"""A picture's file -> a picture; resizing it; its pixels -> strips. What every family's cutting is made of."""

import warnings
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from npembed.patches import picture_to_strip
from npembed.typing import Pixels, Size

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

EXIF_ORIENTATION = 0x0112


def as_rgb(image: Any) -> "Picture":
    """A PIL image or uint8 (H, W, 3) -> the picture in mode RGB; alpha is dropped.

    16- and 32-bit greyscale is refused: the conversion would clip it to white.
    """
    return _converted(_checked(image), "RGB")


def as_rgb_on_white(image: Any) -> "Picture":
    """A PIL image or uint8 (H, W, 3) -> the picture in mode RGB, laid on opaque white where it is transparent.

    What transformers' image processors do with an A band, and with a `transparency` entry of a palette, a grey level or a
    colour (SPEC 13.1). What `as_rgb` refuses is refused.

    Examples
    --------
    >>> Image = _pillow()
    >>> as_rgb_on_white(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0))
    (255, 127, 127)
    """
    picture = _checked(image)
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        picture, Image = _converted(picture, "RGBA"), _pillow()
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture)
    return _converted(picture, "RGB")


def _checked(image: Any) -> "Picture":
    """The picture, or an error that says why it is none."""
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
    picture: Picture = image
    return picture


def _converted(picture: "Picture", mode: str) -> "Picture":
    """The picture in that mode; a file that ends too soon is an error."""
    with warnings.catch_warnings():  # Pillow warns that a palette's transparency is dropped, which is what is meant
        warnings.filterwarnings("ignore", message="Palette images with Transparency", category=UserWarning)
        try:
            return picture.convert(mode)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"slice_image: image cannot be decoded: {error}") from None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("pictures need Pillow: pip install 'npembed[image]'") from None
    return Image


def resize(picture: "Picture", size: Size, resample: str = "BICUBIC") -> Pixels:
    """A picture -> uint8 (H, W, 3) of that width and height, by one of Pillow's filters."""
    return np.asarray(picture.resize(size, resample=_pillow().Resampling[resample]))


def cells(pixels: Pixels, columns: int, rows: int) -> list[Pixels]:
    """(rows*H, columns*W, 3) -> rows*columns of (H, W, 3), row by row."""
    return [cell for band in np.split(pixels, rows, axis=0) for cell in np.split(band, columns, axis=1)]


@lru_cache(maxsize=16)
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """float32 (3, 256): each byte, normalised as each channel is; every operation in float32."""
    bytes_ = np.arange(256, dtype=np.uint8).astype(np.float32) / np.float32(255)
    means, deviations = (np.array(values, dtype=np.float32)[:, None] for values in (mean, std))
    return (bytes_ - means) / deviations


def strip_of(pixels: Pixels, patch_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """uint8 (H, W, 3) -> float32 (3, P, L*P): the pixels, normalised, as a strip; H and W are multiples of P."""
    strip = picture_to_strip(pixels.transpose(2, 0, 1), patch_size)
    return np.stack([np.take(channel, bytes_) for channel, bytes_ in zip(_levels(mean, std), strip, strict=True)])


def is_blank(pixels: Pixels, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Whether all of uint8 (H, W, 3) becomes 0 when it is normalised, as padding is.

    Examples
    --------
    >>> black = np.zeros((2, 2, 3), dtype=np.uint8)
    >>> is_blank(black, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), is_blank(black, mean=(0.5,) * 3, std=(0.5,) * 3)
    (True, False)
    """
    zero = _levels(mean, std) == 0  # (3, 256)
    return bool(zero.any()) and all(own[pixels[:, :, channel]].all() for channel, own in enumerate(zero))


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
    with closing(read_frames(path, str(path), upright=upright)) as frames:
        picture, turned = next(frames)
        return picture.copy(), turned


def read_frames(
    file: "str | Path | BinaryIO", name: str, *, upright: bool = False, every: bool = False, most_pixels: int | None = None
) -> Generator[tuple["Picture", bool]]:
    """The pictures in one file, one after the other, each with whether its EXIF asks for it to be turned.

    Parameters
    ----------
    file : path or binary file
    name : str
        For messages.
    upright : bool
        Whether to turn them as their EXIF orientation says.
    every : bool
        Every frame or page; by default the first alone.
    most_pixels : int, optional
        A picture of more is refused before it is decoded.

    Yields
    ------
    picture : PIL image
        To be used before the next one is asked for.
    turned : bool

    Raises
    ------
    ValueError
        As `read_image`; a picture of more pixels.
    """
    with _reading(name), _opened(file) as picture:
        for frame in range(getattr(picture, "n_frames", 1) if every else 1):
            if frame:
                picture.seek(frame)
            if most_pixels is not None and picture.width * picture.height > most_pixels:
                raise TooManyPixelsError(
                    f"{name} is too large: {picture.width} × {picture.height} pixels, {most_pixels} at most"
                )
            with warnings.catch_warnings(action="ignore"):  # remarks on odd metadata and large sizes
                picture.load()
                turned = picture.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9)
                shown = _upright(picture) if upright and turned else picture
            yield shown, turned


def size_of(path: str | Path) -> tuple[int, int] | None:
    """Width and height in pixels as a file's header says, without decoding it; None if it cannot be read."""
    try:
        with _reading(str(path)), _opened(path) as picture:
            return picture.size
    except ValueError:
        return None


class TooManyPixelsError(ValueError):
    """A picture of more pixels than were allowed."""


def _opened(file: "str | Path | BinaryIO") -> "Picture":
    with warnings.catch_warnings(action="ignore"):
        return _pillow().open(file)  # type: ignore[no-any-return]


def _upright(picture: "Picture") -> "Picture":
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever Pillow raises, as a ValueError that names the file."""
    Image = _pillow()
    try:
        yield
    except TooManyPixelsError:
        raise
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name} is not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large to decode safely: {error}") from None
    except Exception as error:  # a damaged file raises whatever its reader stumbles on
        raise ValueError(f"{name} cannot be read as an image: {error}") from None
