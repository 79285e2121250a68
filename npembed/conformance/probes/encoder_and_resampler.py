"""Checks of the encoder and of the resampler."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import strategies as st

import npembed
from npembed import encoder, resampler
from npembed.conformance import strategies as draw
from npembed.conformance.bounds import stage_allowed
from npembed.conformance.compare import Departure
from npembed.conformance.probes.probe import (
    Array,
    Call,
    FunctionCheck,
    Suspect,
    at_dtype,
    call,
    edited,
    fill,
    in_float64,
    sizes_of,
)
from npembed.model import Model

Tower = Callable[..., Array]

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
                yield _call(model, kind, *sizes)
    yield _call(models[0], "mixed", (1, 80))
    yield in_float64(_call(models[0], "mixed", (2, 3)))


def _call(model: Model, kind: str, *sizes: tuple[int, int]) -> Call:
    longest = max(h * w for h, w in sizes)
    return call(fill(kind, len(sizes), longest, model.config.vision.hidden_size), sizes_of(*sizes), model)


@st.composite
def _cases(drawn: st.DrawFn, until: str) -> Call:
    model = drawn(draw.models(until))
    sizes = drawn(draw.tgt_sizes(max_patches=24))
    shape = (len(sizes), int(sizes.prod(axis=1).max()), model.config.vision.hidden_size)
    return call(drawn(draw.floats(shape, kinds=INEXACT)), sizes, model)


def _allowed(function: Tower, call: Call, precision: str) -> Array:
    """By the distance of float32 from float64 on this case."""
    x, tgt_sizes, model = call.args
    single, double = (function(at_dtype(x, dtype), tgt_sizes, at_dtype(model, dtype)) for dtype in ("float32", "float64"))
    return stage_allowed(single, double, precision)


def _patches(call: Call) -> Array:
    """bool (B, Lmax): where the patches are."""
    return npembed.patch_attention_mask(call.args[1])[:, 0]


def _of(function: Tower, change: Callable[[Model], Model]) -> Tower:
    """The stage with a changed model."""
    return lambda x, tgt_sizes, model: function(x, tgt_sizes, change(model))


def _with_piece(function: Tower, module: Any, name: str, piece: Any) -> Tower:
    """The stage with another piece in the place of one of its own."""

    def faulty(*args: Any) -> Array:
        with mock.patch.object(module, name, piece):
            return np.asarray(function(*args))

    return faulty


def _scores_unscaled(model: Model) -> Model:
    """q larger by what the scores should be divided by."""
    width, heads = model.config.vision.hidden_size, model.config.vision.num_attention_heads
    names = [name for name in model.weights if ".self_attn.q_proj." in name]
    return edited(model, dict.fromkeys(names, lambda array: array * (width / heads) ** 0.5))


def _resampler_scores_unscaled(model: Model) -> Model:
    width = model.config.embed_dim

    def change(array: Array) -> Array:
        factor = np.ones(3 * width)
        factor[:width] = resampler.HEAD_DIM**0.5
        return np.asarray(array * factor.reshape(-1, *[1] * (array.ndim - 1)).astype(array.dtype))

    return edited(model, {"resampler.attn.in_proj_weight": change, "resampler.attn.in_proj_bias": change})


def _with_eps(eps: float, model: Model) -> Model:
    config: Any = model.config
    return Model(replace(config, vision=replace(config.vision, layer_norm_eps=eps)), model.weights)


def _gelu_by_erf(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(x / 2 * (1 + erf(x / np.sqrt(2))), dtype=x.dtype)


def _all_places(function: Tower, x: Any, tgt_sizes: Any, model: Model) -> Array:
    """Padded places take part in the attention like any other."""
    return function(x, [(1, np.shape(x)[1])] * len(x), model)


_sincos_table = resampler.sincos_table


def _table(order: tuple[int, int, int, int], h: int, w: int, channels: int) -> Array:
    """The resampler's table of positions with its quarters (sin and cos of the column, sin and cos of the row) rearranged."""
    quarters = np.split(_sincos_table(h, w, channels), 4, axis=1)
    return np.asarray(np.concatenate([quarters[k] for k in order], axis=1))


def _only_padded(call: Call, result: Any, departure: Departure) -> list[str]:
    """A first difference in a slice that is shorter than the batch's longest points at the padding."""
    lengths = call.args[1].prod(axis=1)
    if departure.index is None or lengths[departure.index[0]] == lengths.max():
        return []
    return ["only slices shorter than the batch's longest differ: padded places take part in the attention's softmax"]


CHECKS = (
    FunctionCheck(
        name="encode",
        sweep=partial(_sweep, "hidden"),
        cases=partial(_cases, "hidden"),
        allowed=partial(_allowed, npembed.encode),
        places=_patches,
        hint=_only_padded,
        suspects=(
            Suspect("gelu in its erf form, not the tanh form", _with_piece(npembed.encode, encoder, "gelu", _gelu_by_erf)),
            Suspect("layer norms with eps 1e-5", _of(npembed.encode, partial(_with_eps, 1e-5))),
            Suspect("the attention's scores are not scaled", _of(npembed.encode, _scores_unscaled)),
            Suspect("padding takes part in the attention's softmax", partial(_all_places, npembed.encode)),
        ),
    ),
    FunctionCheck(
        name="resample",
        sweep=partial(_sweep, "tokens"),
        cases=partial(_cases, "tokens"),
        allowed=partial(_allowed, npembed.resample),
        hint=_only_padded,
        suspects=(
            Suspect("layer norms with eps 1e-5", _with_piece(npembed.resample, resampler, "EPS", 1e-5)),
            Suspect("the attention's scores are not scaled", _of(npembed.resample, _resampler_scores_unscaled)),
            Suspect("proj is transposed", _of(npembed.resample, lambda model: edited(model, {"resampler.proj": np.transpose}))),
            Suspect(
                "sines and cosines are exchanged in the table of positions",
                _with_piece(npembed.resample, resampler, "sincos_table", partial(_table, (1, 0, 3, 2))),
            ),
            Suspect(
                "rows and columns are exchanged in the table of positions",
                _with_piece(npembed.resample, resampler, "sincos_table", partial(_table, (2, 3, 0, 1))),
            ),
            Suspect(
                "the keys have no positions",
                _with_piece(npembed.resample, resampler, "sincos_table", lambda h, w, channels: np.zeros((h * w, channels))),
            ),
        ),
    ),
)
