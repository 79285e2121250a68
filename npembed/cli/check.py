"""`npembed check`: a Python port, function by function."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from npembed.cli.reports import HtmlOption, JsonOption, PrecisionOption, check_reports, report_on


def check(
    module: Annotated[str, typer.Argument(metavar="MODULE", help="The port: a dotted name or a .py file.")],
    stage: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Look at this function or stage alone.")] = None,
    require: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A function that must be there.")] = None,
    rule: Annotated[
        str | None, typer.Option(metavar="NAME", help="The port's position rule, to be judged by; npembed rules lists them.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(metavar="KEY", help="Check that family's functions; npembed families lists them.")
    ] = None,
    examples: Annotated[int, typer.Option(metavar="N", help="Drawn inputs per function.", min=0)] = 100,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the drawn inputs.", min=0)] = 0,
    precision: PrecisionOption = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="That one call of a function may take.", min=0.001, max=86_400)
    ] = 60,
    json_file: JsonOption = None,
    html_file: HtmlOption = None,
) -> None:
    """Check a Python port's functions against the reference, and show the smallest input on which each departs."""
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "npembed-hypothesis"))
    from npembed.conformance.isolation import IsolatedPort
    from npembed.conformance.port import check_port  # Hypothesis reads the line above; it would write here

    check_reports(json_file, html_file, [module] if module.endswith(".py") else [])
    with IsolatedPort(module, timeout=timeout) as port:
        check_reports(json_file, html_file, port.files)
        outcomes = check_port(
            port,
            stage=stage or (),
            require=require or (),
            rule=rule,
            family=family,
            examples=examples,
            seed=seed,
            precision=precision,
        )
    report_on(outcomes, module, json_file, html_file)
