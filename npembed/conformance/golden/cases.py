"""The cases of a golden pack: which slices, filled with what, through which model."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from npembed.conformance.filling import edited, peaked, with_dropped_layer
from npembed.conformance.golden.case import BASE, MOST_PATCHES, Case, picture
from npembed.family import Family, Promise, Stage
from npembed.model import Model
from npembed.positions import bucket_coords, position_ids
from npembed.resampler import resample, resampler_shapes
from npembed.typing import Array, Ids
from npembed.weights import random_model


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


def _alone(stage: Stage) -> Callable[[Family], tuple[Stage, ...]]:
    """That stage."""
    return lambda family: (stage,)


def _vision(family: Family) -> tuple[Stage, ...]:
    """Those that read arrays."""
    return family.vision_stages


def _reading(name: str) -> Callable[[Family], tuple[Stage, ...]]:
    """Those of them that read what has that name, which the case gives."""
    return lambda family: tuple(stage for stage in family.vision_stages if name in stage.reads)


def _has_rule(case: Case, config: Any) -> bool:
    return config.family.rule is not None


def _is_cut(case: Case, config: Any) -> bool:
    """Whether the picture is cut into crops."""
    return config.family.cut(picture(case), config).grid is not None


def _takes_frames(case: Case, config: Any) -> bool:
    return bool(config.family.frames)


def _by_slices(case: Case, config: Any) -> bool:
    """Whether the family's ids are by rows and columns of each slice, which a mask may place."""
    family, sizes = config.family, np.array([(2, 3), (1, 4), (33, 2)])
    if family.rule is None:
        return False
    plain = position_ids(sizes, config.vision.num_patches_per_side, family.rule)
    return np.array_equal(family.position_ids(sizes, config, family.rule), plain)


def _by_crops(case: Case, config: Any) -> bool:
    """Whether the family numbers the patches of a slice crop by crop."""
    family, one, more = config.family, np.array([(32, 32)]), np.array([(33, 2)])
    if family.rule is None:
        return False
    plain = partial(position_ids, num_patches_per_side=config.vision.num_patches_per_side, rule=family.rule)
    alike = [np.array_equal(family.position_ids(sizes, config, family.rule), plain(sizes)) for sizes in (one, more)]
    return alike == [True, False]


def _has_padding(case: Case, config: Any) -> bool:
    """Whether some slices of the case are shorter, and padding takes no part in what its stages compute."""
    family, sizes = config.family, np.array(config.family.case_sizes(case.sizes, config))
    shorter = len(set(sizes.prod(axis=1).tolist())) > 1
    own = any(stage.name == "hidden" for stage in case.stages_of(family))
    return shorter and not (own and not np.array_equal(family.places(sizes), sizes))


CASES = (
    Case("one-patch", "the smallest batch there is", ((1, 1),), "ramp", picture=(1, 1)),
    Case(
        "boundaries",
        "sizes on which released position rules differ",
        ((25, 2), (1, 49), (2, 50), (7, 5), (58, 1), (24, 1)),
        needs=_has_rule,
    ),
    Case(
        "full-side",
        "as many patches as the position table has per side, or about as many where a slice has whole units",
        ((70, 1), (1, 70)),
        needs=_has_rule,
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
        needs=_is_cut,
    ),
    Case(
        "square-of-six",
        "a square picture, for which grids of 2 x 3 and 3 x 2 are equally near",
        ((2, 2),),
        picture=(37, 37),
        needs=_is_cut,
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
        stages_of=_alone(BUCKET_COORDS),
        needs=_has_rule,
    ),
    Case(
        "masked",
        "patches at the places of a mask on a canvas, not at the first places",
        ((2, 3), (4, 2), (3, 1)),
        stages_of=_alone(MASKED_IDS),
        needs=_by_slices,
    ),
    Case(
        "peaked",
        "attention so sharp that its powers overflow unless the largest score is taken off first",
        ((2, 3), (1, 2)),
        model="peaked",
        stages_of=_vision,
    ),
    Case(
        "nan-in-embeddings",
        "NaN in the padded places of the embeddings, which the tower is not to read",
        ((2, 3), (1, 2), (3, 1)),
        stages_of=_reading("embeddings"),
        needs=_has_padding,
    ),
    Case(
        "nan-in-hidden",
        "NaN in the padded places of the hidden states, which the connector is not to read",
        ((2, 3), (1, 2), (3, 1)),
        stages_of=_reading("hidden"),
        needs=_has_padding,
    ),
    Case(
        "whole-crops",
        "a slice of whole crops, of which nothing is masked",
        ((32, 32),),
        stages_of=_vision,
        needs=_by_crops,
    ),
    Case(
        "frames",
        "groups of a video's frames, whose patches share the tokens of their group",
        ((2, 3), (2, 3), (1, 2), (3, 2), (3, 2), (3, 2)),
        stages_of=_alone(FRAME_TOKENS),
        needs=_takes_frames,
    ),
)


def cases_of(family: Family, given: Model | None = None) -> tuple[Case, ...]:
    """The cases that say something of a family; for a given model only those that need no config of their own."""
    models = own_configs(family)
    seen: set[Any] = set()
    cases = []
    for case in CASES:
        if case.model in NOT_FOR_GIVEN if given is not None else case.model not in models:
            continue
        config = models[case.model] if given is None else given.config
        fitting = _with_picture_for(case, config)
        if not (fitting.needs(fitting, config) and _has_arrays_for(fitting, family, given)):
            continue
        shown = _shown(fitting, config)
        if shown not in seen:
            seen.add(shown)
            cases.append(fitting)
    return tuple(cases)


def _has_arrays_for(case: Case, family: Family, given: Model | None) -> bool:
    """Whether any stage of the case can be computed."""
    return any(given is None or not given.missing(stage) for stage in case.stages_of(family))


NOT_FOR_GIVEN = ("varied", "same-width", "peaked")
"""Models that are there for their configs or their arrays, which a given checkpoint has of its own."""


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
    return sizes, case.kind, case.model, case.picture, case.stages_of


def own_configs(family: Family) -> Mapping[str, Any]:
    """The configs of the packs' own models, by name."""
    small = family.small()
    return {BASE: small, "peaked": small, **family.variants()}


PEAK = 100.0
"""How many times as large the queries of "peaked" are."""

_EDITS: Mapping[str, Callable[[Model], Model]] = {
    "patch14": lambda model: edited(model, {f"{model.tower}embeddings.patch_embedding.weight": np.abs}),
    "peaked": lambda model: Model(model.config, peaked(model, PEAK)),
}
"""What is changed in some models' random arrays: the kernels of "patch14" are positive, so that its sums are of one sign."""


def own_model(name: str, family: Family) -> Model:
    """One of the packs' own models."""
    config = own_configs(family)[name]
    model = random_model(config, seed=1, until=family.vision_stages[-1].name)
    model = Model(config, with_dropped_layer(config, model.weights, seed=1))
    return _EDITS[name](model) if name in _EDITS else model
