"""Which faults explain what a port gave: one, two or three at once, and only such as explain every input that was tried."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, islice

from npembed.conformance.suspects.suspect import Function, Suspect, combined
from npembed.conformance.tried import Tried

LARGE = 10_000
"""Numbers in the smallest failure from which on faults are tried by themselves alone: there are thousands together."""

MOST_TRIALS = 4000
"""Of faults at once on one input, at most: no function has so many, but for a reason."""


Faults = tuple[Suspect, ...]


def explanations(tried: Sequence[Tried], suspects: Sequence[Suspect], base: Function, *, together: bool = True) -> list[Faults]:
    """Every single fault that explains all inputs; where there is none, every two that do so together; or else every three.

    Parameters
    ----------
    tried : sequence of Tried
        In rising order of size: most faults are out by the smallest.
    suspects : sequence of Suspect
    base : callable
        The right function.
    together : bool
        Whether faults at once are tried, unless the smallest failure is large.
    """
    singles: list[Faults] = [(suspect,) for suspect in suspects if _explains((suspect,), tried, base)]
    wrong, right = [one for one in tried if not one.right], [one for one in tried if one.right]
    if singles or not together or not wrong or wrong[0].size > LARGE:
        return singles
    possible = [suspect for suspect in suspects if _explains((suspect,), right, base)]  # a right result speaks against others
    known: dict[frozenset[int], Faults] = {}
    for turned in (False, True):  # the order counts seldom
        pairs = ((pair[::-1] if turned else pair) for pair in islice(combinations(possible, 2), MOST_TRIALS))
        first = [pair for pair in pairs if _is_told(pair) and _explains(pair, wrong[:1], base)]
        found = _together(first, tried, base)
        if found:
            return found
        known = {frozenset(map(id, pair)): pair for pair in first} | known
    return _together(_with_a_third(known.values(), possible), tried, base)


def _is_told(faults: Faults) -> bool:
    """Whether these can be together: a port has one rule."""
    return sum(one.rule is not None for one in faults) < 2


def _with_a_third(pairs: Iterable[Faults], suspects: Sequence[Suspect]) -> Iterator[Faults]:
    """Two faults that explain the smallest failure, which may not show a third."""
    return ((*pair, third) for pair in pairs for third in suspects if third not in pair)


def _together(groups: Iterable[Faults], tried: Sequence[Tried], base: Function) -> list[Faults]:
    """The groups that explain it all, each told once."""
    found: dict[frozenset[int], Faults] = {}
    for group in islice(filter(_is_told, groups), MOST_TRIALS):
        key = frozenset(map(id, group))
        if key not in found and _explains(group, tried, base) and all(_matters(one, group, tried, base) for one in group):
            found[key] = group
    return list(found.values())


def _matters(one: Suspect, group: Faults, order: Sequence[Tried], base: Function) -> bool:
    """Whether the other faults alone do not explain it all: else this one is not seen in these inputs."""
    return not _explains(tuple(other for other in group if other is not one), order, base)


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
