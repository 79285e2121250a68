"""MiniCPM-V 2.6, 4.0 and 4.5, MiniCPM-o 2.6 and 4.5: slices, position ids by `arange`, a SigLIP tower, a resampler."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from npembed.families.gguf import tower_names
from npembed.families.keys import Json, Keys, read_vision
from npembed.families.tower import SMALL, UNEVEN, SiglipTower
from npembed.records.config import SlicedConfig, SlicingConfig, VisionConfig, check_counts, check_kinds
from npembed.records.family import Family, GgufNames, Slices, Stage
from npembed.steps.cutting import Slicing, whole
from npembed.steps.encoder import tower_shapes
from npembed.steps.pixels import PixelRule
from npembed.steps.resampler import HEAD_DIM, Resampling, resample, resampler_shapes
from npembed.steps.stages import (
    BEFORE_THE_TOWER,
    EMBEDDINGS,
    HIDDEN,
    IMAGE_BOUND,
    INPUTS_EMBEDS,
    TEXT,
    tokens_stage,
)
from npembed.steps.video.choices import EACH_SECOND, IN_GROUPS, Choice
from npembed.support.typing import Ids, Size


@dataclass(frozen=True)
class Config(SlicedConfig):
    """Every size that the path from picture to vision tokens needs in MiniCPM-V; MiniCPM-V 2.6's by default.

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
    use_image_id : bool
        Whether the text gives a picture's number.
    family : Family

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
    use_image_id: bool = True
    family: Family = field(default_factory=lambda: FAMILIES[0])

    def __post_init__(self) -> None:
        check_kinds(self, slicing=SlicingConfig, drop_vision_last_layer=bool, use_image_id=bool)
        check_counts(self, ("query_num", "embed_dim"))
        if self.embed_dim % HEAD_DIM:
            raise ValueError(f"Config: embed_dim must be a multiple of {HEAD_DIM}; got {self.embed_dim}")

    @property
    def resampler_heads(self) -> int:
        """Attention heads of the resampler."""
        return self.embed_dim // HEAD_DIM

    @property
    def encoder_layers(self) -> int:
        """Layers that the encoder runs."""
        return self.vision.num_hidden_layers - self.drop_vision_last_layer


_RESAMPLER = {
    "resampler.query": "resampler.query",
    "resampler.proj.weight": "resampler.proj",
    "resampler.kv.weight": "resampler.kv_proj.weight",
    "resampler.attn.q.weight": "resampler.attn.in_proj_weight",
    "resampler.attn.k.weight": "resampler.attn.in_proj_weight",
    "resampler.attn.v.weight": "resampler.attn.in_proj_weight",
    "resampler.attn.q.bias": "resampler.attn.in_proj_bias",
    "resampler.attn.k.bias": "resampler.attn.in_proj_bias",
    "resampler.attn.v.bias": "resampler.attn.in_proj_bias",
    "resampler.attn.out.*": "resampler.attn.out_proj.*",
    "resampler.ln_q.*": "resampler.ln_q.*",
    "resampler.ln_kv.*": "resampler.ln_kv.*",
    "resampler.ln_post.*": "resampler.ln_post.*",
}

GGUF = GgufNames(
    projector="resampler",
    names=tower_names("vpm.") | _RESAMPLER,
    turned=frozenset({"resampler.proj"}),
    ignored=frozenset({"resampler.pos_embed_k"}),
    legacy=True,
)

_OWN_CODE = "the release's own processor and modules: sizes, pixels, ids and text equal, floats within the promise"


def _token_counts(tgt_sizes: Ids, config: Config) -> Ids:
    return np.full(len(tgt_sizes), config.query_num, dtype=np.int64)


class MiniCPMV(Slicing, SiglipTower, Resampling):
    """MiniCPM-V 2.6 and what came of it: versions that differ in their sizes.

    Parameters
    ----------
    key, title, checked : str
    model_type : str
    version : float
    frames : bool
    released : the fields of its config
        In so far as they are not MiniCPM-V 2.6's.
    """

    cuts_by_config = True
    prefix = "vpm."
    owns = ("vpm.", "resampler.")
    gguf = GGUF
    stages: tuple[Stage, ...] = (
        *BEFORE_THE_TOWER,
        EMBEDDINGS,
        HIDDEN,
        tokens_stage(resample, resampler_shapes, _token_counts),
        TEXT,
        IMAGE_BOUND,
        INPUTS_EMBEDS,
    )

    def __init__(
        self,
        key: str,
        title: str,
        model_type: str,
        version: float,
        *,
        checked: str = _OWN_CODE,
        frames: bool = False,
        choice: Choice | None = EACH_SECOND,
        **released: Any,
    ) -> None:
        self.key, self.title, self.model_types, self.versions = key, title, (model_type,), (version,)
        self.checked, self.frames, self.choice, self.released = checked, frames, choice, released

    def read_config(self, top: Json, preprocessor: Json) -> Config:
        """The sizes that config.json and preprocessor_config.json state; else the release's own (SPEC 1, 13)."""
        released = next(iter(self.presets().values()))
        config, processor = Keys(top, "config.json"), Keys(preprocessor, "preprocessor_config.json")
        vision = read_vision(config.section("vision_config"), VisionConfig(), "_flash_attn_2_enabled")
        query_num = config.value("query_num", released.query_num)
        drops = config.value("drop_vision_last_layer")
        if drops is None:
            raise ValueError("drop_vision_last_layer of config.json is missing; true or false is needed")
        config.fixed("insert_layer_id")
        config.fixed("batch_vision_input", True)
        config.fixed("patch_size", vision.patch_size)
        slicing = _read_slicing(config, processor)
        if slicing.patch_size != vision.patch_size:
            raise ValueError(f"patch_size is {slicing.patch_size} for slicing but {vision.patch_size} in vision_config")
        result = Config(
            vision=vision,
            slicing=slicing,
            query_num=query_num,
            embed_dim=config.value("hidden_size", released.embed_dim),
            drop_vision_last_layer=drops,
            use_image_id=processor.value("use_image_id", config.value("use_image_id", released.use_image_id)),
            family=self,
        )
        processor.fixed("image_feature_size", query_num)
        processor.fixed("image_processor_type", "MiniCPMVImageProcessor")
        for key, text in _TEXT_KEYS.items():
            processor.fixed(key, text)
        processor.without_effect("version", *_AUDIO_KEYS)
        processor.finish()
        return result

    def as_json(self, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
        slicing = config.slicing
        top = {
            "model_type": self.model_types[0],
            "version": self.versions[0],
            "hidden_size": config.embed_dim,
            "query_num": config.query_num,
            "image_size": slicing.scale_resolution,
            "drop_vision_last_layer": config.drop_vision_last_layer,
            "vision_config": asdict(config.vision),
        }
        preprocessor = {
            "image_processor_type": "MiniCPMVImageProcessor",
            **{name: getattr(slicing, name) for name in ("max_slice_nums", "scale_resolution", "patch_size", "slice_mode")},
            "norm_mean": list(slicing.mean),
            "norm_std": list(slicing.std),
            "use_image_id": config.use_image_id,
            "image_feature_size": config.query_num,
        }
        return top, preprocessor

    def presets(self) -> Mapping[str, Config]:
        return {self.title: Config(**self.released, family=self)}

    def small(self) -> Config:
        slicing = SlicingConfig(scale_resolution=16, patch_size=4)
        return Config(vision=SMALL, slicing=slicing, query_num=4, embed_dim=128, family=self)

    def variants(self) -> Mapping[str, Config]:
        """Other sizes in each part: G of 27 and 12, no `kv_proj`, two heads in the resampler, levels of each channel's own."""
        base = self.small()
        varied = replace(
            base,
            vision=VisionConfig(32, 48, 3, 4, patch_size=4, image_size=108, layer_norm_eps=1e-3),
            slicing=SlicingConfig(20, 4, 4, **UNEVEN),
            query_num=3,
            embed_dim=256,
            drop_vision_last_layer=True,
            use_image_id=False,
        )
        wide = replace(SMALL, hidden_size=128, num_hidden_layers=1, num_attention_heads=4, patch_size=2, image_size=25)
        large = replace(SMALL, hidden_size=8, patch_size=14, image_size=980)
        return {
            "patch14": replace(base, vision=large, slicing=SlicingConfig(scale_resolution=56), query_num=2),
            "varied": varied,
            "same-width": replace(base, vision=wide, slicing=SlicingConfig(patch_size=2, slice_mode=False)),
        }

    def unread(self, config: Config) -> Sequence[str]:
        """The arrays of the layer that `drop_vision_last_layer` leaves out."""
        every, run = (tower_shapes(config, layers) for layers in (config.vision.num_hidden_layers, config.encoder_layers))
        return [name for name in every if name not in run]

    def slices(self, picture: Any, config: Config, rule: PixelRule) -> Slices:
        """The whole picture and its crops; with `slice_mode` false the picture as it is."""
        return (self.sliced if config.slicing.slice_mode else whole)(picture, config.slicing, rule)

    def placeholder(self, grid: Size | None, image_id: int | None, config: Config, tgt_sizes: Ids | None = None) -> str:
        """The text of one picture: its number, the whole of it, then rows of slices (SPEC 9)."""
        places = "<unk>" * config.query_num
        text = f"<image>{places}</image>"
        if image_id is not None and config.use_image_id:
            text = f"<image_id>{image_id}</image_id>{text}"
        if grid is None:
            return text
        columns, rows = grid
        return text + "\n".join([f"<slice>{places}</slice>" * columns] * rows)


def _read_slicing(config: Keys, processor: Keys) -> SlicingConfig:
    """preprocessor_config.json's values win over config.json's `slice_config`."""
    older = config.section("slice_config")
    names = {name: name for name in ("scale_resolution", "max_slice_nums", "patch_size")}
    sizes = config.given(scale_resolution="image_size") | older.given(**names) | processor.given(**names)
    older.without_effect("model_type")
    older.finish()
    sizes |= config.given(slice_mode="slice_mode") | processor.given(slice_mode="slice_mode")
    for name, other in (("mean", "image_mean"), ("std", "image_std")):
        spellings = processor.given(one=f"norm_{name}", two=other)
        if len(spellings) == 2 and spellings["one"] != spellings["two"]:
            raise ValueError(f"norm_{name} and {other} of preprocessor_config.json differ; one of them must go")
        for value in spellings.values():
            sizes[name] = value
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        processor.fixed(name, True)
    for name in ("do_center_crop", "do_pad"):
        processor.fixed(name, False)
    processor.fixed("resample", 3)
    processor.fixed("rescale_factor", 1 / 255, 0.00392156862745098)
    return SlicingConfig(**sizes)


_TEXT_KEYS = {
    "im_start": "<image>",
    "im_end": "</image>",
    "slice_start": "<slice>",
    "slice_end": "</slice>",
    "unk": "<unk>",
    "im_id_start": "<image_id>",
    "im_id_end": "</image_id>",
}
"""The words of the placeholder text, as every release has them."""

_AUDIO_KEYS = frozenset(
    """
    audio_pool_step chunk_length feature_extractor_type feature_size hop_length n_fft n_samples nb_max_frames
    padding_side padding_value return_attention_mask sampling_rate dither
    """.split()
)
"""What MiniCPM-o's preprocessor says of sound."""


_SAME_CODE = "the same code as MiniCPM-V 2.6"

FAMILIES: tuple[Family, ...] = (
    MiniCPMV("minicpm-v-2.6", "MiniCPM-V 2.6", "minicpmv", 2.6),
    MiniCPMV("minicpm-v-4.0", "MiniCPM-V 4.0", "minicpmv", 4.0, embed_dim=2560, checked=f"{_SAME_CODE}, other sizes"),
    MiniCPMV(
        "minicpm-v-4.5",
        "MiniCPM-V 4.5",
        "minicpmv",
        4.5,
        embed_dim=4096,
        frames=True,
        choice=IN_GROUPS,
        checked=f"{_OWN_CODE}; frames too",
    ),
    MiniCPMV("minicpm-o-2.6", "MiniCPM-o 2.6", "minicpmo", 2.6, checked=f"{_SAME_CODE}; pictures only"),
    MiniCPMV(
        "minicpm-o-4.5",
        "MiniCPM-o 4.5",
        "minicpmo",
        4.5,
        embed_dim=4096,
        choice=IN_GROUPS,
        checked=f"{_OWN_CODE}; pictures only",
    ),
)

MINICPM_V_2_6 = Config()
"""MiniCPM-V 2.6 (SPEC 1)."""
