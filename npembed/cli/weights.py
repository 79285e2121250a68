"""The command line's weights: the option that takes them, the bar of a download, and `npembed weights`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from npembed.records.model import Model
from npembed.support.messages import shown
from npembed.support.output_files import is_own_output
from npembed.weights import load
from npembed.weights.cache import Kept, cache_folder, kept, remove
from npembed.weights.contents import Contents, contents
from npembed.weights.opening import FORMS, open_source
from npembed.weights.source import Progress as Told

WeightsOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--weights", metavar="SOURCE", help=f"{FORMS}; without it, seeded random weights. npembed weights --help."),
]

HELP = """Real weights: what a source holds, and what is kept of the Hugging Face Hub.

A SOURCE is the first of these that fits:

- a path that exists: a folder with config.json and model.safetensors or its shards; a .safetensors file with config.json
  beside it; an mmproj file of llama.cpp (GGUF, whatever its name);

- hf://owner/name, hf://owner/name@revision: a repository of the Hub; hf://owner/name/FILE.gguf: an mmproj file in one;

- a URL, http(s):// or any that fsspec knows: of a folder, a .safetensors file or a .gguf file;

- owner/name, owner/name@revision: a repository of the Hub.

Of a repository only the arrays that a stage needs are downloaded. They are kept under NPEMBED_CACHE, or npembed in the
user's cache folder, and the next run needs no network. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are obeyed.
"""

app = typer.Typer(help=HELP, rich_markup_mode=None)

SourceArgument: TypeAlias = Annotated[str, typer.Argument(metavar="SOURCE", help=FORMS)]
RepositoryArgument: TypeAlias = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Or OWNER/NAME@REVISION.")]


def say(line: str) -> None:
    """One line on the screen, not broken to its width."""
    print(shown(line, most=10_000), flush=True)


def load_weights(weights: str | Path, until: str | None) -> tuple[Model, str]:
    """The model, and where its weights come from in words; a download shows its bar."""
    with _bar() as progress:
        return load(weights, until, say, progress)


@contextmanager
def _bar() -> Iterator[Told]:
    """A bar in bytes, from the first byte on; nothing where the screen is no terminal."""
    console = Console()
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def weight_files(weights: str | None) -> list[Path]:
    """The files on this machine that may be read as the checkpoint: all in its folder but npembed's own outputs."""
    path = None if weights is None else Path(weights)
    if path is None or not path.exists():
        return []
    folder = path if path.is_dir() else path.parent
    beside = folder.iterdir() if path.is_dir() else folder.glob("*.json")
    return [file for file in sorted({path, *beside}) if file.is_file() and not is_own_output(file)]


@app.command("show")
def show(source: SourceArgument) -> None:
    """Show a source's family, the stages that work, and what each needs; no array is read."""
    _show(contents(open_source(source, say=say)))


def _show(found: Contents) -> None:
    family = found.config.family
    say(f"{found.where}: {family.title} ({family.key})")
    say(f"{'until':<12} {'arrays':>6} {'MB':>10}  types")
    for stage in found.stages:
        types, words = ", ".join(stage.types), f"does not work: {stage.problem}" if stage.problem else "works"
        say(f"{stage.name:<12} {stage.arrays:>6} {stage.nbytes / 1e6:>10,.1f}  {types}{'; ' if types else ''}{words}")
    if found.others:
        say(f"{len(found.others):,} outside the tower and the connector, such as {found.others[0]}")
    if found.unknown:
        say(f"unknown arrays of the tower or the connector, so nothing is read: {', '.join(found.unknown)}")


@app.command("list")
def list_kept() -> None:
    """List what is kept of the Hub."""
    found = kept()
    for each in found:
        state = "" if each.whole else ", not whole yet: the next run goes on from there"
        say(f"{each.repository}@{each.commit[:12]} {each.stage}: {each.nbytes / 1e6:,.1f} MB{state}")
    say(f"{sum(each.nbytes for each in found) / 1e6:,.1f} MB in {cache_folder()}")


@app.command("path")
def path(repository: RepositoryArgument) -> None:
    """Print the folders that are kept of a repository: checkpoints of their own, for any program."""
    for each in _kept_of(repository):
        if each.whole:
            say(str(each.folder))


@app.command("rm")
def rm(
    repository: RepositoryArgument,
    stage: Annotated[str | None, typer.Option(metavar="STAGE", help="What is kept of this stage alone.")] = None,
) -> None:
    """Delete what is kept of a repository."""
    for each in _kept_of(repository, stage):
        remove(each)
        say(f"{each.folder} is deleted, {each.nbytes / 1e6:,.1f} MB")


def _kept_of(repository: str, stage: str | None = None) -> Sequence[Kept]:
    """What is kept of it, or an error that nothing is."""
    from npembed.weights.hub import Repository

    at = Repository.parse(repository)
    revision = at.revision if "@" in repository else None
    found = [each for each in kept() if each.is_of(at.name, revision) and stage in (None, each.stage)]
    if not found:
        raise ValueError(f"weights: nothing of {at} is kept in {cache_folder()}; npembed weights list shows what is")
    return found
