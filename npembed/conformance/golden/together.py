"""All cases of a pack together, in half precision: whether a port's errors point the way of a known fault (`signed`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np

from npembed.conformance import signed
from npembed.conformance.bounds import HALF_TYPES, MANY
from npembed.conformance.compare import compare
from npembed.conformance.filling import model_at
from npembed.conformance.golden.causes import Tried
from npembed.conformance.half import half_run
from npembed.conformance.suspects import SUSPECTS, Suspect
from npembed.family import Promise, Stage
from npembed.model import Model
from npembed.typing import Array


@dataclass(frozen=True)
class _Input:
    """What a stage is computed from in one case; those that are alike are one."""

    stage: Stage
    model: Model
    x: bytes
    sizes: bytes
    args: tuple[Any, ...] = field(compare=False, repr=False)


def found(stage: Stage, tried: Sequence[tuple[Tried, str]]) -> tuple[signed.Found, Tried] | None:
    """The known fault that a stage's errors, each with its precision, point to, and the case that shows it most."""
    if stage.promise is not Promise.DISTANCE:
        return None
    telling = list(_telling(stage, [(one, at) for one, at in tried if at in HALF_TYPES]).items())
    pointed = signed.found(_suspects(stage), [_judged(one, *came) for one, came in telling])
    return None if pointed is None else (pointed, telling[pointed.clearest][1][0])


def not_told_apart(stage: Stage, tried: Sequence[tuple[Tried, str]], most: float = signed.NOISE) -> tuple[str, ...]:
    """The known faults of a stage that these cases, answered rightly, hide: each is less than rounding, in all together too."""
    inputs = [_judged(one, *came) for one, came in _telling(stage, tried).items()]
    return signed.hidden(_suspects(stage), inputs, lambda suspect: any(_is_seen(stage, suspect, one) for one, _ in tried), most)


def _telling(stage: Stage, tried: Sequence[tuple[Tried, str]]) -> dict[_Input, tuple[Tried, str]]:
    """The cases that say something and whose arrays are there, of those that are alike the first."""
    first: dict[_Input, tuple[Tried, str]] = {}
    for one, at in tried:
        if not one.model.missing(stage) and _says_something(one):
            given = _input(stage, one)
            if given.args[0].size <= MANY:
                first.setdefault(given, (one, at))
    return first


def _says_something(tried: Tried) -> bool:
    """Whether the case has a bound in that precision, and a result of the right shape."""
    has_bound = tried.allowed is not None and bool(np.isfinite(tried.allowed).all())
    return has_bound and tried.came.shape == tried.expected.shape


def _input(stage: Stage, tried: Tried) -> _Input:
    x, sizes, *rest = stage.arguments(tried.values, tried.model)
    return _Input(stage, tried.model, x.tobytes(), sizes.tobytes(), (x, sizes, *rest))


def _suspects(stage: Stage) -> Sequence[Suspect]:
    return SUSPECTS.get(stage.function.__name__, ())


def _is_seen(stage: Stage, suspect: Suspect, tried: Tried) -> bool:
    """Whether the fault, without any rounding, is out of the bound of the case."""
    try:
        faulty = _in_float64(_input(stage, tried), suspect)
    except Exception:  # a faulty function may well fail, which is seen
        return True
    return compare(faulty, tried.expected, tried.allowed, tried.places) is not None


def _judged(one: _Input, tried: Tried, precision: str) -> signed.Judged:
    exact = _in_float64(one)
    counts = np.ones(exact.shape, bool)
    if tried.places is not None:
        counts = np.broadcast_to(tried.places[..., None], exact.shape)
    noises = tuple(np.where(counts, run - exact, 0) for run in _runs(one, precision))
    error = np.where(counts, tried.came.astype(np.float64) - exact, 0)
    return signed.Judged(error, noises, partial(_effect, one, noises[0]))


def _effect(one: _Input, noise: Array, suspect: Suspect) -> Array | None:
    try:
        faulty = _in_float64(one, suspect)
    except Exception:  # a faulty function may well fail
        return None
    return signed.effect_of(faulty, _in_float64(one), noise)


@lru_cache(maxsize=256)
def _runs(one: _Input, precision: str) -> tuple[Array, ...]:
    """The runs that round."""
    return tuple(half_run(one.stage.function, one.args, precision, seed) for seed in signed.RUNS)


@lru_cache(maxsize=4096)
def _in_float64(one: _Input, suspect: Suspect | None = None) -> Array:
    """What the stage gives in float64, with the fault if there is one."""
    function = one.stage.function if suspect is None else suspect.fault(one.stage.function)
    x, sizes, model, *rest = one.args
    with np.errstate(all="ignore"):
        return np.asarray(function(x.astype(np.float64), sizes, model_at(model, "float64"), *rest))
