"""One picture -> what a shard holds of it: its rows without padding, or one vector."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from npembed.config import FamilyConfig
from npembed.corpus.settings import WHO, Settings, one_vector
from npembed.family import Slices, Stage
from npembed.model import Model
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
        vector = _unit(vector) if settings.normalize else vector
        return Packed(_stored(vector[None], settings), np.empty(0, np.int64), slices.tgt_sizes, slices.boxes, {})
    lengths = stage.sizes_of(slices.tgt_sizes, config).prod(axis=1)
    rows = np.concatenate([own[:length] for own, length in zip(result, lengths.tolist(), strict=True)])
    return Packed(_stored(rows, settings), lengths, slices.tgt_sizes, slices.boxes, more)


def _vector(result: Array, slices: Slices, stage: Stage, config: FamilyConfig) -> Array:
    """(D,): the picture's own vector, or the mean over its overview's places, added in float64."""
    number = overview(slices.boxes)
    if stage.sizes is None:
        return result[number] if len(result) == len(slices.tgt_sizes) else result[0]
    sizes = stage.sizes_of(slices.tgt_sizes, config)
    if len(sizes) != len(slices.tgt_sizes):
        raise ValueError(f"{WHO}: {config.family.title} joins a picture's slices, so its overview has no mean of its own")
    mean: Array = result[number, : sizes[number].prod()].mean(axis=0, dtype=np.float64).astype(result.dtype)
    return mean


def overview(boxes: Floats) -> int:
    """The slice that shows most of the picture, which is the whole of it; the first of several.

    Examples
    --------
    >>> overview(np.array([[0, 0, 3, 4], [0, 0, 6, 4.0]]))
    1
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    return int(sides.prod(axis=1).argmax())


def _unit(vector: Array) -> Array:
    """The vector divided by its length; its largest element first, so that no square overflows or vanishes."""
    wide = vector.astype(np.float64)
    largest = np.abs(wide).max()
    if not 0 < largest < np.inf:
        raise ValueError(f"{WHO}: the vector is {'zero' if largest == 0 else 'not finite'}, so it has no direction")
    wide /= largest
    return np.asarray(wide / np.sqrt(wide @ wide)).astype(vector.dtype)


def _stored(rows: Array, settings: Settings) -> Array:
    """The rows in the type that they are stored in."""
    with np.errstate(over="ignore"):  # the next lines refuse what came out wrong
        stored = rows.astype(settings.dtype or rows.dtype, copy=False)
    if not np.isfinite(stored).all():
        largest = np.abs(rows).max()
        raise ValueError(f"{WHO}: a value of size {largest:g} does not fit {stored.dtype}")
    return stored
