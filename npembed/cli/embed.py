"""`npembed embed`: pictures to embeddings, hidden states, vision tokens or vectors, in one file."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import npembed
from npembed import run as run_stages
from npembed.cli.common import Bar, as_utf8, bar_over, known_stage, model_of, refuse, say
from npembed.cli.several import expanded, refuse_too_many
from npembed.cli.weights import WeightsOption, weight_files
from npembed.records.family import Family, Slices
from npembed.records.model import Model
from npembed.steps.pixels import PILLOW, get_pixel_rule
from npembed.steps.pooling import unit_length
from npembed.steps.positions.rules import get_rule
from npembed.steps.stages import companions, join
from npembed.support.output_files import SUFFIXES, check_output, save_tensors
from npembed.support.pictures import read_image, silent_libraries
from npembed.support.typing import Array

SAMPLE = Path(npembed.__file__).with_name("data") / "sample.png"


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
    pixels: Annotated[
        str, typer.Option(metavar="RULE", help="Whose resize and normalising; npembed rules --pixels lists them.")
    ] = PILLOW,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Ends in .safetensors (the default) or .npz.")
    ] = None,
    upright: Annotated[bool, typer.Option("--upright", help="Turn pictures as their EXIF asks; upstream does not.")] = False,
    max_pixels: Annotated[
        int | None, typer.Option(metavar="N", help="Decode pictures of up to N pixels, in place of Pillow's limit.", min=1)
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize", help="Make vectors of unit length; with --until pooled, or another stage with one per picture."
        ),
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
    target = check_output(output or f"{known_stage(until)}.safetensors", SUFFIXES, inputs)
    if rule is not None:
        get_rule(rule, "embed")
    get_pixel_rule(pixels, "embed")
    model, origin = model_of(weights, until)
    model.config.family.pixel_rule(pixels, "embed")
    if max_slices is not None:
        model = replace(model, config=model.config.with_max_slices(max_slices, "embed"))
    if normalize:
        _check_vectors(until, model.config.family)
    rule = rule or model.config.family.rule
    say(f"npembed {npembed.__version__}, {model.config.family.title}, {f'rule {rule}, ' if rule else ''}weights: {origin}")
    if weights is None:
        say("With random weights the numbers mean nothing; --weights SOURCE takes a checkpoint's.")
    refuse_too_many(paths, model, until)
    with bar_over(until, len(paths)) as progress:
        strict = strict or len(paths) == 1
        results = list(_embed_pictures(paths, model, until, rule, pixels, upright, max_pixels, progress, strict))
    if not results:
        raise ValueError(f"embed: none of the {len(paths)} pictures could be computed; nothing is saved")
    about = _metadata(until, rule, model, origin, [result.path for result in results])
    about |= {"max_slices": str(max_slices)} if max_slices is not None else {}
    about |= {"pixels": pixels} if pixels != PILLOW else {}
    failed = len(paths) - len(results)
    tensors = _tensors(results, model, until, rule)
    if normalize:
        tensors[until], about["normalized"] = unit_length(tensors[until]), "unit length"
    replaced = ", which replaces the earlier file" if target.exists() else ""
    save_tensors(target, tensors, about)
    say(f"{until} {tensors[until].shape} {tensors[until].dtype} is in {target}{replaced}")
    if failed:
        say(f"{failed} of {len(paths)} pictures failed")
        raise typer.Exit(1)


def _check_vectors(until: str, family: Family) -> None:
    """An error that says what to add, if the stage has not one vector for each picture."""
    stages = [stage.name for stage in family.vision_stages if stage.sizes is None]
    if until in stages:
        return
    words = f"embed: --normalize needs a stage with one vector for each picture; {until} has one for each place"
    if stages:
        raise ValueError(f"{words}: add --until {stages[0]}, which npembed corpus takes by itself")
    other = "google/siglip-base-patch16-224 has one, and npembed corpus --vector mean takes a mean"
    raise ValueError(f"{words}, and {family.title} has no such stage: {other}")


def _metadata(until: str, rule: str | None, model: Model, origin: str, paths: Sequence[Path]) -> dict[str, str]:
    """What the output file says of itself."""
    images = json.dumps([as_utf8(_name(path)) for path in paths], ensure_ascii=False)
    return {
        "npembed": npembed.__version__,
        "family": model.config.family.key,
        "stage": until,
        **({"rule": rule} if rule else {}),
        "weights": as_utf8(origin),
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
    pixels: str,
    upright: bool,
    max_pixels: int | None,
    progress: "Bar",
    strict: bool,
) -> Iterator[_Result]:
    """The results of those that can be computed; the others are named, or with `strict` are an error."""
    for path in paths:
        try:
            yield _embed_picture(path, model, until, rule, pixels, upright, max_pixels, progress)
        except (ValueError, TypeError, OSError, MemoryError) as error:
            if strict:
                raise
            refuse(str(error) or f"{_name(path)}: {type(error).__name__}")
            progress.picture_done()


def _embed_picture(
    path: Path,
    model: Model,
    until: str,
    rule: str | None,
    pixels: str,
    upright: bool,
    max_pixels: int | None,
    progress: "Bar",
) -> _Result:
    """One picture through the stages, and its line on the screen."""
    start = time.perf_counter()
    with _naming(path):
        with silent_libraries():
            picture, turn, pages = read_image(path, upright=upright, most_pixels=max_pixels)
            slices = model.config.family.cut(picture, model.config, pixels)
        size = picture.size
        del picture  # before the stages: it may be large
        with np.errstate(over="ignore", invalid="ignore"):  # the next line refuses what came out wrong
            result = run_stages(slices.strips, slices.tgt_sizes, model, until, rule, progress=progress.layers)[until]
        if not np.isfinite(result).all():
            raise ValueError(f"embed: the stage {until} leaves the range of {result.dtype}: the weights hold numbers too large")
    say(_picture_line(path, slices, size, time.perf_counter() - start))
    if pages > 1:
        say(f"  it is page 1 of {pages}; the others are left out, as upstream does")
    if turn:
        say(f"  {turn.words}")
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
