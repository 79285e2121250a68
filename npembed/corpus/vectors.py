"""One picture -> what a shard holds of it: its rows without padding, or one vector."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from npembed.config import FamilyConfig
from npembed.corpus.settings import WHO, Settings, one_vector
from npembed.family import Slices, Stage
from npembed.images import read_frames
from npembed.model import Model
from npembed.pooling import unit_length
from npembed.stages import run
from npembed.typing import Array, Floats, Ids

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True, eq=False)
class Packed:
    """What one picture gives.

    Attributes
    ----------
    rows : (K, width)
        Its slices' rows one after the other, or one row.
    lengths : int64 (N,)
        How many rows each result has; empty for a vector.
    tgt_sizes : int64 (B, 2)
    boxes : float64 (B, 4)
    more : dict of str to array
        What else goes with the stage, as `hidden_sizes`.
    """

    rows: Array
    lengths: Ids
    tgt_sizes: Ids
    boxes: Floats
    more: Mapping[str, Array]


def compute_bytes(content: bytes, name: str, model: Model, settings: Settings) -> Packed:
    """The first picture in a file's bytes through the stages."""
    with closing(frames_of(content, name, settings)) as frames:
        return compute(next(frames)[0], model, settings)


def frames_of(content: bytes, name: str, settings: Settings) -> Generator[tuple["Picture", bool]]:
    """The pictures in a file's bytes, as many and as turned as is asked for."""
    every = settings.pages == "all"
    return read_frames(BytesIO(content), name, upright=settings.upright, every=every, most_pixels=settings.max_pixels)


def compute(picture: "Picture", model: Model, settings: Settings) -> Packed:
    """A picture through the stages, its padding left out, in the type that is stored.

    Raises
    ------
    ValueError, TypeError
        What the stages refuse; a result that the stored type cannot hold, or that is not finite.
    """
    config = model.config
    slices = config.family.cut(picture, config)
    stage = config.family.stage(settings.until, WHO)
    result = run(slices.strips, slices.tgt_sizes, model, settings.until, settings.rule)[settings.until]
    more = stage.companions(slices.tgt_sizes, config)
    if one_vector(settings, stage):
        vector = _vector(result, slices, stage, config)
        vectors = unit_length(vector[None]) if settings.normalize else vector[None]
        return Packed(_stored([vectors], settings), np.empty(0, np.int64), slices.tgt_sizes, slices.boxes, {})
    lengths = stage.sizes_of(slices.tgt_sizes, config).prod(axis=1)
    rows = [own[:length] for own, length in zip(result, lengths.tolist(), strict=True)]
    return Packed(_stored(rows, settings), lengths, slices.tgt_sizes, slices.boxes, more)


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


def _stored(parts: Sequence[Array], settings: Settings) -> Array:
    """The rows, one part after the other, in the type that they are stored in."""
    stored = np.dtype(settings.dtype or parts[0].dtype)
    ends = np.array([end for part in parts for end in (part.min(), part.max())])
    with np.errstate(over="ignore"):  # the next line refuses what came out wrong
        fit = np.isfinite(ends.astype(stored))
    if not fit.all():  # what lies between two numbers that fit fits, too; what is not a number is the smallest and the largest
        raise ValueError(f"{WHO}: a value of size {np.abs(ends).max():g} does not fit {stored}")
    return np.concatenate(parts, dtype=stored, casting="same_kind")
