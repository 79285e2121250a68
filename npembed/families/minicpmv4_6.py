"""MiniCPM-V 4.6 and 4.7, MiniCPM-OCR in fixed mode: a tower with or without a merger inside, an MLP merger (SPEC 13.4)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from npembed.families.gguf import tower_names
from npembed.families.keys import Json, Keys, read_vision
from npembed.families.tower import SMALL, UNEVEN, SiglipTower
from npembed.records.config import SlicedConfig, SlicingConfig, VisionConfig, check_counts, check_kinds
from npembed.records.family import Family, GgufNames, Slices, Stage, Step
from npembed.records.model import Model
from npembed.steps.cutting import Slicing
from npembed.steps.encoder import tower_shapes
from npembed.steps.patch_mergers import (
    SIDE,
    Merging,
    divided,
    merge_patches,
    merged_patches,
    merger_shapes,
    window_merger_shapes,
)
from npembed.steps.pixels import PIXEL_RULES, PixelRule
from npembed.steps.pixels.strips import as_rgb_on_white
from npembed.steps.stages import (
    BEFORE_THE_TOWER,
    EMBEDDINGS,
    INPUTS_EMBEDS_BY_COUNT,
    TOKEN_PLACES,
    as_bytes,
    hidden_stage,
    tokens_stage,
)
from npembed.steps.video.choices import SECONDS_AND_CANVASES, Choice
from npembed.support import arguments
from npembed.support.messages import brief
from npembed.support.typing import Array, Ids, Shapes, Size

MODES = ("16x", "4x")
"""Patches per vision token, and with it whether the tower has the window merger."""


@dataclass(frozen=True)
class MergerConfig(SlicedConfig):
    """Every size that the path from picture to vision tokens needs in MiniCPM-V 4.6; its released sizes by default.

    Attributes
    ----------
    vision : VisionConfig
    slicing : SlicingConfig
    embed_dim : int
        E, the language model's hidden size.
    downsample_mode : {"16x", "4x"}
        In "16x" the tower has the window merger, after layer `insert_layer_id`, and a token stands for 4 x 4 patches; in
        "4x" it has none, and a token stands for 2 x 2.
    insert_layer_id : int
        From 0; in "4x" without effect.
    use_image_id : bool
        Whether the text gives a picture's number.
    image_token_id : int or None
        The id of `<|image_pad|>`, for `token_places`.
    family : Family

    Examples
    --------
    >>> MergerConfig().unit, MergerConfig(downsample_mode="4x").unit
    (4, 2)
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    slicing: SlicingConfig = field(default_factory=SlicingConfig)
    embed_dim: int = 1024
    downsample_mode: str = "16x"
    insert_layer_id: int = 6
    use_image_id: bool = True
    image_token_id: int | None = None
    family: Family = field(default_factory=lambda: FAMILIES[0])

    def __post_init__(self) -> None:
        who = "MergerConfig"
        check_kinds(self, slicing=SlicingConfig, use_image_id=bool)
        check_counts(self, ("embed_dim",))
        if self.downsample_mode not in MODES:
            raise ValueError(f"{who}: downsample_mode must be '16x' or '4x'; got {brief(self.downsample_mode)}")
        last = self.vision.num_hidden_layers - 1 if self.merges_inside else None
        arguments.as_count(self.insert_layer_id, "insert_layer_id", who, least=0, most=last)
        if self.image_token_id is not None:
            arguments.as_count(self.image_token_id, "image_token_id", who, least=0)
        if self.slicing.patch_size != self.vision.patch_size:
            raise ValueError(
                f"{who}: patch_size is {self.slicing.patch_size} in slicing but {self.vision.patch_size} in vision"
            )

    @property
    def merges_inside(self) -> bool:
        """Whether the tower has the window merger."""
        return self.downsample_mode == "16x"

    @property
    def unit(self) -> int:
        """How many patches each side of a slice is a multiple of; a token stands for unit x unit of them."""
        return SIDE * SIDE if self.merges_inside else SIDE


def _hidden_shapes(config: MergerConfig) -> Shapes:
    shapes = tower_shapes(config, config.vision.num_hidden_layers)
    return shapes | window_merger_shapes(config) if config.merges_inside else shapes


def _hidden_sizes(tgt_sizes: Ids, config: MergerConfig) -> Ids:
    return divided(tgt_sizes, SIDE, "encode") if config.merges_inside else tgt_sizes


def _token_counts(tgt_sizes: Ids, config: MergerConfig, who: str = "merge_patches") -> Ids:
    return np.asarray(divided(tgt_sizes, config.unit, who).prod(axis=1))


def _text(picture: Any, tgt_sizes: Ids, image_id: Any, config: MergerConfig) -> Array:
    family = config.family
    return as_bytes(family.placeholder(family.cut(picture, config).grid, int(image_id), config, tgt_sizes))


TEXT = Stage(
    name="text",
    function=_text,
    takes=("picture", "sliced_tgt_sizes", "image_id", "config"),
    axes="(bytes,)",
    about="the text that stands for the picture, in UTF-8",
)

_WINDOW_MERGER = {
    "v.vit_merger.ln1.*": "model.vision_tower.vit_merger.layer_norm1.*",
    "v.vit_merger.attn_q.*": "model.vision_tower.vit_merger.self_attn.q_proj.*",
    "v.vit_merger.attn_k.*": "model.vision_tower.vit_merger.self_attn.k_proj.*",
    "v.vit_merger.attn_v.*": "model.vision_tower.vit_merger.self_attn.v_proj.*",
    "v.vit_merger.attn_out.*": "model.vision_tower.vit_merger.self_attn.out_proj.*",
    "v.vit_merger.ds_ln.*": "model.vision_tower.vit_merger.pre_norm.*",
    "v.vit_merger.ds_ffn_up.*": "model.vision_tower.vit_merger.linear_1.*",
    "v.vit_merger.ds_ffn_down.*": "model.vision_tower.vit_merger.linear_2.*",
}

_MERGER = {
    "mm.input_norm.*": "model.merger.mlp.0.pre_norm.*",
    "mm.up.*": "model.merger.mlp.0.linear_1.*",
    "mm.down.*": "model.merger.mlp.0.linear_2.*",
}

_SMALL = replace(SMALL, num_hidden_layers=3)


_OWN_CODE = (
    "transformers 5.23.0, its PIL image processor and its modules: sizes, pixels, ids and text equal, floats within the promise"
)


class MiniCPMV46(Slicing, SiglipTower, Merging):
    """MiniCPM-V 4.6 and 4.7.

    Attributes
    ----------
    mode : str
        The `downsample_mode` where a checkpoint states none.
    processor : str
        The `image_processor_type` of its checkpoints.
    preset : str
        What the released sizes are called.
    """

    key, title, model_types = "minicpm-v-4.6", "MiniCPM-V 4.6", ("minicpmv4_6",)
    prefix = "model.vision_tower."
    owns = ("model.vision_tower.", "model.merger.")
    rule = "quotient"
    choice: Choice | None = SECONDS_AND_CANVASES
    pixel_rules = tuple(PIXEL_RULES)
    gguf: GgufNames | None = GgufNames(
        projector="minicpmv4_6", names=tower_names("model.vision_tower.") | _WINDOW_MERGER | _MERGER
    )
    stages = (
        *BEFORE_THE_TOWER,
        EMBEDDINGS,
        hidden_stage(_hidden_shapes, _hidden_sizes),
        tokens_stage(merge_patches, merger_shapes, _token_counts, merged_patches),
        TEXT,
        TOKEN_PLACES,
        INPUTS_EMBEDS_BY_COUNT,
    )
    checked = _OWN_CODE
    mode, processor, preset = "16x", "MiniCPMV4_6ImageProcessor", "MiniCPM-V 4.6"

    def read_config(self, top: Json, preprocessor: Json) -> MergerConfig:
        """The sizes that config.json and preprocessor_config.json state; what they leave out is transformers' default."""
        config, processor = Keys(top, "config.json"), Keys(preprocessor, "preprocessor_config.json")
        vision = _read_vision(config.section("vision_config"))
        slicing = self.read_slicing(processor)
        if slicing.patch_size != vision.patch_size:
            raise ValueError(f"patch_size is {slicing.patch_size} for slicing but {vision.patch_size} in vision_config")
        config.fixed("merge_kernel_size", [SIDE, SIDE])
        config.fixed("merger_times", 1)
        result = MergerConfig(
            vision=vision,
            slicing=slicing,
            embed_dim=_read_width(config.section("text_config")),
            downsample_mode=_read_mode(config, processor, self.mode),
            insert_layer_id=config.value("insert_layer_id", 6),
            use_image_id=processor.value("use_image_id", True),
            image_token_id=config.value("image_token_id"),
            family=self,
        )
        processor.finish()
        return result

    def read_slicing(self, processor: Keys) -> SlicingConfig:
        """How pictures are cut and normalised; what the processor does always, or never, must be so."""
        names = ("scale_resolution", "max_slice_nums", "patch_size", "slice_mode")
        sizes = processor.levels() | processor.given(**{name: name for name in names})
        for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            processor.fixed(name, True)
        processor.fixed("resample", 3)
        processor.fixed("rescale_factor", 1 / 255)
        processor.fixed("image_processor_type", self.processor, f"{self.processor}Pil")
        return SlicingConfig(**sizes)

    def as_json(self, config: MergerConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        slicing, mode = config.slicing, {"downsample_mode": config.downsample_mode}
        top = {
            "model_type": self.model_types[0],
            "insert_layer_id": config.insert_layer_id,
            "image_token_id": config.image_token_id,
            "vision_config": asdict(config.vision),
            "text_config": {"hidden_size": config.embed_dim},
        }
        preprocessor = {
            "image_processor_type": self.processor,
            **{name: getattr(slicing, name) for name in ("max_slice_nums", "scale_resolution", "patch_size", "slice_mode")},
            "image_mean": list(slicing.mean),
            "image_std": list(slicing.std),
            "use_image_id": config.use_image_id,
        }
        return top | mode, preprocessor | mode

    def presets(self) -> Mapping[str, MergerConfig]:
        return {self.preset: MergerConfig(downsample_mode=self.mode, family=self)}

    def small(self) -> MergerConfig:
        slicing = SlicingConfig(scale_resolution=32, patch_size=4)
        return MergerConfig(_SMALL, slicing, 24, self.mode, insert_layer_id=1, image_token_id=294, family=self)

    def variants(self) -> Mapping[str, MergerConfig]:
        """Other sizes in each part, the other mode, levels of each channel's own; a large eps and pictures that are not cut."""
        base = self.small()
        varied = replace(
            base,
            vision=VisionConfig(32, 24, 4, 4, patch_size=4, image_size=108, layer_norm_eps=1e-3),
            slicing=SlicingConfig(40, 4, 4, **UNEVEN),
            embed_dim=20,
            downsample_mode="4x" if base.downsample_mode == "16x" else "16x",
            insert_layer_id=2,
            use_image_id=False,
        )
        vision = replace(_SMALL, layer_norm_eps=1e-3)
        uncut = replace(base, vision=vision, embed_dim=16, slicing=replace(base.slicing, slice_mode=False))
        return {"varied": varied, "same-width": uncut}

    def unread(self, config: MergerConfig) -> Sequence[str]:
        """In "4x" the window merger, which the checkpoint holds all the same."""
        return () if config.merges_inside else tuple(window_merger_shapes(config))

    def slices(self, picture: Any, config: MergerConfig, rule: PixelRule) -> Slices:
        """The whole picture and its crops; with `slice_mode` false the whole alone, which is resized all the same."""
        slicing = config.slicing if config.slicing.slice_mode else replace(config.slicing, max_slice_nums=1)
        return self.sliced(as_rgb_on_white(picture), slicing, rule, config.unit * slicing.patch_size)

    def tower(self, model: Model) -> Sequence[Step]:
        """Every layer, with the window merger among them if the mode has it, then the last norm."""
        config, steps = model.config, [*super().tower(model)]
        assert isinstance(config, MergerConfig)
        if config.merges_inside:
            steps.insert(config.insert_layer_id + 1, self.window_merger(model))
        return steps

    def unit(self, config: MergerConfig) -> int:
        """Four patches, or two, as the mode says."""
        return config.unit

    def placeholder(self, grid: Size | None, image_id: int | None, config: MergerConfig, tgt_sizes: Ids | None = None) -> str:
        """Its number, the whole picture, then rows of slices, each with as many places as it has tokens."""
        who, (columns, rows) = "image_placeholder", grid or (0, 0)
        if tgt_sizes is None:
            raise ValueError(f"{who}: {self.title} needs tgt_sizes, because slices differ in their numbers of tokens")
        if len(tgt_sizes) != 1 + columns * rows:
            raise ValueError(f"{who}: grid {grid} makes {1 + columns * rows} slices, but tgt_sizes has {len(tgt_sizes)} rows")
        whole, *crops = ("<|image_pad|>" * count for count in _token_counts(tgt_sizes, config, who).tolist())
        text = f"<image>{whole}</image>"
        if image_id is not None and config.use_image_id:
            text = f"<image_id>{image_id}</image_id>{text}"
        slices = [f"<slice>{places}</slice>" for places in crops]
        return text + "\n".join("".join(slices[row * columns : (row + 1) * columns]) for row in range(rows))


class MiniCPMV47(MiniCPMV46):
    """MiniCPM-V 4.7."""

    key, title, model_types = "minicpm-v-4.7", "MiniCPM-V 4.7", ("minicpmv4_7",)
    preset = "MiniCPM-V 4.6's sizes"


class MiniCPMOCR(MiniCPMV46):
    """MiniCPM-OCR in fixed mode."""

    key, title, model_types = "minicpm-ocr", "MiniCPM-OCR in fixed mode", ("minicpm_ocr",)
    gguf = None
    choice = None
    checked = (
        "transformers 5.23.0, its modules; the cutting with MiniCPM-V 4.6's PIL image processor, because its own has none, and "
        "by the pixel rule torchvision with its own"
    )
    mode, processor, preset = "4x", "MiniCPMOcrImageProcessor", "MiniCPM-V 4.6's sizes"

    def read_slicing(self, processor: Keys) -> SlicingConfig:
        """As MiniCPM-V 4.6's, for small pictures that are always enlarged."""
        processor.fixed("small_image_upsize", "always")  # "adaptive" looks for text with OpenCV
        return super().read_slicing(processor)


_VISION_DEFAULTS = VisionConfig(768, 3072, 12, 12, 3, 224, 16, 1e-6)
"""Of transformers' class, which are not the released sizes."""


def _read_vision(keys: Keys) -> VisionConfig:
    keys.fixed("window_kernel_size", [SIDE, SIDE])
    return read_vision(keys, _VISION_DEFAULTS, "insert_layer_id")  # the one at the top overwrites this one


def _read_width(text: Keys) -> int:
    """The language model's hidden size; where it is left out, the default of the class that `model_type` names."""
    kind = text.value("model_type", "qwen3_5_text")
    width = text.value("hidden_size", 4096 if kind == "qwen3_5_text" else None)
    if width is None:
        raise ValueError(
            f"hidden_size of text_config is missing, and its default for model_type {brief(kind)} is not known here"
        )
    return arguments.as_count(width, "hidden_size of text_config", "MergerConfig")


def _read_mode(config: Keys, processor: Keys, default: str) -> str:
    """The `downsample_mode`, which slices and text take from one file and the tower from the other."""
    for keys in (config, processor):
        keys.fixed("downsample_mode", *MODES)
    mode, slices = (keys.value("downsample_mode", default) for keys in (config, processor))
    if mode != slices:
        raise ValueError(
            f"downsample_mode is {brief(mode)} by config.json but {brief(slices)} by preprocessor_config.json, where left out "
            f"it is {brief(default)}; the tower and the slices must have the same"
        )
    return str(mode)


FAMILIES: tuple[Family, ...] = (MiniCPMV46(), MiniCPMV47(), MiniCPMOCR())
