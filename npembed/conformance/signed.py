"""Known faults in half precision: not by how far single numbers are off, but by whether all errors together point their way.

Rounding scatters; a fault pushes. For each known fault, the errors of all inputs are projected on what the fault does, as a
fraction of it: near 0 for a right port, near 1 for one with the fault. How far a right port is from 0 is measured by runs of
the reference that round (`half`). A fault for which that is too much cannot be told apart in that precision, and is not looked
for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from npembed.conformance.half import RUNS, half_run
from npembed.conformance.probes.probe import Call, FunctionCheck, at_dtype, in_float64
from npembed.conformance.suspects.suspect import Suspect
from npembed.typing import Array

SHARE = 0.5
"""Of a fault's own effect, from which on the errors are its."""

NOISE = SHARE / 3
"""A right port's share, at most: above it the fault is not told apart from rounding."""


@dataclass(frozen=True)
class Found:
    """A fault that the errors point to."""

    summary: str
    cause: str


@dataclass(frozen=True)
class _Case:
    """One input: the port's errors, those of runs that round, and how they are weighed."""

    call: Call
    exact: Array
    error: Array
    noises: tuple[Array, ...]
    weight: float


def found(check: FunctionCheck, judged: Sequence[tuple[Call, Any, str]]) -> Found | None:
    """The known fault that the errors of these inputs, (call, result, precision), point to."""
    cases = [_case(check, call, result, precision) for call, result, precision in judged if check.suits(call, precision)]
    cases = [case for case in cases if np.isfinite(case.error).all()]
    shares = [(suspect, *_share(suspect, cases)) for suspect in check.suspects]
    pointed = [(suspect, share, gain) for suspect, share, noise, gain in shares if share > SHARE and noise <= NOISE]
    if not pointed:
        return None
    best = max(gain for _, _, gain in pointed)
    told = [(suspect, share) for suspect, share, gain in pointed if gain > 0.9 * best]
    many = f"{told[0][1]:.2f} times what this does: {told[0][0].kind}"
    return Found(f"the errors of {len(cases)} inputs together are no rounding; they are {many}", _words(told))


def not_told_apart(check: FunctionCheck, precision: str) -> tuple[str, ...]:
    """The known faults that this precision hides: in every input, and in all together, they are less than its rounding.

    A fault that does nothing to any of the inputs is of other families.
    """
    calls = [call for call in check.calls if not call.refused and check.suits(call, precision)]
    cases = [_case(check, call, check.expected(call), precision) for call in calls]
    hidden = []
    for suspect in check.suspects:
        _, noise, _ = _share(suspect, cases)
        if np.isfinite(noise) and noise > NOISE and not any(_is_seen(check, suspect, call, precision) for call in calls):
            hidden.append(suspect.kind)
    return tuple(hidden)


def _is_seen(check: FunctionCheck, suspect: Suspect, call: Call, precision: str) -> bool:
    """Whether the fault, without any rounding, is out of the bound of one input."""
    try:
        with np.errstate(all="ignore"):
            faulty = check.expected(call, suspect.function)
    except Exception:  # a faulty function may well fail, which is seen
        return True
    return check.departure(call, faulty, precision) is not None


def _words(told: Sequence[tuple[Suspect, float]]) -> str:
    return " or: ".join(suspect.in_full for suspect, _ in told)


def _case(check: FunctionCheck, call: Call, result: Any, precision: str) -> _Case:
    exact = np.asarray(check.expected(call))
    counts = np.ones(exact.shape, bool)
    if check.places is not None:
        counts = np.broadcast_to(check.places(call)[..., None], exact.shape)
    noises = tuple(np.where(counts, run - exact, 0) for run in _runs(check.reference, call, precision))
    spread = max(float(np.sqrt(np.mean(noise**2))) for noise in noises)
    error = np.where(counts, np.asarray(result).astype(np.float64) - exact, 0)
    return _Case(call, exact, error, noises, 1 / max(spread, 1e-30) ** 2)


@lru_cache(maxsize=1024)
def _runs(function: Callable[..., Any], call: Call, precision: str) -> tuple[Array, ...]:
    """The runs that round."""
    args = [at_dtype(value, "float32") for value in call.args]
    return tuple(half_run(function, args, precision, seed) for seed in RUNS)


@lru_cache(maxsize=4096)
def _faulty(suspect: Suspect, call: Call) -> Array:
    """What the fault gives in float64."""
    with np.errstate(all="ignore"):
        return np.asarray(in_float64(call).of(suspect.function))


def _share(suspect: Suspect, cases: Sequence[_Case]) -> tuple[float, float, float]:
    """The errors' share of the fault's effect, a right port's at most, and by how much the fault explains the errors."""
    pairs = [(case, effect) for case in cases if (effect := _effect(suspect, case)) is not None]
    size = sum(case.weight * float((effect**2).sum()) for case, effect in pairs)
    if not size:
        return 0.0, np.inf, 0.0
    own = sum(case.weight * float((effect * case.error).sum()) for case, effect in pairs)
    noise = max(
        abs(sum(case.weight * float((effect * case.noises[run]).sum()) for case, effect in pairs)) for run in range(len(RUNS))
    )
    return own / size, noise / size, 2 * own - size


def _effect(suspect: Suspect, case: _Case) -> Array | None:
    """What the fault does to this input; None where it fails, or gives another shape or no number."""
    try:
        faulty = _faulty(suspect, case.call)
    except Exception:  # a faulty function may well fail
        return None
    if faulty.shape != case.exact.shape or not np.isfinite(faulty).all():
        return None
    return np.asarray(np.where(case.noises[0] == 0, 0, faulty - case.exact))
