"""The cases of a golden pack: which slices, filled with what, through which model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from npembed.conformance.filling import edited, peaked, with_dropped_layer
from npembed.conformance.golden.more_stages import BUCKET_COORDS, FRAME_TOKENS, MASKED_IDS
from npembed.records.family import Family, Stage
from npembed.records.model import Model
from npembed.steps.positions import position_ids
from npembed.support.typing import Pixels, Size
from npembed.weights import random_model

MAX_PATCHES = 1024
"""n of the tensor that holds the buckets of every n."""

BASE = "small"
"""The name of the family's own small config; the others are its `variants`."""


@dataclass(frozen=True)
class Case:
    """What one case is made of.

    Attributes
    ----------
    name : str
    about : str
        What it is there to show.
    sizes : tuple of (int, int)
        Rows and columns of patches per slice; a family with other slices takes sizes near these.
    kind : str
        What fills the strips: one of the `KINDS`.
    model : str
        One of the packs' own models.
    picture : (int, int)
        Width and height in pixels of the picture that is sliced.
    stages_of : callable
        family -> its stages, in order; all of the family's unless it says otherwise.
    needs : callable
        (case, config) -> whether it says something of that config's family at all.
    """

    name: str
    about: str
    sizes: tuple[Size, ...] = ()
    kind: str = "mixed"
    model: str = BASE
    picture: Size = (40, 30)
    stages_of: Callable[[Family], tuple[Stage, ...]] = field(default=lambda family: family.stages)
    needs: Callable[["Case", Any], bool] = field(default=lambda case, config: True)


def picture(case: Case) -> Pixels:
    """uint8 (H, W, 3): channel c at (x, y) is (7x + 13y + 50c + x*y // 97) mod 256."""
    width, height = case.picture
    y, x = np.mgrid[:height, :width]
    return np.stack([(7 * x + 13 * y + 50 * c + x * y // 97) % 256 for c in range(3)], axis=-1).astype(np.uint8)


def _reading(name: str) -> Callable[[Family], tuple[Stage, ...]]:
    """The stages that read what has that name, which the case itself gives."""
    return lambda family: tuple(stage for stage in family.vision_stages if name in stage.reads)


def _has_rule(case: Case, config: Any) -> bool:
    return config.family.rule is not None


def _is_cut(case: Case, config: Any) -> bool:
    """Whether the picture is cut into crops."""
    return config.family.cut(picture(case), config).grid is not None


def _numbers_rows(config: Any, *sizes: Size) -> bool:
    """Whether the family numbers the patches of such slices by their rows and columns, as `position_ids` does."""
    family, tgt_sizes = config.family, np.array(sizes)
    if family.rule is None:
        return False
    plain = position_ids(tgt_sizes, config.vision.num_patches_per_side, family.rule)
    return np.array_equal(family.position_ids(tgt_sizes, config, family.rule), plain)


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
        f"the buckets of every number of patches from 1 to {MAX_PATCHES}, in one tensor",
        stages_of=lambda family: (BUCKET_COORDS,),
        needs=_has_rule,
    ),
    Case(
        "masked",
        "patches at the places of a mask on a canvas, not at the first places",
        ((2, 3), (4, 2), (3, 1)),
        stages_of=lambda family: (MASKED_IDS,),
        needs=lambda case, config: _numbers_rows(config, (2, 3), (1, 4), (33, 2)),
    ),
    Case(
        "peaked",
        "attention so sharp that its powers overflow unless the largest score is taken off first",
        ((2, 3), (1, 2)),
        model="peaked",
        stages_of=lambda family: family.vision_stages,
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
        stages_of=lambda family: family.vision_stages,
        needs=lambda case, config: _numbers_rows(config, (32, 32)) and not _numbers_rows(config, (33, 2)),
    ),
    Case(
        "frames",
        "groups of a video's frames, whose patches share the tokens of their group",
        ((2, 3), (2, 3), (1, 2), (3, 2), (3, 2), (3, 2)),
        stages_of=lambda family: (FRAME_TOKENS,),
        needs=lambda case, config: config.family.frames,
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
        if not fitting.needs(fitting, config):  # its stages may not be the family's
            continue
        can_be_computed = any(given is None or not given.missing(stage) for stage in fitting.stages_of(family))
        sizes = frozenset(family.case_sizes(case.sizes, config)) if case.sizes else ()
        shown = (sizes, case.kind, case.model, fitting.picture, case.stages_of)  # another case may come to the same
        if can_be_computed and shown not in seen:
            seen.add(shown)
            cases.append(fitting)
    return tuple(cases)


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


def own_configs(family: Family) -> Mapping[str, Any]:
    """The configs of the packs' own models, by name."""
    small = family.small()
    return {BASE: small, "peaked": small, **family.variants()}


PEAK = 100.0
"""How many times as large the queries of "peaked" are."""


def own_model(name: str, family: Family) -> Model:
    """One of the packs' own models."""
    config = own_configs(family)[name]
    model = random_model(config, seed=1, until=family.vision_stages[-1].name)
    model = replace(model, weights=with_dropped_layer(config, model.weights, seed=1))
    if name == "patch14":  # positive kernels, so that its sums are of one sign
        return edited(model, {f"{model.tower}embeddings.patch_embedding.weight": np.abs})
    return replace(model, weights=peaked(model, PEAK)) if name == "peaked" else model
