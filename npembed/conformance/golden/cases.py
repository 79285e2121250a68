"""The cases of a golden pack: which slices, filled with what, through which model."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from npembed.conformance.filling import edited
from npembed.conformance.golden.case import BASE, MOST_PATCHES, Case, picture
from npembed.family import Family, Stage
from npembed.model import Model
from npembed.positions import bucket_coords
from npembed.typing import Array, Ids
from npembed.weights import random_model


def _every_bucket(most: int, side: int, rule: str) -> Ids:
    """The buckets of n = 1, those of n = 2, and so on up to `most`, end to end."""
    return np.concatenate([bucket_coords(n, side, rule) for n in range(1, most + 1)])


def _small_integers(array: Array) -> Array:
    """In the smallest unsigned type that holds them, because there are half a million."""
    return array.astype(np.min_scalar_type(int(array.max())))


BUCKET_COORDS = Stage(
    name="bucket_coords",
    reads=("num_patches", "num_patches_per_side"),
    call=lambda most, side, rule: _small_integers(_every_bucket(most, side, rule)),
    arguments=lambda values, model: (
        int(values["num_patches"].max()),
        int(values["num_patches_per_side"]),
        values.get("rule") or model.config.family.rule,
    ),
    by_rule=True,
    axes="(M*(M+1)/2,)",
    about="the row, or column, of the position table for each of n patches: of n = 1, then of n = 2, and so on, end to end; "
    "those of n begin at n*(n-1)/2",
)
"""Every n in one tensor; any integer type will do in a port."""


def bucket_of(index: int) -> tuple[int, int]:
    """An element of the stage `bucket_coords` -> n, and the patch of n.

    Examples
    --------
    >>> [bucket_of(index) for index in (0, 1, 2, 3, 5)]
    [(1, 0), (2, 0), (2, 1), (3, 0), (3, 2)]
    """
    before = (math.isqrt(8 * index + 1) - 1) // 2
    return before + 1, index - before * (before + 1) // 2


CASES = (
    Case("one-patch", "the smallest batch there is", ((1, 1),), "ramp", picture=(1, 1)),
    Case(
        "boundaries",
        "sizes on which released position rules differ",
        ((25, 2), (1, 49), (2, 50), (7, 5), (58, 1), (24, 1)),
        needs_rule=True,
    ),
    Case(
        "full-side",
        "as many patches as the position table has per side, or about as many where a slice has whole units",
        ((70, 1), (1, 70)),
        needs_rule=True,
    ),
    Case("beyond", "more patches than the position table has per side", ((80, 1), (1, 107))),
    Case("extreme-aspect", "long and thin", ((1, 300), (300, 1)), picture=(3, 200)),
    Case("ragged", "slices of very different lengths, so padding is most of the batch", ((2, 3), (1, 1), (9, 8), (3, 1))),
    Case("seed", "the grid sizes of a 640 x 480 picture", ((28, 37), (39, 26), (39, 26)), picture=(64, 48)),
    Case("faint", "pixels of little contrast, which show the layer norms' eps", ((3, 4), (2, 2)), "faint"),
    Case("one-sign", "pixels of one sign, which show a sum that is rounded too often", ((2, 3), (1, 2)), "one sign", "patch14"),
    Case("one-row", "one row, one column; a picture that is one row", ((1, 5), (5, 1)), picture=(50, 4)),
    Case(
        "square-of-two",
        "a square picture, for which grids of 1 x 2 and 2 x 1 are equally near",
        ((2, 2),),
        picture=(22, 22),
        needs_grid=True,
    ),
    Case(
        "square-of-six",
        "a square picture, for which grids of 2 x 3 and 3 x 2 are equally near",
        ((2, 2),),
        picture=(37, 37),
        needs_grid=True,
    ),
    Case(
        "varied",
        "every size of the config is another one, every channel has its own mean and deviation, eps is large",
        ((5, 4), (1, 3), (4, 5)),
        model="varied",
        picture=(90, 60),
    ),
    Case(
        "varied-beyond",
        "on and beyond the sides of another position table",
        ((27, 1), (1, 41), (54, 1), (1, 69), (40, 2)),
        model="varied",
        picture=(60, 90),
    ),
    Case(
        "same-width",
        "D = E, so there is no kv_proj; pictures are not cut",
        ((3, 4), (2, 2)),
        "mixed",
        "same-width",
        (31, 20),
    ),
    Case(
        "every-n",
        f"the buckets of every number of patches from 1 to {MOST_PATCHES}, in one tensor",
        stages=(BUCKET_COORDS,),
        needs_rule=True,
    ),
)


def cases_of(family: Family, given: Model | None = None) -> tuple[Case, ...]:
    """The cases that say something of a family; for a given model only those that need no config of their own."""
    models = own_configs(family)
    seen: set[Any] = set()
    cases = []
    for case in CASES:
        if case.needs_rule and family.rule is None:
            continue
        if case.model in NOT_FOR_GIVEN if given is not None else case.model not in models:
            continue
        config = models[case.model] if given is None else given.config
        fitting = _with_picture_for(case, config)
        if fitting.needs_grid and family.cut(picture(fitting), config).grid is None:
            continue
        shown = _shown(fitting, config)
        if shown not in seen:
            seen.add(shown)
            cases.append(fitting)
    return tuple(cases)


NOT_FOR_GIVEN = ("varied", "same-width")
"""Models that are there for their configs, which a given checkpoint has of its own."""


def _with_picture_for(case: Case, config: Any) -> Case:
    """The case with a picture that the family takes: less long, as long as that one is refused."""
    try:
        config.family.cut(picture(case), config)
    except ValueError:
        width, height = case.picture
        if width == height:
            raise
        wider = (min(2 * width, height), height) if width < height else (width, min(2 * height, width))
        return _with_picture_for(replace(case, picture=wider), config)
    return case


def _shown(case: Case, config: Any) -> Any:
    """What makes a case differ from another, once the family has made its own sizes of the case's."""
    sizes = frozenset(config.family.case_sizes(case.sizes, config)) if case.sizes else ()
    return sizes, case.kind, case.model, case.picture, case.stages


def own_configs(family: Family) -> Mapping[str, Any]:
    """The configs of the packs' own models, by name."""
    return {BASE: family.small(family), **family.variants(family)}


_EDITS: Mapping[str, Callable[[Model], Model]] = {
    "patch14": lambda model: edited(model, {f"{model.tower}embeddings.patch_embedding.weight": np.abs}),
}
"""What is changed in some models' random arrays: the kernels of "patch14" are positive, so that its sums are of one sign."""


def own_model(name: str, family: Family) -> Model:
    """One of the packs' own models."""
    model = random_model(own_configs(family)[name], seed=1, until=family.vision_stages[-1].name)
    return _EDITS[name](model) if name in _EDITS else model
