"""MiniCPM-V 2.6, 4.0 and 4.5, MiniCPM-o 2.6 and 4.5: slices, position ids by `arange`, a SigLIP tower, a resampler."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from npembed.config import FamilyConfig, SlicingConfig, VisionConfig, check_counts
from npembed.encoder import post_layernorm, tower_layers, tower_shapes
from npembed.families import cutting
from npembed.families.gguf import tower_names
from npembed.families.keys import Json, Keys
from npembed.family import Family, GgufNames, Slices, Step
from npembed.model import Model
from npembed.positions import position_ids
from npembed.resampler import HEAD_DIM, resample, resampler_shapes
from npembed.stages import (
    BUCKETED_IDS,
    EMBEDDINGS,
    IMAGE_BOUND,
    INPUTS_EMBEDS,
    TEXT,
    TO_THE_MASK,
    hidden_stage,
    tokens_stage,
)
from npembed.typing import Ids, Shapes, Size
from npembed.words import brief


@dataclass(frozen=True)
class Config(FamilyConfig):
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
    family: Family = field(default_factory=lambda: _default_family())

    def __post_init__(self) -> None:
        kinds = {"vision": VisionConfig, "slicing": SlicingConfig, "family": Family}
        kinds |= {"drop_vision_last_layer": bool, "use_image_id": bool}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"Config: {name} must be a {kind.__name__}; got {brief(getattr(self, name))}")
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


def read_config(top: Json, preprocessor: Json, family: Family) -> Config:
    """The sizes that config.json and preprocessor_config.json state; what neither gives is the release's own (SPEC 1, 13)."""
    released = next(iter(family.presets(family).values()))
    config, processor = Keys(top, "config.json"), Keys(preprocessor, "preprocessor_config.json")
    vision = _read_vision(config.section("vision_config"))
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
        family=family,
    )
    processor.fixed("image_feature_size", query_num)
    processor.fixed("image_processor_type", "MiniCPMVImageProcessor")
    for key, text in _TEXT_KEYS.items():
        processor.fixed(key, text)
    processor.without_effect("version", *_AUDIO_KEYS)
    processor.finish()
    return result


def as_json(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and preprocessor_config.json of that config, as `read_config` reads them."""
    family, slicing = config.family, config.slicing
    top = {
        "model_type": family.model_types[0],
        "version": family.versions[0],
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


def _read_vision(keys: Keys) -> VisionConfig:
    sizes = keys.given(**{f.name: f.name for f in fields(VisionConfig)})
    keys.fixed("hidden_act", "gelu_pytorch_tanh")
    keys.without_effect("model_type", "attention_dropout", "_flash_attn_2_enabled", "_attn_implementation")
    keys.finish()
    return VisionConfig(**sizes)


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
    processor.fixed("do_resize", True)
    processor.fixed("do_rescale", True)
    processor.fixed("do_normalize", True)
    processor.fixed("do_convert_rgb", True)
    processor.fixed("do_center_crop", False)
    processor.fixed("do_pad", False)
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


def cut(picture: Any, config: Config) -> Slices:
    """The whole picture and its crops; with `slice_mode` false the picture as it is."""
    return cutting.cut(picture, config.slicing) if config.slicing.slice_mode else cutting.whole(picture, config.slicing)


def placeholder(grid: Size | None, image_id: int | None, config: Config, tgt_sizes: Ids | None = None) -> str:
    """The text of one picture: its number, the whole of it, then rows of slices (SPEC 9)."""
    places = "<unk>" * config.query_num
    text = f"<image>{places}</image>"
    if image_id is not None and config.use_image_id:
        text = f"<image_id>{image_id}</image_id>{text}"
    if grid is None:
        return text
    columns, rows = grid
    return text + "\n".join([f"<slice>{places}</slice>" * columns] * rows)


def tower(model: Model) -> Sequence[Step]:
    """Every layer that is not left out, then the last norm (SPEC 7)."""
    return [*tower_layers(model, range(_config(model).encoder_layers)), post_layernorm(model)]


def _config(model: Model) -> Config:
    assert isinstance(model.config, Config)
    return model.config


def _hidden_shapes(config: Config) -> Shapes:
    return tower_shapes(config, config.encoder_layers)


def _token_counts(tgt_sizes: Ids, config: Config) -> Ids:
    return np.full(len(tgt_sizes), config.query_num, dtype=np.int64)


def _dropped_layer(config: Config) -> Sequence[str]:
    """The arrays of the layer that `drop_vision_last_layer` leaves out."""
    every = tower_shapes(config, config.vision.num_hidden_layers)
    run = _hidden_shapes(config)
    return [name for name in every if name not in run]


HIDDEN = hidden_stage(_hidden_shapes)
TOKENS = tokens_stage(resample, resampler_shapes, _token_counts, "resample")

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

_SMALL = VisionConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=4, image_size=280
)


def _small(family: Family) -> Config:
    slicing = SlicingConfig(scale_resolution=16, patch_size=4)
    return Config(vision=_SMALL, slicing=slicing, query_num=4, embed_dim=128, family=family)


def _variants(family: Family) -> Mapping[str, Config]:
    """Other sizes in each part: G of 27 and 12, no `kv_proj`, two heads in the resampler, levels of each channel's own."""
    base = _small(family)
    varied = replace(
        base,
        vision=VisionConfig(32, 48, 3, 4, patch_size=4, image_size=108, layer_norm_eps=1e-3),
        slicing=SlicingConfig(20, 4, 4, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)),
        query_num=3,
        embed_dim=256,
        drop_vision_last_layer=True,
        use_image_id=False,
    )
    wide = replace(_SMALL, hidden_size=128, num_hidden_layers=1, num_attention_heads=4, patch_size=2, image_size=25)
    large = replace(_SMALL, hidden_size=8, patch_size=14, image_size=980)
    return {
        "patch14": replace(base, vision=large, slicing=SlicingConfig(scale_resolution=56), query_num=2),
        "varied": varied,
        "same-width": replace(base, vision=wide, slicing=SlicingConfig(patch_size=2, slice_mode=False)),
    }


def _family(
    key: str,
    title: str,
    model_type: str,
    versions: tuple[float, ...],
    embed_dim: int,
    checked: str,
    frames: bool = False,
) -> Family:
    return Family(
        key=key,
        title=title,
        model_types=(model_type,),
        versions=versions,
        read_config=read_config,
        cuts_by_config=True,
        as_json=as_json,
        presets=lambda family: {title: Config(embed_dim=embed_dim, family=family)},
        small=_small,
        variants=_variants,
        prefix="vpm.",
        owns=("vpm.", "resampler."),
        unread=_dropped_layer,
        cut=cut,
        position_ids=lambda tgt_sizes, config, rule: position_ids(tgt_sizes, config.vision.num_patches_per_side, rule),
        tower=tower,
        frames=frames,
        placeholder=placeholder,
        gguf=GGUF,
        stages=(*TO_THE_MASK, BUCKETED_IDS, EMBEDDINGS, HIDDEN, TOKENS, TEXT, IMAGE_BOUND, INPUTS_EMBEDS),
        checked=checked,
    )


_OWN_CODE = "the release's own processor and modules: sizes, pixels, ids and text equal, floats within the promise"

FAMILIES: tuple[Family, ...] = (
    _family("minicpm-v-2.6", "MiniCPM-V 2.6", "minicpmv", (2.6,), 3584, _OWN_CODE),
    _family("minicpm-v-4.0", "MiniCPM-V 4.0", "minicpmv", (4.0,), 2560, "the same code as MiniCPM-V 2.6, other sizes"),
    _family("minicpm-v-4.5", "MiniCPM-V 4.5", "minicpmv", (4.5,), 4096, _OWN_CODE + "; frames too", frames=True),
    _family("minicpm-o-2.6", "MiniCPM-o 2.6", "minicpmo", (2.6,), 3584, "the same code as MiniCPM-V 2.6; pictures only"),
    _family("minicpm-o-4.5", "MiniCPM-o 4.5", "minicpmo", (4.5,), 4096, _OWN_CODE + "; pictures only"),
)


def _default_family() -> Family:
    return FAMILIES[0]


MINICPM_V_2_6 = Config()
"""MiniCPM-V 2.6 (SPEC 1)."""
