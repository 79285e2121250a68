"""Faults that have been seen, as data: for each public function and for each family's connector, by name.

A suspect has a kind in words, what it does, who shipped it, and a function that makes a faulty function of a right one, so
that two faults can be tried at once. Nothing here needs Hypothesis: checks of Python ports and golden packs use the same.

- `positions`, `padding` (with the mask and the convolution), `embeddings`, `tower`, `connectors`, `images`, `merge`: faults.
- `suspect`: what they are made of.
- `explain`: which of them explain what a port gave.
"""

from dataclasses import replace
from functools import cache

from npembed.conformance.suspects import connectors, embeddings, images, merge, padding, positions, tower
from npembed.conformance.suspects.suspect import Suspect, combined

SUSPECTS: dict[str, tuple[Suspect, ...]] = {
    **padding.SUSPECTS,
    **positions.SUSPECTS,
    **images.SUSPECTS,
    **embeddings.SUSPECTS,
    "encode": (*tower.ENCODE, *connectors.WINDOWS, *connectors.CROPS),
    **connectors.SUSPECTS,
    **merge.SUSPECTS,
}
"""The suspects of each function, by the name of the function that a stage calls."""


@cache
def suspects_of(name: str, rule: str | None) -> tuple[Suspect, ...]:
    """The suspects of that function, where its positions go by that rule: the other rules, each named beside it.

    Examples
    --------
    >>> [suspect.kind for suspect in suspects_of("boundaries", "exact")][0]
    'matches the boundaries of rule `arange`, not `exact`'
    >>> any(suspect.rule for suspect in suspects_of("position_ids", None))
    False
    """
    return tuple(
        replace(suspect, kind=f"{suspect.kind}, not `{rule}`") if suspect.rule else suspect
        for suspect in SUSPECTS.get(name, ())
        if suspect.rule is None or rule not in (None, suspect.rule)
    )


__all__ = ["SUSPECTS", "Suspect", "combined", "suspects_of"]
