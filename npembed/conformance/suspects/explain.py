"""Which faults explain what a port gave: one, or two at once, and only such as explain every input that was tried."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from npembed.conformance.suspects.suspect import Function, Suspect, combined

MOST_TRIALS = 4000
"""Of pairs on one input, at most: no function has so many, but for a reason."""


@dataclass(frozen=True)
class Tried:
    """An input, what the port made of it, and whether that was right.

    Attributes
    ----------
    call : Any
        The input.
    agrees : callable
        function -> whether the port's result there is what that function gives.
    right : bool
        Whether it is what the reference gives.
    """

    call: Any
    agrees: Callable[[Function], bool]
    right: bool


Faults = tuple[Suspect, ...]


def explanations(tried: Sequence[Tried], suspects: Sequence[Suspect], base: Function) -> list[Faults]:
    """Every single fault that explains all inputs; where there is none, every two faults that do so together."""
    order = sorted(tried, key=lambda one: one.right)  # those that fail first; they are in rising order of size
    singles: list[Faults] = [(suspect,) for suspect in suspects if _explains((suspect,), order, base)]
    return singles or list(_pairs(order, suspects, base))


def _pairs(order: Sequence[Tried], suspects: Sequence[Suspect], base: Function) -> Iterator[Faults]:
    """Two faults at once; the order counts only where one way alone explains, so that each two are told once."""
    found: set[frozenset[int]] = set()
    trials = 0
    for pair in permutations(suspects, 2):
        both = frozenset(map(id, pair))
        if both in found or (pair[0].rule and pair[1].rule):
            continue
        trials += 1
        if trials > MOST_TRIALS:
            return
        if _explains(pair, order, base) and all(_matters(one, pair, order, base) for one in pair):
            found.add(both)
            yield pair


def _matters(one: Suspect, pair: Faults, order: Sequence[Tried], base: Function) -> bool:
    """Whether the other fault alone does not explain it all: else this one is not seen in these inputs."""
    return not _explains(tuple(other for other in pair if other is not one), order, base)


def _explains(faults: Faults, order: Sequence[Tried], base: Function) -> bool:
    function = combined(faults, base)
    return all(one.agrees(function) for one in order)


def in_part(tried: Sequence[Tried], suspects: Sequence[Suspect], base: Function) -> tuple[Suspect, int] | None:
    """The fault that explains most of the failures, if it explains over half of them and no right result speaks against it."""
    wrong, right = [one for one in tried if not one.right], [one for one in tried if one.right]
    counts = []
    for suspect in suspects:
        function = suspect.fault(base)
        count = sum(one.agrees(function) for one in wrong)
        if 2 * count > len(wrong) and all(one.agrees(function) for one in right):
            counts.append((suspect, count))
    return max(counts, key=lambda found: found[1], default=None)


def words(faults: Faults) -> str:
    """One explanation: its faults in words."""
    return " and: ".join(suspect.in_full for suspect in faults)
