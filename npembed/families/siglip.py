"""SigLIP, and SigLIP2 of fixed size: one resize, positions 0 ... G*G-1, a head that makes one vector of a picture."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from npembed.families.keys import Json, Keys
from npembed.families.tower import SMALL, UNEVEN, SiglipTower
from npembed.records.config import MAX_SIZE, FamilyConfig, VisionConfig, check_kinds, check_levels
from npembed.records.family import Family, Promise, Slices, Stage
from npembed.steps.pixels import PIXEL_RULES, PixelRule
from npembed.steps.pixels.strips import as_rgb_on_white
from npembed.steps.pooling import head_shapes, pool
from npembed.steps.stages import BEFORE_THE_TOWER, EMBEDDINGS, HIDDEN
from npembed.support.arguments import as_count
from npembed.support.messages import brief
from npembed.support.typing import Ids, Size

FILTERS = ("NEAREST", "LANCZOS", "BILINEAR", "BICUBIC", "BOX", "HAMMING")
"""Pillow's filters in the order of their numbers, which a config gives as `resample`."""

BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
DEFAULTS = {**BASE, "image_size": 224, "patch_size": 16}
"""What the class of the vision model takes for a key that its config lacks."""


@dataclass(frozen=True)
class SiglipConfig(FamilyConfig):
    """Every size that the path from picture to vector needs in SigLIP of fixed size; base (224) by default.

    Attributes
    ----------
    vision : VisionConfig
    size : (int, int)
        Rows and columns of pixels that a picture is resized to.
    resample : str
        The filter of that resize, by Pillow's name.
    mean, std : tuple of float
        Per channel, on the scale where black is 0 and white is 1.
    family : Family
    embed_dim : int
        The width of a picture's vector: `vision.hidden_size`.

    Examples
    --------
    >>> SiglipConfig().vision.num_patches_per_side, SiglipConfig().embed_dim
    (14, 768)
    """

    vision: VisionConfig = field(default_factory=lambda: VisionConfig(**DEFAULTS))
    size: Size = (224, 224)
    resample: str = "BICUBIC"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    family: Family = field(default_factory=lambda: FAMILIES[0])
    embed_dim: int = field(init=False)

    def __post_init__(self) -> None:
        who = type(self).__name__
        check_kinds(self, size=tuple)
        if len(self.size) != 2:
            raise ValueError(f"{who}: size must be two counts, rows and columns of pixels; got {brief(self.size)}")
        for index, side in enumerate(self.size):
            as_count(side, f"size[{index}]", who, most=MAX_SIZE)
        check_filter(self)
        check_levels(self)
        object.__setattr__(self, "embed_dim", self.vision.hidden_size)


def check_filter(config: Any) -> None:
    """An error unless `resample` is one of Pillow's filters."""
    if config.resample not in FILTERS:
        who = type(config).__name__
        raise ValueError(f"{who}: resample must be one of {', '.join(FILTERS)}; got {brief(config.resample)}")


def vision_part(top: Json, alone: str) -> tuple[Keys, bool]:
    """The vision model's keys, and whether it is the whole checkpoint, whose `model_type` is then `alone`."""
    config = Keys(top, "config.json")
    is_alone = top.get("model_type") == alone
    return (config if is_alone else config.section("vision_config")), is_alone


def read_sizes(keys: Keys, alone: str, *without: str) -> dict[str, Any]:
    """The fields of `VisionConfig` that are given, without those named."""
    keys.fixed("model_type", alone)
    keys.fixed("hidden_act", "gelu_pytorch_tanh")
    return keys.given(**{f.name: f.name for f in fields(VisionConfig) if f.name not in without})


def read_head(keys: Keys) -> bool:
    """Whether the vision model has a pooling head."""
    head = keys.value("vision_use_head", True)
    if not isinstance(head, bool):
        raise TypeError(f"vision_use_head of {keys.where} must be true or false; got {brief(head)}")
    return head


def read_pixels(processor: Keys, default: str) -> dict[str, Any]:
    """The filter, mean and std of the preprocessor's file; what else it says of pixels is as its class has it."""
    number = processor.value("resample", FILTERS.index(default))
    if isinstance(number, bool) or number not in range(len(FILTERS)):
        raise ValueError(f"resample of {processor.where} must be from 0 to {len(FILTERS) - 1}; got {brief(number)}")
    for step in ("do_resize", "do_rescale", "do_normalize"):
        processor.fixed(step, True)
    for step in ("do_center_crop", "do_pad"):
        processor.fixed(step, False)
    processor.fixed("rescale_factor", 1 / 255, 0.00392156862745098)
    processor.fixed("data_format", "channels_first")
    processor.without_effect("crop_size", "pad_size")  # of the steps that are refused
    processor.without_effect("input_data_format", "return_tensors", "device", "disable_grouping", "image_seq_length")
    return {"resample": FILTERS[number], **processor.levels()}


def _read_size(processor: Keys) -> Size:
    size = processor.section("size").content or {"height": 224, "width": 224}
    if set(size) != {"height", "width"}:
        raise ValueError(f"size of {processor.where} must give height and width; got {dict(size)}")
    return size["height"], size["width"]


def names_of(name: str) -> tuple[str, ...]:
    """An image processor's class in each of transformers' backends."""
    return name, f"{name}Fast", f"{name}Pil"


def refuse_rule(rule: str | None, who: str) -> None:
    """An error if a position rule was asked for."""
    if rule is not None:
        raise ValueError(f"{who}: its positions follow no rule, so none can be chosen; got rule {brief(rule)}")


POOLED = Stage(
    name="pooled",
    function=pool,
    takes=("hidden", "tgt_sizes", "model"),
    arrays=head_shapes,
    promise=Promise.DISTANCE,
    axes="(B, D)",
    about="one vector for each picture",
)


@lru_cache
def in_layout(family: Family, alone: bool, head: bool) -> Family:
    """The family's record for a vision model that is saved alone, which has no prefix, or that has no head."""
    if alone:
        family = family.changed(prefix="", owns=("",))
    if not head:
        family = family.changed(stages=tuple(stage for stage in family.stages if stage is not POOLED))
    return family


@lru_cache
def _with_prefix(family: Family, prefix: str) -> Family:
    return family.changed(prefix=prefix, owns=(prefix,))


def pixels_as_json(config: Any) -> dict[str, Any]:
    """What `read_pixels` reads."""
    filter_number = FILTERS.index(config.resample)
    return {"resample": filter_number, "image_mean": list(config.mean), "image_std": list(config.std)}


def vision_as_json(config: Any, sizes: dict[str, Any], alone: str) -> dict[str, Any]:
    """config.json with these sizes, of a vision model that is alone or within its family's whole model."""
    vision = {"model_type": alone, **sizes, "vision_use_head": POOLED in config.family.stages}
    return {"model_type": config.family.model_types[0], "vision_config": vision} if config.family.prefix else vision


class PictureTower(SiglipTower):
    """A SigLIP tower and a head, which make one vector of a picture: no text, no tokens (SPEC 13.8).

    Attributes
    ----------
    alone : str
        The `model_type` of a vision model that is saved alone.
    """

    prefix = "vision_model."
    owns = ("vision_model.",)
    rule = None
    pixel_rules = tuple(PIXEL_RULES)
    alone: str

    def layout(self, config: Any, names: Collection[str]) -> Any:
        """With the prefix that the names have: older releases saved a vision model alone with one, too."""
        prefix = PictureTower.prefix
        if self.prefix or not any(name.startswith(prefix) for name in names):
            return config
        return replace(config, family=_with_prefix(self, prefix))

    def placeholder(self, grid: Size | None, image_id: int | None, config: Any, tgt_sizes: Ids | None = None) -> str:
        """No text stands for a picture."""
        raise ValueError(f"image_placeholder: {self.title} has no text that stands for a picture; it makes a vector of it")


class Siglip(PictureTower):
    """SigLIP and SigLIP2 of fixed size."""

    key, title, alone = "siglip", "SigLIP and SigLIP2 of fixed size", "siglip_vision_model"
    model_types = ("siglip", alone)
    one_size = True
    stages = (*BEFORE_THE_TOWER, EMBEDDINGS, HIDDEN, POOLED)
    checked = "transformers 5.23.0: pixels and ids equal, floats within the promise, on small random models saved by it"

    def read_config(self, top: Json, preprocessor: Json) -> SiglipConfig:
        """The sizes that config.json and the preprocessor's file state; what neither gives is the class's default."""
        keys, alone = vision_part(top, self.alone)
        vision = VisionConfig(**DEFAULTS | read_sizes(keys, self.alone))
        layout = in_layout(self, alone, read_head(keys))
        keys.finish()
        processor = Keys(preprocessor, "preprocessor_config.json")
        processor.fixed("image_processor_type", *names_of("SiglipImageProcessor"))
        processor.fixed("do_convert_rgb", True)
        processor.without_effect("default_to_square")  # of a size that is one number
        size, pixels = _read_size(processor), read_pixels(processor, "BICUBIC")
        processor.finish()
        return SiglipConfig(vision=vision, size=size, **pixels, family=layout)

    def as_json(self, config: SiglipConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        preprocessor = {
            "image_processor_type": "SiglipImageProcessor",
            "size": dict(zip(("height", "width"), config.size, strict=True)),
            **pixels_as_json(config),
        }
        return vision_as_json(config, asdict(config.vision), self.alone), preprocessor

    def presets(self) -> Mapping[str, SiglipConfig]:
        """Released sizes; those of SigLIP2 of fixed size are the same, with bilinear filtering."""
        sizes = {
            "SigLIP base (224)": (BASE, 16, 224),
            "SigLIP base (256)": (BASE, 16, 256),
            "SigLIP base (384)": (BASE, 16, 384),
            "SigLIP base (512)": (BASE, 16, 512),
            "SigLIP large (256)": (LARGE, 16, 256),
            "SigLIP large (384)": (LARGE, 16, 384),
            "SigLIP so400m (224)": (SO400M, 14, 224),
            "SigLIP so400m (384)": (SO400M, 14, 384),
        }
        return {
            title: SiglipConfig(vision=VisionConfig(**width, patch_size=patch, image_size=side), size=(side, side), family=self)
            for title, (width, patch, side) in sizes.items()
        }

    def small(self) -> SiglipConfig:
        vision = replace(SMALL, image_size=110)
        return SiglipConfig(vision=vision, size=(110, 110), family=self)  # G = 27, and pixels that fill no patch, as in so400m

    def variants(self) -> Mapping[str, SiglipConfig]:
        """Other sizes in each part, another filter, levels of each channel's own."""
        vision = VisionConfig(32, 24, 3, 4, patch_size=2, image_size=14, layer_norm_eps=1e-3)
        return {"varied": SiglipConfig(vision=vision, size=(14, 14), resample="BILINEAR", **UNEVEN, family=self)}

    def slices(self, picture: Any, config: SiglipConfig, rule: PixelRule) -> Slices:
        """A picture -> itself as the only slice, resized without regard to its aspect."""
        pictured, (height, width) = as_rgb_on_white(picture), config.size
        vision, side = config.vision, config.vision.num_patches_per_side
        rows, columns = height // vision.patch_size, width // vision.patch_size
        if (rows, columns) != (side, side):
            raise ValueError(
                f"slice_image: {self.title}: {height} x {width} pixels, as the preprocessor file or its default says, "
                f"make {rows} x {columns} patches; the model takes {side} x {side}"
            )
        filled = side * vision.patch_size
        pixels = rule.resize(pictured, (width, height), config.resample)[:filled, :filled]  # the rest fills no patch
        box = [[0.0, 0.0, pictured.size[0] * filled / width, pictured.size[1] * filled / height]]
        strip = rule.strip(pixels, vision.patch_size, config)
        return Slices([strip], np.array([[side, side]]), np.array(box))

    def position_ids(self, tgt_sizes: Ids, config: SiglipConfig, rule: str | None) -> Ids:
        """(B, 2) -> int64 (B, G*G): 0 ... G*G-1 for each picture."""
        who, side = f"position_ids: {self.title}", config.vision.num_patches_per_side
        refuse_rule(rule, who)
        for index, size in enumerate(tgt_sizes.tolist()):
            if size != [side, side]:
                raise ValueError(
                    f"{who}: tgt_sizes[{index}] is ({size[0]}, {size[1]}); the model takes {side} x {side} patches"
                )
        return np.tile(np.arange(side * side), (len(tgt_sizes), 1))

    def case_sizes(self, sizes: Sequence[Size], config: SiglipConfig) -> Sequence[Size]:
        """Every picture has G x G patches."""
        return [(config.vision.num_patches_per_side, config.vision.num_patches_per_side)] * len(sizes)


FAMILIES: tuple[Family, ...] = (Siglip(),)
