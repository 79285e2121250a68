"""What `golden check` and `check` share: their options, and the report in each form."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from npembed.cli.common import say, show
from npembed.pages.page import check_extra
from npembed.support.output_files import check_output, replacing, same_file

if TYPE_CHECKING:
    from npembed.conformance.outcome import Outcome
    from npembed.conformance.results import Results


JsonOption: TypeAlias = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON, too.")]


HtmlOption: TypeAlias = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it as one HTML page, too.")]


PrecisionOption: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="What the port computes in: float32, float64, bfloat16, float16, or int8 weights."),
]


RuleOption: TypeAlias = Annotated[
    str | None, typer.Option("--rule", metavar="NAME", help="The position rule; npembed rules lists them.")
]


ExpectOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--expect", metavar="FILE", help="An earlier --json report, whose departures must stay as they are."),
]


def check_reports(json_file: Path | None, html_file: Path | None, inputs: Sequence[str | Path]) -> None:
    """An error before the work if a report could not be written after it, or would replace an input or the other report."""
    for file in (json_file, html_file):
        if file is not None:
            check_output(file, inputs=inputs)
    if json_file is not None and html_file is not None and same_file(json_file, html_file):
        raise ValueError(f"--json {json_file} and --html {html_file} are the same file")
    if html_file is not None:
        check_extra()


def report_on(
    outcomes: "Sequence[Outcome]",
    subject: str,
    json_file: Path | None,
    html_file: Path | None,
    more: str = "",
    arrays: "Callable[[], Mapping[str, Results]]" = dict,
    as_text: "Callable[[Sequence[Outcome], str], str] | None" = None,
) -> None:
    """The report in each form that is asked for; exit 1 if anything failed or could not be judged.

    `arrays` gives those of failures, which a page draws, by the names of their outcomes.
    """
    from npembed.conformance import report
    from npembed.conformance.outcome import failed, unjudged

    wrong, unread = failed(outcomes), unjudged(outcomes)
    found = "departs from" if wrong else "was not wholly compared with" if unread else "agrees with"
    verdict = f"{subject} {found} the reference: {report.counts(outcomes)}. {more}".strip()
    for file, text in ((json_file, report.json_text), (html_file, partial(_page, arrays))):
        if file is not None:
            replaced = file.exists()
            with replacing(file) as beside:
                beside.write_text(text(outcomes, verdict, subject), encoding="utf-8", errors="backslashreplace")
            if replaced:
                say(f"{file} replaces the earlier file")
    show((as_text or report.as_text)(outcomes, verdict))
    if wrong or unread:
        raise typer.Exit(1)


def _page(arrays: "Callable[[], Mapping[str, Results]]", outcomes: "Sequence[Outcome]", verdict: str, subject: str) -> str:
    from npembed.pages.report import report_page

    return report_page(outcomes, verdict, subject, arrays())
