"""Idefics3, SmolVLM and SmolVLM2: tiles of one size and the whole picture, a SigLIP tower, a pixel shuffle and a linear map."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from npembed.families import idefics
from npembed.families.gguf import tower_names
from npembed.families.idefics import FAKE, PLACE, TEXT, Idefics
from npembed.families.keys import Json, Keys
from npembed.families.tower import SMALL, UNEVEN
from npembed.records.config import MAX_SIZE, FamilyConfig, VisionConfig, check_counts, check_kinds, check_levels
from npembed.records.family import Family, GgufNames, Slices
from npembed.records.model import Model, as_model
from npembed.steps.pixels import PixelRule
from npembed.steps.pixels.strips import as_rgb, as_rgb_on_white, cells
from npembed.steps.stages import BEFORE_THE_TOWER, EMBEDDINGS, HIDDEN, INPUTS_EMBEDS_BY_COUNT, TOKEN_PLACES, tokens_stage
from npembed.steps.video.choices import SPREAD
from npembed.support import arguments
from npembed.support.messages import brief
from npembed.support.typing import Floats, Ids, Pixels, Shapes, Size

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_PICTURE = 4096
"""No side of a picture is longer after the first resize."""

MAX_TAGS = 6
"""Rows and columns of tiles that the vocabularies have tags for."""

FILTER, LANCZOS = "LANCZOS", 1
"""Pillow's name of the filter, and its number in preprocessor_config.json."""


@dataclass(frozen=True)
class TilingConfig:
    """How a picture is cut into tiles and normalised, named as in preprocessor_config.json; the class's own defaults.

    Attributes
    ----------
    longest_edge : int
        The longer side after the first resize, in pixels: `size.longest_edge`.
    max_image_size : int
        t, the side of a tile, in pixels: `max_image_size.longest_edge`.
    mean, std : (float, float, float)
        Per channel, on the scale where black is 0 and white is 1.
    do_image_splitting : bool
        Without it there is one tile, the whole picture.
    """

    longest_edge: int = 1456
    max_image_size: int = 364
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    do_image_splitting: bool = True

    def __post_init__(self) -> None:
        arguments.as_count(self.longest_edge, "longest_edge", "TilingConfig", most=MAX_SIZE)
        arguments.as_count(self.max_image_size, "max_image_size", "TilingConfig", most=MAX_PICTURE)
        check_levels(self)
        if not isinstance(self.do_image_splitting, bool):
            raise TypeError(f"TilingConfig: do_image_splitting must be true or false; got {brief(self.do_image_splitting)}")


@dataclass(frozen=True)
class Idefics3Config(FamilyConfig):
    """Every size that the path from picture to vision tokens needs in Idefics3 and SmolVLM.

    Attributes
    ----------
    vision : VisionConfig
    tiling : TilingConfig
    scale_factor : int
        s, the side of the square of patches that becomes one token.
    embed_dim : int
        E, the language model's hidden size.
    family : Family

    Examples
    --------
    >>> config = FAMILIES[1].presets()["SmolVLM2 256M"]
    >>> config.patches_per_side, config.tokens_per_tile
    (32, 64)
    """

    vision: VisionConfig
    tiling: TilingConfig
    scale_factor: int
    embed_dim: int
    family: Family

    def __post_init__(self) -> None:
        check_kinds(self, tiling=TilingConfig)
        check_counts(self, ("scale_factor", "embed_dim"))
        if self.tiling.max_image_size < self.vision.patch_size:
            raise ValueError(
                f"Idefics3Config: max_image_size {self.tiling.max_image_size} must be at least patch_size "
                f"{self.vision.patch_size}"
            )

    @property
    def patches_per_side(self) -> int:
        """Of a tile; what fills no patch at its right and bottom is not looked at."""
        return self.tiling.max_image_size // self.vision.patch_size

    @property
    def tokens_per_tile(self) -> int:
        """(t // P / s)**2."""
        if self.patches_per_side % self.scale_factor:
            raise ValueError(
                f"a tile has {self.patches_per_side} patches a side; it must be a multiple of scale_factor {self.scale_factor}"
            )
        return (self.patches_per_side // self.scale_factor) ** 2


_DEFAULT_VISION = VisionConfig(
    hidden_size=1152, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=16, image_size=224, patch_size=32
)
"""What the vision_config of a model_type idefics3 or smolvlm leaves out."""


@dataclass(frozen=True)
class TilePlan:
    """What a picture of one size is resized to and cut into.

    Attributes
    ----------
    first_size : (int, int)
        Width and height in pixels after the first resize.
    second_size : (int, int)
        After the second, from the first's result: whole tiles.
    grid : (int, int) or None
        Columns and rows of tiles; None where the whole picture is the only tile.
    """

    first_size: Size
    second_size: Size
    grid: Size | None


def plan_tiles(size: Size, tiling: TilingConfig) -> TilePlan:
    """(width, height) -> what upstream's image processor makes of a picture of that size.

    Parameters
    ----------
    size : (int, int)
        Width and height in pixels.
    tiling : TilingConfig

    Returns
    -------
    TilePlan

    Raises
    ------
    ValueError, TypeError
        A width or height below 1, or not whole.

    Notes
    -----
    Source: SPEC 13.6.

    Examples
    --------
    >>> plan_tiles((640, 480), TilingConfig())
    TilePlan(first_size=(1456, 1092), second_size=(1456, 1092), grid=(4, 3))
    """
    width, height = (arguments.as_count(side, name, "plan_tiles") for side, name in zip(size, ("width", "height"), strict=True))
    first = _at_most(_with_longer_side((width, height), tiling.longest_edge), MAX_PICTURE)
    side = tiling.max_image_size
    if not tiling.do_image_splitting:
        return TilePlan(first, (side, side), None)
    second = _whole_tiles(first, side)
    grid = (second[0] // side, second[1] // side)
    return TilePlan(first, second, None if grid == (1, 1) else grid)


def _with_longer_side(size: Size, length: int) -> Size:
    """The size with that longer side, up or down; the other side is made even and at least 1."""
    width, height = size
    aspect = width / height
    if width >= height:
        other = int(length / aspect)
        return length, max(other + other % 2, 1)
    other = int(length * aspect)
    return max(other + other % 2, 1), length


def _at_most(size: Size, length: int) -> Size:
    """The size with no side longer than that; the other side is not made even."""
    width, height = size
    aspect = width / height
    if width >= height and width > length:
        return length, max(int(length / aspect), 1)
    if height > width and height > length:
        return max(int(length * aspect), 1), length
    return size


def _whole_tiles(size: Size, side: int) -> Size:
    """The longer side goes up to whole tiles, the other with it, then up to whole tiles too."""
    width, height = size
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return width, math.ceil(int(width / aspect) / side) * side
    height = math.ceil(height / side) * side
    return math.ceil(int(height * aspect) / side) * side, height


def _boxes(size: Size, plan: TilePlan, config: Idefics3Config) -> Floats:
    """float64 (B, 4): what the patches of each tile see of the original picture, then those of the whole."""
    tile = config.tiling.max_image_size
    seen = config.patches_per_side * config.vision.patch_size
    columns, rows = plan.grid or (0, 0)
    corners = np.array([(c * tile, r * tile) for r in range(rows) for c in range(columns)], dtype=np.float64).reshape(-1, 2)
    boxes = np.concatenate([corners, corners + seen], axis=1) * np.tile(size, 2) / np.tile(plan.second_size, 2)
    whole = np.array([0.0, 0.0, seen, seen]) * np.tile(size, 2) / tile
    return np.concatenate([boxes, whole[None]])


def pixel_shuffle(x: Floats, size: Size, factor: int) -> Floats:
    """(h*w, D) -> (h/s * w/s, s*s*D): each square of s x s patches, row by row, becomes one vector.

    Examples
    --------
    >>> pixel_shuffle(np.arange(8.0)[:, None], (2, 4), 2).tolist()
    [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    """
    h, w = size
    squares = x.reshape(h // factor, factor, w // factor, factor, -1).transpose(0, 2, 1, 3, 4)
    return squares.reshape((h // factor) * (w // factor), -1)


def shuffle_and_project(hidden: ArrayLike, tgt_sizes: ArrayLike, model: Model) -> Floats:
    """(B, Lmax, D), (B, 2) -> (B, Nmax, E): the vision tokens of each tile.

    Parameters
    ----------
    hidden : float (B, Lmax, D)
        As `encode` gives them. Lmax may exceed the largest h*w; what is in padded places is not read.
    tgt_sizes : int (B, 2)
        Rows and columns of patches per tile: equal, and a multiple of `scale_factor`.
    model : Model
        Its float type is the result's.

    Returns
    -------
    float32 or float64 (B, Nmax, E)
        h*w / s**2 tokens per tile; zeros beyond them where another tile has more.

    Raises
    ------
    ValueError, TypeError
        A model without the connector's array; a tile that is not square, or no multiple of `scale_factor`, with its
        number; hidden states that do not fit the model or tgt_sizes.

    Notes
    -----
    Source: SPEC 13.6.

    Examples
    --------
    >>> from npembed import FAMILIES, random_model
    >>> tiny = random_model(FAMILIES["idefics3"].small(), until="tokens")
    >>> shuffle_and_project(np.ones((1, 16, 16)), [[4, 4]], tiny).shape
    (1, 4, 24)
    """
    who = "shuffle_and_project"
    as_model(model, who).require("tokens", who, reads=_PROJECTION)
    config: Any = model.config
    sizes = arguments.as_tgt_sizes(tgt_sizes, who)
    given = arguments.as_patches(hidden, "hidden", sizes, config.vision.hidden_size, who)
    counts = _token_counts(sizes, config)
    projection = model.weights[_PROJECTION]
    result = np.zeros((len(sizes), counts.max(), config.embed_dim), dtype=model.dtype)
    for tokens, patches, size in zip(result, given, sizes.tolist(), strict=True):
        x = patches[: size[0] * size[1]].astype(model.dtype, copy=False)
        squares = config.family.pixel_shuffle(x, size, config.scale_factor)
        tokens[: len(squares)] = model.ops.product(squares, projection.T)
    return result


def _token_counts(tgt_sizes: Ids, config: Idefics3Config) -> Ids:
    """(B, 2) -> (B,): h*w / s**2, or an error for a tile that cannot be shuffled."""
    for number, (h, w) in enumerate(tgt_sizes.tolist()):
        if h != w or h % config.scale_factor:
            raise ValueError(
                f"tokens: tgt_sizes[{number}] is ({h}, {w}); {config.family.title} takes square tiles whose side is a "
                f"multiple of scale_factor {config.scale_factor}"
            )
    counts: Ids = tgt_sizes.prod(axis=1) // config.scale_factor**2
    return counts


def _shuffled_patches(tgt_sizes: Ids, config: Idefics3Config) -> list[Ids]:
    """(B, 2) -> per tile int64 (M, s*s): the patches that each token is made of."""
    sizes = tgt_sizes.tolist()
    return [pixel_shuffle(np.arange(h * w)[:, None], (h, w), config.scale_factor) for h, w in sizes]


_PROJECTION = "model.connector.modality_projection.proj.weight"


def _connector_shapes(config: Any) -> Shapes:
    return {_PROJECTION: (config.embed_dim, config.scale_factor**2 * config.vision.hidden_size)}


_SO400M = VisionConfig(
    hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=364, patch_size=14
)
_BASE = VisionConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=512, patch_size=16
)


class Idefics3(Idefics):
    """Idefics3.

    Attributes
    ----------
    processor : str
        The name of its image processor. Idefics3's and SmolVLM's compute the same, and either may be named in either's
        checkpoints.
    keeps_one : bool
        Whether the first tile stays if every tile is all 0 once normalised.
    """

    key, title, model_types = "idefics3", "Idefics3", ("idefics3",)
    gguf = GgufNames(projector="idefics3", names=tower_names("model.vision_model.") | {"mm.model.fc.weight": _PROJECTION})
    stages = (
        *BEFORE_THE_TOWER,
        EMBEDDINGS,
        HIDDEN,
        tokens_stage(shuffle_and_project, _connector_shapes, _token_counts, _shuffled_patches),
        TEXT,
        TOKEN_PLACES,
        INPUTS_EMBEDS_BY_COUNT,
    )
    processor, keeps_one = "Idefics3ImageProcessor", False
    pixel_shuffle = staticmethod(pixel_shuffle)
    cells = staticmethod(cells)

    def read_config(self, top: Json, preprocessor: Json) -> Idefics3Config:
        """The sizes that config.json and preprocessor_config.json give; else the class's own default (SPEC 13.6)."""
        config, processor = Keys(top, "config.json"), Keys(preprocessor, "preprocessor_config.json")
        vision = idefics.read_vision(config.section("vision_config"), _DEFAULT_VISION)
        sizes = idefics.read_pixels(processor, LANCZOS, *_PROCESSORS)
        sizes |= idefics.read_edges(processor, "size", "longest_edge")
        for side in idefics.read_edges(processor, "max_image_size", "longest_edge").values():
            sizes["max_image_size"] = side
        processor.finish()
        return Idefics3Config(
            vision=vision,
            tiling=TilingConfig(**sizes),
            scale_factor=config.value("scale_factor", 2),
            embed_dim=idefics.text_value(config.section("text_config"), "hidden_size", "llama", 4096),
            family=self,
        )

    def as_json(self, config: Idefics3Config) -> tuple[dict[str, Any], dict[str, Any]]:
        tiling = config.tiling
        top = {
            "model_type": self.model_types[0],
            "scale_factor": config.scale_factor,
            "text_config": {"model_type": "llama", "hidden_size": config.embed_dim},
            "vision_config": asdict(config.vision),
        }
        preprocessor = idefics.pixel_json(self.processor, LANCZOS, tiling) | {
            "size": {"longest_edge": tiling.longest_edge},
            "max_image_size": {"longest_edge": tiling.max_image_size},
        }
        return top, preprocessor

    def presets(self) -> Mapping[str, Idefics3Config]:
        return {"Idefics3 8B": Idefics3Config(_SO400M, TilingConfig(), 2, 4096, self)}

    def small(self) -> Idefics3Config:
        vision = replace(SMALL, image_size=108)
        return Idefics3Config(vision, TilingConfig(longest_edge=80, max_image_size=40), 2, 24, self)

    def variants(self) -> Mapping[str, Idefics3Config]:
        """Other sizes in each part, a side that fills no patch, no tiles, levels of each channel's own."""
        vision = VisionConfig(32, 24, 3, 4, patch_size=4, image_size=280, layer_norm_eps=1e-3)
        tiling = TilingConfig(70, 51, **UNEVEN, do_image_splitting=False)
        return {"varied": Idefics3Config(vision, tiling, 3, 20, self)}

    def slices(self, image: "Picture | Pixels", config: Idefics3Config, rule: PixelRule) -> Slices:
        """A picture -> its tiles, row by row, then the whole of it; each resize is from the one before."""
        tiling, side = config.tiling, config.tiling.max_image_size
        picture = as_rgb_on_white(image)
        plan = plan_tiles(picture.size, tiling)
        first = as_rgb(rule.resize(picture, plan.first_size, FILTER))
        second = rule.resize(first, plan.second_size, FILTER)
        tiles = self.cells(second, *plan.grid) if plan.grid else []
        tiles.append(rule.resize(as_rgb(second), (side, side), FILTER))
        kept = idefics.counting_pieces(tiles, tiling, rule, self.title, keeps_one=self.keeps_one)
        strips = [idefics.whole_patches(tiles[number], config.vision.patch_size, tiling, rule)[0] for number in kept]
        sizes = np.full((len(kept), 2), config.patches_per_side, dtype=np.int64)
        return Slices(strips, sizes, _boxes(picture.size, plan, config)[kept], plan.grid)

    def unit(self, config: Idefics3Config) -> int:
        """A token's square of patches."""
        return config.scale_factor

    def case_sizes(self, sizes: Sequence[Size], config: Idefics3Config) -> Sequence[Size]:
        """Squares of about as many patches, their sides up to a multiple of `scale_factor`."""
        sides = [math.ceil(math.sqrt(h * w) / config.scale_factor) * config.scale_factor for h, w in sizes]
        return [(side, side) for side in sides]

    def placeholder(self, grid: Size | None, image_id: int | None, config: Idefics3Config, tgt_sizes: Ids | None = None) -> str:
        """The text of one picture: each tile with its row and column, a newline after each row, then the whole."""
        idefics.refuse_image_id(image_id, self.title)
        try:
            places = PLACE * config.tokens_per_tile
        except ValueError as error:
            raise ValueError(f"image_placeholder: {error}") from None
        whole = f"{FAKE}<global-img>{places}{FAKE}"
        columns, rows = grid or (1, 1)
        if max(columns, rows) > MAX_TAGS:
            raise ValueError(
                f"image_placeholder: grid is ({columns}, {rows}); the text has tags for {MAX_TAGS} columns and rows at most"
            )
        if (columns, rows) == (1, 1):
            return whole
        tiles = [[f"{FAKE}<row_{row + 1}_col_{column + 1}>{places}" for column in range(columns)] for row in range(rows)]
        return "\n".join([*map("".join, tiles), "", whole])


class SmolVLM(Idefics3):
    """SmolVLM and SmolVLM2."""

    key, title, model_types = "smolvlm", "SmolVLM", ("smolvlm",)
    processor, keeps_one = "SmolVLMImageProcessor", True
    choice = SPREAD

    def presets(self) -> Mapping[str, Idefics3Config]:
        tiling = TilingConfig(longest_edge=2048, max_image_size=512)
        return {
            "SmolVLM2 500M": Idefics3Config(_BASE, tiling, 4, 960, self),
            "SmolVLM2 256M": Idefics3Config(_BASE, tiling, 4, 576, self),
        }


_PROCESSORS = (Idefics3.processor, SmolVLM.processor)

FAMILIES: tuple[Family, ...] = (Idefics3(), SmolVLM())
