"""The two rulers: n patches of an axis against the G buckets of the position table, under one rule."""

from typing import Any

import numpy as np

from npembed.pages.drawing import numbers
from npembed.steps.positions import bucket_coords
from npembed.steps.positions.rules import RULES
from npembed.support.typing import Ids


def edges_of(side: int, rule: str) -> list[float] | None:
    """Where buckets 1, 2, … begin under a rule; None for the rule that compares nothing."""
    given = RULES[rule].boundaries
    return None if given is None else numbers(given(side))


def ruler(num_patches: int, side: int, rule: str) -> dict[str, Any]:
    """One axis under one rule.

    Returns
    -------
    dict
        `n`; `coords`, where each patch begins, or None; `buckets`; `on`, the patches that in exact arithmetic begin on a
        boundary: each with the bucket that begins there, and whether the rule's own coordinate is "below" its own boundary,
        "on" it or "above" it; "exact" where the rule has none.

    Examples
    --------
    >>> ruler(25, 70, "arange")["on"][:2]
    [[5, 14, 'below'], [10, 28, 'below']]
    """
    own = RULES[rule]
    coords = None if own.coords is None else own.coords(num_patches)
    edges = None if own.boundaries is None else own.boundaries(side)
    on = []
    for patch in on_boundaries(num_patches, side).tolist():
        bucket = side * patch // num_patches
        if coords is None or edges is None or patch >= len(coords):
            where = "exact"
        else:
            where = ("below", "on", "above")[int(np.sign(float(coords[patch]) - float(edges[bucket - 1]))) + 1]
        on.append([patch, bucket, where])
    return {
        "n": num_patches,
        "coords": None if coords is None else numbers(coords),
        "buckets": bucket_coords(num_patches, side, rule).tolist(),
        "on": on,
    }


def on_boundaries(num_patches: int, side: int) -> Ids:
    """The patches i > 0 whose beginning i / n is a boundary k / G, in whole numbers: G*i is a multiple of n.

    Examples
    --------
    >>> on_boundaries(25, 70).tolist()
    [5, 10, 15, 20]
    """
    patches = np.arange(1, num_patches, dtype=np.int64)
    result: Ids = patches[side * patches % num_patches == 0]
    return result
