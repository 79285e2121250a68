"""The time rules of released software: how a frame's time becomes the whole number that goes into the resampler (SPEC 16.2)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from npembed.support.messages import brief, did_you_mean
from npembed.support.typing import Floats, Ids

TENTH = 0.1
"""Of a second, between two times that have a number of their own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TimeRule:
    """One way, as released, from tenths of a second to whole numbers.

    Attributes
    ----------
    name : str
    arithmetic : str
        In one line.
    releases : tuple of str
        The software that computes it.
    ids : callable
        float64 (k,), each a multiple of a tenth of a second as `arange` counts them -> int64 (k,).
    """

    name: str
    arithmetic: str
    releases: tuple[str, ...]
    ids: Callable[[Floats], Ids]


_TABLE = (
    TimeRule(
        name="released",
        arithmetic="int(nearest of arange(0, T, 0.1) / 0.1): 4.3 s has the number 42",
        releases=("the example in MiniCPM-V 4.5's and MiniCPM-o 4.5's own repositories",),
        ids=lambda nearest: (nearest / TENTH).astype(np.int64),
    ),
    TimeRule(
        name="nearest",
        arithmetic="round(nearest of arange(0, T, 0.1) / 0.1): 4.3 s has the number 43",
        releases=("ports that take the first for an error of rounding",),
        ids=lambda nearest: np.rint(nearest / TENTH).astype(np.int64),
    ),
)

TIME_RULES: Mapping[str, TimeRule] = MappingProxyType({rule.name: rule for rule in _TABLE})
"""Each rule by its name; `released`, the original, first."""


def get_time_rule(name: str, who: str) -> TimeRule:
    """The rule of this name, or an error that lists the known ones."""
    try:
        return TIME_RULES[name]
    except (KeyError, TypeError):
        words = f"{who}: time_rule must be one of {', '.join(TIME_RULES)}; got {brief(name)}{did_you_mean(name, TIME_RULES)}"
        raise ValueError(words) from None
