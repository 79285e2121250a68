"""All inputs of a check together, in half precision: whether their errors point the way of a known fault (`signed`)."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from npembed.conformance import signed
from npembed.conformance.half import half_run
from npembed.conformance.probes.probe import Call, FunctionCheck, at_dtype, in_float64
from npembed.conformance.suspects.suspect import Suspect
from npembed.typing import Array


def found(check: FunctionCheck, judged: Sequence[tuple[Call, Any, str]]) -> signed.Found | None:
    """The known fault that the errors of these inputs, (call, result, precision), point to."""
    inputs = [_judged(check, call, result, precision) for call, result, precision in judged if check.suits(call, precision)]
    return signed.found(check.suspects, inputs)


def not_told_apart(check: FunctionCheck, precision: str, most: float = signed.NOISE) -> tuple[str, ...]:
    """The known faults that this precision hides: in every input, and in all together, they are less than its rounding."""
    calls = [call for call in check.calls if not call.refused and check.suits(call, precision)]
    inputs = [_judged(check, call, check.expected(call), precision) for call in calls]
    seen = partial(_is_seen, check, calls, precision)
    return signed.hidden(check.suspects, inputs, seen, most)


def _is_seen(check: FunctionCheck, calls: Sequence[Call], precision: str, suspect: Suspect) -> bool:
    """Whether the fault, without any rounding, is out of the bound of one input."""
    for call in calls:
        try:
            with np.errstate(all="ignore"):
                faulty = check.expected(call, suspect.function)
        except Exception:  # a faulty function may well fail, which is seen
            return True
        if check.departure(call, faulty, precision) is not None:
            return True
    return False


def _judged(check: FunctionCheck, call: Call, result: Any, precision: str) -> signed.Judged:
    exact = np.asarray(check.expected(call))
    counts = np.ones(exact.shape, bool)
    if check.places is not None:
        counts = np.broadcast_to(check.places(call)[..., None], exact.shape)
    noises = tuple(np.where(counts, run - exact, 0) for run in _runs(check.reference, call, precision))
    error = np.where(counts, np.asarray(result).astype(np.float64) - exact, 0)
    return signed.Judged(error, noises, partial(_effect, call, exact, noises[0]))


@lru_cache(maxsize=1024)
def _runs(function: Callable[..., Any], call: Call, precision: str) -> tuple[Array, ...]:
    """The runs that round."""
    args = [at_dtype(value, "float32") for value in call.args]
    return tuple(half_run(function, args, precision, seed) for seed in signed.RUNS)


@lru_cache(maxsize=4096)
def _faulty(suspect: Suspect, call: Call) -> Array:
    """What the fault gives in float64."""
    with np.errstate(all="ignore"):
        return np.asarray(in_float64(call).of(suspect.function))


def _effect(call: Call, exact: Array, noise: Array, suspect: Suspect) -> Array | None:
    try:
        faulty = _faulty(suspect, call)
    except Exception:  # a faulty function may well fail
        return None
    return signed.effect_of(faulty, exact, noise)
