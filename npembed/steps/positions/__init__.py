"""Which row of the position table each patch takes: the ids, the rules of released software, and where they differ."""

from npembed.steps.positions.ids import (
    boundaries,
    bucket_coords,
    bucketize,
    flattened_position_ids,
    fractional_coords,
    position_ids,
    randomized_positions,
    tgt_sizes_from_mask,
)
from npembed.steps.positions.rules import RULES

__all__ = [
    "RULES",
    "boundaries",
    "bucket_coords",
    "bucketize",
    "flattened_position_ids",
    "fractional_coords",
    "position_ids",
    "randomized_positions",
    "tgt_sizes_from_mask",
]
