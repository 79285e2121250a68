"""The pixel rules of released software: a table (SPEC 15).

A rule says how a picture is resized and how its bytes become levels. Which sizes it is resized to, and how it is cut, is
the family's, and the same under every rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from npembed.steps.pixels.resize import FILTERS, resize_bytes
from npembed.steps.pixels.strips import check_resize, is_blank, levels, resize, strip_of
from npembed.support.messages import brief, did_you_mean
from npembed.support.typing import Pixels, Size

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelRule:
    """One way, as released, from a picture's bytes to the numbers that a tower takes.

    Attributes
    ----------
    name : str
    arithmetic : str
        How it resizes and normalises, in one line.
    releases : tuple of str
        The software that computes it, with versions.
    resize : callable
        (picture, (width, height), filter by Pillow's name) -> uint8 (H, W, 3).
    levels : callable
        (mean, std), each a tuple of 3 -> float32 (3, 256): each byte, normalised as each channel is.
    """

    name: str
    arithmetic: str
    releases: tuple[str, ...]
    resize: Callable[["Picture", Size, str], Pixels]
    levels: Callable[[tuple[float, ...], tuple[float, ...]], NDArray[np.float32]]

    def strip(self, pixels: Pixels, patch_size: int, scale: Any) -> NDArray[np.float32]:
        """uint8 (H, W, 3) -> float32 (3, P, L*P): the pixels as a strip, normalised by `mean` and `std` of the scale."""
        return strip_of(pixels, patch_size, self.levels(scale.mean, scale.std))

    def is_blank(self, pixels: Pixels, scale: Any) -> bool:
        """Whether all of uint8 (H, W, 3) becomes 0 when it is normalised by `mean` and `std` of the scale, as padding is."""
        return is_blank(pixels, self.levels(scale.mean, scale.std))


def _as_torch(picture: "Picture", size: Size, resample: str) -> Pixels:
    if resample not in FILTERS:
        raise ValueError(
            f"slice_image: resample is {resample}, which the pixel rules of torch have not; they have {', '.join(FILTERS)}"
        )
    check_resize(picture.size, size)
    return resize_bytes(np.asarray(picture), size, resample)


def _without_lanczos(picture: "Picture", size: Size, resample: str) -> Pixels:
    return _as_torch(picture, size, "BICUBIC" if resample == "LANCZOS" else resample)


@lru_cache(maxsize=16)
def fused_levels(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """float32 (3, 256): each byte, normalised as each channel is; rescaled and normalised in one step.

    Notes
    -----
    Source: SPEC 15.2. With mean = std = 0.5 it differs from `levels` in the last bit of 128 of the 256.

    Examples
    --------
    >>> fused_levels((0.5,) * 3, (0.25,) * 3)[0, [0, 255]].tolist()
    [-2.0, 2.0]
    """
    means, deviations = (np.array(values, dtype=np.float32)[:, None] * np.float32(255) for values in (mean, std))
    result: NDArray[np.float32] = (np.arange(256, dtype=np.float32) - means) / deviations
    result.flags.writeable = False  # shared by all who ask
    return result


_FUSED = "(f32(byte) - f32(mean) * 255) / (f32(std) * 255)"

_TABLE = (
    PixelRule(
        name="pillow",
        arithmetic="Pillow's resize; (f32(byte) / 255 - mean) / std",
        releases=(
            "OpenBMB's own code (MiniCPM-V up to 4.5, MiniCPM-o)",
            "transformers before 5",
            "transformers 5 without torchvision, and its processors whose names end in Pil",
        ),
        resize=resize,
        levels=levels,
    ),
    PixelRule(
        name="torchvision",
        arithmetic=f"torch's antialiased resize of bytes; {_FUSED}",
        releases=("transformers 5 where torchvision 0.27 or later is installed, on the CPU (x86-64 with AVX2 or AVX-512)",),
        resize=_as_torch,
        levels=fused_levels,
    ),
    PixelRule(
        name="torchvision-bicubic",
        arithmetic=f"torch's antialiased resize of bytes, bicubic in place of Lanczos; {_FUSED}",
        releases=("transformers 5 where an older torchvision is installed; on a GPU too, but for the rounding of floats",),
        resize=_without_lanczos,
        levels=fused_levels,
    ),
)

PILLOW = "pillow"
"""The name of the default."""

PIXEL_RULES: Mapping[str, PixelRule] = MappingProxyType({rule.name: rule for rule in _TABLE})
"""Each rule by its name; `pillow`, the default, first."""


def get_pixel_rule(name: str, who: str) -> PixelRule:
    """The rule of this name, or an error that lists the known ones."""
    try:
        return PIXEL_RULES[name]
    except (KeyError, TypeError):
        words = f"{who}: pixels must be one of {', '.join(PIXEL_RULES)}; got {brief(name)}{did_you_mean(name, PIXEL_RULES)}"
        raise ValueError(words) from None
