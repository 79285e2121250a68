"""Random small models, saved by transformers, and random pictures: its answers beside npembed's, stage by stage."""

import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from npembed import Model, load_model, read_config, run, slice_image
from npembed.conformance.filling import model_at
from npembed.families.phi4_multimodal import plan_canvas
from tests.families import test_idefics2 as idefics2
from tests.families import test_idefics3 as idefics3
from tests.families import test_minicpmv4_6 as minicpmv4_6
from tests.families import test_phi4_multimodal as phi4
from tests.families import test_siglip as siglip
from tests.families import test_siglip2_naflex as naflex
from tests.synthetic import synthetic_picture

CLOSE = 2e-5
"""Of a stage's largest number, how far floats may differ at least; else as far as float32 is from float64, so many times."""
MULTIPLE = 32

MODES = ("RGB", "RGB", "RGB", "RGBA", "LA", "L", "P", "CMYK", "1")
Arrays = dict[str, Any]
"""By name: `tgt_sizes` as lists, and of each other stage one array per slice."""


@dataclass(frozen=True)
class Drawn:
    """A saved model and a picture for it.

    Attributes
    ----------
    folder : Path
    picture : Image
    theirs : callable
        picture -> transformers' own answers.
    """

    folder: Path
    picture: Any
    theirs: Callable[[Any], Arrays]


def ours(model: Model, picture: Any) -> Arrays:
    """npembed's answers, each slice without its padding."""
    strips, sizes = slice_image(picture, model.config)
    arrays = run(strips, sizes, model)
    counts = {
        "embeddings": sizes.prod(axis=1),
        "hidden": arrays["hidden_sizes"].prod(axis=1),
        "tokens": arrays.get("token_counts"),
    }
    answers: Arrays = {"tgt_sizes": sizes.tolist(), "strips": strips}
    for name, each in counts.items():
        if name in arrays:
            answers[name] = [array[:count] for array, count in zip(arrays[name], each, strict=True)]
    return answers | ({"pooled": list(arrays["pooled"])} if "pooled" in arrays else {})


# What is drawn


def width(rng: random.Random, largest: int = 6) -> dict[str, int]:
    """Heads, and a width for them."""
    heads = rng.randint(1, 4)
    return {"num_attention_heads": heads, "hidden_size": 2 * heads * rng.randint(1, largest)}


def tower(rng: random.Random) -> dict[str, Any]:
    """What every family's vision_config has."""
    sizes = {"intermediate_size": rng.randint(1, 40), "num_hidden_layers": rng.randint(1, 4)}
    return width(rng) | sizes | {"layer_norm_eps": rng.choice((1e-6, 1e-5, 1e-3))}


def levels(rng: random.Random) -> tuple[list[float], list[float]]:
    """Mean and deviation."""
    return [round(rng.uniform(0, 1), 3) for _ in range(3)], [round(rng.uniform(0.1, 1), 3) for _ in range(3)]


def picture(rng: random.Random, near: int, modes: tuple[str, ...] = MODES, least: int = 1) -> Any:
    """A picture of an odd size: any, a multiple of a length or beside it, or long and thin."""
    size = [round(np.exp(rng.uniform(0, np.log(300)))) for _ in range(2)]
    for axis in range(2):
        if rng.random() < 0.4:
            size[axis] = near * rng.randint(1, 4) + rng.randint(-1, 1)
        elif rng.random() < 0.05:
            size[axis] = rng.choice((1, 2, 700))
    columns, rows = (max(least, side) for side in size)
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (rows, columns, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(rng.choice(modes))


# A family each


def draw_siglip(rng: random.Random, folder: Path) -> Drawn:
    """Of fixed size; what fills no patch is left over at both ends."""
    patch_size, side, (mean, std) = rng.randint(2, 12), rng.randint(1, 8), levels(rng)
    vision = tower(rng) | {"patch_size": patch_size, "image_size": patch_size * side + rng.randrange(patch_size)}
    size = {"height": vision["image_size"], "width": vision["image_size"]}
    processor = {"size": size, "image_mean": mean, "image_std": std, "resample": rng.randrange(6)}
    siglip.save(folder, vision, processor, rng.randrange(1000))

    def theirs(image: Any) -> Arrays:
        arrays = siglip.upstream_arrays(folder, image)
        strips = [siglip.strip_of(arrays.pop("pixels")[0], side, patch_size)]
        return {name: list(array) for name, array in arrays.items()} | {"strips": strips, "tgt_sizes": [[side, side]]}

    return Drawn(folder, picture(rng, vision["image_size"]), theirs)


def draw_naflex(rng: random.Random, folder: Path) -> Drawn:
    """As many patches as the picture's aspect allows."""
    patch_size, (mean, std), most = rng.randint(2, 12), levels(rng), rng.randint(1, 90)
    vision = tower(rng) | {"patch_size": patch_size, "num_patches": rng.randint(1, 9) ** 2}
    processor = {"patch_size": patch_size, "max_num_patches": most, "image_mean": mean, "image_std": std}
    processor |= {"resample": rng.randrange(6), "do_convert_rgb": rng.random() < 0.5}
    naflex.save(folder, vision, processor, rng.randrange(1000))

    def theirs(image: Any) -> Arrays:
        arrays = naflex.upstream_arrays(folder, image)
        ((h, w),) = sizes = arrays.pop("sizes").tolist()
        rows = arrays.pop("pixels")[0, : h * w].reshape(h * w, patch_size, patch_size, 3)
        strips = [rows.transpose(3, 1, 0, 2).reshape(3, patch_size, -1)]
        answers = {name: [array[0] if name == "pooled" else array[0, : h * w]] for name, array in arrays.items()}
        return answers | {"strips": strips, "tgt_sizes": sizes}

    return Drawn(folder, picture(rng, 8 * patch_size, MODES if processor["do_convert_rgb"] else ("RGB",)), theirs)


def draw_idefics2(rng: random.Random, folder: Path) -> Drawn:
    """Pictures of any aspect, in quarters too; a perceiver with grouped heads."""
    patch_size, groups, (mean, std) = rng.randint(2, 14), rng.randint(1, 3), levels(rng)
    shortest = rng.randint(patch_size, 4 * patch_size)
    perceiver = {"resampler_n_latents": rng.randint(1, 9), "resampler_depth": rng.randint(1, 3)}
    perceiver |= {"resampler_n_heads": groups * rng.randint(1, 3), "num_key_value_heads": groups}
    perceiver |= {"resampler_head_dim": rng.randint(1, 9), "hidden_size": rng.choice((20, 4096))}
    sizes = {"patch": patch_size, "image": patch_size * rng.randint(1, 70), "vision": tower(rng), "perceiver": perceiver}
    sizes |= {"edges": (shortest, shortest + rng.randint(0, 80)), "do_image_splitting": rng.random() < 0.5}
    saved = idefics2.save(folder, sizes | {"mean": mean, "std": std}, rng.randrange(1000))

    def theirs(image: Any) -> Arrays:
        answers = idefics2.theirs(saved, image)
        return answers | {"tokens": list(answers["tokens"])}

    # of a picture one pixel wide transformers makes black quarters, and npembed refuses it
    return Drawn(folder, picture(rng, shortest, least=1 + sizes["do_image_splitting"]), theirs)


def draw_idefics3(rng: random.Random, folder: Path, key: str = "idefics3") -> Drawn:
    """Tiles and the whole; a square of patches for a token."""
    patch_size, scale, (mean, std) = rng.randint(2, 14), rng.randint(1, 4), levels(rng)
    side = scale * rng.randint(1, 3)
    tile = patch_size * side + rng.randrange(patch_size)
    sizes = {"patch": patch_size, "image": patch_size * rng.randint(1, 70), "vision": tower(rng), "scale": scale}
    sizes |= {"tile": tile, "edge": rng.randint(1, 4 * tile), "do_image_splitting": rng.random() < 0.8}
    saved = idefics3.save(folder, key, sizes | {"mean": mean, "std": std}, rng.randrange(1000))

    def theirs(image: Any) -> Arrays:
        arrays = idefics3.theirs(saved, image)
        strips = idefics3.strips_of(arrays["pixel_values"], patch_size)
        answers = {name: list(arrays[name]) for name in ("embeddings", "hidden", "tokens")}
        return answers | {"strips": strips, "tgt_sizes": [[side, side]] * len(strips)}

    return Drawn(folder, picture(rng, tile), theirs)


def draw_smolvlm(rng: random.Random, folder: Path) -> Drawn:
    """As Idefics3, but for its names and what becomes of blank tiles."""
    return draw_idefics3(rng, folder, "smolvlm")


def draw_minicpmv4_6(rng: random.Random, folder: Path) -> Drawn:
    """MiniCPM-V 4.6 and 4.7 and MiniCPM-OCR: with the merger in the tower or without it."""
    (key, mode), patch_size, (mean, std) = rng.choice(minicpmv4_6.CASES), rng.randint(2, 8), levels(rng)
    vision = tower(rng) | {"patch_size": patch_size, "image_size": patch_size * rng.randint(1, 70)}
    vision["hidden_size"] *= 2
    after = rng.randrange(vision["num_hidden_layers"])
    resolution = patch_size * rng.randint(4, 16)
    options = {"patch_size": patch_size, "scale_resolution": resolution, "max_slice_nums": rng.randint(1, 9)}
    options |= {"slice_mode": rng.random() < 0.8, "image_mean": mean, "image_std": std}
    model = minicpmv4_6.upstream_model(key, mode, vision, after, rng.randrange(1000))
    pair = minicpmv4_6.save(folder, key, mode, model, minicpmv4_6.upstream_processor(mode, **options))

    def theirs(image: Any) -> Arrays:
        pixels, sizes, _ = minicpmv4_6.processed(pair.processor, image)
        places = np.cumsum(sizes.prod(axis=1))[:-1] * patch_size
        strips, sizes = np.split(pixels, places, axis=-1), sizes.tolist()
        return minicpmv4_6.upstream_arrays(pair, pixels, sizes) | {"strips": strips, "tgt_sizes": sizes}

    return Drawn(folder, picture(rng, resolution), theirs)


def draw_phi4(rng: random.Random, folder: Path) -> Drawn:
    """The modules, and torch's own resize; transformers has no image processor of this family without torchvision."""
    layers = rng.randint(1, 4)
    feature = rng.choice([number for number in range(-layers - 1, layers + 1) if number not in (0, -layers - 1)])
    sizes = tower(rng) | {"num_hidden_layers": layers, "feature_layer": feature, "image_size": 2 * rng.randint(1, 40)}
    phi4.save(folder, rng.randrange(1000), **sizes)
    size = rng.randint(30, 300), rng.randint(30, 300)
    plan = plan_canvas(size, read_config(folder))

    def theirs(image: Any) -> Arrays:
        with patch.dict(phi4.PICTURES, {size: (*plan.grid, *plan.size)}):
            return {"tokens": phi4.upstream_tokens(phi4.oracle(folder, "eager"), [size])}

    return Drawn(folder, synthetic_picture(*size), theirs)


KINDS = (draw_siglip, draw_naflex, draw_idefics2, draw_idefics3, draw_smolvlm, draw_minicpmv4_6, draw_phi4)


# Cases


def difference(came: Arrays, expected: Arrays, wide: Callable[[], Arrays]) -> str | None:
    """Where npembed's answers differ from transformers'; None if nowhere. `wide` gives npembed's in float64."""
    for name, theirs in expected.items():
        if name == "tgt_sizes":
            if came[name] != theirs:
                return f"tgt_sizes are {came[name]}, should be {theirs}"
            continue
        if len(came[name]) != len(theirs):
            return f"{name}: {len(came[name])} slices, should be {len(theirs)}"
        for number, (one, other) in enumerate(zip(came[name], theirs, strict=True)):
            if one.shape != other.shape:
                return f"{name}[{number}] has shape {one.shape}, should be {other.shape}"
            far, largest = float(np.abs(one - other).max(initial=0)), float(np.abs(other).max(initial=0))
            if far <= (0 if name == "strips" else CLOSE * largest):
                continue
            if name == "strips" or not far <= MULTIPLE * float(np.abs(one - wide()[name][number]).max()):
                return f"{name}[{number}] is {far:.3g} off; the largest number is {largest:.3g}"
    return None


def compared(drawn: Drawn) -> str | None:
    """What is wrong with npembed's answers; where transformers has none, npembed must refuse."""
    model = load_model(drawn.folder)
    try:
        expected = drawn.theirs(drawn.picture)
    except Exception as error:
        try:
            ours(model, drawn.picture)
        except ValueError:
            return None
        return f"transformers raises {type(error).__name__}: {error}; npembed gives a result"
    try:
        return difference(ours(model, drawn.picture), expected, lambda: ours(model_at(model, "float64"), drawn.picture))
    except Exception as error:
        return f"npembed raises {type(error).__name__}: {error}; transformers gives a result"


def case(seed: int, number: int) -> tuple[str, str | None]:
    """One case, which stands for itself: what it is, and what is wrong with it."""
    rng = random.Random(f"upstream/{seed}/{number}")
    draw = KINDS[number % len(KINDS)]
    folder = Path(tempfile.mkdtemp(prefix="npembed-upstream-"))
    try:
        with warnings.catch_warnings(action="ignore"):
            drawn = draw(rng, folder)
            size = getattr(drawn.picture, "size", None)
            words = f"{draw.__name__}, {getattr(drawn.picture, 'mode', 'array')} {size}"
            return words, compared(drawn)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def faults(seed: int, numbers: Iterator[int] | range) -> Iterator[str]:
    """A line for each case in which something is wrong."""
    torch.set_num_threads(1)
    for number in numbers:
        words, fault = case(seed, number)
        if fault is not None:
            yield f"seed {seed}, case {number} ({words}): {fault}"
