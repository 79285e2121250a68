"""One function of a port on one input after the other: where it departs, at which smallest input, and why."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException

from npembed.conformance import signed
from npembed.conformance.bounds import HALF_TYPES, UNIT_ROUNDOFF
from npembed.conformance.compare import Departure, NotAnArray, as_array, dtype_of, without_tensors
from npembed.conformance.expressions import call_text
from npembed.conformance.outcome import WITHIN_HALF, Outcome, Status, describe, shown_around, text_diff
from npembed.conformance.probes import together
from npembed.conformance.probes.probe import Call, FunctionCheck, copied, same
from npembed.conformance.results import Results, results_of
from npembed.conformance.suspects.explain import Tried, explanations, in_part, words
from npembed.conformance.suspects.suspect import combined
from npembed.typing import Array
from npembed.words import raised

Function = Callable[..., Any]

LARGE = 256
"""Numbers in a call from which on a smaller one is searched for by drawing, too."""

SLACK = 4.0
"""How much further a port with a known fault may be from the faulty reference: the bounds are those of the right result."""

CHANGING = "answers differ from call to call for the same input"
"""What is said of a port that does not give twice what it gave once."""

ROUNDS = 3
"""How often an explanation is tried on drawn inputs, and given up for a better one, at most."""


@dataclass(frozen=True, eq=False)
class Try:
    """One input, and what the port made of it."""

    call: Call
    result: Any
    error: BaseException | None
    dtype: str
    """The result's float type, "" if it has none."""
    precision: str
    departure: Departure | None
    changed: bool
    """Whether the port changed an argument."""
    unread: str = ""
    """Why the result could not be read, if so."""


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
        self.tries: list[Try] = []
        self.unread: Try | None = None
        self.drawn = 0

    @property
    def failures(self) -> list[Try]:
        """The inputs on which the port departs."""
        return [one for one in self.tries if one.departure is not None]

    def outcome(self, examples: int, number: int) -> Outcome:
        """What the check found."""
        for call in self.check.calls:
            if self.reference is self.check.reference or self._is_judged(call):
                self.keep(self.attempt(call))
        if examples and (not self.failures or _size(self.failures[0].call) > LARGE):
            self.draw(self.reference, examples, number)
        if self.failures:
            return self._failed(examples, number)
        if self.unread is not None:
            came, words = describe(self.unread.result), self._words(self.unread.call)
            return Outcome(self.check.name, Status.UNJUDGED, self.unread.unread, call=words, came=came)
        found = self._signed()
        if found is not None:
            return found
        return Outcome(self.check.name, Status.PASS, f"{len(self.tries) + self.drawn} inputs")

    def keep(self, one: Try) -> None:
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

    def attempt(self, call: Call) -> Try:
        """What the port makes of an input, and whether it departs."""
        handed, result, error = copied(call), None, None
        try:
            result = handed.of(self.function)
        except (Exception, SystemExit) as came:  # whatever a port raises is its failure, and so is leaving
            error = came
        dtype, unread, departure = dtype_of(result), "", None
        precision = self._precision(call, dtype)
        change = _changed(call, handed)
        try:
            result = result if call.refused else without_tensors(result)
            departure = self._departure(call, result, error, precision) or (None if call.refused else change)
        except NotAnArray as why:
            unread = str(why)
        except ImportError:
            raise
        except (Exception, SystemExit) as failed:  # a list that holds itself, say
            departure = Departure(f"gave what cannot be compared: {raised(failed)}")
        return Try(call, result, error, dtype, precision, departure, change is not None, unread)

    def _departure(self, call: Call, result: Any, error: BaseException | None, precision: str) -> Departure | None:
        if call.refused:
            return None if error is not None else Departure("was not refused: there is no right result")
        if error is not None:
            return Departure(f"raised {raised(error)}") if self._is_judged(call) else None
        function = None if self.reference is self.check.reference else self.reference
        return self.check.departure(call, result, precision, function)

    def _precision(self, call: Call, dtype: str) -> str:
        """The coarsest of the inputs' float type, the result's, and the one that the port states."""
        found = {dtype, *map(dtype_of, call.args)} & (set(UNIT_ROUNDOFF) - {"int8"})
        return max(found | ({self.stated} if self.stated else set()) or {"float32"}, key=UNIT_ROUNDOFF.__getitem__)

    def agrees(self, one: Try, function: Function) -> bool:
        """Whether the port's result is what that function gives: it raises where the other does."""
        if one.changed or (one.call.refused and one.error is not None):
            return not one.changed
        try:
            if one.error is not None or one.call.refused:
                expected = copied(one.call).of(function)
                return one.error is None and _alike(one.result, expected)
            slack = 1.0 if one.precision in HALF_TYPES else SLACK  # the bounds in half precision are wide as they are
            return self.check.departure(one.call, one.result, one.precision, function, slack) is None
        except (Exception, SystemExit):  # a faulty function may well fail, as the port did
            return one.error is not None

    def draw(self, judge: Function, examples: int, number: int) -> bool:
        """Drawn inputs; whether one departs from what `judge` gives: it is shrunk, and kept."""
        last: list[Try] = []

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
            elif one.departure is not None if judge is self.reference else not self.agrees(one, judge):
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
        smallest = self._smallest()
        cause = CHANGING if self._changes(smallest) else self._cause(examples, number)
        departure = smallest.departure
        assert departure is not None
        return Outcome(
            self.check.name,
            Status.FAIL,
            departure.what,
            call=self._words(smallest.call),
            came=None if smallest.result is None else shown_around(smallest.result, departure),
            expected=self._expected_words(smallest, departure),
            cause=cause or self._hint(smallest, departure),
            worst=departure.worst,
            diff=self._text_diff(smallest),
            results=self._results(smallest, departure),
        )

    def _changes(self, one: Try) -> bool:
        """Whether the port, called once more, is further from what it gave than rounding explains."""
        again = self.attempt(one.call)
        if one.error is not None or again.error is not None:
            return (one.error is None) != (again.error is None)
        if self.check.examine is not None or one.call.refused or again.unread:
            return False
        allowed = None if self.check.allowed is None else self.check.allowed(one.call, one.precision)
        places = None if self.check.places is None else self.check.places(one.call)
        try:
            return _differ(one.result, again.result, allowed, places)
        except (Exception, SystemExit):  # of another shape than the right result, say
            return False

    def _text_diff(self, one: Try) -> str | None:
        """For two texts, the marks that differ."""
        if self.check.examine is not None or one.call.refused or not isinstance(one.result, str):
            return None
        expected = self.check.expected(one.call, self.reference)
        return text_diff(one.result, expected) if isinstance(expected, str) else None

    def _results(self, one: Try, departure: Departure) -> Results | None:
        """The arrays of that failure, for a picture of where they differ."""
        if one.result is None or one.call.refused or self.check.examine is not None or departure.index is None:
            return None
        expected = self.check.expected(one.call, self.reference)
        allowed = None if self.check.allowed is None else self.check.allowed(one.call, one.precision)
        return results_of(self.check.reference, one.call.args, one.result, expected, allowed, departure.path)

    def _smallest(self) -> Try:
        """The first of the fixed inputs, which rise; a drawn one where that is large; what was not refused only if alone."""
        failures = [one for one in self.failures if not one.call.refused] or self.failures
        return failures[0] if _size(failures[0].call) <= LARGE else min(failures, key=lambda one: _size(one.call))

    def _words(self, call: Call) -> str:
        return call_text(self.check.attribute, call.args, call.kwargs, self.module)

    def _expected_words(self, one: Try, departure: Departure) -> str | None:
        if self.check.examine is not None or one.call.refused:
            return None
        return shown_around(self.check.expected(one.call, self.reference), departure)

    def _cause(self, examples: int, number: int) -> str | None:
        """The faults that explain every input; each is tried on drawn inputs, too, as if it were right."""
        if self.check.examine is not None or (all(one.error is not None for one in self.failures) and not self._raising()):
            return None
        pointed = self._pointed_to()
        if pointed is not None:
            return pointed.cause
        for _ in range(ROUNDS):
            found = explanations(self._tried(), self.suspects, self.reference)
            if not found:
                return self._in_part()
            if not examples or not self.draw(combined(found[0], self.reference), examples, number):
                break
        return " or: ".join(dict.fromkeys(map(words, found)))

    def _raising(self) -> bool:
        """Whether the port gives results for some inputs and raises for others, as a known fault may."""
        return any(one.error is None for one in self.tries)

    def _tried(self) -> list[Tried]:
        return [Tried(one.call, partial(self.agrees, one), one.departure is None, _size(one.call)) for one in self.tries]

    def _in_part(self) -> str | None:
        """A fault that explains most of the failures, and the smallest that it does not."""
        found = in_part(self._tried(), self.suspects, self.reference)
        if found is None:
            return None
        suspect, count = found
        function = suspect.fault(self.reference)
        rest = min((one for one in self.failures if not self.agrees(one, function)), key=lambda one: _size(one.call))
        return (
            f"no known cause explains every input. {suspect.in_full}: explains {count} of {len(self.failures)} failures; with "
            f"it taken out, the smallest input that still departs is {self._words(rest.call)}: {self._what(rest, function)}"
        )

    def _what(self, one: Try, function: Function) -> str:
        if one.error is not None:
            return f"raised {raised(one.error)}"
        departure = None if one.call.refused else self.check.departure(one.call, one.result, one.precision, function)
        return "was not refused" if departure is None else departure.what

    def _hint(self, one: Try, departure: Departure) -> str | None:
        """What the place or the size of the difference suggests."""
        hints = [] if self.check.hint is None or one.result is None else self.check.hint(one.call, one.dtype, departure)
        if self._is_within_half():
            hints.append(WITHIN_HALF)
        return " or: ".join(hints) or None

    def _is_within_half(self) -> bool:
        """Whether every float32 failure would pass for a float16 port, as far as its input says anything in float16."""
        if self.check.allowed is None or not all(self._is_off_in_float32(one) for one in self.failures):
            return False
        telling = [one for one in self.failures if self.check.suits(one.call, "float16")]
        return bool(telling) and all(
            self.check.departure(one.call, one.result, "float16", self.reference) is None for one in telling
        )

    def _is_off_in_float32(self, one: Try) -> bool:
        """Whether an input failed in float32, and by its numbers alone."""
        return one.error is None and not one.call.refused and not one.changed and one.precision not in HALF_TYPES

    def _signed(self) -> Outcome | None:
        """In half precision: whether the errors of all inputs together point the way of a known fault."""
        found = self._pointed_to()
        return None if found is None else Outcome(self.check.name, Status.FAIL, found.summary, cause=found.cause)

    def _pointed_to(self) -> signed.Found | None:
        """The known fault that the errors in half precision point to."""
        judged = [one for one in self.tries if one.precision in HALF_TYPES and one.error is None and not one.call.refused]
        if not self.check.signed or not judged:
            return None
        return together.found(self.check, [(one.call, one.result, one.precision) for one in judged])


def _alike(result: Any, expected: Any) -> bool:
    """Whether two results that no reference gives are equal, as lists and arrays."""
    try:
        return bool(np.array_equal(np.asarray(result), np.asarray(expected)))
    except ValueError:
        return False


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


def _size(call: Call) -> int:
    """How much a reader of a call has before him: its numbers."""
    return sum(map(_numbers, (*call.args, *call.kwargs.values())))


def _numbers(value: Any) -> int:
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
