"""Idefics2: pictures of any aspect (in quarters too), a SigLIP tower, a gated map and a perceiver with grouped heads."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from npembed.families import idefics
from npembed.families.idefics import FAKE, PLACE, TEXT, Idefics
from npembed.families.keys import Json, Keys
from npembed.families.tower import SMALL, UNEVEN
from npembed.records.config import FamilyConfig, VisionConfig, check_counts, check_kinds, check_levels
from npembed.records.family import Family, Slices
from npembed.records.model import Model, as_model
from npembed.steps.pixels import PixelRule
from npembed.steps.pixels.strips import as_rgb, as_rgb_on_white
from npembed.steps.stages import BEFORE_THE_TOWER, EMBEDDINGS, HIDDEN, INPUTS_EMBEDS_BY_COUNT, TOKEN_PLACES, tokens_stage
from npembed.support import arguments
from npembed.support.messages import brief
from npembed.support.typing import Floats, Ids, Pixels, Shapes, Size

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_EDGE = 2**14
"""Of either edge: far above every model, and far below what would only fail after long work."""

FILTER, BILINEAR = "BILINEAR", 2
"""Pillow's name of the filter, and its number in preprocessor_config.json."""

PROCESSOR = "Idefics2ImageProcessor"


@dataclass(frozen=True)
class SizingConfig:
    """How a picture is resized and normalised, named as in preprocessor_config.json; the class's own defaults.

    Attributes
    ----------
    shortest_edge, longest_edge : int
        Of `size`, in pixels: the longer side is at most `longest_edge`, then each side at least `shortest_edge`.
    mean, std : (float, float, float)
        Per channel, on the scale where black is 0 and white is 1.
    do_image_splitting : bool
        Whether the picture's quarters come before the whole.
    """

    shortest_edge: int = 378
    longest_edge: int = 980
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    do_image_splitting: bool = False

    def __post_init__(self) -> None:
        for name in ("shortest_edge", "longest_edge"):
            arguments.as_count(getattr(self, name), name, "SizingConfig", most=MAX_EDGE)
        check_levels(self)
        if not isinstance(self.do_image_splitting, bool):
            raise TypeError(f"SizingConfig: do_image_splitting must be true or false; got {brief(self.do_image_splitting)}")


@dataclass(frozen=True)
class PerceiverConfig:
    """Sizes of the perceiver, named as in config.json's `perceiver_config`; the class's own defaults."""

    resampler_n_latents: int = 64
    resampler_depth: int = 3
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    num_key_value_heads: int = 4
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_counts(self, tuple(f.name for f in fields(self) if f.name != "rms_norm_eps"))
        if self.resampler_n_heads % self.num_key_value_heads:
            raise ValueError(
                f"PerceiverConfig: resampler_n_heads {self.resampler_n_heads} must be a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if isinstance(self.rms_norm_eps, bool) or not isinstance(self.rms_norm_eps, (int, float)):
            raise TypeError(f"PerceiverConfig: rms_norm_eps must be a number; got {brief(self.rms_norm_eps)}")
        if not 0 < self.rms_norm_eps < 1:
            raise ValueError(f"PerceiverConfig: rms_norm_eps must lie between 0 and 1; got {self.rms_norm_eps}")


@dataclass(frozen=True)
class Idefics2Config(FamilyConfig):
    """Every size that the path from picture to vision tokens needs in Idefics2.

    Attributes
    ----------
    vision : VisionConfig
    sizing : SizingConfig
    perceiver : PerceiverConfig
    embed_dim : int
        E, the language model's hidden size and the perceiver's.
    intermediate_size : int
        The language model's, which the gated map takes too.
    family : Family
    """

    vision: VisionConfig
    sizing: SizingConfig
    perceiver: PerceiverConfig
    embed_dim: int
    intermediate_size: int
    family: Family

    def __post_init__(self) -> None:
        check_kinds(self, sizing=SizingConfig, perceiver=PerceiverConfig)
        check_counts(self, ("embed_dim", "intermediate_size"))


_DEFAULT_VISION = VisionConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=224, patch_size=32
)
"""What the vision_config of a model_type idefics2 leaves out."""


def resized_size(size: Size, sizing: SizingConfig) -> Size:
    """(width, height) -> those that a picture of that size is resized to.

    Notes
    -----
    Source: SPEC 13.5.

    Examples
    --------
    >>> [resized_size(size, SizingConfig()) for size in [(1960, 1000), (3000, 10), (400, 500)]]
    [(980, 500), (980, 378), (400, 500)]
    """
    width, height = (
        arguments.as_count(side, name, "resized_size") for side, name in zip(size, ("width", "height"), strict=True)
    )
    aspect, longest = width / height, sizing.longest_edge
    if width >= height and width > longest:
        width, height = longest, int(longest / aspect)
    elif height > width and height > longest:
        width, height = int(longest * aspect), longest
    return max(width, sizing.shortest_edge), max(height, sizing.shortest_edge)


def _quarters(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of each, row by row; an odd pixel goes to the right or the lower one."""
    if min(width, height) < 2:
        raise ValueError(f"slice_image: a picture that is split into quarters needs 2 x 2 pixels; got {width} x {height}")
    x, y = width // 2, height // 2
    return [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]


def _resized(pixels: Pixels, sizing: SizingConfig, rule: PixelRule) -> Pixels:
    piece = as_rgb(np.ascontiguousarray(pixels))
    return rule.resize(piece, resized_size(piece.size, sizing), FILTER)


def gated(x: Floats, model: Model, name: str) -> Floats:
    """(L, K) -> (L, N): down(silu(gate(x)) * up(x)), with silu(y) = y / (1 + exp(-y)); no biases."""
    ops = model.ops
    gate, up, down = (model.weights[f"{name}.{part}_proj.weight"].T for part in ("gate", "up", "down"))
    opened = ops.silu(ops.product(x, gate))
    ops.multiply(opened, ops.product(x, up), out=opened)
    return ops.product(opened, down)


def perceive(hidden: ArrayLike, tgt_sizes: ArrayLike, model: Model) -> Floats:
    """(B, Lmax, D), (B, 2) -> (B, Q, E): the vision tokens of each slice.

    Parameters
    ----------
    hidden : float (B, Lmax, D)
        As `encode` gives them. Lmax may exceed the largest h*w; what is in padded places is not read.
    tgt_sizes : int (B, 2)
        Rows and columns of patches per slice, of any size.
    model : Model
        Its float type is the result's.

    Returns
    -------
    float32 or float64 (B, Q, E)
        Q is `resampler_n_latents`.

    Raises
    ------
    ValueError, TypeError
        A model without the connector's arrays; hidden states that do not fit the model or tgt_sizes, with the slice.

    Notes
    -----
    Source: SPEC 13.5. A NaN stays in its slice.

    Examples
    --------
    >>> from npembed import FAMILIES, random_model
    >>> tiny = random_model(FAMILIES["idefics2"].small(), until="tokens")
    >>> perceive(np.ones((2, 6, 16)), [[2, 3], [1, 4]], tiny).shape
    (2, 4, 24)
    """
    who = "perceive"
    as_model(model, who).require("tokens", who, reads=f"{_PERCEIVER}.latents")
    config: Any = model.config
    sizes = arguments.as_tgt_sizes(tgt_sizes, who)
    given = arguments.as_patches(hidden, "hidden", sizes, config.vision.hidden_size, who)
    learned = model.weights[f"{_PERCEIVER}.latents"]  # (Q, E), the same for each slice
    result = np.empty((len(sizes), *learned.shape), dtype=model.dtype)
    for tokens, patches, (h, w) in zip(result, given, sizes.tolist(), strict=True):
        context = gated(patches[: h * w].astype(model.dtype, copy=False), model, _GATED)  # (L, E)
        latents = learned
        for number in range(config.perceiver.resampler_depth):
            latents = _perceiver_layer(latents, context, model, f"{_PERCEIVER}.layers.{number}")
        tokens[:] = model.ops.rms_norm(latents, model.weights[f"{_PERCEIVER}.norm.weight"], config.perceiver.rms_norm_eps)
    return result


def _perceiver_layer(latents: Floats, context: Floats, model: Model, layer: str) -> Floats:
    """(Q, E), (L, E) -> (Q, E): latents + attention to context and latents, and to that + mlp(norm(it))."""
    config: Any = model.config
    family, perceiver, weights, ops = config.family, config.perceiver, model.weights, model.ops
    normed = ops.rms_norm(latents, weights[f"{layer}.input_latents_norm.weight"], perceiver.rms_norm_eps)
    looked_at = ops.rms_norm(context, weights[f"{layer}.input_context_norm.weight"], perceiver.rms_norm_eps)
    looked_at = np.concatenate([looked_at, normed])  # (L + Q, E)
    q, k, v, o = (weights[f"{layer}.self_attn.{name}_proj.weight"].T for name in "qkvo")
    queries = ops.product(normed, q)
    keys, values = (family.for_every_head(ops.product(looked_at, each), perceiver) for each in (k, v))
    attended = ops.attend(queries, keys, values, perceiver.resampler_n_heads)
    latents = ops.add(latents, ops.product(attended, o))
    normed = ops.rms_norm(latents, weights[f"{layer}.post_attention_layernorm.weight"], perceiver.rms_norm_eps)
    return ops.add(latents, gated(normed, model, f"{layer}.mlp"))


_GATED = "model.connector.modality_projection"
_PERCEIVER = "model.connector.perceiver_resampler"


def _gated_shapes(name: str, width: int, inner: int, out: int) -> Shapes:
    return {
        f"{name}.gate_proj.weight": (inner, width),
        f"{name}.up_proj.weight": (inner, width),
        f"{name}.down_proj.weight": (out, inner),
    }


def _connector_shapes(config: Any) -> Shapes:
    perceiver, wide = config.perceiver, config.embed_dim
    every, shared = (
        heads * perceiver.resampler_head_dim for heads in (perceiver.resampler_n_heads, perceiver.num_key_value_heads)
    )
    shapes = _gated_shapes(_GATED, config.vision.hidden_size, config.intermediate_size, wide)
    shapes |= {f"{_PERCEIVER}.latents": (perceiver.resampler_n_latents, wide), f"{_PERCEIVER}.norm.weight": (wide,)}
    for number in range(perceiver.resampler_depth):
        layer = f"{_PERCEIVER}.layers.{number}"
        for norm in ("input_latents_norm", "input_context_norm", "post_attention_layernorm"):
            shapes[f"{layer}.{norm}.weight"] = (wide,)
        for name, rows in (("q", every), ("k", shared), ("v", shared)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, wide)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (wide, every)
        shapes |= _gated_shapes(f"{layer}.mlp", wide, 4 * wide, wide)
    return shapes


def _token_counts(tgt_sizes: Ids, config: Any) -> Ids:
    return np.full(len(tgt_sizes), config.perceiver.resampler_n_latents, dtype=np.int64)


class Idefics2(Idefics):
    """Idefics2."""

    key, title, model_types = "idefics2", "Idefics2", ("idefics2",)
    stages = (
        *BEFORE_THE_TOWER,
        EMBEDDINGS,
        HIDDEN,
        tokens_stage(perceive, _connector_shapes, _token_counts),
        TEXT,
        TOKEN_PLACES,
        INPUTS_EMBEDS_BY_COUNT,
    )

    def read_config(self, top: Json, preprocessor: Json) -> Idefics2Config:
        """The sizes that config.json and preprocessor_config.json give; else the class's own default (SPEC 13.5)."""
        config, processor = Keys(top, "config.json"), Keys(preprocessor, "preprocessor_config.json")
        vision = idefics.read_vision(config.section("vision_config"), _DEFAULT_VISION)
        sizes = idefics.read_pixels(processor, BILINEAR, PROCESSOR)
        sizes |= idefics.read_edges(processor, "size", "shortest_edge", "longest_edge")
        processor.finish()
        text = config.section("text_config")
        text.fixed("hidden_act", "silu")
        embed_dim = idefics.text_value(text, "hidden_size", "mistral", 4096)
        return Idefics2Config(
            vision=vision,
            sizing=SizingConfig(**sizes),
            perceiver=_read_perceiver(config, text, embed_dim),
            embed_dim=embed_dim,
            intermediate_size=idefics.text_value(text, "intermediate_size", "mistral", 14336),
            family=self,
        )

    def as_json(self, config: Idefics2Config) -> tuple[dict[str, Any], dict[str, Any]]:
        sizing = config.sizing
        top = {
            "model_type": self.model_types[0],
            "text_config": {
                "model_type": "mistral",
                "hidden_size": config.embed_dim,
                "intermediate_size": config.intermediate_size,
            },
            "vision_config": asdict(config.vision),
            "perceiver_config": asdict(config.perceiver) | {"hidden_size": config.embed_dim},
        }
        preprocessor = idefics.pixel_json(PROCESSOR, BILINEAR, sizing) | {
            "size": {"shortest_edge": sizing.shortest_edge, "longest_edge": sizing.longest_edge}
        }
        return top, preprocessor

    def presets(self) -> Mapping[str, Idefics2Config]:
        vision = VisionConfig()  # SigLIP so400m with a table of 70 x 70, as MiniCPM-V 2.6's
        sizing = SizingConfig(do_image_splitting=True)
        return {"Idefics2 8B": Idefics2Config(vision, sizing, PerceiverConfig(), 4096, 14336, self)}

    def small(self) -> Idefics2Config:
        perceiver = PerceiverConfig(
            resampler_n_latents=4, resampler_depth=2, resampler_n_heads=4, resampler_head_dim=6, num_key_value_heads=2
        )
        return Idefics2Config(SMALL, SizingConfig(shortest_edge=14, longest_edge=50), perceiver, 24, 20, self)

    def variants(self) -> Mapping[str, Idefics2Config]:
        """Other sizes in each part, quarters, levels of each channel's own."""
        vision = VisionConfig(32, 24, 3, 4, patch_size=4, image_size=108, layer_norm_eps=1e-3)
        sizing = SizingConfig(20, 60, **UNEVEN, do_image_splitting=True)
        perceiver = PerceiverConfig(3, 3, 6, 8, num_key_value_heads=3, rms_norm_eps=1e-3)
        return {"varied": Idefics2Config(vision, sizing, perceiver, 20, 36, self)}

    def slices(self, image: "Picture | Pixels", config: Idefics2Config, rule: PixelRule) -> Slices:
        """A picture -> its quarters, row by row, if it is split, then the whole of it, each resized by itself.

        A slice holds the patches all of whose pixels the picture fills: on the model's canvas the others are masked.

        Notes
        -----
        Source: SPEC 13.5; equal to `Idefics2ImageProcessorPil`, which lays alpha on white. `Idefics2Processor`, which writes
        the text too, first turns a picture upright by its EXIF and drops its alpha, so it differs for such pictures.
        """
        sizing = config.sizing
        pixels = np.asarray(as_rgb_on_white(image))
        height, width = pixels.shape[:2]
        corners = [*(_quarters(width, height) if sizing.do_image_splitting else []), (0, 0, width, height)]
        pieces = [_resized(pixels[top:bottom, left:right], sizing, rule) for left, top, right, bottom in corners]
        kept = idefics.counting_pieces(pieces, sizing, rule, self.title)
        patch_size = config.vision.patch_size
        strips, sizes = zip(*(idefics.whole_patches(pieces[n], patch_size, sizing, rule) for n in kept), strict=True)
        tgt_sizes = np.array(sizes, dtype=np.int64)
        boxes = np.array([corners[number] for number in kept], dtype=np.float64)
        for box, (h, w), number in zip(boxes, sizes, kept, strict=True):
            seen = np.array([w, h]) * patch_size / pieces[number].shape[1::-1]  # of the piece, by the patches
            box[2:] = box[:2] + (box[2:] - box[:2]) * seen
        return Slices(list(strips), tgt_sizes, boxes, (2, 2) if sizing.do_image_splitting else None)

    def for_every_head(self, x: Floats, perceiver: PerceiverConfig) -> Floats:
        """(L, kv heads * d) -> (L, heads * d): each head of keys or values, once for each query head that shares it."""
        heads = x.reshape(len(x), perceiver.num_key_value_heads, perceiver.resampler_head_dim)
        repeated = heads.repeat(perceiver.resampler_n_heads // perceiver.num_key_value_heads, axis=1)
        return repeated.reshape(len(x), -1)

    def placeholder(self, grid: Size | None, image_id: int | None, config: Idefics2Config, tgt_sizes: Ids | None = None) -> str:
        """The text of one picture: its places between two marks; five times when split, with one mark between two of them.

        In a text with pictures next to each other, the two marks between them are one too.
        """
        idefics.refuse_image_id(image_id, self.title)
        if grid not in (None, (2, 2)):
            raise ValueError(f"image_placeholder: grid must be (2, 2) or None: {self.title} splits in quarters; got {grid}")
        places = PLACE * config.perceiver.resampler_n_latents
        return FAKE + f"{places}{FAKE}" * (1 if grid is None else 5)


def _read_perceiver(config: Keys, text: Keys, embed_dim: int) -> PerceiverConfig:
    """Where its hidden_size is not the language model's, its hidden_size and its eps are taken from there."""
    keys = config.section("perceiver_config")
    sizes = keys.given(**{f.name: f.name for f in fields(PerceiverConfig)})
    if keys.value("hidden_size", 4096) != embed_dim:
        absent = config.content.get("text_config") is None
        default = 1e-5 if absent else 1e-6  # a text_config that is not there is one with an eps of its own
        sizes["rms_norm_eps"] = idefics.text_value(text, "rms_norm_eps", "mistral", default)
    keys.fixed("hidden_act", "silu")
    keys.without_effect("model_type")
    keys.finish()
    return PerceiverConfig(**sizes)


FAMILIES: tuple[Family, ...] = (Idefics2(),)
