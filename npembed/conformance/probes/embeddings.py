"""Checks of the embeddings."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

import npembed
from npembed.conformance import strategies as draw
from npembed.conformance.bounds import embed_scale
from npembed.conformance.probes.positions import IDS_SUSPECTS
from npembed.conformance.probes.probe import (
    Array,
    Call,
    FunctionCheck,
    Suspect,
    call,
    edited,
    fill,
    half_sums,
    in_float64,
    sizes_of,
)
from npembed.model import Model
from npembed.patches import patches_to_strip, strip_to_patches

KERNELS, BIAS, TABLE = (
    f"vpm.embeddings.{name}" for name in ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
)


def _sweep() -> Iterator[Call]:
    batches = ([(1, 1)], [(1, 2)], [(2, 1)], [(2, 3)], [(1, 1), (1, 3)])
    for kind in ("ones", "ramp", "mixed"):
        for model in (draw.small_model(), draw.small_model(channels=3, patch_size=2, hidden_size=4)):
            yield from (_call(model, kind, *sizes) for sizes in batches)
    yield from (_call(draw.small_model(), "ramp", (1, n)) for n in draw.parting_sizes())
    yield _call(draw.small_model(channels=3, patch_size=14, one_sign=True), "one sign", (1, 3))
    yield in_float64(_call(draw.small_model(), "mixed", (2, 3)))


def _call(model: Model, kind: str, *sizes: tuple[int, int]) -> Call:
    vision = model.config.vision
    strips = [fill(kind, vision.num_channels, vision.patch_size, h * w * vision.patch_size) for h, w in sizes]
    return call(strips, sizes_of(*sizes), model)


@st.composite
def _cases(drawn: st.DrawFn) -> Call:
    model = drawn(draw.models())
    sizes = drawn(draw.tgt_sizes(max_patches=128))
    vision = model.config.vision
    return call(drawn(draw.strips(sizes, vision.num_channels, vision.patch_size)), sizes, model)


def _allowed(call: Call, precision: str) -> Array:
    return embed_scale(*call.args).allowed(precision)


def _of(change: Callable[[Model], Model]) -> Callable[..., Array]:
    """The embeddings of a changed model."""
    return lambda strips, tgt_sizes, model: npembed.embed(strips, tgt_sizes, change(model))


def _zero_padding(strips: Any, tgt_sizes: Any, model: Model) -> Array:
    """No position is added where there is no patch: the padding holds the bias alone."""
    result = npembed.embed(strips, tgt_sizes, model)
    result[~npembed.patch_attention_mask(tgt_sizes)[:, 0]] = model.weights[BIAS]
    return result


def _empty_padding(strips: Any, tgt_sizes: Any, model: Model) -> Array:
    result = npembed.embed(strips, tgt_sizes, model)
    result[~npembed.patch_attention_mask(tgt_sizes)[:, 0]] = 0
    return result


def _with_ids(faulty: Callable[..., Any], strips: Any, tgt_sizes: Any, model: Model) -> Array:
    """The rows of the position table that faulty ids take."""
    table, side = model.weights[TABLE], model.config.vision.num_patches_per_side
    right, wrong = (ids(tgt_sizes, side) for ids in (npembed.position_ids, faulty))
    return np.asarray(npembed.embed(strips, tgt_sizes, model) + (table[wrong] - table[right]))


def _column_major(strips: Any, tgt_sizes: Any, model: Model) -> Array:
    """The strip's patches are taken column by column of the picture."""
    turned = []
    for strip, (h, w) in zip(strips, np.asarray(tgt_sizes).tolist(), strict=True):
        patches = strip_to_patches(strip)
        order = np.arange(h * w).reshape(w, h).T.ravel()
        turned.append(patches_to_strip(patches[order], strip.shape[1]))
    return npembed.embed(turned, tgt_sizes, model)


CHECKS = (
    FunctionCheck(
        name="embed",
        sweep=_sweep,
        cases=_cases,
        allowed=_allowed,
        hint=half_sums,
        suspects=(
            Suspect("the padding holds the bias alone; upstream adds position 0", _zero_padding),
            Suspect("the padding holds zeros; upstream's holds bias + position 0", _empty_padding),
            Suspect("the bias is missing", _of(lambda model: edited(model, {BIAS: np.zeros_like}))),
            Suspect("the kernels are transposed", _of(lambda model: edited(model, {KERNELS: lambda w: w.swapaxes(2, 3)}))),
            Suspect("the channels are reversed", _of(lambda model: edited(model, {KERNELS: lambda w: w[:, ::-1]}))),
            Suspect("the strips are read column by column", _column_major),
            *(Suspect(f"the position ids: {suspect.words}", partial(_with_ids, suspect.function)) for suspect in IDS_SUSPECTS),
        ),
    ),
)
