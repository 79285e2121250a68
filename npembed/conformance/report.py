"""What was found, for a terminal and for a program; `npembed.pages.report` is for a browser."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import product
from textwrap import fill, indent
from typing import Any

import npembed
from npembed.conformance.outcome import SEPARATOR, Outcome, Status, failed, unjudged
from npembed.support.messages import shown

MARKS = {Status.PASS: "pass", Status.FAIL: "FAIL", Status.ABSENT: "    ", Status.KNOWN: "know", Status.UNJUDGED: "????"}


def as_text(outcomes: Sequence[Outcome], verdict: str) -> str:
    """A line per outcome, what is known of each failure under it, and the verdict."""
    width = max(len(outcome.name) for outcome in outcomes)
    lines: list[str] = []
    for outcome in outcomes:
        lines.append(f"{MARKS[outcome.status]}  {shown(outcome.name):<{width}}  {shown(outcome.summary)}")
        lines += [f"      {label}: {_inside(value)}" for label, value in _details(outcome)]
    return "\n".join([*lines, shown(verdict)])


def _inside(value: str) -> str:
    """What a port gave, indented, so that it can forge no line of the report, nor move the cursor."""
    return "\n        ".join(shown(line) for line in value.splitlines())


def _details(outcome: Outcome) -> list[tuple[str, str]]:
    """What is known of a failure, labelled."""
    fields = (
        ("smallest input", outcome.call),
        ("came", outcome.came),
        ("expected", outcome.expected),
        ("likely cause", outcome.cause),
        ("difference", None if outcome.diff is None else "- expected, + came\n" + indent(outcome.diff, " " * 8)),
    )
    return [(label, value) for label, value in fields if value is not None]


def as_matrix(outcomes: Sequence[Outcome]) -> dict[str, dict[str, str]]:
    """Stage -> case -> how it ended, for outcomes that are named "case / stage"."""
    matrix: dict[str, dict[str, str]] = {}
    for outcome in outcomes:
        case, _, stage = outcome.name.partition(SEPARATOR)
        matrix.setdefault(stage, {})[case] = outcome.status.value
    return matrix


def matrix_text(outcomes: Sequence[Outcome]) -> str:
    """A row per stage, a column per case: "." passed, "F" failed, "k" is a known departure, "-" was not provided."""
    matrix = as_matrix(outcomes)
    cases = list(dict.fromkeys(outcome.name.partition(SEPARATOR)[0] for outcome in outcomes))
    width = max(map(len, matrix))
    numbered = ", ".join(f"{number}\xa0{case}" for number, case in enumerate(cases, 1))
    legend = fill(f"cases: {numbered}", 99, subsequent_indent=" " * 7, break_on_hyphens=False).replace("\xa0", " ")
    lines = [f"{'':<{width}}  {' '.join(f'{number:>2}' for number in range(1, len(cases) + 1))}"]
    for stage, found in matrix.items():
        cells = " ".join(f"{_CELLS[found[case]] if case in found else '':>2}" for case in cases)
        lines.append(f"{stage:<{width}}  {cells}".rstrip())
    return "\n".join([*lines, legend, _KEY])


_CELLS = {Status.PASS.value: ".", Status.FAIL.value: "F", Status.KNOWN.value: "k", Status.ABSENT.value: "-"}
_KEY = ". passed   F failed   k known departure   - not provided"


def golden_text(outcomes: Sequence[Outcome], verdict: str) -> str:
    """For a golden pack: the failures first, of each stage one in full; then the matrix and the verdict."""
    lines: list[str] = []
    for status, stage in product((Status.FAIL, Status.KNOWN), as_matrix(outcomes)):
        found = [outcome for outcome in outcomes if outcome.status is status and outcome.name.endswith(SEPARATOR + stage)]
        lines += _stage_lines(found) if found else []
    return "\n".join([*lines, matrix_text(outcomes), verdict])


def _stage_lines(found: Sequence[Outcome]) -> list[str]:
    """One failure of a stage in full, that of the first case; the names of the others, and what else they say."""
    first, *others = found
    lines = [f"{MARKS[first.status]}  {first.name}  {first.summary}"]
    lines += [f"      {label}: {value}" for label, value in _details(first)]
    if others:
        names = ", ".join(outcome.name.partition(SEPARATOR)[0] for outcome in others)
        lines.append(f"      and in {len(others)} more: {names}")
    return lines


def counts(outcomes: Sequence[Outcome]) -> str:
    """How many passed, failed and were not provided, in words."""
    found = Counter(outcome.status for outcome in outcomes)
    words = [f"{found[Status.PASS]} passed", f"{found[Status.FAIL]} failed"]
    if found[Status.KNOWN]:
        words.append(f"{found[Status.KNOWN]} {'departs' if found[Status.KNOWN] == 1 else 'depart'} as expected")
    words += [f"{found[status]} {status.value}" for status in (Status.UNJUDGED, Status.ABSENT) if found[status]]
    return ", ".join(words)


def as_json(outcomes: Sequence[Outcome], verdict: str, subject: str) -> dict[str, Any]:
    """The report for a program."""
    return {
        "npembed": npembed.__version__,
        "subject": subject,
        "verdict": verdict,
        "passed": not failed(outcomes) and not unjudged(outcomes),
        "outcomes": [outcome.as_json() for outcome in outcomes],
        **({"matrix": as_matrix(outcomes)} if all(SEPARATOR in outcome.name for outcome in outcomes) else {}),
    }


def json_text(outcomes: Sequence[Outcome], verdict: str, subject: str) -> str:
    """`as_json`, as text."""
    return json.dumps(as_json(outcomes, verdict, subject), indent=1, ensure_ascii=False) + "\n"
