"""SigLIP2 NaFlex: a picture keeps its aspect, and the position table is resized to the picture's rows and columns."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from npembed.families.keys import Json, Keys
from npembed.families.siglip import (
    BASE,
    POOLED,
    SO400M,
    PictureTower,
    check_filter,
    in_layout,
    names_of,
    pixels_as_json,
    read_head,
    read_pixels,
    read_sizes,
    refuse_rule,
    vision_as_json,
    vision_part,
)
from npembed.families.tower import SMALL, UNEVEN
from npembed.records.config import FamilyConfig, VisionConfig, check_counts, check_kinds, check_levels
from npembed.records.family import Family, Slices
from npembed.records.model import Model
from npembed.steps.embeddings import embedding_shapes
from npembed.steps.pixels import PixelRule
from npembed.steps.pixels.strips import as_rgb, as_rgb_on_white
from npembed.steps.stages import EMBEDDINGS, HIDDEN, TO_THE_MASK
from npembed.support.messages import brief
from npembed.support.typing import Floats, Ids, Shapes, Size

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SCALES = 1e-6, 100.0
"""Between which the scale of a picture is searched."""

PRECISION = 1e-5
"""Of the search."""


@dataclass(frozen=True)
class NaflexConfig(FamilyConfig):
    """Every size that the path from picture to vector needs in SigLIP2 NaFlex; base by default.

    Attributes
    ----------
    vision : VisionConfig
        Its `image_size` stands for the table's side: `num_patches_per_side` patches.
    max_num_patches : int
        As many patches as a picture may have.
    resample : str
        The filter of the resize, by Pillow's name.
    mean, std : tuple of float
        Per channel, on the scale where black is 0 and white is 1.
    do_convert_rgb : bool
        Whether pictures become RGB, transparent ones on white; otherwise only those that are RGB are taken.
    family : Family
    embed_dim : int
        The width of a picture's vector: `vision.hidden_size`.

    Examples
    --------
    >>> NaflexConfig().vision.num_patches_per_side, NaflexConfig().max_num_patches
    (16, 256)
    """

    vision: VisionConfig = field(default_factory=lambda: VisionConfig(**BASE, image_size=256, patch_size=16))
    max_num_patches: int = 256
    resample: str = "BILINEAR"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    do_convert_rgb: bool = False
    family: Family = field(default_factory=lambda: FAMILIES[0])
    embed_dim: int = field(init=False)

    def __post_init__(self) -> None:
        check_kinds(self, do_convert_rgb=bool)
        check_counts(self, ("max_num_patches",))
        check_filter(self)
        check_levels(self)
        object.__setattr__(self, "embed_dim", self.vision.hidden_size)


# Pictures


def fitted_size(width: int, height: int, patch_size: int, max_num_patches: int) -> Size:
    """Width and height in pixels -> those of the largest picture of about that aspect with so many patches at most.

    Each side is rounded up to whole patches.

    Notes
    -----
    Source: SPEC 13.8: the scale is found by halving the interval `SCALES`.

    Examples
    --------
    >>> fitted_size(640, 480, patch_size=16, max_num_patches=256)
    (288, 224)
    """

    def patches(length: int, scale: float) -> int:
        return max(1, math.ceil(length * scale / patch_size))

    low, high = SCALES
    while high - low >= PRECISION:
        scale = (low + high) / 2
        if patches(width, scale) * patches(height, scale) <= max_num_patches:
            low = scale
        else:
            high = scale
    return patches(width, low) * patch_size, patches(height, low) * patch_size


def _as_taken(picture: Any, config: NaflexConfig) -> "Picture":
    """The picture in RGB; upstream's processor converts nothing unless its config says so."""
    if config.do_convert_rgb:
        return as_rgb_on_white(picture)
    rgb, mode = as_rgb(picture), getattr(picture, "mode", "RGB")
    if mode != "RGB":
        raise ValueError(
            f"slice_image: {config.family.title}: image has mode {mode}, which its processor does not convert without "
            "do_convert_rgb; convert it to RGB first"
        )
    return rgb


# Positions


def resized_table(table: NDArray[np.float32], h: int, w: int) -> NDArray[np.float32]:
    """float32 (G, G, D) -> float32 (h, w, D): the position table for a picture of h x w patches.

    Parameters
    ----------
    table : float32 (G, G, D)
    h, w : int
        Rows and columns, at least 1.

    Returns
    -------
    float32 (h, w, D)
        Where w = 1 and h is not G, each row is the first: what torch 2.13 gives there, and so what the model sees. By the
        formula each row would have its own vector.

    Notes
    -----
    Source: SPEC 13.8: torch's bilinear interpolation with antialiasing; equal to it bit for bit on x86-64 with AVX2 or AVX-512.
    Where torch has neither, its last bit may differ.

    Examples
    --------
    >>> resized_table(np.array([[[0.0], [1.0]], [[2.0], [3.0]]], dtype=np.float32), 2, 4)[..., 0].tolist()
    [[0.0, 0.25, 0.75, 1.0], [2.0, 2.25, 2.75, 3.0]]
    """
    resized = _resized_rows(table.swapaxes(0, 1), w).swapaxes(0, 1)  # columns first
    rows = _resized_rows(resized, h)
    if w == 1 and h != len(table):
        rows[:] = rows[:1].copy()
    return rows


def _resized_rows(table: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """(n, ...) -> (m, ...): each new row a weighted sum of old ones, added in torch's order."""
    if len(table) == length:
        return table.copy()
    rows = np.empty((length, *table.shape[1:]), dtype=np.float32)
    for row, (first, weights) in zip(rows, _taps(len(table), length), strict=True):
        own = table[first : first + len(weights)]
        row[:] = own[0] * weights[0]
        in_fours = (len(weights) - 1) // 4 * 4  # torch rounds twice in full groups of four, and once in what is left
        for taken, (old, weight) in enumerate(zip(own[1:], weights[1:], strict=True)):
            row[:] = row + old * weight if taken < in_fours else _fused(old, weight, row)
    return rows


def _fused(x: NDArray[np.float32], weight: np.float32, y: NDArray[np.float32]) -> NDArray[np.float32]:
    """x*weight + y, rounded once; float64 holds the product exactly."""
    return (x.astype(np.float64) * np.float64(weight) + y).astype(np.float32)


@lru_cache(maxsize=256)
def _taps(old: int, new: int) -> list[tuple[int, NDArray[np.float32]]]:
    """For each of m new places: the first old place that it takes, and the weights of that and the next ones."""
    step = np.float32(old) / np.float32(new)
    reach = max(step, np.float32(1))
    shrink = np.float64(np.float32(1 / np.float64(step))) if step >= 1 else np.float64(1)
    taps = []
    for place in range(new):
        centre = np.float32(np.float64(step) * (place + 0.5))
        first = max(int(np.float64(centre - reach) + 0.5), 0)
        after = min(int(np.float64(centre + reach) + 0.5), old)
        offsets = (np.arange(first, after, dtype=np.float32) - centre).astype(np.float64) + 0.5
        weights = np.maximum(np.float32(1) - np.abs((offsets * shrink).astype(np.float32)), np.float32(0))
        total = np.add.accumulate(weights)[-1]  # one after the other, in float32
        taps.append((first, weights / total))
    return taps


def _table(model: Model) -> NDArray[np.float32]:
    """float32 (G, G, D), in a float64 model too: upstream resizes in float32, which the weights were trained with."""
    side = model.config.vision.num_patches_per_side
    table = model.weights[f"{model.tower}embeddings.position_embedding.weight"]
    return table.astype(np.float32, copy=False).reshape(side, side, -1)


def padding(model: Model, tgt_sizes: Ids) -> Floats:
    """(B, 1, D): the first place's vector of each picture, plus the bias."""
    bias = model.weights[f"{model.tower}embeddings.patch_embedding.bias"]
    return np.array([resized_table(_table(model), h, w)[0, :1] + bias for h, w in tgt_sizes.tolist()])


def _embedding_shapes(config: FamilyConfig) -> Shapes:
    vision, weight = config.vision, f"{config.family.prefix}embeddings.patch_embedding.weight"
    return embedding_shapes(config) | {weight: (vision.hidden_size, vision.patch_size**2 * vision.num_channels)}


NAFLEX_EMBEDDINGS = replace(EMBEDDINGS, arrays=_embedding_shapes, padding=padding)


class Siglip2Naflex(PictureTower):
    """SigLIP2 NaFlex."""

    key, title, alone = "siglip2-naflex", "SigLIP2 NaFlex", "siglip2_vision_model"
    model_types = ("siglip2", alone)
    stages = (*TO_THE_MASK, NAFLEX_EMBEDDINGS, HIDDEN, POOLED)
    checked = (
        "transformers 5.23.0 on x86-64 with AVX2: pixels and the resized table equal, floats within the promise, on small "
        "random models saved by it"
    )

    def read_config(self, top: Json, preprocessor: Json) -> NaflexConfig:
        """The sizes that config.json and the preprocessor's file state; what neither gives is the class's default."""
        keys, alone = vision_part(top, self.alone)
        vision = _read_vision(keys, self.alone)
        layout = in_layout(self, alone, read_head(keys))
        keys.finish()
        processor = Keys(preprocessor, "preprocessor_config.json")
        processor.fixed("image_processor_type", *names_of("Siglip2ImageProcessor"))
        patch_size = processor.value("patch_size", 16)
        if patch_size != vision.patch_size:
            raise ValueError(f"patch_size is {brief(patch_size)} for pictures but {vision.patch_size} in {keys.where}")
        most, converts = processor.value("max_num_patches", 256), processor.value("do_convert_rgb", False)
        pixels = read_pixels(processor, "BILINEAR")
        processor.without_effect("size", "default_to_square")  # a picture's size is searched for
        processor.finish()
        return NaflexConfig(vision=vision, max_num_patches=most, do_convert_rgb=converts, **pixels, family=layout)

    def as_json(self, config: NaflexConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        sizes = asdict(config.vision)
        del sizes["image_size"]
        preprocessor = {
            "image_processor_type": "Siglip2ImageProcessor",
            "patch_size": config.vision.patch_size,
            "max_num_patches": config.max_num_patches,
            "do_convert_rgb": config.do_convert_rgb,
            **pixels_as_json(config),
        }
        return vision_as_json(config, sizes | {"num_patches": config.vision.num_patches_per_side**2}, self.alone), preprocessor

    def presets(self) -> Mapping[str, NaflexConfig]:
        sizes = {"SigLIP2 NaFlex base": BASE, "SigLIP2 NaFlex so400m": SO400M}
        return {
            title: NaflexConfig(vision=VisionConfig(**width, image_size=256, patch_size=16), family=self)
            for title, width in sizes.items()
        }

    def small(self) -> NaflexConfig:
        vision = replace(SMALL, image_size=28)
        return NaflexConfig(vision=vision, max_num_patches=40, family=self)

    def variants(self) -> Mapping[str, NaflexConfig]:
        """Other sizes in each part, another filter, levels of each channel's own."""
        vision = VisionConfig(32, 24, 3, 4, patch_size=2, image_size=24, layer_norm_eps=1e-3)
        return {"varied": NaflexConfig(vision=vision, max_num_patches=60, resample="BICUBIC", **UNEVEN, family=self)}

    def slices(self, picture: Any, config: NaflexConfig, rule: PixelRule) -> Slices:
        """A picture -> itself as the only slice, resized to as many patches as fit."""
        pictured, side = _as_taken(picture, config), config.vision.patch_size
        width, height = fitted_size(*pictured.size, side, config.max_num_patches)
        strip = rule.strip(rule.resize(pictured, (width, height), config.resample), side, config)
        return Slices([strip], np.array([[height // side, width // side]]), np.array([[0.0, 0.0, *pictured.size]]))

    def position_ids(self, tgt_sizes: Ids, config: NaflexConfig, rule: str | None) -> Ids:
        """No id stands for a patch."""
        raise ValueError(f"position_ids: {self.title} has none; its position table is resized to each picture")

    def kernels(self, model: Model) -> Floats:
        """(D, P*P*C), channels last, as the checkpoint has them -> (D, C*P*P), as a strip's patches are."""
        vision, weight = model.config.vision, model.weights[f"{model.tower}embeddings.patch_embedding.weight"]
        cells = weight.reshape(len(weight), vision.patch_size, vision.patch_size, vision.num_channels)
        return cells.transpose(0, 3, 1, 2).reshape(len(weight), -1)

    def positions(self, model: Model, tgt_sizes: Ids, rule: str | None) -> Floats:
        """(B, Lmax, D): the table in each picture's size, row by row, plus the bias; in padding the first place's vector."""
        refuse_rule(rule, f"embed: {self.title}")
        bias = model.weights[f"{model.tower}embeddings.patch_embedding.bias"]
        result = np.empty((len(tgt_sizes), tgt_sizes.prod(axis=1).max(), len(bias)), model.dtype)
        for places, (h, w) in zip(result, tgt_sizes.tolist(), strict=True):
            own = resized_table(_table(model), h, w).reshape(h * w, -1)
            places[: h * w], places[h * w :] = own, own[0]
            places += bias
        return result


def _read_vision(keys: Keys, alone: str) -> VisionConfig:
    """`num_patches` is G*G, the rows of the table; the class of this model has no `image_size`."""
    sizes = {**BASE, "patch_size": 16, **read_sizes(keys, alone, "image_size")}
    rows = keys.value("num_patches", 256)
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1 or math.isqrt(rows) ** 2 != rows:
        raise ValueError(f"num_patches of {keys.where} must be the square of a whole number; got {brief(rows)}")
    return replace(VisionConfig(**sizes), image_size=math.isqrt(rows) * sizes["patch_size"])


FAMILIES: tuple[Family, ...] = (Siglip2Naflex(),)
