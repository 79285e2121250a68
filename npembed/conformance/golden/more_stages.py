"""The stages that packs have beside those of the families: every number of patches, ids by a mask, groups of frames."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from npembed.records.family import Promise, Stage
from npembed.steps.positions import bucket_coords, position_ids
from npembed.steps.resampler import resample, resampler_shapes
from npembed.support.typing import Array, Ids


def _every_bucket(num_patches: Ids, side: Any, rule: str) -> Array:
    """The buckets of each n, end to end, in the smallest unsigned type that holds them, because there are half a million."""
    buckets = np.concatenate([bucket_coords(n, side, rule) for n in num_patches])
    return buckets.astype(np.min_scalar_type(int(buckets.max())))


BUCKET_COORDS = Stage(
    name="bucket_coords",
    function=_every_bucket,
    takes=("num_patches", "num_patches_per_side", "rule"),
    by_rule=True,
    axes="(M*(M+1)/2,)",
    about="the row, or column, of the position table for each of n patches: of n = 1, then of n = 2, and so on, end to end; "
    "those of n begin at n*(n-1)/2",
)
"""Every n in one tensor; any integer type will do in a port."""


MASKED_IDS = Stage(
    name="masked_position_ids",
    function=position_ids,
    takes=("tgt_sizes", "G", "rule", "patch_mask"),
    by_rule=True,
    axes="(B, H*W)",
    about="for each patch its row of the position table, at its place on a canvas of H x W places, row by row; 0 elsewhere",
)
"""Ids where a mask says where the patches are: not at the first places of a row."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _OfGroups(Stage):
    """A stage whose function takes groups of times, which a pack holds as two tensors."""

    def arguments(self, values: Mapping[str, Any], model: Any) -> list[Any]:
        return [values["frame_hidden"], values["tgt_sizes"], model, groups_of(values)]


FRAME_TOKENS = _OfGroups(
    name="frame_tokens",
    function=resample,
    takes=("frame_hidden", "tgt_sizes", "model", "frame_times", "frame_groups"),
    arrays=resampler_shapes,
    companions=lambda tgt_sizes, config: {"token_counts": np.zeros(0, dtype=np.int64)},
    promise=Promise.DISTANCE,
    axes="(N, Q, E)",
    about="the vision tokens of each group of frames, whose patches share them; a picture is a group of its own",
)
"""Tokens of groups of frames, for a family that takes them."""

MORE_STAGES = (BUCKET_COORDS, MASKED_IDS, FRAME_TOKENS)
"""Beside those of the families."""


def groups_of(values: Mapping[str, Any]) -> list[list[int]]:
    """The times of each group's frames, from the tensors of a pack.

    Examples
    --------
    >>> groups_of({"frame_times": np.array([-1, 0, 5]), "frame_groups": np.array([1, 2])})
    [[-1], [0, 5]]
    """
    ends = np.cumsum(values["frame_groups"])[:-1]
    return [group.tolist() for group in np.split(values["frame_times"], ends)]


def bucket_of(index: int) -> tuple[int, int]:
    """An element of the stage `bucket_coords` -> n, and the patch of n.

    Examples
    --------
    >>> [bucket_of(index) for index in (0, 1, 2, 3, 5)]
    [(1, 0), (2, 0), (2, 1), (3, 0), (3, 2)]
    """
    before = (math.isqrt(8 * index + 1) - 1) // 2
    return before + 1, index - before * (before + 1) // 2
