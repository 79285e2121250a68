"""Known departures: an earlier report, of which every failure is expected to stay as it is, no more and no less."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npembed.conformance.outcome import Outcome, Status
from npembed.support.reading import MOST_JSON, json_object, read_regular

NEAR = 2.0
"""By what factor a known departure's size may differ from the earlier one: float results vary a little by machine."""

_DEPARTING = (Status.FAIL.value, Status.KNOWN.value)


@dataclass(frozen=True)
class Expectations:
    """The departures in an earlier report, by the name of what departs."""

    file: str
    departures: dict[str, dict[str, Any]]


def read_expectations(path: str | Path) -> Expectations:
    """The departures in a report that was written with --json.

    Raises
    ------
    ValueError
        A file that cannot be read, or is no such report.
    """
    who = f"--expect {path}"
    outcomes = json_object(read_regular(path, MOST_JSON, "--expect"), who).get("outcomes")
    if not isinstance(outcomes, list):
        raise ValueError(f"{who} has no outcomes; it must be a report written with --json")
    for number, outcome in enumerate(outcomes):
        if not isinstance(outcome, dict) or not all(isinstance(outcome.get(key), str) for key in ("name", "status", "summary")):
            raise ValueError(f"{who}: outcomes[{number}] must have a name, a status and a summary")
    return Expectations(str(path), {outcome["name"]: outcome for outcome in outcomes if outcome["status"] in _DEPARTING})


def as_expected(outcomes: Sequence[Outcome], expected: Expectations, known_names: Iterable[str]) -> list[Outcome]:
    """The outcomes, where a departure that is as the earlier one is no failure, and one that has changed or gone is.

    Parameters
    ----------
    outcomes : sequence of Outcome
    expected : Expectations
    known_names : iterable of str
        All that could have been looked at: an expected name that is none of these is an error, one that was not looked at is
        passed over.

    Raises
    ------
    ValueError
        A name in the earlier report that nothing has here.
    """
    unknown = sorted(set(expected.departures) - set(known_names))
    if unknown:
        raise ValueError(f"--expect {expected.file} names {unknown[0]!r}, which is not in what is checked")
    return [_held(outcome, expected) for outcome in outcomes]


def _held(outcome: Outcome, expected: Expectations) -> Outcome:
    earlier = expected.departures.get(outcome.name)
    if earlier is None or outcome.status is Status.UNJUDGED:
        return outcome
    if outcome.status is not Status.FAIL:
        gone = f"{outcome.summary}: the departure that {expected.file} expects is gone ({earlier['summary']})"
        return replace(outcome, status=Status.FAIL, summary=gone)
    if same_departure(outcome.as_json(), earlier):
        return replace(outcome, status=Status.KNOWN)
    changed = f"{outcome.summary}; {expected.file} expects another departure: {earlier['summary']}"
    cause = f" (cause: {earlier['cause']})" if earlier.get("cause") else ""
    return replace(outcome, summary=changed + cause)


def same_departure(now: dict[str, Any], earlier: dict[str, Any]) -> bool:
    """Whether two departures of a report are the same: the same cause and, where floats differ, about as far away.

    Examples
    --------
    >>> same_departure({"summary": "a", "worst": 5.0}, {"summary": "b", "worst": 6.0})
    True
    >>> same_departure({"summary": "a", "worst": 5.0}, {"summary": "b", "worst": 60.0})
    False
    >>> same_departure({"summary": "a"}, {"summary": "b"})
    False
    """
    if now.get("cause") != earlier.get("cause"):
        return False
    one, other = now.get("worst"), earlier.get("worst")
    if isinstance(one, float) and isinstance(other, float):
        return max(one, other) <= NEAR * min(one, other)
    return bool(now.get("summary") == earlier.get("summary"))
