"""Checks of the vision tower and of what follows it: the resampler, and every family's connector."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

import npembed
from npembed.conformance import strategies as draw
from npembed.conformance.bounds import HALF_TYPES, WIDE, half_allowed, stage_allowed
from npembed.conformance.compare import Departure
from npembed.conformance.probes.probe import Call, FunctionCheck, at_dtype, call, fill, in_float64, sizes_of
from npembed.records.model import Model
from npembed.support.typing import Array, Ids, Size

Places = Callable[[Ids, Any], Ids]
"""(tgt_sizes, config) -> rows and columns of the places of each slice."""

INEXACT = ("mixed", "faint", "one sign")
"""What fills the inputs. On whole numbers and their like float32 can be exact by luck, and then it is no yardstick."""


def _sweep(until: str) -> Iterator[Call]:
    models = [
        draw.small_model(until, hidden_size=4, heads=2, queries=2),
        draw.small_model(until, hidden_size=8, heads=2, queries=3, layers=2),
    ]
    for kind in ("mixed", "faint"):
        for model in models:
            for sizes in ([(1, 1)], [(1, 2)], [(2, 1)], [(2, 3)], [(1, 2), (1, 1)], [(2, 3), (3, 1)]):
                yield stage_call(model, kind, *sizes)
    yield from _fields(until)
    yield in_float64(stage_call(models[0], "mixed", (2, 3)))
    yield stage_call(models[0], "mixed", (1, 80))


def _fields(until: str) -> Iterator[Call]:
    """Every field of the config in its turn, at a width that says something in half precision too."""
    of = partial(draw.small_model, until, hidden_size=16, heads=2, queries=2)
    for model in (of(eps=1e-3), of(eps=1e-5), of(layers=3), of(layers=2, drop_last=True), of(seed=1), of(side=27)):
        yield stage_call(model, "mixed", (2, 3))
        yield stage_call(model, "faint", (3, 2), (1, 1))
    for model in (of(heads=1), of(heads=4), of(embed_dim=256), of(hidden_size=128, heads=4), of(hidden_size=32, queries=5)):
        yield stage_call(model, "mixed", (2, 3), (3, 1))
    for peak in (3.0, 10.0, 100.0):  # scores of 3 to 30, and over 88, where float32's powers overflow
        yield stage_call(of(peak=peak), "mixed", (3, 4))
        yield stage_call(of(peak=peak), "mixed", (2, 2), (1, 3))
    yield stage_call(of(), "mixed", (1, 80))
    yield stage_call(of(hidden_size=32), "mixed", (8, 12))  # many places: together they show what rounding hides in each
    for model in (of(), of(layers=2)):
        yield with_empty_padding(stage_call(model, "mixed", (2, 3), (1, 2)))


def own_places(tgt_sizes: Ids, config: Any) -> Ids:
    """The places of each slice, as most stages read and give them: its patches."""
    return tgt_sizes


def stage_call(model: Model, kind: str, *sizes: Size, read: Places = own_places) -> Call:
    """The call of a stage that reads these places, for slices of those sizes, filled one way."""
    tgt_sizes = sizes_of(*sizes)
    longest = int(read(tgt_sizes, model.config).prod(axis=1).max())
    return call(fill(kind, len(sizes), longest, model.config.vision.hidden_size), tgt_sizes, model)


def with_empty_padding(call: Call, read: Places = own_places) -> Call:
    """The call with NaN in the padded places, which are not to be read."""
    x, *rest = call.args
    return Call((np.where(places_of(call, read)[..., None], x, np.float32(np.nan)), *rest), call.kwargs)


@st.composite
def cases(
    drawn: st.DrawFn,
    models: Callable[[], st.SearchStrategy[Any]],
    sizes: Callable[[], st.SearchStrategy[Any]],
    read: Places = own_places,
) -> Call:
    """Drawn places for a drawn model."""
    model = drawn(models())
    tgt_sizes = drawn(sizes())
    shape = (len(tgt_sizes), int(read(tgt_sizes, model.config).prod(axis=1).max()), model.config.vision.hidden_size)
    return call(drawn(draw.floats(shape, kinds=INEXACT)), tgt_sizes, model)


def allowed(function: Callable[..., Array], call: Call, precision: str) -> Array:
    """By the distance of float32, or of runs in half precision, from float64 on this case."""
    x, tgt_sizes, model, *rest = call.args
    exact = function(at_dtype(x, "float64"), tgt_sizes, at_dtype(model, "float64"), *rest)
    if precision in HALF_TYPES:
        return half_allowed(function, call.args, exact, precision)
    return stage_allowed(function(at_dtype(x, "float32"), tgt_sizes, at_dtype(model, "float32"), *rest), exact, precision)


def suits(call: Call, precision: str) -> bool:
    """Whether the model is wide enough for that precision, and the inputs are more than its rounding."""
    return precision not in HALF_TYPES or call.args[2].config.vision.hidden_size >= WIDE


def places_of(call: Call, places: Places = own_places) -> Array:
    """bool (B, L'): where those places are."""
    return npembed.patch_attention_mask(places(call.args[1], call.args[2].config))[:, 0]


def only_padded(call: Call, dtype: str, departure: Departure) -> list[str]:
    """A first difference in a slice that is shorter than the batch's longest points at the padding."""
    lengths = call.args[1].prod(axis=1)
    if departure.index is None or lengths[departure.index[0]] == lengths.max():
        return []
    return ["only slices shorter than the batch's longest differ: padded places take part in the attention's softmax"]


def check_of(name: str, function: Callable[..., Array], sweep: Any, drawn: Any, places: Any = None) -> FunctionCheck:
    """The check of a stage whose result lies within a distance."""
    return FunctionCheck(
        name=name,
        sweep=sweep,
        cases=drawn,
        function=function,
        allowed=partial(allowed, function),
        places=places,
        hint=only_padded,
        suits=suits,
        signed=True,
    )


_SIZES = partial(draw.tgt_sizes, max_patches=24)

CHECKS = (
    check_of(
        "encode", npembed.encode, partial(_sweep, "hidden"), partial(cases, partial(draw.models, "hidden"), _SIZES), places_of
    ),
    check_of("resample", npembed.resample, partial(_sweep, "tokens"), partial(cases, partial(draw.models, "tokens"), _SIZES)),
)
