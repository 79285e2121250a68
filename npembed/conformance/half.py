"""A run of the reference that rounds where a framework rounds: the yardstick of ports in half precision and with int8 weights.

A framework in float16 or bfloat16 computes each operation (a linear map, a layer norm, a softmax, an activation, a sum of two
arrays) in float32 and rounds its result to the type. So does this. How far such a run is from float64, on the very case, is
what a port in that precision is measured by. Each run rounds another way, to the nearest or at random, so that luck in one of
them does not make the yardstick short.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from npembed.conformance.pieces import with_pieces
from npembed.model import Model
from npembed.typing import Array, Floats

Function = Callable[..., Any]
Round = Callable[[Floats], Floats]

BITS = {"float16": 10, "bfloat16": 7}
"""Of the significand that are stored."""

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
    x = np.asarray(x, dtype=np.float32)
    with np.errstate(all="ignore"):
        _, exponents = np.frexp(x)
        least = -14 if precision == "float16" else -126
        step = np.ldexp(np.float32(1), np.maximum(exponents - 1, least) - BITS[precision]).astype(np.float32)
        units = x / step
        whole = np.rint(units) if rng is None else np.floor(units + rng.random(x.shape, dtype=np.float32))
        result = (whole * step).astype(np.float32)
        overflow = np.float32(65504 if precision == "float16" else np.inf)
        result = np.where(np.abs(result) > overflow, np.copysign(np.float32(np.inf), result), result)
    return np.where(np.isfinite(x), result, x)


def quantised(weight: Floats) -> Floats:
    """A matrix, or kernels, in 255 steps from -max to max of each row: the coarsest weight-only int8 that is released."""
    if weight.ndim < 2:
        return weight
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1).reshape(-1, *[1] * (weight.ndim - 1))
    step = np.where(largest > 0, largest, 1) / 127
    return np.asarray(np.rint(weight / step) * step, dtype=weight.dtype)


class _Rounded(np.ndarray[Any, Any]):
    """An array whose every result, and what is made from it, is rounded."""

    round_result: Round

    def __array_finalize__(self, origin: Any) -> None:
        if origin is not None and hasattr(origin, "round_result"):
            self.round_result = origin.round_result

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        """NumPy's own function on plain arrays, then the rounding."""
        rounding = next(value.round_result for value in (*inputs, *(out or ())) if isinstance(value, _Rounded))
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        if out is not None:
            _plain(out[0])[...] = _wrapped(result, rounding)
            return out[0]
        return _wrapped(result, rounding)


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, _Rounded) else value


def _wrapped(result: Any, rounding: Round) -> Any:
    if not isinstance(result, (np.ndarray, np.floating)) or np.asarray(result).dtype.kind != "f":
        return result
    wrapped = rounding(np.asarray(result)).view(_Rounded)
    wrapped.round_result = rounding
    return wrapped


def _once(rounding: Round) -> Callable[[Function], Function]:
    """A piece that computes in float32 and rounds its result."""

    def change(function: Function) -> Function:
        return lambda *args: _wrapped(function(*map(_plain, args)), rounding)

    return change


def _attend(rounding: Round) -> Callable[[Function], Function]:
    """Scores, their scaling, the softmax and the products each rounded, as the plain attention of a framework does."""

    def attend(queries: Floats, keys: Floats, values: Floats, heads: int) -> Any:
        q, k, v = map(_plain, (queries, keys, values))
        width, result = q.shape[1] // heads, np.empty_like(q)
        for start in range(0, q.shape[1], width):
            head = slice(start, start + width)
            scores = rounding(rounding(q[:, head] @ k[:, head].T) * np.float32(width**-0.5))
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            result[:, head] = rounding(powers / powers.sum(axis=1, keepdims=True)) @ v[:, head]
        return _wrapped(result, rounding)

    return lambda original: attend


PIECES = ("linear", "layer_norm", "gelu", "gelu_erf")


def half_run(function: Function, args: Sequence[Any], precision: str, seed: int | None = None) -> Array:
    """What function(x, tgt_sizes, model) gives in that precision, as float32."""
    x, tgt_sizes, model, *rest = args
    rng, kind = None if seed is None else np.random.default_rng(seed), ACTIVATIONS[precision]

    def rounding(values: Floats) -> Floats:
        return rounded(values, kind, rng)

    pieces = {f"npembed.attention.{name}": _once(rounding) for name in PIECES}
    pieces |= {"npembed.attention.attend": _attend(rounding)}
    pieces |= {"npembed.mergers.attend_in_windows": _once(rounding), "npembed.families.idefics2.rms_norm": _once(rounding)}
    with with_pieces(pieces):
        result = function(rounded(np.asarray(x), kind), tgt_sizes, _half_model(model, precision, kind, rounding), *rest)
    return np.asarray(_plain(result))


def _half_model(model: Model, precision: str, kind: str, rounding: Round) -> Model:
    """The model with its arrays rounded to the type, whose results are rounded too."""
    arrays = {name: array.astype(np.float32) for name, array in model.weights.items()}
    if precision == "int8":
        arrays = {name: quantised(array) for name, array in arrays.items()}
    result = Model(model.config, {name: rounded(array, kind) for name, array in arrays.items()})
    object.__setattr__(result, "weights", {name: _wrapped(array, rounding) for name, array in result.weights.items()})
    return result


def half_distance(runs: Sequence[Array], exact: Array, places: Array | None = None) -> Array:
    """(B, 1, ...): the largest distance per slice of those runs from float64, over the places that count."""
    distance = np.abs(np.stack(runs).astype(np.float64) - exact).max(axis=0)
    distance = np.where(np.isfinite(distance), distance, 0)
    if places is not None:
        distance = distance * places.reshape(*places.shape, *[1] * (distance.ndim - places.ndim))
    return np.asarray(distance.max(axis=tuple(range(1, distance.ndim)), keepdims=True))
