"""One function of a port on one input after the other: where it departs, at which smallest input, and why."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException

from npembed.conformance import aggregate, signed
from npembed.conformance.bounds import HALF_TYPES, UNIT_ROUNDOFF
from npembed.conformance.compare import Departure, NotAnArray, as_array, dtype_of, without_tensors
from npembed.conformance.expressions import call_text
from npembed.conformance.outcome import WITHIN_HALF, Outcome, Status, describe, shown_around, text_diff
from npembed.conformance.probes.probe import Call, FunctionCheck, copied, same
from npembed.conformance.results import results_of
from npembed.conformance.suspects.explain import explanations, in_part, words
from npembed.conformance.suspects.suspect import combined
from npembed.conformance.tried import Tried, are_within_half
from npembed.support.messages import raised
from npembed.support.typing import Array

Function = Callable[..., Any]

LARGE = 256
"""Numbers in a call from which on a smaller one is searched for by drawing, too."""

CHANGING = "answers differ from call to call for the same input"
"""What is said of a port that does not give twice what it gave once."""

ROUNDS = 3
"""How often an explanation is tried on drawn inputs, and given up for a better one, at most."""


class _Wrong(Exception):  # noqa: N818  # no error of ours: it carries a finding through Hypothesis
    """An input on which the port departs."""


class Trial:
    """One function of a port on one input after the other.

    Parameters
    ----------
    function : callable
        The port's.
    check : FunctionCheck
    stated : str or None
        The precision that the port states.
    reference : callable
        What it is judged by: the check's own reference, or that under a declared rule.
    module : str
        What the port is imported by, for the call that is shown.
    rule : str, optional
        The declared rule.
    """

    def __init__(
        self,
        function: Function,
        check: FunctionCheck,
        stated: str | None,
        reference: Function,
        module: str,
        rule: str | None = None,
    ) -> None:
        self.function, self.check, self.stated, self.reference, self.module = function, check, stated, reference, module
        self.suspects = check.suspects_under(rule)
        self.tries: list[Tried] = []
        self.unread: Tried | None = None
        self.drawn = 0

    @property
    def failures(self) -> list[Tried]:
        """The inputs on which the port departs."""
        return [one for one in self.tries if not one.right]

    def outcome(self, examples: int, number: int) -> Outcome:
        """What the check found."""
        for call in self.check.calls:
            if self.reference is self.check.reference or self._is_judged(call):
                self.keep(self.attempt(call))
        if examples and (not self.failures or self.failures[0].size > LARGE):
            self.draw(self.reference, examples, number)
        if self.failures:
            return self._failed(examples, number)
        if self.unread is not None:
            came, words = describe(self.unread.came), self._words(self.unread)
            return Outcome(self.check.name, Status.UNJUDGED, self.unread.unread, call=words, came=came)
        pointed = self._pointed_to()
        if pointed is not None:
            return Outcome(self.check.name, Status.FAIL, pointed.summary, cause=pointed.cause)
        return Outcome(self.check.name, Status.PASS, f"{len(self.tries) + self.drawn} inputs")

    def keep(self, one: Tried) -> None:
        """Keep what is known of an input; of results that cannot be read the first."""
        if not one.unread:
            self.tries.append(one)
        elif self.unread is None:
            self.unread = one

    def _is_judged(self, call: Call) -> bool:
        """Whether the reference has an answer: a declared rule may have none for some sizes."""
        if call.refused:
            return True
        try:
            self.check.expected(call, self.reference)
        except ValueError:
            return False
        return True

    def attempt(self, call: Call) -> Tried:
        """What the port makes of an input, and whether it departs."""
        handed, came, error = copied(call), None, None
        try:
            came = handed.of(self.function)
        except (Exception, SystemExit) as stopped:  # whatever a port raises is its failure, and so is leaving
            error = stopped
        changed = None if call.refused else _changed(call, handed)
        one = Tried(
            given=call,
            args=call.args,
            gives=partial(self.check.expected, call),
            expected=None if call.refused else self.check.expected(call, self.reference),
            allowed=partial(self.check.allowed_at, call),
            says=partial(self.check.suits, call),
            places=None if self.check.places is None else self.check.places(call),
            came=came,
            error=error,
            changed=changed is not None,
            dtype=dtype_of(came),
            precision=self._precision(call, dtype_of(came)),
            size=_numbers((*call.args, *call.kwargs.values())),
        )
        try:
            one = replace(one, came=came if call.refused else without_tensors(came))
            return replace(one, departure=self._departure(one) or changed)
        except NotAnArray as why:
            return replace(one, unread=str(why))
        except (Exception, SystemExit) as failed:  # a list that holds itself, say
            return replace(one, departure=Departure(f"gave what cannot be compared: {raised(failed)}"))

    def _departure(self, one: Tried) -> Departure | None:
        if one.given.refused:
            return None if one.error is not None else Departure("was not refused: there is no right result")
        if one.error is not None:
            return Departure(f"raised {raised(one.error)}")
        if self.check.examine is not None:
            return self.check.examine(one.given, one.came)
        return one.differs_from(one.expected) if one.says(one.precision) else None

    def _precision(self, call: Call, dtype: str) -> str:
        """The coarsest of the inputs' float type, the result's, and the one that the port states."""
        found = {dtype, *map(dtype_of, call.args)} & (set(UNIT_ROUNDOFF) - {"int8"})
        return max(found | ({self.stated} if self.stated else set()) or {"float32"}, key=UNIT_ROUNDOFF.__getitem__)

    def draw(self, judge: Function, examples: int, number: int) -> bool:
        """Drawn inputs; whether one departs from what `judge` gives: it is shrunk, and kept."""
        last: list[Tried] = []

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        @given(self.check.cases())
        def check(call: Call) -> None:
            if not self._is_judged(call):
                return
            self.drawn += 1
            one = self.attempt(call)
            if one.unread:
                self.keep(one)
            elif not (one.right if judge is self.reference else one.agrees(judge)):
                last[:] = [one]
                raise _Wrong

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="hypothesis")
                check()
        except (_Wrong, HypothesisException):
            if not last:
                raise
        self.tries += last
        return bool(last)

    # What is known of a failure

    def _failed(self, examples: int, number: int) -> Outcome:
        """The smallest failure, with its likely cause; and with that taken out, the next."""
        failures = [one for one in self.failures if not one.given.refused] or self.failures
        # The fixed inputs rise; a drawn one may be smaller where the first of them is large
        smallest = failures[0] if failures[0].size <= LARGE else min(failures, key=lambda one: one.size)
        departure, came, expected = smallest.departure, smallest.came, smallest.expected
        assert departure is not None
        cause = CHANGING if self._changes(smallest) else self._cause(examples, number)
        known = self.check.examine is None and expected is not None
        results = None
        if known and departure.index is not None:
            allowed = smallest.allowed(smallest.precision)
            results = results_of(self.check.reference, smallest.args, came, expected, allowed, departure.path)
        return Outcome(
            self.check.name,
            Status.FAIL,
            departure.what,
            call=self._words(smallest),
            came=None if came is None else shown_around(came, departure),
            expected=shown_around(expected, departure) if known else None,
            cause=cause or self._hint(smallest, departure),
            worst=departure.worst,
            diff=text_diff(came, expected) if isinstance(came, str) and isinstance(expected, str) else None,
            results=results,
        )

    def _changes(self, one: Tried) -> bool:
        """Whether the port, called once more, is further from what it gave than rounding explains."""
        again = self.attempt(one.given)
        if one.error is not None or again.error is not None:
            return (one.error is None) != (again.error is None)
        if self.check.examine is not None or one.given.refused or again.unread:
            return False
        try:
            return _differ(one.came, again.came, one.allowed(one.precision), one.places)
        except (Exception, SystemExit):  # of another shape than the right result, say
            return False

    def _words(self, one: Tried) -> str:
        return call_text(self.check.attribute, one.given.args, one.given.kwargs, self.module)

    def _cause(self, examples: int, number: int) -> str | None:
        """The faults that explain every input; each is tried on drawn inputs, too, as if it were right."""
        if self.check.examine is not None or all(one.error is not None for one in self.tries):
            return None
        pointed = self._pointed_to()
        if pointed is not None:
            return pointed.cause
        for _ in range(ROUNDS):
            found = explanations(self.tries, self.suspects, self.reference)
            if not found:
                return self._in_part()
            if not examples or not self.draw(combined(found[0], self.reference), examples, number):
                break
        return " or: ".join(dict.fromkeys(map(words, found)))

    def _in_part(self) -> str | None:
        """A fault that explains most of the failures, and the smallest that it does not."""
        found = in_part(self.tries, self.suspects, self.reference)
        if found is None:
            return None
        suspect, count = found
        function = suspect.fault(self.reference)
        rest = min((one for one in self.failures if not one.agrees(function)), key=lambda one: one.size)
        departure = rest.differs_from(rest.gives(function)) if rest.is_judged else None
        what = departure.what if departure is not None else "was not refused"
        return (
            f"no known cause explains every input. {suspect.in_full}: explains {count} of {len(self.failures)} failures; with "
            f"it taken out, the smallest input that still departs is {self._words(rest)}: "
            f"{what if rest.error is None else f'raised {raised(rest.error)}'}"
        )

    def _hint(self, one: Tried, departure: Departure) -> str | None:
        """What the place or the size of the difference suggests."""
        hints = [] if self.check.hint is None or one.came is None else self.check.hint(one.given, one.dtype, departure)
        if are_within_half(self.failures):
            hints.append(WITHIN_HALF)
        return " or: ".join(hints) or None

    def _pointed_to(self) -> signed.Found | None:
        """The known fault that the errors in half precision point to."""
        judged = [one for one in self.tries if one.precision in HALF_TYPES and one.is_judged]
        found = aggregate.found(self.check.reference, self.suspects, judged) if self.check.signed and judged else None
        return None if found is None else found[0]


def _differ(one: Any, other: Any, allowed: Any, places: Array | None) -> bool:
    """Whether two results of a port for one input are further apart than is allowed; NaN is equal to NaN."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and allowed is None:
        return len(one) != len(other) or any(_differ(a, b, None, None) for a, b in zip(one, other, strict=True))
    first, second = as_array(one), as_array(other)
    if first.shape != second.shape or first.dtype != second.dtype or allowed is None:
        return first.dtype != object and first.tobytes() != second.tobytes()
    first, second = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore"):  # two infinities
        apart = (np.isfinite(first) != np.isfinite(second)) | (np.abs(first - second) > allowed)
    return bool((apart if places is None else apart & places[..., None]).any())


def _numbers(value: Any) -> int:
    """How much a reader of a value has before him."""
    if isinstance(value, np.ndarray):
        whole = int(np.abs(value).sum()) if value.dtype.kind == "i" and value.size <= 16 else 0
        return int(value.size) + whole
    if isinstance(value, (list, tuple)):
        return sum(map(_numbers, value))
    return 0 if not isinstance(value, int) or isinstance(value, bool) else min(abs(value), 10**6)


def _changed(call: Call, handed: Call) -> Departure | None:
    """Which argument is no longer what it was, if one is."""
    for index, (before, after) in enumerate(zip(call.args, handed.args, strict=True)):
        if not same(before, after):
            return Departure(f"changed its argument {index}")
    return None
