"""What Idefics2, Idefics3 and SmolVLM share: the keys of their configs, pieces that count as padding, text without numbers."""

from collections.abc import Sequence
from typing import Any

from npembed.families import keys
from npembed.families.keys import Keys
from npembed.families.tower import SiglipTower
from npembed.records.config import VisionConfig
from npembed.records.family import Stage
from npembed.steps.pixels import PIXEL_RULES, PixelRule
from npembed.steps.stages import as_bytes
from npembed.support.messages import brief
from npembed.support.typing import Array, Floats, Pixels, Size

FAKE = "<fake_token_around_image>"
PLACE = "<image>"


def read_vision(section: Keys, defaults: VisionConfig) -> VisionConfig:
    """The tower's sizes; what is absent is the class's own default."""
    return keys.read_vision(section, defaults, "size", "max_image_size", "use_base_siglip", "_flash_attn_2_enabled")


def read_pixels(keys: Keys, resample: int, *kinds: str) -> dict[str, Any]:
    """Mean, deviation and whether pictures are split, as far as preprocessor_config.json gives them."""
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad"):
        keys.fixed(key, True)
    keys.fixed("resample", resample)
    keys.fixed("rescale_factor", 1 / 255)
    keys.fixed("image_processor_type", *(kind + ending for kind in kinds for ending in ("", "Fast", "Pil")))
    keys.without_effect("video_sampling")
    return keys.levels() | keys.given(do_image_splitting="do_image_splitting")


def read_edges(keys: Keys, key: str, *edges: str) -> dict[str, Any]:
    """The edges that a size is given by; nothing where the size is absent, an error where one of its edges is."""
    section = keys.section(key)
    sizes = section.given(**{edge: edge for edge in edges})
    section.finish()
    if keys.content.get(key) is not None and len(sizes) < len(edges):
        raise ValueError(f"{key} of {keys.where} is {brief(keys.content[key])}; it must have {' and '.join(edges)}")
    return sizes


def text_value(text: Keys, key: str, kind: str, default: Any) -> Any:
    """A value of the language model's config; the default is known for one `model_type` only, that of the family's own text."""
    found = text.value(key)
    other = text.value("model_type", kind)
    if found is None and other != kind:
        raise ValueError(
            f"{key} of text_config is missing; its default is known for model_type {brief(kind)} only, not for {brief(other)}"
        )
    return default if found is None else found


def pixel_json(kind: str, resample: int, cutting: Any) -> dict[str, Any]:
    """preprocessor_config.json of that config, but for its sizes."""
    return {
        "image_processor_type": kind,
        "resample": resample,
        "do_image_splitting": cutting.do_image_splitting,
        "image_mean": list(cutting.mean),
        "image_std": list(cutting.std),
    }


def counting_pieces(
    pieces: Sequence[Pixels], cutting: Any, rule: PixelRule, title: str, *, keeps_one: bool = False
) -> list[int]:
    """The numbers of the pieces that count: the model drops one that is all 0 when it is normalised, as padding.

    With `keeps_one` the first stays where all would go.
    """
    counting = [number for number, pixels in enumerate(pieces) if not rule.is_blank(pixels, cutting)]
    if not counting and keeps_one:
        return [0]
    if not counting:
        raise ValueError(f"slice_image: every pixel is 0 once normalised, which {title} drops as padding, so nothing is left")
    return counting


def whole_patches(pixels: Pixels, patch_size: int, cutting: Any, rule: PixelRule) -> tuple[Floats, Size]:
    """uint8 (H, W, 3) -> the strip of the patches that H and W have room for, and their rows and columns."""
    rows, columns = (length // patch_size for length in pixels.shape[:2])
    if not (rows and columns):
        raise ValueError(
            f"slice_image: a piece of {pixels.shape[1]} x {pixels.shape[0]} pixels has no room for a patch of side {patch_size}"
        )
    filled = pixels[: rows * patch_size, : columns * patch_size]
    return rule.strip(filled, patch_size, cutting), (rows, columns)


def refuse_image_id(image_id: int | None, title: str) -> None:
    """An error if a number is given: the text has no place for one."""
    if image_id is not None:
        raise ValueError(f"image_placeholder: image_id must be None, because {title}'s text numbers no picture; got {image_id}")


def _text(picture: Any, config: Any) -> Array:
    return as_bytes(config.family.placeholder(config.family.cut(picture, config).grid, None, config))


TEXT = Stage(
    name="text",
    function=_text,
    takes=("picture", "config"),
    axes="(bytes,)",
    about="the text that stands for the picture, in UTF-8",
)
"""The text of a picture, which has no place for a number."""


class Idefics(SiglipTower):
    """What Idefics2, Idefics3 and SmolVLM have in common."""

    prefix = "model.vision_model."
    owns = ("model.vision_model.", "model.connector.")
    rule = "step"
    pixel_rules = tuple(PIXEL_RULES)
    checked = "transformers' own PIL processor and modules: sizes, pixels, ids and text equal, floats within the promise"
