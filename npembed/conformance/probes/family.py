"""Checks of a port of one family: its embeddings, its tower, its connector or head, its slices and its text.

Everything is read off the family's stages and its small config: which sizes it takes by trying them, which fields it has by
looking.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

import npembed
from npembed.conformance import strategies as draw
from npembed.conformance.probes import embeddings, images, tower
from npembed.conformance.probes.probe import Call, FunctionCheck, call, half_sums, in_float64, sizes_of
from npembed.conformance.suspects.positions import family_ids
from npembed.families import get_family
from npembed.records.config import VisionConfig
from npembed.records.family import Family, Promise, Stage
from npembed.records.model import Model
from npembed.support.typing import Size

SMALL_SIZES = ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (1, 5))
"""Of slices, in the family's units."""

OTHER = {
    "layer_norm_eps": (1e-3,),
    "rms_norm_eps": (1e-3,),
    "num_attention_heads": (1, 4),
    "num_hidden_layers": (3,),
    "num_key_value_heads": (1, 4),
    "mean": (images.UNEVEN["mean"],),
    "std": (images.UNEVEN["std"],),
    "resample": ("BILINEAR", "LANCZOS"),
    "downsample_mode": ("4x", "16x"),
}
"""Other values of fields that need more than twice the number, or the other answer."""

KEPT = ("hidden_size", "intermediate_size", "num_channels", "patch_size", "image_size", "embed_dim", "size", "image_token_id")
"""Fields that vary with others, or not at all; `image_size` is varied by the table's side."""


@cache
def family_checks(key: str) -> dict[str, FunctionCheck]:
    """The checks of a family's functions, by the public names: slices, ids, embeddings, the tower, the last stages, text."""
    family = get_family(key, "check")
    checks = [_slicing(family), *_position_ids(family), _embedding(family)]
    checks += [_distant(family, stage) for stage in family.vision_stages[1:]]
    return {check.name: check for check in [*checks, *_frames(family), *_texts(family)]}


@cache
def variants(key: str) -> tuple[dict[str, Any], ...]:
    """What to change in the family's small config: nothing, then each field in its turn, then the table's side."""
    family = get_family(key, "check")
    config = family.small()
    patch = config.vision.patch_size
    tied: dict[str, Any] = {}
    sides = [{"image_size": side * patch} for side in (27, 70) if side != config.vision.num_patches_per_side]
    if family.one_size:  # each slice would take all of the table's patches, so that a small table does for every change
        sides, tied = [], {"image_size": 5 * patch, "size": (5 * patch, 5 * patch)}
    changes = [{}, *({name: value, **tied} for name, value in _other_values(config)), *sides]
    build = partial(draw.family_model, key, family.vision_stages[-1].name)
    return tuple(change for change in changes if _accepts(build, call(**change)))


def _other_values(config: Any) -> Iterator[tuple[str, Any]]:
    """Field, another value: of the config and of those within it."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value) and not isinstance(value, (type, Family)):
            yield from _other_values(value)
        elif f.init and f.name not in KEPT:
            yield from ((f.name, other) for other in OTHER.get(f.name, _simple(value)) if other != value)


def _simple(value: Any) -> tuple[Any, ...]:
    if isinstance(value, bool):
        return (not value,)
    return (2 * value, value + 1) if isinstance(value, int) else ()


@cache
def sizes_for(model: Model) -> tuple[Size, ...]:
    """Rows and columns of slices that the model takes, smallest first: found by trying."""
    unit, side = model.config.family.unit(model.config), model.config.vision.num_patches_per_side
    small = [(h * unit, w * unit) for h, w in SMALL_SIZES]
    found = tuple(size for size in small if _takes(model, size))
    return found or tuple(size for size in [(side, side)] if _takes(model, size))  # a family of one size takes the table's


def _takes(model: Model, size: Size) -> bool:
    strips, tgt_sizes, _ = embeddings.strips_call(model, "mixed", size).args
    values: dict[str, Any] = {"strips.*": strips, "tgt_sizes": tgt_sizes}
    try:
        for stage in model.config.family.vision_stages:
            values[stage.name] = stage.call(values, model)
    except ValueError:
        return False
    return True


def _models(family: Family, until: str) -> Iterator[Model]:
    return (draw.family_model(family.key, until, **change) for change in variants(family.key))


@cache
def _of_pictures(model: Model, first: int = 3, last: int = 4) -> list[list[Size]]:
    """The slices of small pictures, for a family whose slices belong together."""
    sizes = PICTURES[first : last + 1]
    cut = (model.config.family.cut(images.picture(height, width), model.config) for height, width in sizes)
    return [[(int(h), int(w)) for h, w in slices.tgt_sizes] for slices in cut]


def _batches(model: Model) -> list[list[Size]]:
    """Slices of one size, and, where there are several, of two."""
    sizes = sizes_for(model)
    if not sizes:
        return _of_pictures(model)
    return [*([size] for size in sizes[:6]), *([[sizes[-1], sizes[0]], [sizes[0], sizes[-1]]] if len(sizes) > 1 else [])]


# Position ids


def _position_ids(family: Family) -> list[FunctionCheck]:
    """The check of the family's own ids, if its positions have any."""
    if not any(stage.name == "position_ids" for stage in family.stages):
        return []
    function = family_ids(family)
    calls = [one for one in _ids_calls() if _accepts(function, one)]
    return [
        FunctionCheck(
            name="position_ids",
            function=function,
            sweep=lambda: iter(calls),
            cases=partial(_ids_cases, function),
            by_rule=family.rule is not None,
            rule=family.rule,
        )
    ]


def _ids_calls() -> Iterator[Call]:
    for n in sorted({*range(1, 9), *draw.parting_sizes(70, 300)}):
        yield from (call(sizes_of(size), 70) for size in ((1, n), (n, 1)))
    yield from (call(sizes_of((n, 1), (1, n)), 27) for n in (27, 41, 54, 69))
    yield from (call(sizes_of(*sizes), 27) for sizes in ([(2, 3), (1, 2)], [(4, 2), (3, 5)], [(1, 1), (5, 4)]))
    yield from (call(sizes_of(*sizes), 27) for sizes in ([(33, 2)], [(1, 40)], [(32, 32), (33, 40)]))  # beyond a crop of 32
    yield from (call(sizes_of(*[(side, side)] * count), side) for side in (1, 2, 3, 27) for count in (1, 2))


def _ids_cases(function: Any) -> st.SearchStrategy[Call]:
    """Any sizes, or those of the table for a family that takes no others."""
    side = st.sampled_from((70, 27, 7, 1))
    if _accepts(function, call(sizes_of((1, 2)), 70)):
        return st.builds(call, draw.tgt_sizes(max_patches=256), side)
    return st.builds(lambda side, count: call(sizes_of(*[(side, side)] * count), side), side, st.integers(1, 3))


# Embeddings


def _embedding(family: Family) -> FunctionCheck:
    until = family.vision_stages[0].name
    return FunctionCheck(
        name="embed",
        sweep=partial(_embedding_sweep, family, until),
        cases=partial(embeddings.cases, partial(_drawn_models, family, until), partial(_drawn_sizes, family)),
        allowed=embeddings.allowed,
        hint=half_sums,
        by_rule=family.rule is not None,
        rule=family.rule,
    )


def _embedding_sweep(family: Family, until: str) -> Iterator[Call]:
    for number, model in enumerate(_models(family, until)):
        whole = draw.family_model(family.key, family.vision_stages[-1].name, **variants(family.key)[number])
        kinds = ("ramp", "mixed") if number == 0 else ("mixed",)
        for kind in kinds:
            yield from (embeddings.strips_call(model, kind, *sizes) for sizes in _batches(whole))
    plain = draw.family_model(family.key, until)
    for n in draw.parting_sizes():
        one = embeddings.strips_call(plain, "mixed", (1, n))
        if _accepts(npembed.embed, one):
            yield one


def _drawn_models(family: Family, until: str) -> st.SearchStrategy[Any]:
    """Small models of the family whose slices may be of the same sizes."""
    return st.builds(lambda seed: draw.family_model(family.key, until, seed=seed), st.integers(0, 9))


def _drawn_sizes(family: Family) -> st.SearchStrategy[Any]:
    whole = draw.family_model(family.key, family.vision_stages[-1].name)
    sizes = sizes_for(whole)
    if not sizes:
        return st.sampled_from(_of_pictures(whole)).map(lambda chosen: sizes_of(*chosen))
    return st.lists(st.sampled_from(sizes), min_size=1, max_size=3).map(lambda chosen: sizes_of(*chosen))


# The tower, and what makes tokens or a vector


def _distant(family: Family, stage: Stage) -> FunctionCheck:
    assert stage.promise is Promise.DISTANCE
    compared = stage.sizes is not None and not stage.compares_padding
    models, read = partial(_drawn_models, family, family.vision_stages[-1].name), _places_before(family, stage)
    return tower.check_of(
        stage.function.__name__,
        stage.function,
        partial(_distant_sweep, family, read),
        partial(tower.cases, models, partial(_drawn_sizes, family), read),
        partial(tower.places_of, places=stage.sizes_of) if compared else None,
    )


def _places_before(family: Family, stage: Stage) -> tower.Places:
    """The places that the stage reads."""
    stages = family.vision_stages
    return stages[stages.index(stage) - 1].sizes_of


def _distant_sweep(family: Family, read: tower.Places) -> Iterator[Call]:
    made, last = partial(tower.stage_call, read=read), family.vision_stages[-1].name
    for number, model in enumerate(_models(family, last)):
        batches = _batches(model)
        square = [] if number or sizes_for(model) else _of_pictures(model, 5, 5)  # of which nothing is masked
        yield from (made(model, "mixed", *sizes) for sizes in [*batches[-2 if number else 0 :], *square])
        yield made(model, "faint", *batches[0])
    fewest = variants(family.key)[1]
    for peak in (3.0, 10.0, 100.0):
        model = draw.family_model(family.key, last, peak=peak, **fewest)
        yield from (made(model, "mixed", *sizes) for sizes in _batches(model)[-3:])
    plain = draw.family_model(family.key, last)
    for sizes in _batches(plain)[-2:]:
        if len(sizes) > 1 and np.array_equal(family.places(sizes_of(*sizes)), sizes_of(*sizes)):
            yield tower.with_empty_padding(made(plain, "mixed", *sizes), read)
    yield in_float64(made(plain, "mixed", *_batches(plain)[0]))


# Groups of frames


def _frames(family: Family) -> list[FunctionCheck]:
    """The check of tokens that frames share, for a family whose connector takes groups of them."""
    if not family.frames:
        return []
    stage = family.stage("tokens", "check")
    check = tower.check_of(
        "resample_frames", stage.function, partial(_frame_sweep, family, stage), partial(_frame_cases, family, stage)
    )
    return [replace(check, of=stage.function.__name__, hint=None)]


TIMES = ([[0, 3]], [[7]], [[-1], [0, 3]], [[5, 1], [-1]], [[0, 10, 20]], [[71_999, 0], [1]])
"""Of groups of frames; -1 is a picture."""


def _frame_sweep(family: Family, stage: Stage) -> Iterator[Call]:
    for change in variants(family.key)[:2]:
        model = draw.family_model(family.key, stage.name, **change)
        for number, times in enumerate(TIMES):
            sizes = [((2, 3), (1, 2), (3, 1))[place % (1 + number % 3)] for place in range(sum(map(len, times)))]
            yield _frame_call(family, stage, model, "mixed", sizes, times)


def _frame_call(family: Family, stage: Stage, model: Model, kind: str, sizes: list[Size], times: list[list[int]]) -> Call:
    one = tower.stage_call(model, kind, *sizes, read=_places_before(family, stage))
    return Call((*one.args, times))


@st.composite
def _frame_cases(drawn: st.DrawFn, family: Family, stage: Stage) -> Call:
    model = drawn(_drawn_models(family, stage.name))
    time = st.integers(0, 100)
    times = drawn(st.lists(st.just([-1]) | st.lists(time, min_size=1, max_size=3), min_size=1, max_size=3))
    sizes = [drawn(st.sampled_from(SMALL_SIZES)) for group in times for _ in group]
    return _frame_call(family, stage, model, drawn(st.sampled_from(tower.INEXACT)), sizes, times)


# Slices and text


def _configs(family: Family) -> list[Any]:
    """The small config with each field changed in its turn that has to do with pictures or text, not with the tower."""
    small = family.small()
    names = {f.name for f in fields(VisionConfig)}
    changes = (change for change in variants(family.key) if not names & set(change))
    return [draw.changed_config(small, change) for change in changes]


PICTURES = ((1, 1), (2, 1), (9, 12), (25, 40), (60, 30), (50, 50), (64, 200))
"""Height and width."""


def _slicing(family: Family) -> FunctionCheck:
    def cases() -> st.SearchStrategy[Call]:
        drawn = st.builds(lambda picture, config: call(picture, config=config), draw.pictures(48), st.sampled_from(configs))
        return drawn.filter(lambda one: _accepts(npembed.slice_image, one))

    configs = _configs(family)
    return FunctionCheck(name="slice_image", sweep=partial(_slicing_sweep, configs), cases=cases)


def _slicing_sweep(configs: list[Any]) -> Iterator[Call]:
    for number, config in enumerate(configs):
        for height, width in PICTURES if number == 0 else PICTURES[2:5]:
            one = call(images.picture(height, width), config=config)
            if _accepts(npembed.slice_image, one):
                yield one


def _accepts(function: Any, one: Call) -> bool:
    try:
        one.of(function)
    except (ValueError, TypeError):
        return False
    return True


def _texts(family: Family) -> list[FunctionCheck]:
    """The check of the text, for a family that has one."""
    configs = _configs(family)
    calls = [one for config in configs for one in _text_calls(family, config) if _accepts(npembed.image_placeholder, one)]
    if not calls:
        return []
    return [FunctionCheck(name="image_placeholder", sweep=lambda: iter(calls), cases=lambda: st.sampled_from(calls))]


def _text_calls(family: Family, config: Any) -> Iterator[Call]:
    unit = family.unit(config)
    for grid in (None, (1, 2), (2, 1), (2, 2), (2, 3)):
        count = 1 if grid is None else 1 + grid[0] * grid[1]
        sizes = sizes_of(*[(2 * unit, 3 * unit), *[(3 * unit, unit)] * (count - 1)])
        for image_id in (None, 0, 3):
            yield call(grid, image_id, config, sizes)
    for height, width in PICTURES[3:6]:  # where slices belong together, as a picture is cut
        try:
            cut = family.cut(images.picture(height, width), config)
        except ValueError:
            continue
        yield from (call(cut.grid, image_id, config, cut.tgt_sizes) for image_id in (None, 0))
