"""Why a stage departs: the known faults that give the port's answers in every case, not in one alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from npembed.conformance.golden.answered import as_packed, is_small, public_name
from npembed.conformance.suspects import explain, suspects_of
from npembed.conformance.tried import Tried
from npembed.records.family import Stage
from npembed.steps.positions import RULES

Fault = Callable[[Any], Any]
"""An `AnsweredCase` -> what a port with that fault gives."""


def cause(stage: Stage, tried: Sequence[Tried]) -> str | None:
    """The faults, in words, that explain what came in every case; None if none of the known ones does.

    The smallest case is tried first, because most faults are out by it.
    """
    ordered = sorted(tried, key=lambda one: (one.size, one.right))
    found = [words for words, fault in _faults(stage, ordered[0].given.rule) if all(_explains(fault, one) for one in ordered)]
    return " or: ".join(found or _suspected(stage, ordered)) or None


def _explains(fault: Fault, tried: Tried) -> bool:
    try:
        with np.errstate(all="ignore"):
            return tried.differs_from(as_packed(fault(tried.given))) is None
    except Exception:  # a faulty function may well fail
        return False


def _faults(stage: Stage, rule: str | None) -> Iterator[tuple[str, Fault]]:
    """Each fault that the stage may have, in words and as a function."""

    def from_own(case: Any) -> Any:
        own = {name: case.got[name] for name in stage.reads if name in case.got}
        return stage.call(case.values | own, case.model)

    def by_rule(name: str) -> Fault:
        return lambda case: stage.call(case.values | {"rule": name}, case.model)

    yield "it is right for the port's own result of the stage before, which is wrong; feed it with the pack's", from_own
    if stage.by_rule:
        yield from ((f"matches rule `{name}`, not `{rule}`", by_rule(name)) for name in RULES if name != rule)


def _suspected(stage: Stage, ordered: Sequence[Tried]) -> list[str]:
    """The suspects of the stage's function that explain every case: one, or several at once if the model is small."""
    first = ordered[0].given
    base, _ = first.as_function(stage)
    small = all(is_small(one.given.model) for one in ordered)
    found = explain.explanations(ordered, suspects_of(public_name(stage), first.rule), base, together=small)
    return [explain.words(faults) for faults in found]
