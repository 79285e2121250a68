"""The command line: `npembed corpus`, and `npembed corpus search`."""

import hashlib
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from npembed.cli import common
from npembed.cli.weights import WeightsOption
from npembed.families import MINICPM_V_2_6
from npembed.steps.pixels import PILLOW
from npembed.support.output_files import check_output, replacing
from npembed.support.pictures import Turn, silent_libraries
from npembed.support.reading import is_here
from npembed.weights.source import public

if TYPE_CHECKING:
    from npembed.corpus import Corpus, Neighbour, Settings, Summary, Watcher
    from npembed.records.model import Model
    from npembed.support.typing import Array


SourceOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--source", metavar="URL", help="Show pictures below this URL, too; those of this machine are shown."),
]


MaxPixelsOption: TypeAlias = Annotated[int, typer.Option(metavar="N", min=1, help="A picture of more is not computed.")]


class _Group(TyperGroup):
    """`npembed corpus SOURCE... OUT` is `npembed corpus make SOURCE... OUT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The command's name in front, where there is none."""
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["make", *args])


corpus = typer.Typer(cls=_Group, rich_markup_mode=None, help="Many pictures in one folder; and which of them are alike.")


@corpus.command("make")
def make(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Files, folders, globs, .tar, .zip, lists (.txt, - for standard input), URLs."),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A folder: new, empty, or a corpus to go on with; or a URL.")],
    weights: WeightsOption = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="The last stage; by default pooled where the family has it, else embeddings."),
    ] = None,
    vector: Annotated[
        str, typer.Option(metavar="mean", help="One vector a picture: the mean of its overview's tokens or hidden states.")
    ] = "",
    normalize: Annotated[bool, typer.Option("--normalize", help="Make vectors of unit length.")] = False,
    rule: Annotated[str | None, typer.Option(metavar="NAME", help="The position rule; the family's own by default.")] = None,
    pixels: Annotated[str, typer.Option(metavar="RULE", help="Whose resize and normalising; npembed rules --pixels.")] = PILLOW,
    max_slices: Annotated[int | None, typer.Option(metavar="N", min=1, help="The most slices of a picture.")] = None,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="To store: float32 or float16; the model's by default.")] = "",
    pages: Annotated[str, typer.Option(metavar="first|all", help="Of files with several pages or frames.")] = "first",
    upright: Annotated[bool, typer.Option("--upright", help="Turn pictures as their EXIF asks; upstream does not.")] = False,
    max_pixels: MaxPixelsOption = 89_478_485,
    shard_size: Annotated[int, typer.Option(metavar="MB", min=1, help="The most in one shard.")] = 256,
    include: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Take only files that match.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Leave out files that match.")] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, help="Processes; one a core by default.")] = None,
    scheduler: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of a Dask cluster, as tcp://host:8786.")] = None,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Show Dask's pages while it runs, on 127.0.0.1.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Take in pictures that came, changed or went.")] = False,
) -> None:
    """Turn many pictures into a corpus: shards, a table with a row for each picture, and what it was made with.

    A run that was stopped goes on with the same command. npembed corpus search OUT PICTURE finds what is alike.
    """
    from npembed.corpus import Settings, build

    if workers is not None and scheduler is not None:
        raise ValueError("corpus: --workers and --scheduler exclude each other")
    until = until or _default_stage(weights, vector)
    settings = Settings(
        until, vector, normalize, dtype, max_slices, rule, pages, upright, max_pixels, shard_size, pixels
    )  # what is wrong with them is said before the weights are read
    model, origin = _model(weights, settings)
    common.say(_heading(model, settings, origin))
    start = time.perf_counter()
    options: dict[str, Any] = {"include": include or (), "exclude": exclude or (), "update": update}
    options |= {"workers": workers, "scheduler": scheduler, "dashboard": dashboard}
    with _watching() as watch:
        summary = build(sources, out, model, _source(weights), settings, watch=watch, **options)
    _tell(summary, out, time.perf_counter() - start)


def _default_stage(weights: str | None, vector: str) -> str:
    from npembed import read_config
    from npembed.corpus.settings import default_until

    return default_until((MINICPM_V_2_6 if weights is None else read_config(weights)).family, vector)


def _model(weights: str | Path | None, settings: "Settings") -> "tuple[Model, str]":
    """The model with the most slices that is asked for, and where its weights come from in words."""
    from npembed.corpus.settings import check_stage

    common.known_stage(settings.until, "corpus")
    model, origin = common.model_of(weights, settings.until)
    check_stage(settings, model.config.family)
    if settings.max_slices is not None:
        model = replace(model, config=model.config.with_max_slices(settings.max_slices, "corpus"))
    return model, origin


def _source(weights: str | None) -> str:
    return common.as_utf8(public(weights)) if weights is not None else "random"


def _heading(model: "Model", settings: "Settings", origin: str) -> str:
    import npembed

    rule = settings.rule or model.config.family.rule
    words = f"npembed {npembed.__version__}, {model.config.family.title}, {f'rule {rule}, ' if rule else ''}weights: {origin}"
    if settings.vector:
        words += ".\nThe mean of what the model makes of a picture was not trained for search; near-duplicates are found by it."
    return words


class _Bar:
    """One line with the pictures per second, the failures and the time left, where the screen is a terminal."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._failed, self._start = bar, 0, 0.0

    def begin(self, pictures: int, dashboard: str) -> None:
        self._start = time.perf_counter()
        self._task = self._bar.add_task("", total=pictures)
        where = f"; Dask's dashboard is at {dashboard}, for every user of this machine" if dashboard else ""
        self._bar.console.print(f"{pictures} pictures to compute{where}", highlight=False, soft_wrap=True)

    def done(self, pictures: int, failed: int) -> None:
        self._failed += failed
        self._bar.advance(self._task, pictures)
        rate = self._bar.tasks[0].completed / (time.perf_counter() - self._start)
        self._bar.update(self._task, description=f"{rate:.1f} pictures/s, {self._failed} failed")


@contextmanager
def _watching() -> "Iterator[Watcher]":
    from npembed.corpus import Watcher

    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        line = _Bar(bar)
        yield Watcher(line.begin, line.done)


def _tell(summary: "Summary", out: str, seconds: float) -> None:
    """What became of the run; exit 1 if a picture failed or a group could not be finished."""
    for note in summary.notes:
        common.say(_shown(note))
    good, failed = summary.pictures - summary.failed, f"; {summary.failed} failed:" if summary.failed else ""
    common.say(f"{f'{good} of ' if failed else ''}{_are(summary.pictures)} in {_shown(out)}{failed}")
    for path, frame, error in summary.first_failures:
        common.say(f"  {_shown(_page_of(path, frame))}: {error}")
    if summary.failed:
        common.say(
            f"index.parquet says of each picture that failed why; npembed corpus page {shlex.quote(_shown(out))} lists them"
        )
    for turn, became in TURNED.items():
        if count := summary.turns.get(turn):
            common.say(f"{_are(count)} {became.format(whose='its' if count == 1 else 'their')}")
    words = [f"{summary.kept} were there already"] if summary.kept else []
    words += [f"{summary.no_pictures} other files"] if summary.no_pictures else []
    words += [f"{summary.repeated} paths given again"] if summary.repeated else []
    common.say("; ".join([*words, f"{seconds:.1f} s"]))
    for group, why in summary.unfinished.items():
        common.say(f"Group {group} was not finished: {why}; the same command tries it again")
    if summary.failed or summary.unfinished:
        raise typer.Exit(1)


TURNED = {
    Turn.IGNORED: "turned by {whose} EXIF, which was not applied; --upright, into another OUT, applies it",
    Turn.BY_PILLOW: "turned by Pillow itself, as upstream gets a TIFF",
    Turn.MIXED_UP: "mixed up by Pillow, as upstream gets such a TIFF; --upright, into another OUT, reads it right",
    Turn.UNREADABLE: "not turned, because {whose} EXIF cannot be read",
}
"""What is said at the end of pictures with an EXIF orientation."""


def _are(count: int) -> str:
    return "1 picture is" if count == 1 else f"{count} pictures are"


def _page_of(path: str, frame: int) -> str:
    return path + (f", page {frame + 1}" if frame else "")


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in common.as_utf8(text))


@corpus.command("search")
def search(
    folder: Annotated[str, typer.Argument(metavar="OUT", help="The corpus.")],
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="A picture, of the corpus or not.")],
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="How many to find.")] = 10,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write them as a page, too.")] = None,
    weights: WeightsOption = None,
    source: SourceOption = None,
    max_pixels: MaxPixelsOption = 89_478_485,
) -> None:
    """Find the pictures of a corpus that are most like one picture."""
    from npembed.corpus import open as open_corpus
    from npembed.corpus.nearest import search as find

    if html_file is not None:
        from npembed.pages.corpus import search_page
        from npembed.pages.page import check_extra

        check_output(html_file, (".html", ".htm"), inputs=[picture])
        check_extra()
    there = open_corpus(folder)
    neighbours = find(there, _vector_of(there, picture, weights, max_pixels), k)
    _print_neighbours(neighbours, picture)
    if html_file is not None:
        upright = there.manifest["settings"]["upright"]
        with silent_libraries():
            page = search_page(neighbours, picture, f"Most like {_shown(picture)}", source or (), upright)
        with replacing(html_file) as beside:
            beside.write_text(page, encoding="utf-8", errors="backslashreplace")
        common.say(f"The page is {html_file}")


def _vector_of(there: "Corpus", picture: str, weights: str | None, max_pixels: int) -> "Array":
    """The picture's vector, computed as the corpus was made; the corpus's own if the picture is what it was, or is gone."""
    from npembed.corpus import Settings
    from npembed.corpus.nearest import read_named
    from npembed.corpus.settings import weights_digest
    from npembed.corpus.vectors import vector_of

    if not there.has_vectors:
        next(there.vectors())  # says what is missing
    known = there.has(picture)
    try:
        content = read_named(picture)
    except (OSError, ValueError, ImportError):
        if not known:
            raise
        content = None
    if known and (content is None or hashlib.sha256(content).hexdigest() == there.row(picture)["sha256"]):
        stored: Array = there[picture][there.name][0]
        return stored
    given = weights if weights is not None else _weights_here(there)
    settings = replace(Settings(**there.manifest["settings"]), max_pixels=max_pixels)  # the limit is this machine's affair
    model, _ = _model(given, settings)
    if weights_digest(model) != there.manifest["weights"]["sha256"]:
        raise ValueError(f"corpus: {given or 'the random weights'} are not the weights that {there.shown} was made with")
    assert content is not None
    with silent_libraries():
        vector: Array = vector_of(content, picture, model, settings)
    return vector


def _weights_here(there: "Corpus") -> Path | None:
    """The weights that a corpus says it was made with, if they are on this machine; None for random ones.

    Whoever made the corpus may have written anything there, so no network is asked for it.
    """
    source = str(there.manifest["weights"]["source"])
    if source == "random":
        return None
    if not (is_here(source) and os.path.exists(source)):
        words = f"corpus: the weights that {there.shown} was made with are not on this machine, and nothing is fetched that a"
        raise ValueError(f"{words} corpus names; if you trust the source, add --weights {shlex.quote(source)}")
    return Path(source)


def _print_neighbours(neighbours: "Sequence[Neighbour]", picture: str) -> None:
    table = Table(title=Text(f"Most like {_shown(picture)}"), box=SIMPLE)
    table.add_column("cosine", justify="right")
    table.add_column("picture", overflow="fold")
    for one in neighbours:
        table.add_row(f"{one.similarity:.4f}", Text(_shown(_page_of(one.path, one.frame))))
    Console().print(table)
