"""Checks of the embeddings."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from hypothesis import strategies as st

from npembed.conformance import strategies as draw
from npembed.conformance.bounds import embed_scale
from npembed.conformance.probes.probe import Call, FunctionCheck, call, fill, half_sums, in_float64, refused, sizes_of
from npembed.records.model import Model
from npembed.support.typing import Array


def _sweep() -> Iterator[Call]:
    batches = ([(1, 1)], [(1, 2)], [(2, 1)], [(2, 3)], [(1, 1), (1, 3)])
    for kind in ("ones", "ramp", "mixed"):
        for model in (draw.small_model(), draw.small_model(channels=3, patch_size=2, hidden_size=4)):
            yield from (strips_call(model, kind, *sizes) for sizes in batches)
    yield from (strips_call(draw.small_model(), "ramp", (1, n)) for n in draw.parting_sizes(up_to=300))
    yield from (strips_call(draw.small_model(side=27), "mixed", *sizes) for sizes in ([(2, 3)], [(41, 1)], [(1, 54), (2, 2)]))
    yield strips_call(draw.small_model(side=7, hidden_size=4), "mixed", (9, 2))
    yield strips_call(draw.small_model(channels=3, patch_size=14, one_sign=True), "one sign", (1, 3))
    yield in_float64(strips_call(draw.small_model(), "mixed", (2, 3)))
    strips, _, model = strips_call(draw.small_model(), "ramp", (2, 3)).args
    yield refused(strips, sizes_of((2, 2)), model)
    yield refused(strips, sizes_of((2, 3), (1, 1)), model)


def strips_call(model: Model, kind: str, *sizes: tuple[int, int]) -> Call:
    """Strips of those sizes, filled one way, for the model."""
    vision = model.config.vision
    strips = [fill(kind, vision.num_channels, vision.patch_size, h * w * vision.patch_size) for h, w in sizes]
    return call(strips, sizes_of(*sizes), model)


@st.composite
def cases(drawn: st.DrawFn, models: Callable[[], st.SearchStrategy[Any]], sizes: Callable[[], st.SearchStrategy[Any]]) -> Call:
    """Drawn strips for a drawn model."""
    model = drawn(models())
    tgt_sizes = drawn(sizes())
    vision = model.config.vision
    return call(drawn(draw.strips(tgt_sizes, vision.num_channels, vision.patch_size)), tgt_sizes, model)


def allowed(call: Call, precision: str) -> Array:
    """By the componentwise bound."""
    strips, tgt_sizes, model = call.args
    return embed_scale(strips, tgt_sizes, model).allowed(precision)


CHECKS = (
    FunctionCheck(
        name="embed",
        sweep=_sweep,
        cases=partial(cases, draw.models, partial(draw.tgt_sizes, max_patches=128)),
        allowed=allowed,
        hint=half_sums,
        by_rule=True,
    ),
)
