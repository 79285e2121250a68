"""MiniCPM-Llama3-V 2.5: MiniCPM-V 2.6's path, but for position ids, padding and text.

What depends on the batch. This release makes one row of all the places of a batch: of Lmax places per slice, where Lmax is
the patches of the batch's longest slice. So for the same picture, everything from the embeddings on depends on which slices
are given together:

- Position ids have one dimension: place k of every slice has the id `bucket_coords(Lmax, G)[k]`, from 0 to G - 1. Nothing is
  known of rows and columns.
- A slice that is shorter is filled up with padding, which is embedded as if it were patches of zeros, gets position ids,
  and is attended to by every place, in every layer. (The release's own code means to leave it out, but its mask does not.)
- Only the resampler leaves the padding out.

`embed`, `encode` and `run` take the slices of one call as one batch. The release's own chat code gives it one picture at a
time; so does `npembed embed`. Results of several batches that are laid end to end have zeros in the places that their own
batch did not have: those took part in nothing. They are results; they are no input of `encode`, to which they would be one
larger batch.

Other software differs: vLLM numbers each slice by its own number of patches and leaves the padding out; llama.cpp uses ids of
two dimensions, as for MiniCPM-V 2.6. Their ids, and all that follows from them, are not this release's.

Its text has one pair of slice tokens around all crops and image tokens around each; so `image_bounds` takes the ids of
`<image>` and `</image>` alone.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from npembed.families.keys import Json, Keys
from npembed.families.minicpmv import Config, MiniCPMV
from npembed.records.family import Family
from npembed.steps.positions import position_ids
from npembed.steps.stages import EMBEDDINGS
from npembed.support import arguments
from npembed.support.typing import Ids, Size


def batch_places(tgt_sizes: Ids) -> Ids:
    """(B, 2) -> int64 (B, 2): one row of as many places as the batch's longest slice has patches, for every slice.

    Notes
    -----
    Source: SPEC 13.2.

    Examples
    --------
    >>> batch_places(np.array([[28, 37], [39, 26]])).tolist()
    [[1, 1036], [1, 1036]]
    """
    return np.tile([1, tgt_sizes.prod(axis=1).max()], (len(tgt_sizes), 1))


def batch_position_ids(tgt_sizes: Ids, config: Config, rule: str) -> Ids:
    """(B, 2) -> int64 (B, Lmax): `bucket_coords(Lmax, G)` for every slice, padding too.

    Raises
    ------
    ValueError
        A slice of more patches than one axis can have; a rule that gives no usable id for their number.

    Notes
    -----
    Source: SPEC 13.2.

    Examples
    --------
    >>> (config,) = FAMILIES[0].presets().values()
    >>> batch_position_ids(np.array([[28, 37], [39, 26]]), config, "arange")[:, [0, 15, 1035]].tolist()
    [[0, 1, 69], [0, 1, 69]]
    """
    lengths = tgt_sizes.prod(axis=1)
    if lengths.max() > arguments.MAX_SIDE:
        raise ValueError(
            f"position_ids: tgt_sizes[{lengths.argmax()}] makes {lengths.max()} patches; {config.family.title} lays them on "
            f"one axis, where at most {arguments.MAX_SIDE} fit"
        )
    return position_ids(batch_places(tgt_sizes), config.vision.num_patches_per_side, rule)


WITHOUT_PADDING = replace(EMBEDDINGS, padding=lambda model, tgt_sizes: 0.0)
"""Zeros in another batch's places; what this batch's own hold depends on it."""


class MiniCPMLlama3V(MiniCPMV):
    """MiniCPM-Llama3-V 2.5."""

    stages = tuple(WITHOUT_PADDING if stage is EMBEDDINGS else stage for stage in MiniCPMV.stages)

    def read_config(self, top: Json, preprocessor: Json) -> Config:
        """As MiniCPM-V 2.6's, with this release's sizes where none are given; what it has no code for is refused."""
        for keys in (Keys(top, "config.json"), Keys(preprocessor, "preprocessor_config.json")):
            keys.fixed("slice_mode", True)
            keys.fixed("use_image_id", False)
        return super().read_config(top, preprocessor)

    def small(self) -> Config:
        return replace(super().small(), use_image_id=False)

    def variants(self) -> Mapping[str, Config]:
        """MiniCPM-V 2.6's, in so far as this release has code for them."""
        return {name: config for name, config in super().variants().items() if config.slicing.slice_mode}

    def position_ids(self, tgt_sizes: Ids, config: Config, rule: str) -> Ids:
        """Those of the batch: see `batch_position_ids`."""
        return batch_position_ids(tgt_sizes, config, rule)

    def places(self, tgt_sizes: Ids) -> Ids:
        """Padding takes part: see `batch_places`."""
        return batch_places(tgt_sizes)

    def placeholder(self, grid: Size | None, image_id: int | None, config: Config, tgt_sizes: Ids | None = None) -> str:
        """The text of one picture: the whole of it, then all crops between one pair of slice tokens; no number.

        Examples
        --------
        >>> tiny = replace(FAMILIES[0].small(), query_num=1)
        >>> FAMILIES[0].placeholder((2, 2), None, tiny).replace("<image><unk></image>", "#")
        '#<slice>##\\n##</slice>'
        """
        image = f"<image>{'<unk>' * config.query_num}</image>"
        if grid is None:
            return image
        columns, rows = grid
        return f"{image}<slice>" + "\n".join([image * columns] * rows) + "</slice>"


FAMILIES: tuple[Family, ...] = (
    MiniCPMLlama3V(
        "minicpm-v-2.5",
        "MiniCPM-Llama3-V 2.5",
        "minicpmv",
        2.5,
        query_num=96,
        embed_dim=4096,
        use_image_id=False,
        choice=None,
    ),
)
