"""All inputs of a function together, in half precision: whether their errors point the way of a known fault (`signed`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np

from npembed.conformance import signed
from npembed.conformance.compare import compare
from npembed.conformance.filling import model_at
from npembed.conformance.half import half_run
from npembed.conformance.suspects import Suspect
from npembed.conformance.tried import Tried
from npembed.records.model import Model
from npembed.support.typing import Array


@dataclass(frozen=True)
class _Input:
    """What a function is computed from; inputs that are alike are one."""

    function: Callable[..., Any]
    model: Model
    numbers: tuple[Any, ...]
    args: tuple[Any, ...] = field(compare=False, repr=False)


def found(
    function: Callable[..., Any], suspects: Sequence[Suspect], tried: Sequence[Tried]
) -> tuple[signed.Found, Tried] | None:
    """The known fault that the errors of these inputs point to, and the input that shows it most."""
    telling = _telling(function, tried)
    pointed = signed.found(suspects, [_judged(one, each) for one, each in telling.items()])
    return None if pointed is None else (pointed, list(telling.values())[pointed.clearest])


def not_told_apart(
    function: Callable[..., Any], suspects: Sequence[Suspect], tried: Sequence[Tried], most: float = signed.NOISE
) -> tuple[str, ...]:
    """The known faults that these inputs, answered rightly, hide: in each, and in all together, they are less than rounding."""

    def is_seen(suspect: Suspect) -> bool:
        return any(_is_seen(_input(function, one), one, suspect) for one in tried)

    inputs = [_judged(one, each) for one, each in _telling(function, tried).items()]
    return signed.hidden(suspects, inputs, is_seen, most)


def _telling(function: Callable[..., Any], tried: Sequence[Tried]) -> dict[_Input, Tried]:
    """The inputs that say something and whose results can be compared, of those that are alike the first."""
    first: dict[_Input, Tried] = {}
    for one in tried:
        if one.says(one.precision) and (one.departure is None or one.departure.index is not None):
            first.setdefault(_input(function, one), one)
    return first


def _input(function: Callable[..., Any], tried: Tried) -> _Input:
    x, sizes, model, *rest = tried.args
    return _Input(function, model, (x.tobytes(), sizes.tobytes(), repr(rest)), tried.args)


def _is_seen(one: _Input, tried: Tried, suspect: Suspect) -> bool:
    """Whether the fault, without any rounding, is out of the input's bound."""
    try:
        faulty = _in_float64(one, suspect)
    except Exception:  # a faulty function may well fail, which is seen
        return True
    return compare(faulty, tried.expected, tried.allowed(tried.precision), tried.places) is not None


def _judged(one: _Input, tried: Tried) -> signed.Judged:
    exact = _in_float64(one)
    counts = True if tried.places is None else np.broadcast_to(tried.places[..., None], exact.shape)
    noises = tuple(np.where(counts, run - exact, 0) for run in _runs(one, tried.precision))
    error = np.where(counts, np.asarray(tried.came).astype(np.float64) - exact, 0)
    return signed.Judged(error, noises, partial(_effect, one, noises[0]))


def _effect(one: _Input, noise: Array, suspect: Suspect) -> Array | None:
    try:
        faulty = _in_float64(one, suspect)
    except Exception:  # a faulty function may well fail
        return None
    return signed.effect_of(faulty, _in_float64(one), noise)


@lru_cache(maxsize=1024)
def _runs(one: _Input, precision: str) -> tuple[Array, ...]:
    """The runs that round."""
    return tuple(half_run(one.function, one.args, precision, seed) for seed in signed.RUNS)


@lru_cache(maxsize=4096)
def _in_float64(one: _Input, suspect: Suspect | None = None) -> Array:
    """What the function gives in float64, with the fault if there is one."""
    function = one.function if suspect is None else suspect.fault(one.function)
    x, sizes, model, *rest = one.args
    with np.errstate(all="ignore"):
        return np.asarray(function(x.astype(np.float64), sizes, model_at(model, "float64"), *rest))
