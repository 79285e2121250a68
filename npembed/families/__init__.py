"""The families of models: the table of them, and what depends on a config's family alone."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from npembed.families import (
    idefics2,
    idefics3,
    minicpm_llama3_v_2_5,
    minicpmv,
    minicpmv4_6,
    phi4_multimodal,
    siglip,
    siglip2_naflex,
)
from npembed.families.minicpmv import MINICPM_V_2_6 as MINICPM_V_2_6
from npembed.records.config import FamilyConfig
from npembed.records.family import Family
from npembed.steps.pixels import PILLOW
from npembed.support import arguments
from npembed.support.messages import brief, did_you_mean
from npembed.support.typing import Floats, Ids, Pixels

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.key: family
        for module in (
            minicpmv,
            minicpm_llama3_v_2_5,
            minicpmv4_6,
            siglip,
            siglip2_naflex,
            idefics3,
            idefics2,
            phi4_multimodal,
        )
        for family in module.FAMILIES
    }
)
"""Each family by its key."""


def get_family(key: str, who: str) -> Family:
    """The family of this key, or an error that lists the known ones."""
    if isinstance(key, str) and key in FAMILIES:
        return FAMILIES[key]
    raise ValueError(f"{who}: family must be one of {', '.join(FAMILIES)}; got {brief(key)}{did_you_mean(key, FAMILIES)}")


def recognise(top: Mapping[str, Any], who: str) -> Family:
    """The family of a checkpoint, by config.json's `model_type` and `version`, or an error that says what is supported.

    Notes
    -----
    Source: SPEC 13.1. Nothing is guessed: not from a tensor's name, not from a version as text that is not exactly a number's.
    """
    model_type, version = top.get("model_type"), top.get("version")
    if not isinstance(model_type, str):
        raise ValueError(f"{who}: config.json has no model_type, so its family is not known; supported are {_supported()}")
    families = [family for family in FAMILIES.values() if model_type in family.model_types]
    for family in families:
        known = (*family.versions, *map(str, family.versions))
        if not known or (type(version) in (int, float, str) and version in known):
            return family
    if families:
        raise ValueError(
            f"{who}: config.json has model_type {brief(model_type)} and version {brief(version)}; supported are the numbers "
            f"{', '.join(str(number) for family in families for number in family.versions)}"
        )
    elsewhere = next(
        (family.other_layouts[model_type] for family in FAMILIES.values() if model_type in family.other_layouts), ""
    )
    words = elsewhere or f"which is not supported; supported are {_supported()}"
    raise ValueError(f"{who}: config.json has model_type {brief(model_type)}, {words}")


def _supported() -> str:
    return ", ".join(family.title for family in FAMILIES.values())


def config_of(top: Mapping[str, Any], preprocessor: Mapping[str, Any] | None, who: str, where: str) -> FamilyConfig:
    """The config of a checkpoint's two JSON files, or an error that names the place, the family and the key."""
    try:
        family = recognise(top, who)
    except ValueError as error:
        raise ValueError(f"{error} (in {where})") from None
    if preprocessor is None and not family.cuts_by_config:
        words = (
            "has no preprocessor_config.json, nor an image_processor in processor_config.json, so it is not known how pictures "
        )
        words += "become pixels; take the file from the repository of this model, or of the one that it was made from"
        raise ValueError(f"{who}: {where} {words}")
    try:
        config: FamilyConfig = family.read_config(top, preprocessor or {})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{who}: {family.title}: {error} (in {where})") from None
    return config


def slice_image(
    image: "Picture | Pixels", config: FamilyConfig = MINICPM_V_2_6, pixels: str = PILLOW
) -> tuple[list[Floats], Ids]:
    """Picture -> list of (3, P, L_i*P), (B, 2): the strips of its slices and their sizes in patches.

    Parameters
    ----------
    image : PIL image or uint8 (H, W, 3)
        Any mode that Pillow turns into RGB; alpha is dropped. 16- and 32-bit greyscale is refused: the conversion would
        clip it to white.
    config : Config, or another family's
    pixels : str
        The name of one of `PIXEL_RULES`: whose resize and normalising. MiniCPM-V up to 4.5 and MiniCPM-o have `pillow` alone.

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
        ends too soon; a pixel rule that is not known, or that the family has not.
    ImportError
        Without the extra `image`.

    Notes
    -----
    Source: SPEC 2, 13 and 15; equal bit for bit to upstream's processor on the same Pillow, or on torch on x86-64. The EXIF
    orientation is ignored.

    Examples
    --------
    >>> strips, tgt_sizes = slice_image(np.zeros((480, 640, 3), dtype=np.uint8))
    >>> [strip.shape for strip in strips], tgt_sizes.tolist()
    ([(3, 14, 14504), (3, 14, 14196), (3, 14, 14196)], [[28, 37], [39, 26], [39, 26]])
    """
    slices = _as_config(config, "slice_image").family.cut(image, config, pixels)
    return slices.strips, slices.tgt_sizes


def image_placeholder(
    grid: Sequence[int] | None,
    image_id: int | None = None,
    config: FamilyConfig = MINICPM_V_2_6,
    tgt_sizes: ArrayLike | None = None,
) -> str:
    """The text that stands for one image until its vision tokens take its places.

    Parameters
    ----------
    grid : (int, int) or None
        Columns and rows of crops; None where the whole picture is the only slice.
    image_id : int, optional
        The image's number in the conversation, from 0; without it, none is written.
    config : Config, or another family's
        Says how many tokens a slice takes, and how the family writes its text.
    tgt_sizes : int (B, 2), optional
        Rows and columns of patches per slice; needed where slices of different sizes take different numbers of tokens.

    Returns
    -------
    str

    Raises
    ------
    ValueError, TypeError
        A grid that is not two counts of at least 1; a negative number of the image.

    Notes
    -----
    Source: SPEC 9 and 13.

    Examples
    --------
    >>> from npembed import Config
    >>> image_placeholder(None, image_id=0, config=Config(query_num=2))
    '<image_id>0</image_id><image><unk><unk></image>'
    >>> image_placeholder((2, 2), config=Config(query_num=1)).replace("<slice><unk></slice>", "#")
    '<image><unk></image>##\\n##'
    """
    who = "image_placeholder"
    known = _as_config(config, who)
    number = None if image_id is None else arguments.as_count(image_id, "image_id", who, least=0)
    sizes = None if tgt_sizes is None else arguments.as_tgt_sizes(tgt_sizes, who)
    if grid is None:
        return known.family.placeholder(None, number, known, sizes)
    if not isinstance(grid, (list, tuple, np.ndarray)) or getattr(grid, "ndim", 1) != 1 or len(grid) != 2:
        raise ValueError(f"{who}: grid must be (columns, rows) or None; got {brief(grid)}")
    columns, rows = (
        arguments.as_count(side, f"grid[{index}]", who, most=arguments.MAX_SIDE) for index, side in enumerate(grid)
    )
    return known.family.placeholder((columns, rows), number, known, sizes)


def _as_config(value: Any, who: str) -> FamilyConfig:
    if not isinstance(value, FamilyConfig):
        raise TypeError(f"{who}: config must be a Config; got {type(value).__name__}")
    return value
