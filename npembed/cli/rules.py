"""`npembed rules`: where the position rules of released software differ."""

import json
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from npembed.cli.common import show
from npembed.cli.explain import check_page, write_pixel_rules, write_rules
from npembed.steps.pixels.differences import TABLE_HEAD as PIXEL_HEAD
from npembed.steps.pixels.differences import (
    compare_pixel_rules,
    compared_size,
    legend,
    pixel_rules_as_json,
    pixel_rules_as_markdown,
    table_rows,
)
from npembed.steps.positions.differences import (
    ORIGINAL,
    TABLE_HEAD,
    compare_rules,
    compare_two,
    rules_as_json,
    rules_as_markdown,
    table_row,
)
from npembed.support.messages import shown
from npembed.support.pictures import read_image, silent_libraries


def rules(
    picture: Annotated[
        Path | None, typer.Argument(metavar="[PICTURE]", help="With --pixels: a picture; without one, the sample picture.")
    ] = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="The pixel rules, on a picture, instead of the position rules.")
    ] = False,
    side: Annotated[int, typer.Option(help="G, the rows of the position table per side.")] = 70,
    up_to: Annotated[int, typer.Option(metavar="N", help="Compare the sizes 1 to N.")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Show the buckets of two rules side by side, for --n.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="With --compare: the number of patches.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all of it as one page to look at.")] = None,
) -> None:
    """Show where the position rules of released software differ from the original, or the pixel rules on a picture."""
    if as_json and as_markdown:
        raise ValueError("rules: --json and --markdown exclude each other")
    if (compare is None) != (n is None):
        raise ValueError("rules: --compare A B and --n N go together")
    if pixels or picture is not None:
        _pixel_rules(picture, pixels, html, as_json, as_markdown, compare is not None)
    elif html is not None:
        write_rules(html, side, up_to, as_json or as_markdown or compare is not None)
    elif compare is not None and n is not None:
        pair = compare_two(*compare, n, side)
        show(json.dumps(pair) if as_json else _pair_table(pair))
    elif as_json:
        show(json.dumps(rules_as_json(side, up_to), ensure_ascii=False, indent=1))
    elif as_markdown:
        show(rules_as_markdown(side, up_to))
    else:
        _print_rules(side, up_to)


def _pixel_rules(
    picture: Path | None, pixels: bool, html: Path | None, as_json: bool, as_markdown: bool, compare: bool
) -> None:
    """The pixel rules on a picture, as a page or as a table."""
    if not pixels:
        raise ValueError(f"rules: {picture}: a picture is for --pixels")
    if compare or (html is not None and (as_json or as_markdown)):
        raise ValueError("rules: --pixels excludes --compare, and --html excludes --json and --markdown")
    from npembed.pages.explain import SAMPLE

    target = None if html is None else check_page(html, [picture] if picture else [])
    with silent_libraries():
        found, name = read_image(picture or SAMPLE).picture, str(picture or "the sample picture")
    if target is not None:
        write_pixel_rules(target, found, name)
        return
    rows = compare_pixel_rules(found)
    if as_json:
        show(json.dumps(pixel_rules_as_json(rows, found.size), indent=1))
    elif as_markdown:
        show(pixel_rules_as_markdown(rows))
    else:
        width, height = compared_size(found.size)
        _print_table(f"Pixel rules against pillow: {name}, resized to {width} x {height}", PIXEL_HEAD, table_rows(rows))
        show("\n".join(legend()))


def _print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(title=shown(title), box=SIMPLE)
    for column in head:
        table.add_column(column, no_wrap=column in ("rule", "filter"), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def _print_rules(side: int, up_to: int) -> None:
    title = f"Position rules against {ORIGINAL}: n = 1 ... {up_to} patches, G = {side}"
    table = Table(title=title, box=SIMPLE)
    name, differ, ids, releases, _ = TABLE_HEAD  # the arithmetic, in the Markdown and the JSON, would leave the rest no room
    table.add_column(name, no_wrap=True)
    table.add_column(differ, overflow="fold", max_width=24)
    table.add_column(ids, overflow="fold", max_width=16)
    table.add_column(releases, overflow="fold")
    for row in compare_rules(side, up_to):
        table.add_row(*map(Text, table_row(row, side)[:-1]))
    Console().print(table)


def _pair_table(pair: dict[str, Any]) -> str:
    """Patch, first rule's bucket, second rule's; a mark where they differ."""
    names = list(pair["rules"])
    widths = [max(len(name), 5) for name in names]
    lines = ["patch  " + "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))]
    for i, buckets in enumerate(zip_longest(*pair["rules"].values(), fillvalue="-")):
        cells = "  ".join(f"{bucket:>{width}}" for bucket, width in zip(buckets, widths, strict=True))
        lines.append(f"{i:>5}  {cells}" + ("  <- differ" if i in pair["differ"] else ""))
    return "\n".join([*lines, f"{len(pair['differ'])} of {pair['n']} patches differ (G = {pair['num_patches_per_side']})"])
