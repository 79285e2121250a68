"""How far a port may be from the exact result: from theory, not taste.

Ids, masks, bounds and text allow nothing. The convolution and the embeddings have Higham's componentwise bound at the
port's precision. For the encoder and the resampler no such bound is of use (it grows with the condition of every layer), so
that the yardstick is float32 itself: how far the float32 reference is from the float64 one on the very case.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npembed.conformance.filling import edited, model_at
from npembed.conformance.half import RUNS, half_distance, half_run
from npembed.records.model import Model
from npembed.steps.padding import pad_pixel_values
from npembed.steps.patches import patch_conv
from npembed.support.arguments import as_tgt_sizes
from npembed.support.typing import Floats

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 1 / 254}
"""u: half the distance from 1 to the next number of each type; of int8, half a step, in units of a row's largest."""

HALF_TYPES = ("float16", "bfloat16", "int8")
"""Coarser than float32. int8 is of the weights alone: each row in 255 equal steps, the rest in float16."""

FLOAT16_UNDERFLOW = 2.0**-25
"""The absolute rounding error of float16 among its subnormal numbers."""

DISTANCE_MULTIPLE = 32
"""An encoder or resampler may be this many times as far from float64 as the float32 reference is.

Right ports with other orders of summation were measured at up to 7 times that distance, over hundreds of small models; the
least of the faults that the kit knows, an epsilon of 1e-5, is at ten times the allowed distance and more.
"""

DISTANCE_FLOOR = 8
"""... and never less than so many u * max|y|, for the cases on which float32 happens to be exact."""


def check_precision(precision: str) -> str:
    """The name, if it is a precision that a port can have."""
    if precision not in UNIT_ROUNDOFF:
        raise ValueError(f"precision must be one of {', '.join(UNIT_ROUNDOFF)}; got {precision!r}")
    return precision


def gamma(terms: int, unit_roundoff: float) -> float:
    """Higham's n*u / (1 - n*u): the relative error of n roundings in a row.

    Examples
    --------
    >>> gamma(1, 2.0**-24) == 2.0**-24 / (1 - 2.0**-24)
    True
    """
    product = terms * unit_roundoff
    if product >= 1:
        raise ValueError(f"gamma: {terms} roundings of {unit_roundoff} have no bound")
    return product / (1 - product)


def relative_bound(terms: int, precision: str, stores: int = 1) -> float:
    """The factor of |x| * |w| + |bias| + ... by which a sum of products at that precision may be off.

    Parameters
    ----------
    terms : int
        n: the products and the other summands, one rounding each and one more.
    precision : str
        float32 and float64: every operation rounds to it. float16 and bfloat16: inputs and output are rounded to the type,
        the products summed in float32. int8: as float16; what its weights' steps add is no matter of |x| * |w|.
    stores : int
        How often a half-precision port may round its result: once for the convolution; twice for the embeddings, where a
        framework in half precision rounds the convolution and then the sum.

    Notes
    -----
    Source: SPEC 11. The float64 reference's own bound is added, so that the promise holds against it too.
    """
    unit = UNIT_ROUNDOFF["float16" if check_precision(precision) == "int8" else precision]
    own = gamma(terms, UNIT_ROUNDOFF["float64"])
    if precision in HALF_TYPES:
        return (1 + unit) ** (2 + stores) * (1 + gamma(terms, UNIT_ROUNDOFF["float32"])) - 1 + own
    return gamma(terms, unit) + own


@dataclass(frozen=True)
class Scale:
    """What a componentwise bound is made of: allowed(precision) = relative_bound(terms) * magnitude + underflow.

    Attributes
    ----------
    terms : int
    magnitude : float64 array
        |x| * |w| + |bias| (+ |position|), element by element.
    underflow : float64 array
        What float16's subnormal numbers add: a half-spacing of theirs per input, times what it is multiplied with.
    stores : int
        Roundings of the result in half precision.
    steps : float64 array
        What int8 weights add: half a step of each row, times what it is multiplied with.
    """

    terms: int
    magnitude: Floats
    underflow: Floats
    stores: int = 1
    steps: Floats | float = 0.0

    def allowed(self, precision: str) -> Floats:
        """The largest distance from the exact result, element by element."""
        bound = relative_bound(self.terms, precision, self.stores) * self.magnitude
        if precision == "int8":
            bound = bound + self.steps * (1 + 4 * UNIT_ROUNDOFF["float16"])  # the steps are rounded as the rest is
        return np.asarray(bound + self.underflow if precision in ("float16", "int8") else bound)


def patch_conv_scale(pixel_values: Floats, weight: Floats, bias: Floats | None = None) -> Scale:
    """For `patch_conv`: (B, D, H//P, W//P); n = C*P*P + 2."""
    pixels, kernels = (np.abs(np.asarray(array, dtype=np.float64)) for array in (pixel_values, weight))
    offsets = None if bias is None else np.abs(np.asarray(bias, dtype=np.float64))
    magnitude = patch_conv(pixels, kernels, offsets)
    sums = patch_conv(pixels, np.ones_like(kernels))
    inputs = sums + kernels.sum(axis=(1, 2, 3))[:, None, None] + 2
    steps = sums * kernels.max(axis=(1, 2, 3))[:, None, None] * UNIT_ROUNDOFF["int8"]
    return Scale(kernels[0].size + 2, magnitude, FLOAT16_UNDERFLOW * inputs, steps=steps)


def embed_scale(strips: Sequence[Any], tgt_sizes: Any, model: Model, rule: str | None = None) -> Scale:
    """For `embed`: (B, Lmax, D); n = C*P*P + 3. For a model of any family."""
    family, vision, bias = model.config.family, model.config.vision, f"{model.tower}embeddings.patch_embedding.bias"
    exact = model_at(model, "float64")
    kernels = family.kernels(exact).reshape(-1, vision.num_channels, vision.patch_size, vision.patch_size)
    conv = patch_conv_scale(pad_pixel_values(strips), kernels, exact.weights[bias])
    unbiased = edited(exact, {bias: np.zeros_like})
    positions = np.abs(family.positions(unbiased, as_tgt_sizes(tgt_sizes, "embed_scale"), rule))  # (B, Lmax, D)
    largest = float(np.abs(exact.weights[f"{model.tower}embeddings.position_embedding.weight"]).max())
    magnitude, underflow, steps = (  # (B, D, 1, Lmax) -> (B, Lmax, D)
        np.asarray(array)[:, :, 0].swapaxes(1, 2) for array in (conv.magnitude, conv.underflow, conv.steps)
    )
    return Scale(
        conv.terms + 1,
        magnitude + positions,
        underflow + 2 * FLOAT16_UNDERFLOW,
        stores=2,
        steps=steps + UNIT_ROUNDOFF["int8"] * largest,
    )


def stage_allowed(in_float32: Floats, in_float64: Floats, precision: str = "float32") -> Floats:
    """For the encoder and the resampler: (B, 1, 1), the largest distance per slice.

    `DISTANCE_MULTIPLE` times the largest distance of float32 from float64 in that slice, plus `DISTANCE_FLOOR` * u * max|y|,
    in proportion to the u of the half types. A float64 port gets what a float32 one gets: the resampler's table of positions
    is float32 by its definition, and no two libraries agree on its last bits.

    Parameters
    ----------
    in_float32, in_float64 : (B, L, D)
        The stage's result in each, from the same input.
    precision : str
    """
    axes = tuple(range(1, in_float64.ndim))
    distance = np.abs(in_float32 - in_float64).max(axis=axes, keepdims=True)
    size = np.abs(in_float64).max(axis=axes, keepdims=True)
    in_float32_units = DISTANCE_MULTIPLE * distance + DISTANCE_FLOOR * UNIT_ROUNDOFF["float32"] * size
    return np.asarray(in_float32_units * precision_factor(precision))


HALF_MULTIPLE = 6
"""A port in half precision may be this many times as far from float64 as the furthest of three runs that round as it does.

Right ports were measured at a fifth of it, and are held to a third by tests: ones that round after every operation,
transformers' encoder in bfloat16, float16 and under autocast; by hand, ONNX Runtime in float16 (21 %).
"""

HALF_FLOOR = 2
"""... and never less than so many u * max|y|."""


WIDE = 16
"""The least width of a tower that says anything in half precision: a layer norm of two channels is a sign."""

MANY = 4096
"""Numbers in a slice from which on one run is enough: its largest distance is no matter of luck."""


def half_allowed(function: Callable[..., Floats], args: Sequence[Any], exact: Floats, precision: str) -> Floats:
    """For the encoder and what follows it, in half precision or with int8 weights: (B, 1, ...), the largest distance per slice.

    Infinite where a run overflows, as float16 may: such a slice says nothing.

    Parameters
    ----------
    function : callable
        (x, tgt_sizes, model), the reference.
    args : sequence
        Its arguments, in float32.
    exact : (B, ...)
        Its result in float64.
    precision : {"float16", "bfloat16", "int8"}

    Notes
    -----
    `HALF_MULTIPLE` times the distance of the runs of `npembed.conformance.half`, plus `HALF_FLOOR` * u * max|y|. Attention
    so sharp that rounding decides which patch is looked at makes those runs differ, and the allowance as wide as they are.
    """
    seeds = RUNS if exact[0].size < MANY else RUNS[:1]
    runs = [half_run(function, args, precision, seed) for seed in seeds]
    size = np.abs(exact).max(axis=tuple(range(1, exact.ndim)), keepdims=True)
    distance = half_distance(runs, exact)
    unit = UNIT_ROUNDOFF["float16" if precision == "int8" else precision]
    return np.asarray(HALF_MULTIPLE * distance + HALF_FLOOR * unit * size)


def precision_factor(precision: str) -> float:
    """By what a distance that is allowed in float32 grows at that precision; at least 1."""
    return max(UNIT_ROUNDOFF[check_precision(precision)] / UNIT_ROUNDOFF["float32"], 1.0)


_ERF = "gelu in its erf form, not the tanh form"
_ALONE = {name: f"eps 1e-5 in {name} alone" for name in ("ln_q", "ln_kv", "ln_post", "layer_norm1", "layer_norm2")}
_LAST = "eps 1e-5 in post_layernorm alone"
_LAST_IS_FIXED = "eps 1e-6 in post_layernorm alone, whatever the config says"

INDISTINGUISHABLE: dict[str, dict[str, tuple[str, ...]]] = {
    "float16": {"encode": (), "resample": (_ALONE["ln_post"],)},
    "bfloat16": {"encode": (_ERF, _LAST, _LAST_IS_FIXED), "resample": (_ALONE["ln_q"], _ALONE["ln_post"])},
    "int8": {"encode": (_ERF, _ALONE["layer_norm2"], _LAST_IS_FIXED), "resample": (_ALONE["ln_q"], _ALONE["ln_post"])},
}
"""Per precision and function, the known faults that are less than its rounding, in every input and in all together.

A port with one of them passes at that precision; check it in float32, too.
"""

_EVERY_EPS = ("layer norms with eps 1e-5", "layer_norm_eps of the config is ignored: it is 1e-6")
_EACH_EPS = (_LAST, _ALONE["layer_norm1"], _ALONE["layer_norm2"], _LAST_IS_FIXED)

INDISTINGUISHABLE_IN_PACKS: dict[str, dict[str, tuple[str, ...]]] = {
    "float16": {"encode": (), "resample": (_ALONE["ln_kv"], _ALONE["ln_post"])},
    "bfloat16": {"encode": (_ERF, *_EVERY_EPS, *_EACH_EPS), "resample": (_ALONE["ln_kv"], _ALONE["ln_post"])},
    "int8": {
        "encode": (_ERF, *_EVERY_EPS, *_EACH_EPS),
        "resample": (
            "layer norms with eps 1e-5",
            *(_ALONE[name] for name in ("ln_q", "ln_kv", "ln_post")),
        ),
    },
}
"""The same of MiniCPM-V 2.6's golden pack, which has fewer inputs; the eps of `ln_kv` alone shows in no precision."""
