"""The sizes of a model: frozen dataclasses, the preset MiniCPM-V 2.6, and how a checkpoint's folder spells them."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from npembed.checks import MAX_SIDE, as_count

RESAMPLER_HEAD_DIM = 128
"""Channels per head of the resampler: E // 128 heads (SPEC 1)."""


MAX_SIZE = 2**20
"""Of any size in a config: far above every model, and far below what would only fail after long work."""


def _check_counts(sizes: Any, names: tuple[str, ...]) -> None:
    for name in names:
        as_count(getattr(sizes, name), name, type(sizes).__name__, most=MAX_SIZE)


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
        _check_counts(self, tuple(f.name for f in fields(self) if f.name != "layer_norm_eps"))
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
            raise TypeError(f"VisionConfig: layer_norm_eps must be a number; got {self.layer_norm_eps!r}")
        if not 0 < self.layer_norm_eps < 1:
            raise ValueError(f"VisionConfig: layer_norm_eps must lie between 0 and 1; got {self.layer_norm_eps}")

    @property
    def num_patches_per_side(self) -> int:
        """G, the rows (and the columns) of the position table."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class SlicingConfig:
    """How a picture is cut and normalised, named as in preprocessor_config.json; MiniCPM-V 2.6's by default.

    `mean` and `std` are per channel, on the scale where black is 0 and white is 1.
    """

    scale_resolution: int = 448
    max_slice_nums: int = 9
    patch_size: int = 14
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        _check_counts(self, ("scale_resolution", "max_slice_nums", "patch_size"))
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or len(values) != 3:
                raise ValueError(f"SlicingConfig: {name} must be three numbers, one per channel; got {values!r}")
            if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
                raise TypeError(f"SlicingConfig: {name} must be three numbers, one per channel; got {values!r}")
            if not all(map(math.isfinite, values)):
                raise ValueError(f"SlicingConfig: {name} must be finite; got {values!r}")
            object.__setattr__(self, name, tuple(map(float, values)))
        if not all(value > 0 for value in self.std):
            raise ValueError(f"SlicingConfig: std must be above 0; got {self.std}")


@dataclass(frozen=True)
class Config:
    """Every size that the path from picture to vision tokens needs; MiniCPM-V 2.6's by default.

    Attributes
    ----------
    vision : VisionConfig
    slicing : SlicingConfig
    query_num : int
        Q, the vision tokens per slice.
    embed_dim : int
        E, the language model's hidden size; a multiple of 128.
    drop_vision_last_layer : bool
        Whether the encoder leaves its last layer out.

    Examples
    --------
    >>> Config() == MINICPM_V_2_6
    True
    >>> Config(embed_dim=256).resampler_heads
    2
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    slicing: SlicingConfig = field(default_factory=SlicingConfig)
    query_num: int = 64
    embed_dim: int = 3584
    drop_vision_last_layer: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("vision", VisionConfig), ("slicing", SlicingConfig), ("drop_vision_last_layer", bool)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"Config: {name} must be a {kind.__name__}; got {getattr(self, name)!r}")
        _check_counts(self, ("query_num", "embed_dim"))
        if self.embed_dim % RESAMPLER_HEAD_DIM:
            raise ValueError(f"Config: embed_dim must be a multiple of {RESAMPLER_HEAD_DIM}; got {self.embed_dim}")

    @property
    def resampler_heads(self) -> int:
        """Attention heads of the resampler."""
        return self.embed_dim // RESAMPLER_HEAD_DIM

    @property
    def encoder_layers(self) -> int:
        """Layers that the encoder runs."""
        return self.vision.num_hidden_layers - self.drop_vision_last_layer


MINICPM_V_2_6 = Config()
"""MiniCPM-V 2.6 (SPEC 1)."""


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} when there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"read_config: {path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"read_config: {path} must hold a JSON object; got {type(content).__name__}")
    return content


def _section(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under `key`; {} when there is none."""
    section = content.get(key)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise ValueError(f"read_config: {key} must be a JSON object; got {section!r}")
    return section


def _given(renamed: Mapping[str, str], *sources: Mapping[str, Any]) -> dict[str, Any]:
    """Per field, the value under its key in the first source that gives one."""
    found = {}
    for name, key in renamed.items():
        for source in sources:
            if source.get(key) is not None:
                found[name] = source[key]
                break
    return found


def read_config(folder: str | Path) -> Config:
    """The sizes that a checkpoint's folder states.

    Parameters
    ----------
    folder : path
        Holds config.json and, if the slicing differs from the defaults, preprocessor_config.json, whose values win
        over config.json's `slice_config`. What neither gives is MiniCPM-V 2.6's.

    Returns
    -------
    Config

    Raises
    ------
    ValueError
        No config.json; a file that is not a JSON object; a size that is not a size, named with its file.

    Notes
    -----
    Source: SPEC 1. The `image_size` at the top of config.json is the slicing resolution; the position table's is in
    `vision_config`. `slice_mode` false means at most one slice.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"read_config: {folder} has no config.json")
    top, preprocessor = _read_json(folder / "config.json"), _read_json(folder / "preprocessor_config.json")
    vision = {f.name: f.name for f in fields(VisionConfig)}
    slicing = {name: name for name in ("scale_resolution", "max_slice_nums", "patch_size")}
    try:
        sizes = _given(slicing, preprocessor, _section(top, "slice_config"))
        sizes = {**_given({"scale_resolution": "image_size"}, top), **sizes}
        sizes |= _given({"mean": "norm_mean", "std": "norm_std"}, preprocessor)
        slice_mode = _given({"slice_mode": "slice_mode"}, preprocessor, top).get("slice_mode", True)
        if not isinstance(slice_mode, bool):
            raise TypeError(f"read_config: slice_mode must be true or false; got {slice_mode!r}")
        if not slice_mode:
            sizes["max_slice_nums"] = 1
        rest = {
            "query_num": "query_num",
            "embed_dim": "hidden_size",
            "drop_vision_last_layer": "drop_vision_last_layer",
        }
        return Config(
            vision=VisionConfig(**_given(vision, _section(top, "vision_config"))),
            slicing=SlicingConfig(**sizes),
            **_given(rest, top),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error} (in {folder})") from None
