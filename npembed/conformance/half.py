"""A run of the reference that rounds where a framework rounds: the yardstick of ports in half precision and with int8 weights.

A framework in float16 or bfloat16 computes each operation (a linear map, a layer norm, a softmax, an activation, a sum of two
arrays) in float32 and rounds its result to the type. So does this. How far such a run is from float64, on the very case, is
what a port in that precision is measured by. Each run rounds another way, to the nearest or at random, so that luck in one of
them does not make the yardstick short. Products are summed in one order (`in_order`), so that it is the same for any number
of threads.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from npembed.conformance.in_order import IN_ORDER, product
from npembed.records.arithmetic import Arithmetic
from npembed.records.model import Model
from npembed.support.typing import Array, Floats

Function = Callable[..., Any]
Round = Callable[[Floats], Floats]

ACTIVATIONS = {"float16": "float16", "bfloat16": "bfloat16", "int8": "float16"}
"""What a port of that precision computes in; with int8 the weights alone are whole numbers."""

RUNS = (None, 1, 2)
"""The seeds of the runs; the first rounds to the nearest."""


def rounded(x: Floats, precision: str, rng: np.random.Generator | None = None) -> Floats:
    """float32 -> the nearest number of that type, as float32; with a generator, one of the two neighbours at random.

    Examples
    --------
    >>> rounded(np.array([1 / 3], dtype=np.float32), "bfloat16").tolist(), rounded(np.array([1 / 3]), "float16").tolist()
    ([0.333984375], [0.333251953125])
    """
    x = np.array(x, dtype=np.float32, order="C")
    with np.errstate(all="ignore"):
        if precision == "float16":
            result = x.astype(np.float16).astype(np.float32) if rng is None else _to_float16(x, rng)
        else:
            result = _without_low_bits(x, 16, 0x7FFF + _bit_16(x) if rng is None else _random_bits(rng, x, 16))
    return np.where(np.isfinite(x), result, x)


def _bit_16(x: Floats) -> Array:
    """The last bit that bfloat16 keeps: of two numbers equally near, the even one is taken."""
    return np.asarray((x.view(np.uint32) >> 16) & 1)


def _to_float16(x: Floats, rng: np.random.Generator) -> Floats:
    result = _without_low_bits(x, 13, _random_bits(rng, x, 13))
    small = np.abs(x) < 2.0**-14  # float16's subnormal numbers lie at equal distances
    if small.any():
        result[small] = np.floor(x[small] * np.float32(2.0**24) + rng.random(int(small.sum()), np.float32)) * np.float32(
            2.0**-24
        )
    return np.where(np.abs(result) > 65504, np.copysign(np.float32(np.inf), result), result)


def _without_low_bits(x: Floats, count: int, added: Array) -> Floats:
    """What is added to the significand carries into the bits that are kept."""
    return np.asarray((x.view(np.uint32) + added.astype(np.uint32)) & np.uint32(2**32 - 2**count)).view(np.float32)


def _random_bits(rng: np.random.Generator, x: Floats, count: int) -> Array:
    return rng.integers(0, 2**count, size=x.shape, dtype=np.uint16, endpoint=False)


def quantised(weight: Floats, rng: np.random.Generator | None = None) -> Floats:
    """A matrix, or kernels, in 255 steps from -max to max of each row: the coarsest weight-only int8 that is released.

    To the nearest step; with a generator, to one of the two neighbours at random.
    """
    if weight.ndim < 2:
        return weight
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1).reshape(-1, *[1] * (weight.ndim - 1))
    step = np.where(largest > 0, largest, 1) / 127
    units = weight / step
    whole = np.rint(units) if rng is None else np.clip(np.floor(units + rng.random(units.shape)), -127, 127)
    return np.asarray(whole * step, dtype=weight.dtype)


ROUNDED_ONCE = "product linear layer_norm rms_norm attend_in_windows gelu gelu_erf add multiply sum".split()
"""The functions of an arithmetic whose results alone are rounded; what the others compute on the way is rounded, too."""


def rounding_arithmetic(rounding: Round) -> Arithmetic:
    """A framework's arithmetic: each operation in float32, its products in one order, and then rounded."""
    from scipy.special import expit

    return IN_ORDER.changed(
        **{name: _once(getattr(IN_ORDER, name), rounding) for name in ROUNDED_ONCE},
        attend=partial(_attend, rounding),
        silu=lambda x: rounding(x * rounding(np.asarray(expit(x)))),
        mean=lambda x, axis: rounding(rounding(x.sum(axis=axis)) / x.shape[axis]),
    )


def _once(function: Function, rounding: Round) -> Function:
    def computed(*args: Any, out: Floats | None = None, **kwargs: Any) -> Floats:
        result = rounding(function(*args, **kwargs))
        if out is not None:
            out[...] = result
        return result

    return computed


def _attend(rounding: Round, queries: Floats, keys: Floats, values: Floats, heads: int) -> Floats:
    """Scores, their scaling, the softmax and the products each rounded, as the plain attention of a framework does."""
    width, result = queries.shape[1] // heads, np.empty_like(queries)
    for start in range(0, queries.shape[1], width):
        head = slice(start, start + width)
        scores = rounding(rounding(product(queries[:, head], keys[:, head].T)) * np.float32(width**-0.5))
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        result[:, head] = product(rounding(powers / powers.sum(axis=1, keepdims=True)), values[:, head])
    return rounding(result)


def half_run(function: Function, args: Sequence[Any], precision: str, seed: int | None = None) -> Array:
    """What function(x, tgt_sizes, model) gives in that precision, as float32."""
    x, tgt_sizes, model, *rest = args
    rng, kind = None if seed is None else np.random.default_rng(seed), ACTIVATIONS[precision]

    def rounding(values: Floats) -> Floats:
        return rounded(values, kind, rng)

    in_type = _rounded_model(model, precision, seed if precision == "int8" else None).with_ops(rounding_arithmetic(rounding))
    return np.asarray(function(rounded(np.asarray(x), kind), tgt_sizes, in_type, *rest))


@lru_cache(maxsize=32)
def _rounded_model(model: Model, precision: str, seed: int | None) -> Model:
    """The model with its arrays rounded to the type."""
    arrays = {name: array.astype(np.float32) for name, array in model.weights.items()}
    if precision == "int8":
        rng = None if seed is None else np.random.default_rng(seed)
        arrays = {name: quantised(array, rng) for name, array in arrays.items()}
    return Model(model.config, {name: rounded(array, ACTIVATIONS[precision]) for name, array in arrays.items()})


def half_distance(runs: Sequence[Array], exact: Array) -> Array:
    """(B, 1, ...): the largest distance per slice of those runs from float64; infinite where one of them overflows."""
    with np.errstate(invalid="ignore"):
        distance = np.abs(np.stack(runs).astype(np.float64) - exact).max(axis=0)
    distance = np.where(np.isfinite(distance), distance, np.inf)
    return np.asarray(distance.max(axis=tuple(range(1, distance.ndim)), keepdims=True))
