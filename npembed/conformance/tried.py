"""An input, the right answer to it, and what a port gave: the one record that every verdict reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npembed.conformance.bounds import HALF_TYPES, UNIT_ROUNDOFF
from npembed.conformance.compare import Departure, compare, overflowed_alike
from npembed.support.typing import Array

Function = Callable[..., Any]

MORE = 8
"""Unit roundoffs of a faulty result's largest channel that are allowed besides: it may be far larger than the right one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Tried:
    """An input, the right answer to it, and what a port gave.

    Attributes
    ----------
    given : object
        The input: a `Call` of a function, or a case of a pack.
    args : tuple
        For a stage whose result lies within a distance, what its function takes: (x, tgt_sizes, model, ...).
    gives : callable
        function -> what it gives for the input; in float64 where a distance is allowed.
    expected : object
        The right answer; None where there is none, and a port must raise.
    allowed : callable
        precision -> the largest distance, element by element; None where the two must be equal.
    says : callable
        precision -> whether the input says anything at that precision.
    places : bool (B, L) or None
        The places that count.
    came : object
        What the port gave.
    error : BaseException or None
        What it raised in its place.
    unread : str
        Why what it gave could not be read; "" where it could.
    changed : bool
        Whether it changed an argument.
    dtype : str
        The float type of what it gave; "" where that has none.
    precision : str
        By which it is judged.
    departure : Departure or None
        How what came differs from the right answer.
    size : int
        How many numbers a reader of it has before him.
    """

    given: Any
    args: tuple[Any, ...] = ()
    gives: Callable[[Function], Any]
    expected: Any
    allowed: Callable[[str], Array | None]
    says: Callable[[str], bool]
    places: Array | None = None
    came: Any
    error: BaseException | None = None
    unread: str = ""
    changed: bool = False
    dtype: str = ""
    precision: str
    departure: Departure | None = None
    size: int

    @property
    def right(self) -> bool:
        """Whether the port is right here."""
        return self.departure is None

    @property
    def is_judged(self) -> bool:
        """Whether there is an answer of each side."""
        return self.error is None and self.expected is not None

    def differs_from(self, result: Any, precision: str | None = None) -> Departure | None:
        """How what came differs from a result, by more than the right one's bounds allow."""
        return compare(self.came, result, self.allowed(precision or self.precision), self.places)

    def agrees(self, function: Function) -> bool:
        """Whether what came is what that function gives, which may be faulty: it raises where the other does."""
        if self.changed or (self.expected is None and self.error is not None):
            return not self.changed
        try:
            with np.errstate(all="ignore"):
                return self._is_from(self.gives(function))
        except (Exception, SystemExit):  # a faulty function may well fail, as the port did
            return self.error is not None

    def _is_from(self, faulty: Any) -> bool:
        if not self.is_judged:
            return self.error is None and _alike(self.came, faulty)
        if self.right and not self.says(self.precision):
            return True
        came, faulty = overflowed_alike(self.came, faulty)
        allowed = self.allowed(self.precision)
        if allowed is not None and self.precision not in HALF_TYPES:  # those of half types are wide as they are
            largest = np.abs(faulty).max(axis=-1, keepdims=True)
            allowed = allowed + MORE * UNIT_ROUNDOFF[self.precision] * largest
        return compare(came, faulty, allowed, self.places) is None


def _alike(result: Any, expected: Any) -> bool:
    """Whether two results that no reference gives are equal, as lists and arrays."""
    try:
        return bool(np.array_equal(np.asarray(result), np.asarray(expected)))
    except ValueError:
        return False


def are_within_half(failing: Sequence[Tried]) -> bool:
    """Whether these failures in float32 would pass for a float16 port, as far as their inputs say anything in float16."""
    if not all(one.is_judged and not one.changed and one.precision not in HALF_TYPES for one in failing):
        return False
    telling = [one for one in failing if one.allowed(one.precision) is not None and one.says("float16")]
    return bool(telling) and all(one.differs_from(one.expected, "float16") is None for one in telling)
