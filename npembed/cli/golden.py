"""`npembed golden`: write a pack of every stage's input and answer, and compare a port's files with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npembed.cli.common import bar_over, say
from npembed.cli.reports import ExpectOption, HtmlOption, JsonOption, PrecisionOption, RuleOption, check_reports, report_on
from npembed.cli.weights import WeightsOption, load_weights, weight_files

if TYPE_CHECKING:
    from npembed.conformance.results import Results


app = typer.Typer(help="Golden packs: every stage's input and answer in files, for a port in any language.")


@app.command("write")
def golden_write(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    weights: WeightsOption = None,
    family: Annotated[
        str | None, typer.Option(metavar="KEY", help="The family; npembed families lists them. MiniCPM-V 2.6 by default.")
    ] = None,
    rule: RuleOption = None,
) -> None:
    """Write a pack into DIR, a folder that is new or empty."""
    from npembed.conformance.golden import read_pack, write_pack
    from npembed.conformance.golden.pack import check_folder

    check_folder(folder)
    model, origin = (None, "") if weights is None else load_weights(weights, None)
    with bar_over("hidden", 1) as progress:
        write_pack(folder, model, progress.layers, family=family, rule=rule)
    pack = read_pack(folder)
    say(f"{len(pack.manifest['cases'])} cases, {pack.size / 1e6:.1f} MB, are in {folder}")
    if weights is not None:
        say(f"They are for the weights in {origin}, which are not in the pack.")


@app.command("check")
def golden_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The pack.")],
    outputs: Annotated[Path, typer.Argument(metavar="OUTPUTS", help="The port's files, named as the pack's.")],
    stage: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Look at this stage alone; repeatable.")] = None,
    require: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A stage that must be there; repeatable.")] = None,
    rule: RuleOption = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="The weights that the pack was written for, to look for causes in the tower, too."),
    ] = None,
    precision: PrecisionOption = None,
    expect: ExpectOption = None,
    json_file: JsonOption = None,
    html_file: HtmlOption = None,
) -> None:
    """Compare a port's files with a pack, and name the first stage that departs."""
    from npembed.conformance import golden, report
    from npembed.conformance.expectations import as_expected, read_expectations

    pack = golden.read_pack(folder)
    answers = (path for case in pack.manifest["cases"] for path in outputs.glob(f"{Path(case['expected']).stem}.*"))
    read = [*pack.files(), *answers, *([] if expect is None else [expect]), *weight_files(weights)]
    check_reports(json_file, html_file, read)
    expected = None if expect is None else read_expectations(expect)
    model = None if weights is None else load_weights(weights, None)[0]
    outcomes = golden.check_outputs(pack, outputs, precision, stages=stage or (), require=require or (), rule=rule, model=model)
    if expected is not None:
        outcomes = as_expected(outcomes, expected, golden.outcome_names(pack))
    first = golden.first_departing(pack, outcomes)
    more = f"The first stage that departs is {first}." if first else ""
    if golden.causes_need_weights(pack, outcomes) and model is None:
        more += " The causes of some failures can be looked for with the weights: --weights SOURCE."

    def arrays() -> "Mapping[str, Results]":
        from npembed.pages.report import golden_results

        return golden_results(pack, outputs, outcomes, precision, rule, model)

    report_on(outcomes, str(outputs), json_file, html_file, more, arrays, report.golden_text)
