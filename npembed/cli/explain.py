"""The commands that write pages: `npembed explain`, `npembed rules` with --html, and `npembed corpus page`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from npembed import MINICPM_V_2_6
from npembed.cli.corpus import SourceOption
from npembed.cli.weights import WeightsOption, load_weights, weight_files
from npembed.pages.page import check_extra
from npembed.support.output_files import check_output, replacing
from npembed.support.pictures import read_image, silent_libraries
from npembed.weights.source import public

DEFAULT = Path("explain.html")
PAGES = (".html", ".htm")


def explain(
    image: Annotated[Path | None, typer.Argument(metavar="[IMAGE]", help="A picture; without one, the sample picture.")] = None,
    weights: WeightsOption = None,
    family: Annotated[
        str | None, typer.Option(metavar="KEY", help="Without weights: the family; npembed families lists them.")
    ] = None,
    until: Annotated[str, typer.Option(metavar="STAGE", help="With weights: the last stage to show.")] = "embeddings",
    rule: Annotated[str | None, typer.Option(metavar="NAME", help="The position rule; the family's own by default.")] = None,
    compare: Annotated[str | None, typer.Option(metavar="NAME", help="The rule that the page compares with at first.")] = None,
    upright: Annotated[bool, typer.Option("--upright", help="Turn the picture as its EXIF asks; upstream does not.")] = False,
    article: Annotated[
        bool, typer.Option("--article", help="The seed article's figures beside ours, instead of a picture.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page, one HTML file.")] = DEFAULT,
) -> None:
    """Show, on one page, how a picture becomes numbers step by step."""
    inputs = [*([image] if image else []), *weight_files(weights)]
    target = check_output(output, PAGES, inputs)
    check_extra()
    if article:
        if image or weights or family or rule or compare:
            raise ValueError("explain: --article takes no picture, weights, family or rule")
        from npembed.pages.article import article_page

        page, what = article_page(), "the article's figures beside ours"
    else:
        page, what = _page(image, weights, family, until, rule, compare, upright)
    write_page(target, page, what)


def _page(
    image: Path | None,
    weights: str | None,
    family: str | None,
    until: str,
    rule: str | None,
    compare: str | None,
    upright: bool,
) -> tuple[str, str]:
    """The page of one picture, and what it shows in words."""
    from npembed.pages import explain as pages
    from npembed.pages.steps import Subject

    if weights is not None and family is not None:
        raise ValueError("explain: --family is for a page without weights; with --weights the checkpoint says its family")
    if weights is None and until != "embeddings":
        raise ValueError(f"explain: --until {until} needs --weights")
    model = None if weights is None else load_weights(weights, until)[0]
    config = model.config if model else MINICPM_V_2_6 if family is None else pages.default_config(family)
    with silent_libraries():
        picture, turn, _ = read_image(image or pages.SAMPLE, upright=upright)
    subject = Subject(
        picture=picture,
        name=str(image) if image else "",
        config=config,
        origin=public(weights) if weights else "",
        model=model,
        until=until,
        rule=rule,
        compare=compare,
        turn=turn,
        upright=upright,
    )
    return pages.explain(subject), f"{image or 'the sample picture'} through {config.family.title}"


def write_rules(file: Path, side: int, up_to: int, more: bool) -> None:
    """The page of the rules, unless another form is asked for with it."""
    if more:
        raise ValueError("rules: --html excludes --json, --markdown and --compare")
    target = check_output(file, PAGES)
    check_extra()
    from npembed.pages.rules import rules_page

    write_page(target, rules_page(side, up_to), "the rules")


def check_page(file: Path, inputs: Sequence[Path]) -> Path:
    """Where a page can be written, or an error before any work."""
    target = check_output(file, PAGES, list(inputs))
    check_extra()
    return target


def write_pixel_rules(target: Path, picture: Any, name: str) -> None:
    """The page of the pixel rules on a picture."""
    from npembed.pages.pixels import pixels_page

    write_page(target, pixels_page(picture, name), f"the pixel rules on {name}")


def corpus_page(
    folder: Annotated[str, typer.Argument(metavar="OUT", help="The corpus.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page, one HTML file.")] = Path(
        "corpus.html"
    ),
    source: SourceOption = None,
) -> None:
    """Show a corpus on one page: pictures by their neighbours, a map of the vectors, failures."""
    from npembed.corpus import open as open_corpus
    from npembed.pages.corpus import corpus_page as page

    target = check_output(output, PAGES)
    check_extra()
    there = open_corpus(folder)
    with silent_libraries():
        text = page(there, source or ())
    write_page(target, text, f"the corpus {folder}")


def write_page(target: Path, page: str, what: str) -> None:
    """The page into its file, and a line that says so."""
    replaced = ", which replaces the earlier file" if target.exists() else ""
    with replacing(target) as beside:
        beside.write_text(page, encoding="utf-8", errors="backslashreplace")
    print(f"{what}: {len(page.encode(errors='backslashreplace')) / 1e6:.1f} MB are in {target}{replaced}", flush=True)
