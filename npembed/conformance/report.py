"""What was found, for a terminal, for a program and for a browser."""

import html
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import npembed
from npembed.conformance.outcome import Outcome, Status
from npembed.words import shown

MARKS = {Status.PASS: "pass", Status.FAIL: "FAIL", Status.ABSENT: "    "}


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
    )
    return [(label, value) for label, value in fields if value is not None]


def counts(outcomes: Sequence[Outcome]) -> str:
    """How many passed, failed and were not provided, in words."""
    found = Counter(outcome.status for outcome in outcomes)
    words = [f"{found[Status.PASS]} passed", f"{found[Status.FAIL]} failed"]
    return ", ".join([*words, f"{found[Status.ABSENT]} not provided"] if found[Status.ABSENT] else words)


def as_json(outcomes: Sequence[Outcome], verdict: str, subject: str) -> dict[str, Any]:
    """The report for a program."""
    return {
        "npembed": npembed.__version__,
        "subject": subject,
        "verdict": verdict,
        "passed": not any(outcome.status is Status.FAIL for outcome in outcomes),
        "outcomes": [outcome.as_json() for outcome in outcomes],
    }


def json_text(outcomes: Sequence[Outcome], verdict: str, subject: str) -> str:
    """`as_json`, as text."""
    return json.dumps(as_json(outcomes, verdict, subject), indent=1, ensure_ascii=False) + "\n"


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.3rem } table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid #ddd; padding: .4rem .6rem; vertical-align: top }
td:nth-child(2) { font-weight: 600; white-space: nowrap }
.pass td:first-child { color: #17692f } .fail td:first-child { color: #b3201b; font-weight: 700 }
.absent { color: #767676 } pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px }
dt { font-weight: 600; margin-top: .4rem } dd { margin: 0 }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 } td { border-color: #444 }
  .pass td:first-child { color: #6fcf87 } .fail td:first-child { color: #ff8a80 } .absent { color: #999 }
}
"""


def as_html(outcomes: Sequence[Outcome], verdict: str, subject: str) -> str:
    """One page that needs nothing beside it."""
    title = html.escape(f"npembed: {shown(subject)}")
    rows = "\n".join(_row(outcome) for outcome in outcomes)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f"<h1>{title}</h1>\n<p>{html.escape(shown(verdict))} (npembed {npembed.__version__})</p>\n"
        f"<table>\n<tbody>\n{rows}\n</tbody>\n</table>\n</body>\n</html>\n"
    )


def _row(outcome: Outcome) -> str:
    details = "".join(
        f"<dt>{label}</dt><dd><pre>{html.escape(_inside(value))}</pre></dd>" for label, value in _details(outcome)
    )
    summary = html.escape(shown(outcome.summary)) + (f"<dl>{details}</dl>" if details else "")
    kind = outcome.status.name.lower()
    return (
        f'<tr class="{kind}"><td>{outcome.status.value}</td><td>{html.escape(shown(outcome.name))}</td><td>{summary}</td></tr>'
    )
