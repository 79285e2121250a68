"""Phi-4-multimodal's pictures: a canvas of crops beside the whole, padding by a mask, separators, a two-layer map (SPEC 13.7).

A picture makes two slices: the whole of it, and the **canvas**, which is all its crops in their places. Upstream pads the
canvas with white at its right or lower end and masks the patches that hold nothing else. Here the canvas ends where
they begin, so its size is the mask, and crop (r, c) is its patches 32r to 32r+31 by 32c to 32c+31, as many as there
are. No patch attends to a masked one. But where the rows or columns are odd in number, the average over 2 x 2 patches
takes in the first masked ones. These are all alike: white at position 0. So the tower has one such patch more per crop,
and the hidden states an even number of rows and columns.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike

from npembed.families.keys import Json, Keys
from npembed.families.tower import UNEVEN
from npembed.records.config import FamilyConfig, SlicingConfig, VisionConfig, check_counts, check_kinds
from npembed.records.family import Family, Slices, Stage, Step
from npembed.records.model import Model, as_model, linear_shapes, norm_shapes
from npembed.steps.embeddings import embedding_shapes
from npembed.steps.encoder import layer_shapes, run_layer, tower_shapes
from npembed.steps.patches import picture_to_strip
from npembed.steps.pixels import PIXEL_RULES, PixelRule, fused_levels, resize_bytes
from npembed.steps.pixels.shrink import shrink_bicubic
from npembed.steps.pixels.strips import as_rgb_on_white, check_resize
from npembed.steps.positions import position_ids
from npembed.steps.stages import (
    BEFORE_THE_TOWER,
    EMBEDDINGS,
    INPUTS_EMBEDS_BY_COUNT,
    TOKEN_PLACES,
    as_bytes,
    hidden_stage,
    tokens_stage,
)
from npembed.support import arguments
from npembed.support.typing import Array, Floats, Ids, Pixels, Shapes, Size

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SIDE = 32
"""Patches along each side of a crop and of the whole; upstream counts 256 + 16 + 1 tokens for the whole, whatever its size."""

LEAST_PIXELS = 10
"""Of each side of the resized picture; upstream refuses less."""

CONNECTOR = "model.embed_tokens_extend.image_embed."
"""What the names of all the arrays of pictures begin with."""


@dataclass(frozen=True)
class Config(FamilyConfig):
    """Every size that the path from picture to vision tokens needs in Phi-4-multimodal; the release's by default.

    Attributes
    ----------
    vision : VisionConfig
    embed_dim : int
        E, the language model's hidden size.
    crop_size : int
        Pixels along each side of a crop; 32 patches.
    dynamic_hd : int
        Crops of a picture, at most.
    mean, std : tuple of 3 float
        Per channel, on the scale where black is 0 and white is 1.
    feature_layer : int
        Which hidden states the tower gives, of those before the first layer (0) and after each; from the end if negative.
    image_token_id : int
        Where vision tokens go in the text.
    family : Family

    Examples
    --------
    >>> Config().encoder_layers
    26
    """

    vision: VisionConfig = field(default_factory=lambda: VisionConfig(image_size=448))
    embed_dim: int = 3072
    crop_size: int = 448
    dynamic_hd: int = 36
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    feature_layer: int = -2
    image_token_id: int = 200010
    family: Family = field(default_factory=lambda: FAMILIES[0])

    def __post_init__(self) -> None:
        check_kinds(self)
        check_counts(self, ("embed_dim", "crop_size", "dynamic_hd"))
        arguments.as_count(self.image_token_id, "image_token_id", "Config", least=0)
        if self.crop_size != SIDE * self.vision.patch_size:
            raise ValueError(
                f"Config: crop_size must be {SIDE} patches of {self.vision.patch_size}, {SIDE * self.vision.patch_size}; "
                f"got {self.crop_size}"
            )
        scale = SlicingConfig(mean=self.mean, std=self.std)  # which checks them
        object.__setattr__(self, "mean", scale.mean)
        object.__setattr__(self, "std", scale.std)
        states = self.vision.num_hidden_layers + 1
        arguments.as_count(self.feature_layer, "feature_layer", "Config", least=-states, most=states - 1)
        if self.feature_layer == 0:
            raise ValueError("Config: feature_layer must not be 0, for which upstream's own code fails")

    @property
    def encoder_layers(self) -> int:
        """Layers that the encoder runs."""
        return self.feature_layer % (self.vision.num_hidden_layers + 1)


@dataclass(frozen=True)
class CanvasPlan:
    """What a picture of one size is resized to and padded to.

    Attributes
    ----------
    grid : (int, int)
        Columns and rows of crops.
    size : (int, int)
        Width and height of the resized picture, in pixels; the rest of the canvas is white.
    patches : (int, int)
        Rows and columns of patches of the canvas that are not masked.
    """

    grid: Size
    size: Size
    patches: Size


def plan_canvas(size: Size, config: Config) -> CanvasPlan:
    """(width, height) -> what upstream's image processor makes of a picture of that size.

    Raises
    ------
    ValueError
        A picture so long that one side of it would be below 10 pixels.

    Notes
    -----
    Source: SPEC 13.7.

    Examples
    --------
    >>> plan_canvas((640, 480), Config())
    CanvasPlan(grid=(2, 2), size=(896, 672), patches=(48, 64))
    """
    width, height = size
    unit, patch = config.crop_size, config.vision.patch_size
    columns, rows = grid = _grid(size, config)
    across, down = unit * columns / width, unit * rows / height
    resized = (unit * columns, int(height * across)) if across < down else (int(width * down), unit * rows)
    if min(resized) < LEAST_PIXELS:
        raise ValueError(
            f"slice_image: a picture of {size} would be resized to {resized}; each side must be at least {LEAST_PIXELS} pixels"
        )
    masked = ((unit * rows - resized[1]) // patch, (unit * columns - resized[0]) // patch)
    return CanvasPlan(grid, resized, (SIDE * rows - masked[0], SIDE * columns - masked[1]))


def _grid(size: Size, config: Config) -> Size:
    """(columns, rows) of crops that hold the picture as it is or, if they would be too many, that come nearest to its shape."""
    width, height = size
    unit, most = config.crop_size, config.dynamic_hd
    columns, rows = math.ceil(width / unit), math.ceil(height / unit)
    if columns * rows <= most:
        return columns, rows
    best, least = (1, 1), math.inf
    grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        gap = abs(width / height - columns / rows)
        if gap < least or (gap == least and width * height > 0.5 * unit * unit * columns * rows):
            best, least = (columns, rows), gap
    return best


def crop_ids(tgt_sizes: ArrayLike, config: Config, rule: str = "step") -> Ids:
    """(B, 2) -> int64 (B, Lmax): the row of the position table for every patch; each crop is numbered by itself."""
    sizes = arguments.as_tgt_sizes(tgt_sizes, "position_ids")
    side = config.vision.num_patches_per_side
    ids = np.zeros((len(sizes), sizes.prod(axis=1).max()), dtype=np.int64)
    for row, (h, w) in zip(ids, sizes.tolist(), strict=True):
        for places in crops((h, w)):
            row[places.ravel()] = position_ids([places.shape], side, rule)[0]
    return ids


def crops(size: Size) -> list[Ids]:
    """Rows and columns of a slice -> per crop, int64 (h, w): the places of its patches among the slice's.

    Examples
    --------
    >>> [places.shape for places in crops((33, 40))]
    [(32, 32), (32, 8), (1, 32), (1, 8)]
    """
    places = np.arange(size[0] * size[1]).reshape(size)
    return [places[r : r + SIDE, c : c + SIDE] for r in range(0, size[0], SIDE) for c in range(0, size[1], SIDE)]


def _with_masked(model: Model) -> Step:
    """The step (n, h*w, D) -> (n, h*w + number of crops, D): after a slice's patches, one masked patch per crop."""
    kernels, bias = model.pair(f"{model.tower}embeddings.patch_embedding")
    first = model.weights[f"{model.tower}embeddings.position_embedding.weight"][0]
    config = cast(Config, model.config)
    white = fused_levels(config.mean, config.std)[:, 255].astype(model.dtype)  # (C,)
    ops = model.ops
    masked = ops.add(ops.add(ops.product(ops.sum(kernels, axis=(2, 3)), white), bias), first)  # (D,)
    return lambda x, size: (np.concatenate([x, np.tile(masked, (len(x), len(crops(size)), 1))], axis=1), size)


def _layer(model: Model, layer: str) -> Step:
    """One layer, as a step: each crop's patches and its masked one, which attend to the patches alone."""

    def step(x: Floats, size: Size) -> tuple[Floats, Size]:
        result = np.empty_like(x)
        for number, places in enumerate(crops(size), start=size[0] * size[1]):
            rows = np.append(places, number)
            result[:, rows] = run_layer(x[:, rows], model, layer, attended=places.size)
        return result, size

    return step


def _fill_to_even(x: Floats, size: Size) -> tuple[Floats, Size]:
    """The step (n, h*w + number of crops, D) -> (n, h'*w', D), h' and w' even: what is beyond a crop's patches is masked."""
    h, w = size
    even = (h + h % 2, w + w % 2)
    taken = np.empty(even, dtype=np.int64)
    for number, whole in enumerate(crops(even)):
        r, c = divmod(int(whole[0, 0]), even[1])
        taken[r : r + SIDE, c : c + SIDE] = h * w + number
    taken[:h, :w] = np.arange(h * w).reshape(size)
    return x[:, taken.ravel()], even


def _even(tgt_sizes: Ids, config: Config) -> Ids:
    return tgt_sizes + tgt_sizes % 2


def _hidden_shapes(config: Config) -> Shapes:
    """Those of the embeddings too: a masked patch is made of them."""
    shapes = embedding_shapes(config)
    for number in range(config.encoder_layers):
        layer = f"{config.family.prefix}encoder.layers.{number}"
        shapes |= layer_shapes(layer, config.vision.hidden_size, config.vision.intermediate_size)
    return shapes


def assemble(hidden: ArrayLike, tgt_sizes: ArrayLike, model: Model) -> Floats:
    """(2N, K, D), (2N, 2) -> (N, Qmax, E): each picture's canvas, then the whole of it, as vision tokens.

    The mean of each 2 x 2 patches is a token, after each row of them stands a separator, and between the canvas and the
    whole another; all go through two linear maps with a gelu (the erf form) between.

    Parameters
    ----------
    hidden : float (2N, K, D)
        As `encode` gives them, with an even number of rows and columns.
    tgt_sizes : int (2N, 2)
        Rows and columns of patches per slice: of each picture the whole, 32 x 32, then the canvas.
    model : Model
        Its float type is the result's.

    Returns
    -------
    float32 or float64 (N, Qmax, E)
        Zeros where a picture has fewer tokens than another.

    Raises
    ------
    ValueError, TypeError
        A model without the connector's arrays; slices that do not make pictures; hidden states that do not fit.

    Notes
    -----
    Source: SPEC 13.7.

    Examples
    --------
    >>> from npembed import random_model
    >>> model = random_model(FAMILIES[0].small(), until="tokens")
    >>> assemble(np.ones((2, 1536, 16)), [[32, 32], [31, 48]], model).shape
    (1, 673, 24)
    """
    who = "assemble"
    as_model(model, who).require("tokens", who)
    sizes = arguments.as_tgt_sizes(tgt_sizes, who)
    config, ops = cast(Config, model.config), model.ops
    counts, even = _token_counts(sizes, config), _even(sizes, config)
    given = arguments.as_patches(hidden, "hidden", even, config.vision.hidden_size, who).astype(model.dtype, copy=False)
    between = model.weights[f"{CONNECTOR}global_img_feature_extensor"][0]  # (1, D)
    result = np.zeros((len(counts), counts.max(), config.embed_dim), dtype=model.dtype)
    for number, tokens in enumerate(result):
        whole, canvas = (_rows(given[b], even[b].tolist(), model) for b in (2 * number, 2 * number + 1))
        row = np.concatenate([canvas, between, whole])  # (Q, D)
        inner = ops.gelu_erf(ops.linear(row, *model.pair(f"{CONNECTOR}img_projection_up")))
        tokens[: len(row)] = ops.linear(inner, *model.pair(f"{CONNECTOR}img_projection_down"))
    return result


def _rows(places: Floats, size: Sequence[int], model: Model) -> Floats:
    """(K, D), even (h, w) -> (h/2 * (w/2 + 1), D): the means of 2 x 2 places, row by row, each row ended by the separator."""
    h, w = size
    means = places[: h * w].reshape(h // 2, 2, w // 2, 2, -1).mean(axis=(1, 3))  # (h/2, w/2, D)
    separator = model.weights[f"{CONNECTOR}sub_img_feature_extensor"][0, 0]  # (1, D)
    ends = np.broadcast_to(separator, (h // 2, *separator.shape))
    return np.concatenate([means, ends], axis=1).reshape(-1, means.shape[-1])


def _averaged_patches(tgt_sizes: Ids, config: Config) -> list[Ids]:
    """(2N, 2) -> per slice int64 (M, 4): the patches whose mean each of its tokens is; -1 for a separator, a masked one."""
    found = []
    for (h, w), (rows, columns) in zip(tgt_sizes.tolist(), _even(tgt_sizes, config).tolist(), strict=True):
        patches = np.full((rows, columns + 2), -1)  # a separator after each row of tokens
        patches[:h, :w] = np.arange(h * w).reshape(h, w)
        found.append(patches.reshape(rows // 2, 2, columns // 2 + 1, 2).swapaxes(1, 2).reshape(-1, 4))
    return found


def _token_counts(tgt_sizes: Ids, config: Config) -> Ids:
    """(2N, 2) -> (N,): the vision tokens of each picture; an error if the slices do not make pictures."""
    if len(tgt_sizes) % 2:
        raise ValueError(f"assemble: tgt_sizes must have two rows per picture, the whole and the canvas; got {len(tgt_sizes)}")
    for index, (h, w) in enumerate(tgt_sizes[::2].tolist()):
        if (h, w) != (SIDE, SIDE):
            raise ValueError(f"assemble: tgt_sizes[{2 * index}] is ({h}, {w}), but a picture's first slice is {SIDE} x {SIDE}")
    rows, columns = (_even(tgt_sizes, config) // 2).T
    return np.asarray((rows * (columns + 1)).reshape(-1, 2).sum(axis=1) + 1)


def _token_shapes(config: Config) -> Shapes:
    width, wide = config.vision.hidden_size, config.embed_dim
    shapes: Shapes = {f"{CONNECTOR}global_img_feature_extensor": (1, 1, width)}
    shapes[f"{CONNECTOR}sub_img_feature_extensor"] = (1, 1, 1, width)
    up = linear_shapes(f"{CONNECTOR}img_projection_up", wide, width)
    return shapes | up | linear_shapes(f"{CONNECTOR}img_projection_down", wide, wide)


def _text(tgt_sizes: Ids, config: Config) -> Array:
    return as_bytes(config.family.placeholder(None, None, config, tgt_sizes))


TEXT = Stage(
    name="text",
    function=_text,
    takes=("sliced_tgt_sizes", "config"),
    axes="(bytes,)",
    about="the text that stands for the picture, in UTF-8",
)


class Phi4Multimodal(Family):
    """Phi-4-multimodal."""

    key, title, model_types = "phi-4-multimodal", "Phi-4-multimodal", ("phi4_multimodal",)
    other_layouts = MappingProxyType(
        {
            "phi4mm": "the layout of the release's own code; the one that is read is that of the branch for transformers, "
            "phi4_multimodal: of the Hub, microsoft/Phi-4-multimodal-instruct@refs/pr/70"
        }
    )
    prefix = f"{CONNECTOR}img_processor."
    owns = (CONNECTOR,)
    rule = "step"
    pixel_rules = tuple(PIXEL_RULES)
    stages = (
        *BEFORE_THE_TOWER,
        EMBEDDINGS,
        hidden_stage(_hidden_shapes, _even),
        tokens_stage(assemble, _token_shapes, _token_counts, _averaged_patches),
        TEXT,
        TOKEN_PLACES,
        INPUTS_EMBEDS_BY_COUNT,
    )
    checked = (
        "transformers 5.23.0's processor and modules: sizes, ids and counts equal; pixels equal on x86-64 with AVX2 or "
        "AVX-512; floats within the promise, with attention as `eager` has it (`sdpa` is causal where nothing is masked)"
    )

    def read_config(self, top: Json, preprocessor: Json) -> Config:
        """The sizes that config.json and preprocessor_config.json state; what neither gives is the class's own default."""
        config, processor = Keys(top, "config.json"), Keys(preprocessor, "preprocessor_config.json")
        tower = config.section("vision_config")
        sizes = {"image_size": 448} | tower.given(**{f.name: f.name for f in fields(VisionConfig)})
        own = tower.given(crop_size="crop_size", feature_layer="feature_layer", image_token_id="image_token_id")
        tower.fixed("model_type", "phi4_multimodal_vision")
        tower.fixed("hidden_act", "gelu_pytorch_tanh")
        tower.fixed("use_hd_transform", True)
        tower.fixed("hd_transform_order", "sub_glb")
        tower.finish()
        own |= config.given(embed_dim="hidden_size")
        own |= processor.given(dynamic_hd="dynamic_hd") | processor.levels()
        result = Config(vision=VisionConfig(**sizes), family=self, **own)
        _read_processor(processor, result)
        return result

    def as_json(self, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
        own = {name: getattr(config, name) for name in ("crop_size", "feature_layer", "image_token_id")}
        vision = {"model_type": "phi4_multimodal_vision", **asdict(config.vision), **own}
        top = {"model_type": self.model_types[0], "hidden_size": config.embed_dim, "vision_config": vision}
        preprocessor = {
            "image_processor_type": "Phi4MultimodalImageProcessorFast",
            "dynamic_hd": config.dynamic_hd,
            "patch_size": config.vision.patch_size,
            "size": {"height": config.crop_size, "width": config.crop_size},
            "image_mean": list(config.mean),
            "image_std": list(config.std),
        }
        return top, preprocessor

    def presets(self) -> Mapping[str, Config]:
        return {"Phi-4-multimodal": Config(family=self)}

    def small(self) -> Config:
        vision = VisionConfig(16, 32, 3, 2, patch_size=2, image_size=54)
        return Config(vision=vision, embed_dim=24, crop_size=SIDE * 2, dynamic_hd=4, family=self)

    def variants(self) -> Mapping[str, Config]:
        """Other sizes in each part, levels of each channel's own."""
        vision = VisionConfig(32, 24, 4, 4, patch_size=2, image_size=140, layer_norm_eps=1e-3)
        return {"varied": Config(vision=vision, embed_dim=20, crop_size=SIDE * 2, dynamic_hd=6, **UNEVEN, family=self)}

    def unread(self, config: Config) -> Sequence[str]:
        """What a checkpoint saves of the tower and upstream never uses for pictures: later layers, the last norm, the head."""
        head, width = f"{self.prefix}head", config.vision.hidden_size
        names = {f"{head}.probe", f"{head}.attention.in_proj_weight", f"{head}.attention.in_proj_bias"}
        names |= set(tower_shapes(config, config.vision.num_hidden_layers)) - set(_hidden_shapes(config))
        names |= set(norm_shapes(f"{head}.layernorm", width))
        for name in ("attention.out_proj", "mlp.fc1", "mlp.fc2"):
            names |= set(linear_shapes(f"{head}.{name}", width, width))
        return sorted(names)

    def slices(self, image: "Picture | Pixels", config: Config, rule: PixelRule) -> Slices:
        """A picture -> the whole of it and its canvas, which ends where upstream's mask begins.

        The whole is made of the canvas with its padding, after normalising. Its pixels are the same under every rule.
        """
        picture = as_rgb_on_white(image)
        plan = plan_canvas(picture.size, config)
        columns, rows = plan.grid
        canvas = np.full((config.crop_size * rows, config.crop_size * columns, 3), 255, dtype=np.uint8)
        check_resize(picture.size, plan.size)
        canvas[: plan.size[1], : plan.size[0]] = resize_bytes(np.asarray(picture), plan.size)
        pixels = np.stack(
            [np.take(*pair) for pair in zip(fused_levels(config.mean, config.std), canvas.transpose(2, 0, 1), strict=True)]
        )  # (3, H, W)
        patch = config.vision.patch_size
        shown = pixels[:, : plan.patches[0] * patch, : plan.patches[1] * patch]
        strips = [picture_to_strip(array, patch) for array in (shrink_bicubic(pixels, columns, rows), shown)]
        scale = np.tile(np.divide(picture.size, plan.size), 2)  # from a pixel of the canvas to one of the picture
        boxes = [[0, 0, canvas.shape[1], canvas.shape[0]], [0, 0, shown.shape[2], shown.shape[1]]]
        return Slices(strips, np.array([(SIDE, SIDE), plan.patches]), np.array(boxes) * scale, plan.grid)

    def position_ids(self, tgt_sizes: Ids, config: Config, rule: str) -> Ids:
        """Crop by crop: see `crop_ids`."""
        return crop_ids(tgt_sizes, config, rule)

    def tower(self, model: Model) -> Sequence[Step]:
        """The layers up to `feature_layer`, crop by crop, with no norm after them; before them a masked patch for each crop."""
        layers = [f"{model.tower}encoder.layers.{number}" for number in range(cast(Config, model.config).encoder_layers)]
        return [_with_masked(model), *(_layer(model, layer) for layer in layers), _fill_to_even]

    def groups(self, size: Size) -> Sequence[Ids]:
        """The crops."""
        return crops(size)

    def case_sizes(self, sizes: Sequence[Size], config: Config) -> Sequence[Size]:
        """The whole and the canvas of a picture of each size, but of two at most, because each whole is large."""
        return [size for canvas in sizes[-2:] for size in ((SIDE, SIDE), canvas)]

    def placeholder(self, grid: Size | None, image_id: int | None, config: Config, tgt_sizes: Ids | None = None) -> str:
        """The text of one picture: a word per vision token. The grid does not say how many."""
        if image_id is not None:
            raise ValueError(f"image_placeholder: a text of Phi-4-multimodal has no picture's number; got image_id {image_id}")
        if tgt_sizes is None:
            raise ValueError(
                "image_placeholder: tgt_sizes is needed; they say how many tokens a picture of Phi-4-multimodal takes"
            )
        return "<|image|>" * int(_token_counts(tgt_sizes, config).sum())


def _read_processor(processor: Keys, config: Config) -> None:
    """What must be as the tower has it, or as upstream's processor always has it."""
    size = processor.section("size")
    for key in ("height", "width"):
        size.fixed(key, config.crop_size, absent=config.crop_size == 448)  # the class's own default
    size.finish()
    processor.fixed("patch_size", config.vision.patch_size, absent=config.vision.patch_size == 14)
    for key in ("do_rescale", "do_normalize", "do_convert_rgb"):
        processor.fixed(key, True)
    processor.fixed("resample", 3)
    processor.fixed("rescale_factor", 1 / 255, 0.00392156862745098)
    processor.fixed("image_processor_type", "Phi4MultimodalImageProcessor", "Phi4MultimodalImageProcessorFast")
    processor.without_effect(*_IDLE_KEYS, *_AUDIO_KEYS)
    processor.finish()


_IDLE_KEYS = (
    "crop_size",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_center_crop",
    "do_pad",
    "do_resize",
    "input_data_format",
    "return_tensors",
)
"""What earlier releases of the processor save, and it never reads."""

_AUDIO_KEYS = (
    "audio_compression_rate",
    "audio_downsample_rate",
    "audio_feat_stride",
    "feature_extractor_type",
    "feature_size",
    "hop_length",
    "mel_max_frequency",
    "mel_min_frequency",
    "n_fft",
    "padding_side",
    "padding_value",
    "preemphasis",
    "return_attention_mask",
    "sampling_rate",
    "win_length",
)
"""What the preprocessor says of sound."""


FAMILIES: tuple[Family, ...] = (Phi4Multimodal(),)
