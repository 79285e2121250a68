"""The sizes that every family's config is made of."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from npembed.records.family import Family
from npembed.support.arguments import MAX_SIDE, as_count
from npembed.support.messages import brief

MAX_SIZE = 2**20
"""Of any size in a config: far above every model, and far below what would only fail after long work."""


MAX_LAYERS = 2**10
"""Of an encoder: each has sixteen arrays, whose names are made before any is read."""

MAX_SCALE = 2**12
"""Of `scale_resolution`: a slice has about its square of pixels."""

LEAST_STD = 1e-6
"""Of a channel's deviation: with less, normalised pixels leave float32's range."""


def check_counts(sizes: Any, names: tuple[str, ...]) -> None:
    """An error unless these fields are whole numbers from 1 to `MAX_SIZE`."""
    for name in names:
        as_count(getattr(sizes, name), name, type(sizes).__name__, most=MAX_SIZE)


def check_levels(sizes: Any) -> None:
    """An error unless `mean` and `std` are three numbers each, which can normalise pixels; they become tuples of floats."""
    who = type(sizes).__name__
    for name in ("mean", "std"):
        values = getattr(sizes, name)
        if not isinstance(values, (tuple, list)) or len(values) != 3:
            raise ValueError(f"{who}: {name} must be three numbers, one per channel; got {brief(values)}")
        if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
            raise TypeError(f"{who}: {name} must be three numbers, one per channel; got {brief(values)}")
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{who}: {name} must be finite; got {brief(values)}")
        object.__setattr__(sizes, name, tuple(map(float, values)))
    if not all(value >= LEAST_STD for value in sizes.std):
        raise ValueError(f"{who}: std must be at least {LEAST_STD}; got {sizes.std}")


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower, named as in config.json's `vision_config`; the defaults are MiniCPM-V 2.6's.

    Raises
    ------
    ValueError, TypeError
        A size below 1 or not whole; heads that do not divide `hidden_size`; an image smaller than a patch.

    Examples
    --------
    >>> VisionConfig().num_patches_per_side
    70
    """

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 980
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_counts(self, tuple(f.name for f in fields(self) if f.name != "layer_norm_eps"))
        as_count(self.num_hidden_layers, "num_hidden_layers", "VisionConfig", most=MAX_LAYERS)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"VisionConfig: hidden_size {self.hidden_size} must be a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if not 1 <= self.num_patches_per_side <= MAX_SIDE:
            raise ValueError(
                f"VisionConfig: image_size // patch_size must be from 1 to {MAX_SIDE}; "
                f"got {self.image_size} // {self.patch_size}"
            )
        if isinstance(self.layer_norm_eps, bool) or not isinstance(self.layer_norm_eps, (int, float)):
            raise TypeError(f"VisionConfig: layer_norm_eps must be a number; got {brief(self.layer_norm_eps)}")
        if not 0 < self.layer_norm_eps < 1:
            raise ValueError(f"VisionConfig: layer_norm_eps must lie between 0 and 1; got {brief(self.layer_norm_eps)}")

    @property
    def num_patches_per_side(self) -> int:
        """G, the rows (and the columns) of the position table."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class SlicingConfig:
    """How a picture is cut and normalised, named as in preprocessor_config.json; MiniCPM-V 2.6's by default.

    `mean` and `std` are per channel, on the scale where black is 0 and white is 1. Without `slice_mode` a picture is not
    cut.
    """

    scale_resolution: int = 448
    max_slice_nums: int = 9
    patch_size: int = 14
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    slice_mode: bool = True

    def __post_init__(self) -> None:
        check_counts(self, ("max_slice_nums", "patch_size"))
        as_count(self.scale_resolution, "scale_resolution", "SlicingConfig", most=MAX_SCALE)
        check_levels(self)
        if not isinstance(self.slice_mode, bool):
            raise TypeError(f"SlicingConfig: slice_mode must be true or false; got {brief(self.slice_mode)}")


class FamilyConfig:
    """What the config of every family has; each family's module has its own, a frozen dataclass.

    Attributes
    ----------
    vision : VisionConfig
    family : Family
    embed_dim : int
        E, the width of a vision token.
    """

    vision: VisionConfig
    family: Family
    embed_dim: int

    @property
    def encoder_layers(self) -> int:
        """Layers that the encoder runs."""
        return self.vision.num_hidden_layers

    @property
    def cut_patch_size(self) -> int:
        """P, the side of the patches that pictures are cut into."""
        return self.vision.patch_size

    def with_max_slices(self, most: int, who: str) -> "FamilyConfig":
        """The config that cuts a picture into so many slices at most, or an error where a family knows no such number."""
        raise ValueError(f"{who}: {self.family.title} has no most number of slices that --max-slices could set")


class SlicedConfig(FamilyConfig):
    """The config of a family that cuts pictures as MiniCPM-V does.

    Attributes
    ----------
    slicing : SlicingConfig
    """

    slicing: SlicingConfig

    @property
    def cut_patch_size(self) -> int:
        """P, as the processor's file states it."""
        return self.slicing.patch_size

    def with_max_slices(self, most: int, who: str) -> "SlicedConfig":
        """The config that cuts a picture into so many crops at most."""
        changed: SlicedConfig = replace(self, slicing=replace(self.slicing, max_slice_nums=most))  # type: ignore[type-var]
        return changed


def check_kinds(config: FamilyConfig, **kinds: type) -> None:
    """An error unless each of these fields, `vision` and `family` are of their kind."""
    for name, kind in {"vision": VisionConfig, "family": Family, **kinds}.items():
        if not isinstance(getattr(config, name), kind):
            raise TypeError(f"{type(config).__name__}: {name} must be a {kind.__name__}; got {brief(getattr(config, name))}")
