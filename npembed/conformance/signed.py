"""Known faults in half precision: not by how far single numbers are off, but by whether all errors together point their way.

Rounding scatters; a fault pushes. For each known fault, the errors of all inputs are projected on what the fault does, as a
fraction of it: near 0 for a right port, near 1 for one with the fault. How far a right port is from 0 is measured by runs of
the reference that round (`half`). A fault for which that is too much cannot be told apart in that precision, and is not looked
for. The inputs are a check's (`probes.together`) or a golden pack's (`golden.together`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from npembed.conformance.suspects.suspect import Suspect
from npembed.support.typing import Array

SHARE = 0.5
"""Of a fault's own effect, from which on the errors are its."""

NOISE = SHARE / 3
"""A right port's share, as a root mean square over runs: above it the fault is not told apart from rounding."""

RUNS = (None, *range(1, 8))
"""The seeds of those runs: more than for a distance, because few say little of how far they scatter."""


@dataclass(frozen=True)
class Found:
    """A fault that the errors point to; `clearest` is the place of the input that shows it most."""

    summary: str
    cause: str
    clearest: int


@dataclass(frozen=True, eq=False)
class Judged:
    """One input.

    Attributes
    ----------
    error : array
        The port's, in float64; 0 in places that do not count.
    noises : tuple of array
        The errors of runs that round, one for each of `RUNS`, likewise.
    effect : callable
        suspect -> what it does to the right result; None where it fails, or gives another shape or no number.
    """

    error: Array
    noises: tuple[Array, ...]
    effect: Callable[[Suspect], Array | None]

    @property
    def is_finite(self) -> bool:
        """Whether nothing overflowed."""
        return all(np.isfinite(array).all() for array in (self.error, *self.noises))

    @cached_property
    def weight(self) -> float:
        """One over the square of how far rounding scatters here."""
        return 1 / max(*(float(np.sqrt(np.mean(noise**2))) for noise in self.noises), 1e-30) ** 2

    def along(self, effect: Array, error: Array) -> float:
        """The error's part that points the way of the fault, weighed."""
        return self.weight * float((effect * error).sum())


def found(suspects: Sequence[Suspect], inputs: Sequence[Judged]) -> Found | None:
    """The known fault that the errors of these inputs point to."""
    finite = [one for one in inputs if one.is_finite]
    shares = [(suspect, *_share(suspect, finite)) for suspect in suspects]
    pointed = [(suspect, share, gain) for suspect, share, noise, gain in shares if share > SHARE and noise <= NOISE]
    if not pointed:
        return None
    best = max(gain for _, _, gain in pointed)
    told = [(suspect, share) for suspect, share, gain in pointed if gain > 0.9 * best]
    (suspect, share), *_ = told
    summary = f"the errors of {len(finite)} inputs together are no rounding; they are {share:.2f} times what this does"
    words = " or: ".join(each.in_full for each, _ in told)
    return Found(f"{summary}: {suspect.kind}", words, inputs.index(_clearest(suspect, finite)))


def hidden(
    suspects: Sequence[Suspect], inputs: Sequence[Judged], is_seen: Callable[[Suspect], bool], most: float = NOISE
) -> tuple[str, ...]:
    """The known faults that change less than rounding does: in all inputs together, and in each, as `is_seen` says."""
    finite = [one for one in inputs if one.is_finite]
    noises = ((suspect, _share(suspect, finite)[1]) for suspect in suspects)
    return tuple(suspect.kind for suspect, noise in noises if most < noise < np.inf and not is_seen(suspect))


def effect_of(faulty: Array, exact: Array, noise: Array) -> Array | None:
    """What a fault's result is off the right one, where rounding is seen; None where it is of another shape or no number."""
    if faulty.shape != exact.shape or not np.isfinite(faulty).all():
        return None
    return np.asarray(np.where(noise == 0, 0, faulty - exact))


def _share(suspect: Suspect, inputs: Sequence[Judged]) -> tuple[float, float, float]:
    """The errors' share of the fault's effect, a right port's, and by how much the fault explains the errors."""
    pairs = _effects(suspect, inputs)
    size = sum(one.along(effect, effect) for one, effect in pairs)
    if not size:
        return 0.0, np.inf, 0.0
    own = sum(one.along(effect, one.error) for one, effect in pairs)
    noises = [sum(one.along(effect, one.noises[run]) for one, effect in pairs) for run in range(len(RUNS))]
    return own / size, float(np.sqrt(np.mean(np.square(noises)))) / size, 2 * own - size


def _effects(suspect: Suspect, inputs: Sequence[Judged]) -> list[tuple[Judged, Array]]:
    """The inputs that the fault changes, each with what it does."""
    return [(one, effect) for one in inputs if (effect := one.effect(suspect)) is not None]


def _clearest(suspect: Suspect, inputs: Sequence[Judged]) -> Judged:
    """The input in which the errors point to the fault most."""
    return max(_effects(suspect, inputs), key=lambda pair: pair[0].along(pair[1], pair[0].error))[0]
