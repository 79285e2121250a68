"""A picture -> RGB, resized; its pixels, normalised, as a strip: what every family's cutting is made of."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from npembed.steps.patches import picture_to_strip
from npembed.support.messages import shown
from npembed.support.pictures import pillow
from npembed.support.typing import Pixels, Size

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


MOST_RESIZED = 2**24
"""Pixels that a picture is resized to, at most: eight times what MiniCPM-V 2.6 makes of any picture that is not thin."""

MOST_BETWEEN = 2**26
"""Pixels between the two passes of a resize, at most: of the new width and the old height."""


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
    >>> Image = pillow()
    >>> as_rgb_on_white(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0))
    (255, 127, 127)
    """
    picture = _checked(image)
    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return _converted(picture, "RGB")
    opaque: Picture = pillow().new("RGB", picture.size)
    for top in range(0, picture.height, 256):  # by bands of rows, so that a large picture is held twice and not four times
        band = _converted(picture, "RGBA", (0, top, picture.width, min(top + 256, picture.height)))
        white = pillow().new("RGBA", band.size, (255, 255, 255, 255))
        opaque.paste(pillow().alpha_composite(white, band).convert("RGB"), (0, top))
    return opaque


def _checked(image: Any) -> "Picture":
    """The picture, or an error that says why it is none."""
    Image = pillow()
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


def _converted(picture: "Picture", mode: str, box: tuple[int, int, int, int] | None = None) -> "Picture":
    """The picture, or a box of it, in that mode, without a copy where it has it; a file that ends too soon is an error."""
    try:
        picture.load()
        part = picture if box is None else picture.crop(box)
        if mode == "RGB" and isinstance(part.info.get("transparency"), bytes):
            part = part.copy()
            del part.info["transparency"]  # Pillow would warn that it is dropped, which is what is meant
        return part if part.mode == mode else part.convert(mode)
    except MemoryError:
        raise MemoryError(f"slice_image: no memory for a picture of {picture.width} x {picture.height} pixels") from None
    except Exception as error:  # AVIF's reader raises RuntimeError
        raise ValueError(f"slice_image: image cannot be decoded: {shown(error)}") from None


def resize(picture: "Picture", size: Size, resample: str = "BICUBIC") -> Pixels:
    """A picture -> uint8 (H, W, 3) of that width and height, by one of Pillow's filters."""
    check_resize(picture.size, size)
    return np.asarray(picture.resize(size, resample=pillow().Resampling[resample]))


def check_resize(before: Size, after: Size) -> None:
    """An error, before the work, if a picture of a size would take too much memory to be resized to another.

    The columns are resized first, so that a thin and long picture takes much more between the passes than before or after.

    Examples
    --------
    >>> check_resize((1, 178_000_000), (384, 384))
    Traceback (most recent call last):
    ...
    ValueError: slice_image: a picture of 1 x 178000000 pixels is too thin to be resized to 384 x 384
    """
    words = f"slice_image: a picture of {before[0]} x {before[1]} pixels"
    if after[0] * after[1] > MOST_RESIZED:
        raise ValueError(f"{words} would be resized to {after[0]} x {after[1]}; at most {MOST_RESIZED} pixels are made of one")
    if after[0] * before[1] > MOST_BETWEEN:
        raise ValueError(f"{words} is too thin to be resized to {after[0]} x {after[1]}")


def cells(pixels: Pixels, columns: int, rows: int) -> list[Pixels]:
    """(rows*H, columns*W, 3) -> rows*columns of (H, W, 3), row by row."""
    return [cell for band in np.split(pixels, rows, axis=0) for cell in np.split(band, columns, axis=1)]


@lru_cache(maxsize=16)
def levels(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """float32 (3, 256): each byte, normalised as each channel is; every operation in float32."""
    bytes_ = np.arange(256, dtype=np.uint8).astype(np.float32) / np.float32(255)
    means, deviations = (np.array(values, dtype=np.float32)[:, None] for values in (mean, std))
    result: NDArray[np.float32] = (bytes_ - means) / deviations
    result.flags.writeable = False  # shared by all who ask
    return result


def strip_of(pixels: Pixels, patch_size: int, levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """uint8 (H, W, 3) -> float32 (3, P, L*P): the pixels, each by its level, as a strip; H and W are multiples of P."""
    strip = picture_to_strip(pixels.transpose(2, 0, 1), patch_size)
    return np.stack([np.take(channel, bytes_) for channel, bytes_ in zip(levels, strip, strict=True)])


def is_blank(pixels: Pixels, levels: NDArray[np.float32]) -> bool:
    """Whether each level of uint8 (H, W, 3) is 0, as padding is.

    Examples
    --------
    >>> black = np.zeros((2, 2, 3), dtype=np.uint8)
    >>> is_blank(black, levels((0.0,) * 3, (1.0,) * 3)), is_blank(black, levels((0.5,) * 3, (0.5,) * 3))
    (True, False)
    """
    zero = levels == 0  # (3, 256)
    return bool(zero.any()) and all(own[pixels[:, :, channel]].all() for channel, own in enumerate(zero))
