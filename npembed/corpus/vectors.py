"""A picture, or a few small ones -> what a shard holds of each: its rows without padding, or one vector."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from npembed.corpus.settings import WHO, Settings, one_vector
from npembed.records.config import FamilyConfig
from npembed.records.family import Slices, Stage
from npembed.records.model import Model
from npembed.steps.pooling import unit_length
from npembed.steps.stages import run
from npembed.support.pictures import Turn, read_frames
from npembed.support.typing import Array, Floats, Ids

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PATCHES_AT_ONCE = 1024
"""Small slices go through the vision tower together, up to so many patches: a product of few rows takes longer by the row."""
WIDE = 256
"""From so many channels on that is worth it; a narrower tower takes each slice by itself."""


@dataclass(frozen=True, eq=False)
class Packed:
    """What one picture gives.

    Attributes
    ----------
    parts : sequence of (K_i, width)
        The rows of each of its results, of which padding is no part; or one row. In the model's own type.
    lengths : int64 (N,)
        How many rows each result has; empty for a vector.
    tgt_sizes : int64 (B, 2)
    boxes : float64 (B, 4)
    more : dict of str to array
        What else goes with the stage, as `hidden_sizes`.
    """

    parts: Sequence[Array]
    lengths: Ids
    tgt_sizes: Ids
    boxes: Floats
    more: Mapping[str, Array]


def vector_of(content: bytes, name: str, model: Model, settings: Settings) -> Array:
    """(D,): the vector of the first picture in a file's bytes, in the type that is stored."""
    with closing(frames_of(content, name, settings)) as frames:
        slices = model.config.family.cut(next(frames)[0], model.config, settings.pixels)
        [packed] = compute([slices], model, settings)
    vector: Array = packed.parts[0][0].astype(stored_type(model, settings))
    return vector


def frames_of(content: bytes, name: str, settings: Settings) -> Generator[tuple["Picture", Turn]]:
    """The pictures in a file's bytes, as many and as turned as is asked for."""
    every = settings.pages == "all"
    return read_frames(BytesIO(content), name, upright=settings.upright, every=every, most_pixels=settings.max_pixels)


def patches_at_once(config: FamilyConfig) -> int:
    """How many patches of several slices go through the family's tower together; 1 where each slice goes by itself."""
    return PATCHES_AT_ONCE if config.vision.hidden_size >= WIDE else 1


def compute(pictures: Sequence[Slices], model: Model, settings: Settings) -> list[Packed]:
    """Cut pictures through the stages, in one call. Several must each have one slice, of one size.

    Raises
    ------
    ValueError, TypeError
        What the stages refuse; a result that the stored type cannot hold, or that is not finite.
    """
    stage = model.config.family.stage(settings.until, WHO)
    strips = [strip for slices in pictures for strip in slices.strips]
    tgt_sizes = np.concatenate([slices.tgt_sizes for slices in pictures])
    at_once = patches_at_once(model.config)
    result = run(strips, tgt_sizes, model, settings.until, settings.rule, patches_at_once=at_once)[settings.until]
    each = zip(np.split(result, len(pictures)), pictures, strict=True)
    return [_packed(own, slices, stage, model, settings) for own, slices in each]


def _packed(result: Array, slices: Slices, stage: Stage, model: Model, settings: Settings) -> Packed:
    """One picture's results, as a shard has them."""
    config = model.config
    if one_vector(settings, stage):
        vectors = _vector(result, slices, stage, config)[None]
        parts = [unit_length(vectors) if settings.normalize else vectors]
        lengths, more = np.empty(0, np.int64), {}
    else:
        lengths = stage.sizes_of(slices.tgt_sizes, config).prod(axis=1)
        parts = [own[:length] for own, length in zip(result, lengths.tolist(), strict=True)]
        more = stage.companions(slices.tgt_sizes, config)
    stored = stored_type(model, settings)
    refuse_unfit(
        parts, min(stored, np.dtype(np.float32)) if one_vector(settings, stage) else stored
    )  # as vectors.parquet has it
    return Packed(parts, lengths, slices.tgt_sizes, slices.boxes, more)


def _vector(result: Array, slices: Slices, stage: Stage, config: FamilyConfig) -> Array:
    """(D,): the picture's own vector, or the mean over its overview's places, added in float64."""
    number = overview(slices.boxes)
    sizes = None if stage.sizes is None else stage.sizes_of(slices.tgt_sizes, config)
    if len(result if sizes is None else sizes) != len(slices.tgt_sizes):
        raise ValueError(f"{WHO}: {config.family.title} joins a picture's slices, so its overview has no result of its own")
    own: Array = result[number]
    return own if sizes is None else own[: sizes[number].prod()].mean(axis=0, dtype=np.float64).astype(own.dtype)


def overview(boxes: Floats) -> int:
    """The slice that shows most of the picture, which is the whole of it; the first of several.

    Examples
    --------
    >>> overview(np.array([[0, 0, 3, 4], [0, 0, 6, 4.0]]))
    1
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    return int(sides.prod(axis=1).argmax())


def stored_type(model: Model, settings: Settings) -> np.dtype[Any]:
    """Of what a shard holds."""
    return np.dtype(settings.dtype or model.dtype)


def refuse_unfit(parts: Sequence[Array], stored: np.dtype[Any]) -> None:
    """An error if a value would be infinite in the type that is stored, or is not finite now."""
    ends = np.array([end for part in parts for end in (part.min(), part.max())])
    with np.errstate(over="ignore"):  # the next line refuses what came out wrong
        fit = np.isfinite(ends.astype(stored))
    if not fit.all():  # what lies between two numbers that fit fits, too; what is not a number is the smallest and the largest
        raise ValueError(f"{WHO}: a value of size {np.abs(ends).max():g} does not fit {stored}")
