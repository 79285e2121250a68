"""The command line: `npembed embed`, `rules`, `golden`, `check` and `weights`."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import npembed
from npembed import cli_weights, stops
from npembed import run as run_stages
from npembed.cli_common import as_utf8 as _as_utf8
from npembed.cli_common import known_stage as _known_stage
from npembed.cli_common import model_of as _model
from npembed.cli_common import say as _say
from npembed.cli_corpus import corpus
from npembed.cli_families import families
from npembed.cli_several import expanded, refuse_too_many
from npembed.cli_weights import WeightsOption, load_weights, weight_files
from npembed.corpus.settings import limited
from npembed.family import Slices
from npembed.files import SUFFIXES, check_output, replacing, same_file, save_tensors
from npembed.images import read_image, silent_libraries
from npembed.model import Model
from npembed.pooling import unit_length
from npembed.positions.differences import (
    ORIGINAL,
    TABLE_HEAD,
    compare_rules,
    compare_two,
    rules_as_json,
    rules_as_markdown,
    table_row,
)
from npembed.positions.rules import get_rule
from npembed.stages import companions, join
from npembed.typing import Array
from npembed.words import shown

if TYPE_CHECKING:
    from npembed.conformance.outcome import Outcome

app: typer.Typer = typer.Typer(
    name="npembed",
    help="The reference, in NumPy, for how a picture becomes embeddings in MiniCPM-V 2.6.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
SAMPLE = Path(__file__).with_name("data") / "sample.png"
INTERRUPTED = 130
"""What Typer makes of a KeyboardInterrupt."""


def run(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 the port or its data differ, 2 wrong use or input."""
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a name or a × that the terminal cannot show is no reason to stop
    try:
        code = typer.main.get_command(app)(words, prog_name="npembed", standalone_mode=False)
    except (ValueError, TypeError, ImportError, OSError) as error:
        return _refuse(str(error))
    except MemoryError as error:
        return _refuse(f"there is not enough memory: {error}" if str(error) else "there is not enough memory")
    except (KeyboardInterrupt, typer.Abort):
        return _refuse("stopped", stops.code())
    except Exception as error:
        if not hasattr(error, "format_message"):  # not one of Typer's own complaints about the words of the call
            raise
        return _refuse(f"{_complaint(error)} (npembed --help lists the commands)")
    if code == INTERRUPTED:
        return _refuse("stopped", stops.code())
    return code if isinstance(code, int) else 0


def _refuse(message: str, code: int = 2) -> int:
    """One line on the error stream."""
    print(f"npembed: {shown(message)}", file=sys.stderr)
    return code


def _complaint(error: Any) -> str:
    """Typer's own words; of an option that is not known, with the one that may be meant."""
    meant = getattr(error, "possibilities", None)
    return f"{error.message}; did you mean {meant[0]!r}?" if meant else str(error.format_message())


def _print(text: str) -> None:
    """Lines that npembed itself has made."""
    print(text, flush=True)


def _version(wanted: bool) -> None:
    if wanted:
        _say(f"npembed {npembed.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def embed(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Pictures; without any, the sample picture.")
    ] = None,
    weights: WeightsOption = None,
    until: Annotated[
        str, typer.Option(metavar="STAGE", help="The last stage to compute; npembed families lists each family's.")
    ] = "embeddings",
    rule: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The position rule; the family's own by default. npembed rules lists them."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Ends in .safetensors (the default) or .npz.")
    ] = None,
    upright: Annotated[bool, typer.Option("--upright", help="Turn pictures as their EXIF asks; upstream does not.")] = False,
    max_pixels: Annotated[
        int | None, typer.Option(metavar="N", help="Decode pictures of up to N pixels, in place of Pillow's limit.", min=1)
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Make vectors of unit length; for a stage with one per picture, as pooled.")
    ] = False,
    max_slices: Annotated[int | None, typer.Option(metavar="N", min=1, help="The most slices of a picture.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Of several pictures, save none if one fails.")] = False,
) -> None:
    """Turn pictures into embeddings, encoder states, vision tokens or one vector each, all in one file.

    Of several pictures the good ones are saved and the others named. A folder or a glob stands for the pictures in it; for very
    many, npembed corpus needs less memory and goes on where it was stopped.
    """
    paths = expanded(images or [SAMPLE])
    inputs = [*(paths if images else ()), *weight_files(weights)]
    target = check_output(output or f"{_known_stage(until)}.safetensors", SUFFIXES, inputs)
    if rule is not None:
        get_rule(rule, "embed")
    model, origin = _model(weights, until)
    model = Model(limited(model.config, max_slices, "embed"), model.weights)
    if normalize and model.config.family.stage(until, "embed").sizes is not None:
        raise ValueError(f"embed: --normalize needs a stage with one vector for each picture; {until} has one for each place")
    rule = rule or model.config.family.rule
    _say(f"npembed {npembed.__version__}, {model.config.family.title}, {f'rule {rule}, ' if rule else ''}weights: {origin}")
    if weights is None:
        _say("With random weights the numbers mean nothing; --weights SOURCE takes a checkpoint's.")
    refuse_too_many(paths, model, until)
    with _progress(until, len(paths)) as progress:
        results = list(_embed_pictures(paths, model, until, rule, upright, max_pixels, progress, strict or len(paths) == 1))
    if not results:
        raise ValueError(f"embed: none of the {len(paths)} pictures could be computed; nothing is saved")
    about = _metadata(until, rule, model, origin, [result.path for result in results])
    about |= {"max_slices": str(max_slices)} if max_slices is not None else {}
    failed = len(paths) - len(results)
    tensors = _tensors(results, model, until, rule)
    if normalize:
        tensors[until], about["normalized"] = unit_length(tensors[until]), "unit length"
    replaced = ", which replaces the earlier file" if target.exists() else ""
    save_tensors(target, tensors, about)
    _say(f"{until} {tensors[until].shape} {tensors[until].dtype} is in {target}{replaced}")
    if failed:
        _say(f"{failed} of {len(paths)} pictures failed")
        raise typer.Exit(1)


def _metadata(until: str, rule: str | None, model: Model, origin: str, paths: Sequence[Path]) -> dict[str, str]:
    """What the output file says of itself."""
    images = json.dumps([_as_utf8(_name(path)) for path in paths], ensure_ascii=False)
    return {
        "npembed": npembed.__version__,
        "family": model.config.family.key,
        "stage": until,
        **({"rule": rule} if rule else {}),
        "weights": _as_utf8(origin),
        "images": images,
    }


def _name(path: Path) -> str:
    """What a picture is called on the screen and in the output file."""
    return "npembed's sample picture" if path == SAMPLE else str(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Every message about a picture names its file."""
    try:
        yield
    except (ValueError, TypeError, MemoryError) as error:
        kind = MemoryError if isinstance(error, MemoryError) else ValueError
        name = _name(path)
        raise (error if name in str(error) else kind(f"{name}: {error}")) from None


app.command()(families)


@app.command()
def rules(
    side: Annotated[int, typer.Option(help="G, the rows of the position table per side.")] = 70,
    up_to: Annotated[int, typer.Option(metavar="N", help="Compare the sizes 1 to N.")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Show the buckets of two rules side by side, for --n.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="With --compare: the number of patches.")] = None,
) -> None:
    """Show where the position rules of released software part from the original."""
    if as_json and as_markdown:
        raise ValueError("rules: --json and --markdown exclude each other")
    if (compare is None) != (n is None):
        raise ValueError("rules: --compare A B and --n N go together")
    if compare is not None and n is not None:
        pair = compare_two(*compare, n, side)
        _print(json.dumps(pair) if as_json else _pair_table(pair))
    elif as_json:
        _print(json.dumps(rules_as_json(side, up_to), ensure_ascii=False, indent=1))
    elif as_markdown:
        _print(rules_as_markdown(side, up_to))
    else:
        _print_rules(side, up_to)


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
    """Patch, first rule's bucket, second rule's; a mark where they part."""
    names = list(pair["rules"])
    widths = [max(len(name), 5) for name in names]
    lines = ["patch  " + "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))]
    for i, buckets in enumerate(zip_longest(*pair["rules"].values(), fillvalue="-")):
        cells = "  ".join(f"{bucket:>{width}}" for bucket, width in zip(buckets, widths, strict=True))
        lines.append(f"{i:>5}  {cells}" + ("  <- differ" if i in pair["differ"] else ""))
    return "\n".join([*lines, f"{len(pair['differ'])} of {pair['n']} patches differ (G = {pair['num_patches_per_side']})"])


@dataclass(frozen=True)
class _Result:
    """What became of one picture."""

    path: Path
    array: Array
    slices: Slices


def _embed_pictures(
    paths: Sequence[Path],
    model: Model,
    until: str,
    rule: str | None,
    upright: bool,
    max_pixels: int | None,
    progress: "_Progress",
    strict: bool,
) -> Iterator[_Result]:
    """The results of those that can be computed; the others are named, or with `strict` are an error."""
    for path in paths:
        try:
            yield _embed_picture(path, model, until, rule, upright, max_pixels, progress)
        except (ValueError, TypeError, OSError, MemoryError) as error:
            if strict:
                raise
            _refuse(str(error) or f"{_name(path)}: {type(error).__name__}")
            progress.picture_done()


def _embed_picture(
    path: Path, model: Model, until: str, rule: str | None, upright: bool, max_pixels: int | None, progress: "_Progress"
) -> _Result:
    """One picture through the stages, and its line on the screen."""
    start = time.perf_counter()
    with _naming(path):
        with silent_libraries():
            picture, turned, pages = read_image(path, upright=upright, most_pixels=max_pixels)
            slices = model.config.family.cut(picture, model.config)
        size = picture.size
        del picture  # before the stages: it may be large
        result = run_stages(slices.strips, slices.tgt_sizes, model, until, rule, progress=progress.layers)[until]
    _say(_picture_line(path, slices, size, time.perf_counter() - start))
    if pages > 1:
        _say(f"  it is page 1 of {pages}; the others are left out, as upstream does")
    if turned:
        _say(f"  its EXIF orientation was {'applied' if upright else 'ignored, as upstream does; --upright applies it'}")
    progress.picture_done()
    return _Result(path, result, replace(slices, strips=[]))  # the pixels are no longer needed


def _picture_line(path: Path, slices: Slices, size: tuple[int, int], seconds: float) -> str:
    grid = f"grid {slices.grid[0]}×{slices.grid[1]}" if slices.grid else "no grid"
    sizes = ", ".join(f"{h}×{w}" for h, w in slices.tgt_sizes.tolist())
    patches = int(slices.tgt_sizes.prod(axis=1).sum())
    return f"{_name(path)}: {size[0]}×{size[1]} pixels, {grid}, slices {sizes}, {patches} patches, {seconds:.2f} s"


def _tensors(results: list[_Result], model: Model, until: str, rule: str | None) -> dict[str, Array]:
    """The arrays of the output file; `results` is emptied, so that nothing is in memory twice."""
    stages = model.config.family.stages_until(until, "embed")
    tgt_sizes = np.concatenate([result.slices.tgt_sizes for result in results])
    batches = [len(result.slices.tgt_sizes) for result in results]
    boxes = np.concatenate([result.slices.boxes for result in results])
    arrays = [result.array for result in results]
    results.clear()
    return {
        until: join(stages[-1], arrays, model, tgt_sizes, free=True),
        **companions(stages, tgt_sizes, model, rule, batches),
        "image_index": np.repeat(np.arange(len(batches)), batches),
        "slice_boxes": boxes,
    }


class _Progress:
    """A bar over pictures and the encoder's layers; nothing where the screen is no terminal."""

    def __init__(self, bar: Progress, pictures: int) -> None:
        self._bar, self._done, self._pictures = bar, 0, pictures
        self._task: TaskID = bar.add_task("", total=pictures)

    def layers(self, done: int, total: int) -> None:
        """Part of a picture is done."""
        self._bar.update(self._task, completed=self._done + done / total, description=f"layer {done} of {total}")

    def picture_done(self) -> None:
        """A whole picture is done."""
        self._done += 1
        self._bar.update(self._task, completed=self._done, description=f"picture {self._done} of {self._pictures}")


@contextmanager
def _progress(until: str, pictures: int) -> Iterator[_Progress]:
    console = Console()
    slow = until != "embeddings" or pictures > 3
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (slow and console.is_terminal)) as bar:
        yield _Progress(bar, pictures)


app.add_typer(corpus, name="corpus")
golden = typer.Typer(help="Golden packs: every stage's input and answer in files, for a port in any language.")
app.add_typer(golden, name="golden")
app.add_typer(cli_weights.app, name="weights")

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


@golden.command("write")
def golden_write(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    weights: WeightsOption = None,
    family: Annotated[
        str | None, typer.Option(metavar="KEY", help="The family; npembed families lists them. MiniCPM-V 2.6 by default.")
    ] = None,
    rule: RuleOption = None,
) -> None:
    """Write a pack into DIR: new, empty, or an earlier pack."""
    from npembed.conformance.golden import read_pack, write_pack
    from npembed.conformance.golden.pack import check_folder

    replaced = any(check_folder(folder, weight_files(weights)).glob("*"))
    model, origin = (None, "") if weights is None else load_weights(weights, None)
    with _progress("hidden", 1) as progress:
        write_pack(folder, model, progress.layers, family=family, rule=rule)
    pack = read_pack(folder)
    more = ", which replaces the earlier pack" if replaced else ""
    _say(f"{len(pack.manifest['cases'])} cases, {pack.size / 1e6:.1f} MB, are in {folder}{more}")
    if weights is not None:
        _say(f"They are for the weights in {origin}, which are not in the pack.")


@golden.command("check")
def golden_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The pack.")],
    outputs: Annotated[Path, typer.Argument(metavar="OUTPUTS", help="The port's files, named as the pack's.")],
    stage: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Look at this stage alone; repeatable.")] = None,
    require: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A stage that must be there; repeatable.")] = None,
    rule: RuleOption = None,
    precision: PrecisionOption = None,
    expect: ExpectOption = None,
    json_file: JsonOption = None,
    html_file: HtmlOption = None,
) -> None:
    """Compare a port's files with a pack, and name the first stage that departs."""
    from npembed.conformance import golden, report
    from npembed.conformance.expectations import as_expected, read_expectations
    from npembed.conformance.golden.causes import can_explain

    pack = golden.read_pack(folder)
    answers = (path for case in pack.manifest["cases"] for path in outputs.glob(f"{case['name']}.*"))
    _check_reports(json_file, html_file, [*pack.files(), *answers, *([] if expect is None else [expect])])
    expected = None if expect is None else read_expectations(expect)
    outcomes = golden.check_outputs(pack, outputs, precision, stages=stage or (), require=require or (), rule=rule)
    if expected is not None:
        outcomes = as_expected(outcomes, expected, golden.outcome_names(pack))
    first = golden.first_departing(pack, outcomes)
    more = f"The first stage that departs is {first}." if first else ""
    if first and not can_explain():
        more += " Most causes were not looked for, which needs Hypothesis: pip install 'npembed[testing]'."
    _report(outcomes, str(outputs), json_file, html_file, more, as_text=report.golden_text)


@app.command()
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

    _check_reports(json_file, html_file, [module] if module.endswith(".py") else [])
    with IsolatedPort(module, timeout=timeout) as port:
        _check_reports(json_file, html_file, port.files)
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
    _report(outcomes, module, json_file, html_file)


def _check_reports(json_file: Path | None, html_file: Path | None, inputs: Sequence[str | Path]) -> None:
    """An error before the work if a report could not be written after it, or would replace an input or the other report."""
    for file in (json_file, html_file):
        if file is not None:
            check_output(file, inputs=inputs)
    if json_file is not None and html_file is not None and same_file(json_file, html_file):
        raise ValueError(f"--json {json_file} and --html {html_file} are the same file")


def _report(
    outcomes: "Sequence[Outcome]",
    subject: str,
    json_file: Path | None,
    html_file: Path | None,
    more: str = "",
    as_text: "Callable[[Sequence[Outcome], str], str] | None" = None,
) -> None:
    """The report in each form that is asked for; exit 1 if anything failed."""
    from npembed.conformance import report
    from npembed.conformance.outcome import failed

    wrong = failed(outcomes)
    verdict = f"{subject} {'departs from' if wrong else 'agrees with'} the reference: {report.counts(outcomes)}. {more}".strip()
    for file, text in ((json_file, report.json_text), (html_file, report.as_html)):
        if file is not None:
            replaced = file.exists()
            with replacing(file) as beside:
                beside.write_text(text(outcomes, verdict, subject), encoding="utf-8", errors="backslashreplace")
            if replaced:
                _say(f"{file} replaces the earlier file")
    _print((as_text or report.as_text)(outcomes, verdict))
    if wrong:
        raise typer.Exit(1)
