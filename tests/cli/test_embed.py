"""`npembed embed`: what it prints and writes, every kind of picture and name, and bad input, which changes nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

import npembed as package
from npembed import Config, Model, VisionConfig, embed, load_model, position_ids, random_model, slice_image
from npembed.cli.embed import SAMPLE
from npembed.cli.several import padded_bytes
from npembed.steps.stages import run as run_stages
from npembed.support.output_files import load_tensors
from tests.command_line import (
    KNOWN_RULES,
    Done,
    assert_refused,
    assert_refused_and_unchanged,
    bad,
    done_well,
    failing,
    final,
    metadata,
    npembed,
    posix,
    python_m_npembed,
    saved,
    state,
)
from tests.synthetic import synthetic_picture
from tests.wrong_things import BIAS, KERNELS, TABLE

# The main job


@dataclass(frozen=True)
class Embedded:
    """A photo, and what `npembed embed` made of it with the random weights of full size."""

    photo: Path
    output: Path
    out: str
    tensors: dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    folder = tmp_path_factory.mktemp("photo")
    photo = saved(synthetic_picture(640, 480), folder / "photo.jpg", quality=90)
    out = done_well(npembed("embed", photo, "-o", folder / "out.safetensors"))
    return Embedded(photo, folder / "out.safetensors", out, load_tensors(folder / "out.safetensors"))


def test_a_photo_becomes_embeddings(embedded: Embedded) -> None:
    model = random_model()
    with Image.open(embedded.photo) as photo:
        strips, tgt_sizes = slice_image(photo)
    assert embedded.tensors["embeddings"].shape == (3, 1036, 1152)
    assert embedded.tensors["embeddings"].dtype == np.float32
    assert np.array_equal(embedded.tensors["embeddings"], embed(strips, tgt_sizes, model))


def test_with_it_come_mask_ids_sizes_and_index(embedded: Embedded) -> None:
    sizes = [[28, 37], [39, 26], [39, 26]]
    found = embedded.tensors
    assert sorted(found) == ["embeddings", "image_index", "patch_attn_mask", "position_ids", "slice_boxes", "tgt_sizes"]
    assert found["slice_boxes"].tolist() == [[0, 0, 640, 480], [0, 0, 320, 480], [320, 0, 640, 480]]
    assert found["tgt_sizes"].tolist() == sizes
    assert found["image_index"].tolist() == [0, 0, 0]
    assert (found["patch_attn_mask"].dtype, found["patch_attn_mask"].shape) == (np.bool_, (3, 1, 1036))
    assert found["patch_attn_mask"][:, 0].tolist() == [[place < h * w for place in range(1036)] for h, w in sizes]
    assert np.array_equal(found["position_ids"], position_ids(sizes))
    assert all(found[name].dtype == np.int64 for name in ("position_ids", "tgt_sizes", "image_index"))


def test_the_screen_shows_what_became_of_it_and_where(embedded: Embedded) -> None:
    first, plainly, photo, last = embedded.out.splitlines()
    assert first == (
        f"npembed {package.__version__}, MiniCPM-V 2.6, rule arange, weights: random (seed 0) in the sizes of MiniCPM-V 2.6 "
        "(D 1152, G 70)"
    )
    assert plainly == "With random weights the numbers mean nothing; --weights SOURCE takes a checkpoint's."
    told = re.fullmatch(r"(.*): 640×480 pixels, grid 2×1, slices 28×37, 39×26, 39×26, 3064 patches, \d+\.\d\d s", photo)
    assert told is not None
    assert told[1] == str(embedded.photo)
    assert last == f"embeddings (3, 1036, 1152) float32 is in {embedded.output}"


def test_the_file_says_where_it_comes_from(embedded: Embedded) -> None:
    assert metadata(embedded.output) == {
        "npembed": package.__version__,
        "family": "minicpm-v-2.6",
        "stage": "embeddings",
        "rule": "arange",
        "weights": "random (seed 0) in the sizes of MiniCPM-V 2.6 (D 1152, G 70)",
        "images": json.dumps([str(embedded.photo)]),
    }


def test_with_weights_nothing_is_said_to_be_random(picture: Path, weights: Path) -> None:
    out = done_well(npembed("embed", picture, "--weights", weights))
    assert "random" not in out
    assert "mean nothing" not in out
    assert out.startswith(f"npembed {package.__version__}, MiniCPM-V 2.6, rule arange, weights: {weights}\n")
    assert metadata(Path("embeddings.safetensors"))["weights"] == str(weights)


def test_without_a_picture_it_takes_the_sample(here: Path, weights: Path, tiny: Model) -> None:
    out = done_well(npembed("embed", "--weights", weights))
    assert "\nnpembed's sample picture: 640×480 pixels, grid 2×1, slices 28×37, 39×26, 39×26, 3064 patches" in out
    assert json.loads(metadata(here / "embeddings.safetensors")["images"]) == ["npembed's sample picture"]
    with Image.open(SAMPLE) as sample:
        assert np.array_equal(load_tensors(here / "embeddings.safetensors")["embeddings"], final(sample, tiny))


def test_a_picture_of_one_slice_has_no_grid(picture: Path, weights: Path) -> None:
    out = done_well(npembed("embed", picture, "--weights", weights))
    assert f"{picture}: 60×40 pixels, no grid, slices 26×39, 1014 patches, " in out


@pytest.mark.parametrize("until", ["embeddings", "hidden", "tokens"])
def test_several_pictures_are_one_batch(until: str, site: Path, here: Path) -> None:
    weights = site / "w" / "whole"
    model = load_model(weights)
    pictures = [synthetic_picture(*size) for size in ((60, 40), (640, 480), (40, 30), (60, 40))]
    paths = [saved(picture, here / f"{number}.png") for number, picture in enumerate(pictures)]
    out = done_well(npembed("embed", *paths, "--weights", weights, "--until", until))
    slices = [slice_image(picture, model.config) for picture in pictures]
    strips, tgt_sizes = [strip for some, _ in slices for strip in some], np.concatenate([sizes for _, sizes in slices])
    at_once = run_stages(strips, tgt_sizes, model, until)[until]
    found = load_tensors(here / f"{until}.safetensors")
    assert found[until].shape == at_once.shape
    np.testing.assert_allclose(found[until], at_once, rtol=0, atol=1e-5)
    assert found["image_index"].tolist() == [0, 1, 1, 1, 2, 3]
    assert np.array_equal(found["tgt_sizes"], tgt_sizes)
    assert np.array_equal(found["position_ids"], position_ids(tgt_sizes))
    assert found["patch_attn_mask"].sum(axis=(1, 2)).tolist() == tgt_sizes.prod(axis=1).tolist()
    assert json.loads(metadata(here / f"{until}.safetensors")["images"]) == [str(path) for path in paths]
    assert [line.split(": ")[0] for line in out.splitlines()[1:-1]] == [str(path) for path in paths]


@pytest.mark.parametrize("until", ["embeddings", "hidden", "tokens"])
def test_the_output_is_named_after_the_last_stage(until: str, picture: Path, site: Path) -> None:
    weights = site / "w" / "whole"
    out = done_well(npembed("embed", picture, "--weights", weights, "--until", until))
    output = picture.with_name(f"{until}.safetensors")
    assert sorted(path.name for path in picture.parent.iterdir()) == sorted([output.name, picture.name])
    expected = final(synthetic_picture(60, 40), load_model(weights), until)
    assert np.array_equal(load_tensors(output)[until], expected)
    assert metadata(output)["stage"] == until
    assert out.endswith(f"\n{until} {expected.shape} float32 is in {output.name}\n")


def test_an_npz_holds_the_same_and_its_metadata_as_json(picture: Path, weights: Path) -> None:
    for name in ("out.npz", "out.safetensors"):
        assert f" is in {name}\n" in done_well(npembed("embed", picture, "--weights", weights, "--output", name))
    with np.load("out.npz", allow_pickle=False) as found:
        arrays = dict(found)
    assert json.loads(arrays.pop("metadata").item()) == metadata(Path("out.safetensors"))
    expected = load_file("out.safetensors")
    assert set(arrays) == set(expected)
    assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
    assert all(arrays[name].dtype == expected[name].dtype for name in expected)


@pytest.mark.parametrize("until", ["embeddings", "tokens"])
def test_it_gives_upstreams_own_numbers(until: str, here: Path, weights: Path) -> None:
    expected = load_file(weights / "expected.safetensors")
    upstream = {"embeddings": "embeddings", "tokens": "vision_tokens"}[until]
    for size in ((300, 200), (640, 480)):
        name = "synth_{}x{}".format(*size)
        saved(synthetic_picture(*size), here / f"{name}.png")
        done_well(npembed("embed", f"{name}.png", "--weights", weights, "--until", until))
        found = load_tensors(here / f"{until}.safetensors")
        assert np.array_equal(found["tgt_sizes"], expected[f"{name}.tgt_sizes"])
        np.testing.assert_allclose(found[until], expected[f"{name}.{upstream}"], rtol=0, atol=1e-5)


def test_a_rule_changes_the_ids_and_the_embeddings(here: Path, weights: Path) -> None:
    saved(synthetic_picture(232, 100), here / "wide.png")  # 21 × 49 patches, and at 49 the rules differ
    found = {}
    for rule in ("arange", "step"):
        out = done_well(npembed("embed", "wide.png", "--weights", weights, "--rule", rule, "-o", f"{rule}.npz"))
        assert f", rule {rule}, weights: " in out
        found[rule] = load_tensors(here / f"{rule}.npz")
        assert np.array_equal(found[rule]["position_ids"], position_ids([[21, 49]], rule=rule))
    differ = found["arange"]["position_ids"] != found["step"]["position_ids"]
    assert differ.any()
    assert np.array_equal((found["arange"]["embeddings"] != found["step"]["embeddings"]).any(axis=2), differ)
    with np.load("step.npz") as arrays:
        assert json.loads(arrays["metadata"].item())["rule"] == "step"


def test_a_checkpoint_says_how_pictures_are_sliced(site: Path, here: Path) -> None:
    weights = shutil.copytree(site / "w" / "whole", here / "weights")
    (weights / "preprocessor_config.json").write_text('{"scale_resolution": 56, "max_slice_nums": 2, "norm_mean": [0, 0.5, 1]}')
    picture = synthetic_picture(120, 60)
    saved(picture, here / "picture.png")
    out = done_well(npembed("embed", "picture.png", "--weights", "weights"))
    assert "picture.png: 120×60 pixels, grid 2×1, slices 3×6, 4×4, 4×4, 50 patches, " in out
    assert np.array_equal(load_tensors(here / "embeddings.safetensors")["embeddings"], final(picture, load_model(weights)))


def test_an_old_output_is_replaced_and_that_is_said(picture: Path, weights: Path) -> None:
    output = picture.with_name("embeddings.safetensors")
    assert "replaces" not in done_well(npembed("embed", picture, "--weights", weights))
    output.write_bytes(b"old")
    out = done_well(npembed("embed", picture, "--weights", weights))
    assert out.endswith(" float32 is in embeddings.safetensors, which replaces the earlier file\n")
    assert load_tensors(output)["embeddings"].shape == (1, 1014, 48)


# Every kind of picture


def as_saved(mode: str, suffix: str, path: Path) -> NDArray[np.uint8]:
    """Save a picture of that mode, and say by its pixels what its three channels are."""
    grey, colour = synthetic_picture(60, 40)[..., 0], synthetic_picture(60, 40)
    alpha = np.full((40, 60, 1), 77, dtype=np.uint8)
    if mode == "P":
        table = synthetic_picture(256, 3)[2]  # 256 colours
        image = Image.fromarray(grey)
        image.putpalette(table.tobytes())
        image.save(path)
        return table[grey]
    channels = {
        "L": grey,
        "LA": np.dstack([grey, alpha]),
        "RGB": colour,
        "RGBA": np.dstack([colour, alpha]),
        "CMYK": np.dstack([colour, np.zeros_like(alpha)]),
    }[mode]
    lossless = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    Image.fromarray(channels, mode=None if mode != "CMYK" else "CMYK").save(path, **lossless)
    if mode == "CMYK":
        return 255 - colour  # no black: the ink takes its colour away
    return np.repeat(grey[..., None], 3, axis=2) if mode in ("L", "LA") else colour


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", ".png"),
        ("RGB", ".webp"),
        ("RGB", ".bmp"),
        ("L", ".png"),
        ("LA", ".png"),
        ("P", ".png"),
        ("P", ".gif"),
        ("RGBA", ".png"),
        ("RGBA", ".webp"),
        ("CMYK", ".tif"),
    ],
)
def test_every_kind_of_picture_is_read(mode: str, suffix: str, here: Path, weights: Path, tiny: Model) -> None:
    pixels = as_saved(mode, suffix, here / f"picture{suffix}")
    done_well(npembed("embed", f"picture{suffix}", "--weights", weights))
    assert np.array_equal(load_tensors(here / "embeddings.safetensors")["embeddings"], final(pixels, tiny))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_of_each_mode_is_read(mode: str, here: Path, weights: Path, tiny: Model) -> None:
    Image.fromarray(synthetic_picture(60, 40)).convert(mode).save("picture.jpg")
    done_well(npembed("embed", "picture.jpg", "--weights", weights))
    with Image.open("picture.jpg") as picture:
        assert picture.mode == mode
        expected = final(np.asarray(picture.convert("RGB")), tiny)
    assert np.array_equal(load_tensors(here / "embeddings.safetensors")["embeddings"], expected)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_of_an_animation_the_first_frame_is_taken(suffix: str, here: Path, weights: Path, tiny: Model) -> None:
    frames = [np.full((40, 60, 3), colour, dtype=np.uint8) for colour in ((0, 0, 255), (255, 0, 0))]
    first, second = map(Image.fromarray, frames)
    first.save(f"moving{suffix}", save_all=True, append_images=[second], **({"lossless": True} if suffix == ".webp" else {}))
    done_well(npembed("embed", f"moving{suffix}", "--weights", weights))
    assert np.array_equal(load_tensors(here / "embeddings.safetensors")["embeddings"], final(frames[0], tiny))


ORIENTATION = 0x0112


IGNORED = "  its EXIF orientation was ignored, as upstream does; --upright applies it\n"


APPLIED = "  its EXIF orientation was applied\n"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_an_exif_orientation_is_ignored_and_said_or_applied(suffix: str, here: Path, weights: Path, tiny: Model) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # seen right when turned by a quarter, clockwise
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    saved(synthetic_picture(60, 40), here / f"turned{suffix}", exif=exif, **options)
    with Image.open(f"turned{suffix}") as stored:
        pixels = np.asarray(stored)
    for words, line, size, expected in (
        ([], IGNORED, "60×40", pixels),
        (["--upright"], APPLIED, "40×60", np.rot90(pixels, -1)),
    ):
        out = done_well(npembed("embed", f"turned{suffix}", "--weights", weights, *words))
        assert f"turned{suffix}: {size} pixels, no grid, slices " in out
        assert f" s\n{line}embeddings" in out
        found = load_tensors(here / "embeddings.safetensors")["embeddings"]
        assert np.array_equal(found, final(np.ascontiguousarray(expected), tiny))


@pytest.mark.parametrize("words", [[], ["--upright"]])
@pytest.mark.parametrize("orientation", [None, 1])
def test_nothing_is_said_where_nothing_is_to_be_turned(
    orientation: int | None, words: list[str], here: Path, weights: Path
) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    saved(synthetic_picture(60, 40), here / "upright.jpg", exif=exif)
    assert "EXIF" not in done_well(npembed("embed", "upright.jpg", "--weights", weights, *words))


# Names


def a_name(name: str, spelt: str = "", shown: str = "") -> Any:
    return pytest.param(name, spelt or name, shown or name, id=ascii(name))


@posix
@pytest.mark.parametrize(
    ("name", "spelt", "shown"),
    [
        a_name("two words"),
        a_name("Füße 東京 🚀"),
        a_name("[bold]red[-bold]"),
        a_name("[red]"),
        a_name(":smile: 100% {0}"),
        a_name("'quoted\" \\name"),
        a_name("-dash"),
        a_name(os.fsdecode(b"latin-1 \xfc"), "latin-1 \\udcfc", "latin-1 \\udcfc"),
    ],
)
def test_any_name_of_picture_folder_and_output_works(
    name: str, spelt: str, shown: str, here: Path, weights: Path, tiny: Model
) -> None:
    try:
        shutil.copytree(weights, here / name)
        saved(synthetic_picture(60, 40), here / f"{name}.png")
    except OSError:
        pytest.skip("this file system has no such names")
    words = ("embed", f"--weights={name}", f"--output={name}.safetensors", "--", f"{name}.png")
    first, line, last = done_well(npembed(*words)).splitlines()
    assert first.endswith(f", weights: {shown}")
    assert line.startswith(f"{shown}.png: 60×40 pixels, ")
    assert last.endswith(f" is in {shown}.safetensors")
    found = load_tensors(here / f"{name}.safetensors")
    assert np.array_equal(found["embeddings"], final(synthetic_picture(60, 40), tiny))
    said = metadata(here / f"{name}.safetensors")
    assert said["weights"] == spelt
    assert said["images"] == json.dumps([f"{spelt}.png"], ensure_ascii=False)


@posix
def test_a_name_that_is_wrong_is_shown_as_it_is(here: Path) -> None:
    assert_refused(npembed("embed", "[red]nö[/red].png"), r"\[red\]nö\[/red\]\.png is missing")
    assert_refused(npembed("embed", os.fsdecode(b"\xff.png")), r"\\udcff\.png is missing")
    assert_refused(npembed("embed", "two\nlines.png"), r"two lines\.png is missing")


# Bad input


BAD_PICTURES = [
    bad("embed none.png", r"none\.png is missing"),
    bad("embed folder", r"embed: no picture found in folder"),
    bad(
        "embed --normalize",
        r"MiniCPM-V 2\.6 has no such stage: google/siglip-base-patch16-224 has one, and npembed corpus --vector",
    ),
    bad("embed empty.png", r"empty\.png is empty"),
    bad("embed text.png", r"text\.png is not an image that Pillow can read"),
    bad("embed w/whole/config.json", r"config\.json is not an image that Pillow can read"),
    bad("embed cut.png", r"cut\.png cannot be read as an image: "),
    bad("embed cut.jpg", r"cut\.jpg cannot be read as an image: image file is truncated"),
    bad("embed cut.gif", r"cut\.gif cannot be read as an image: "),
    bad("embed cut.webp", r"cut\.webp (cannot be read as an image|is not an image)"),
    bad("embed odd.dds", r"odd\.dds cannot be read as an image: Unknown pixel format flags 0"),
    bad("embed deep.png", r"image has mode I;16, 16- or 32-bit greyscale"),
    bad("embed huge.png", r"huge\.png is too large to decode safely: Image size \(900000000 pixels\)"),
    bad("embed picture.png text.png --strict", r"text\.png is not an image"),
]

BAD_OUTPUTS = [
    bad("embed picture.png -o w/whole/model.safetensors", r"the output w/whole/model\.safetensors is an input$"),
    bad("embed picture.png -o hard.safetensors", r"the output hard\.safetensors is the input w/whole/model\.safetensors$"),
    bad("embed picture.png -o same.safetensors", r"the output same\.safetensors is the input picture\.png$"),
    bad("embed picture.png -o read-only.safetensors", r"the output read-only\.safetensors is read-only$"),
    bad("embed picture.png -o fifo.npz", r"the output fifo\.npz is no regular file$"),
    bad("embed -o out.txt", r"the output out\.txt must end in \.safetensors or \.npz"),
    bad("embed -o out", r"the output out must end in \.safetensors or \.npz"),
    bad("embed -o folder.npz", r"the output folder\.npz is a folder"),
    bad("embed -o none/out.npz", r"the output's folder .*none does not exist"),
    bad("embed -o picture.png/out.npz", r"the output's folder .*picture\.png does not exist"),
    bad(f"embed -o {'x' * 300}.npz", r"File name too long"),
]

BAD_WORDS = [
    bad("embed --tokens", r"No such option: --tokens"),
    bad("embed -o", r"Option '-o' requires an argument"),
    bad("embed --weights", r"Option '--weights' requires an argument"),
    bad("embed --upright=yes", r"Option '--upright' does not take a value"),
    bad("embed --until vision", r"until must be one of embeddings, hidden, tokens, pooled; got 'vision'"),
    bad("embed --rule nearest", rf"rule must be one of {KNOWN_RULES}; got 'nearest'"),
    bad("embed picture.png --weights w/whole --rule digitize", r"rule 'digitize', as released, gives bucket -1"),
]

BAD_WEIGHTS = [
    bad("none", r"load_model: none is not a folder"),
    bad("picture.png", r"load_model: picture\.png is not a folder"),
    bad("w/no-config", r"w/no-config has no config\.json"),
    bad("w/config-cut", r"w/config-cut/config\.json cannot be read as JSON"),
    bad("w/config-list", r"w/config-list/config\.json must hold a JSON object; got list"),
    bad("w/config-size", r"hidden_size must be a whole number from 1 to 1048576; got 0 \(in w/config-size\)"),
    bad("w/no-arrays", r"w/no-arrays has neither model\.safetensors nor model\.safetensors\.index\.json"),
    bad("w/cut", r"w/cut/model\.safetensors is not a whole safetensors file"),
    bad("w/text", r"w/text/model\.safetensors is not a whole safetensors file"),
    bad("w/no-bias", rf"w/no-bias lacks {re.escape(BIAS)}, which the stage 'embeddings' needs"),
    bad(
        "w/shape",
        rf"{re.escape(TABLE)} in w/shape/model\.safetensors must have shape \(4900, 8\) by the config; got \(4899, 8\)",
    ),
    bad("w/integers", rf"{re.escape(KERNELS)} in .* is of dtype I32; it must be one of F16, BF16, F32, F64"),
    bad("w/no-shard", r"the checkpoint's file w/no-shard/gone\.safetensors is missing"),
    bad("w/outside", r"puts vpm\..* into '\.\./whole/model\.safetensors'; it must be the name of a file inside the folder"),
    bad("w/index-cut", r"index\.json cannot be read as JSON"),
    bad("w/renamed", r"w/renamed lacks vpm\.embeddings\..*, which the stage 'embeddings' needs"),
    bad(
        "w/other-family",
        r"model_type 'idefics9', which is not supported; supported are .* \(in w/other-family\)",
    ),
    bad("w/version-text", r"model_type 'minicpmv' and version 'v2\.6'; supported are the numbers 2\..* \(in w/version-text\)"),
    bad("w/no-type", r"config\.json has no model_type, so its family is not known; supported are MiniCPM-V 2\.6"),
    bad("w/other-act", r"hidden_act of vision_config is 'gelu'; supported is 'gelu_pytorch_tanh' \(in w/other-act\)"),
    bad("w/unread", r"w/unread has vpm\.head\.probe, which no stage of MiniCPM-V 2\.6 reads; so it is refused"),
    bad("w/infinite", rf"{re.escape(BIAS)} in w/infinite/model\.safetensors holds inf at \[2\]; weights must be finite"),
    bad("w/no-encoder --until hidden", r"w/no-encoder lacks vpm\.encoder\..* 'hidden' needs; until='embeddings' still works"),
    bad("w/no-encoder --until tokens", r"w/no-encoder lacks vpm\.encoder\..* 'hidden' needs; until='embeddings' still works"),
    bad("w/no-resampler --until tokens", r"w/no-resampler lacks resampler\..* 'tokens' needs; until='hidden' still works"),
]


@pytest.mark.parametrize(("words", "message"), [*BAD_PICTURES, *BAD_OUTPUTS, *BAD_WORDS])
def test_bad_input_gets_one_line_and_changes_nothing(
    words: str, message: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [] if "--weights" in words or words.endswith("-o") else ["--weights", "w/whole"]
    assert_refused_and_unchanged([*words.split(), *weights], message, site, monkeypatch)


@pytest.mark.parametrize(("words", "message"), BAD_WEIGHTS)
def test_bad_weights_get_one_line_and_change_nothing(
    words: str, message: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused_and_unchanged(["embed", "picture.png", "--weights", *words.split()], message, site, monkeypatch)


@pytest.mark.parametrize("words", ["-o out.txt", "--until vision", "--rule nearest", "--weights w/cut"])
def test_what_can_be_known_before_the_work_is(words: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    done = npembed("embed", "picture.png", *words.split())
    assert (done.code, done.out) == (2, "")


def test_what_is_said_to_work_still_does(site: Path, here: Path) -> None:
    for name, until in (
        ("whole", "tokens"),
        ("no-resampler", "hidden"),
        ("no-encoder", "embeddings"),
        ("two-towers", "embeddings"),
    ):
        done_well(npembed("embed", site / "picture.png", "--weights", site / "w" / name, "--until", until))
        assert until in load_tensors(here / f"{until}.safetensors")


def test_a_folder_that_may_not_be_written_to_is_found_out_first(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK)
    done = npembed("embed", picture)
    assert_refused(done, "the output's folder .* cannot be written to$")
    assert done.out == "", "before any work"
    assert [path.name for path in picture.parent.iterdir()] == [picture.name]


def test_a_write_that_stops_half_way_leaves_the_old_file(picture: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = picture.with_name("embeddings.safetensors")
    output.write_bytes(b"old")
    before = state(picture.parent)
    monkeypatch.setattr("npembed.support.output_files._little_endian", failing(OSError(28, "No space left on device")))
    done = npembed("embed", picture, "--weights", weights)
    assert_refused(done, r"embeddings\.safetensors cannot be written: No space left on device$")
    assert " is in " not in done.out
    assert state(picture.parent) == before


@posix
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_full_disk_leaves_the_old_file(suffix: str, here: Path, weights: Path) -> None:
    """A real refusal by the system, which each format's writer meets in its own way."""
    output = here / f"out.{suffix}"
    output.write_bytes(b"old")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    code = f"{limit}; from npembed.__main__ import main; main()"
    command = [sys.executable, "-c", code, "embed", "--weights", str(weights), "-o", output.name]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_refused(Done(ran.returncode, ran.stdout, ran.stderr), rf"out\.{suffix} cannot be written: .*File too large")
    assert [path.name for path in here.iterdir()] == [output.name]
    assert output.read_bytes() == b"old"


# A stop


STOPS = [
    ("npembed.steps.cutting.Slicing.sliced", "embeddings"),
    ("npembed.steps.embeddings.strip_to_patches", "embeddings"),
    ("npembed.records.arithmetic.Arithmetic.attend", "hidden"),
    ("npembed.steps.resampler.Resampling.keyed", "tokens"),
]


@pytest.mark.parametrize(("stage", "until"), [*STOPS, ("npembed.support.output_files.os.replace", "embeddings")])
def test_a_stop_leaves_the_old_file(
    stage: str, until: str, picture: Path, old_output: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, failing(KeyboardInterrupt()))
    done = npembed("embed", picture, "--weights", weights, "--until", until, "-o", old_output)
    assert (done.code, done.err) == (130, "npembed: stopped\n")
    assert " is in " not in done.out


# In a process of its own


def test_a_run_in_an_empty_environment(here: Path, weights: Path) -> None:
    ran = python_m_npembed("embed", "--weights", str(weights), folder=here)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"\x1b" not in ran.stdout, "colours and bars are for terminals"
    assert "640×480 pixels, grid 2×1, slices 28×37, 39×26, 39×26, 3064 patches" in ran.stdout.decode("utf-8")
    assert [path.name for path in here.iterdir()] == ["embeddings.safetensors"]


def test_a_screen_that_knows_ascii_alone(here: Path, weights: Path) -> None:
    saved(synthetic_picture(60, 40), here / "nö.png")
    ran = python_m_npembed("embed", "nö.png", "--weights", str(weights), folder=here, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert "\nn?.png: 60?40 pixels, no grid, slices 26?39, 1014 patches, " in ran.stdout.decode("ascii")
    assert json.loads(metadata(here / "embeddings.safetensors")["images"]) == ["nö.png"]
    refused = python_m_npembed("embed", "nö.jpg", folder=here, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert_refused(
        Done(refused.returncode, refused.stdout.decode("ascii"), refused.stderr.decode("ascii")), r"n\?\.jpg is missing"
    )


# Several pictures


@pytest.fixture
def mixed(here: Path) -> list[Path]:
    """Two good pictures and a broken one between them."""
    good = [saved(synthetic_picture(60, 40), here / "a.png"), saved(synthetic_picture(30, 70), here / "c.png")]
    (here / "b.png").write_bytes(good[0].read_bytes()[:500])
    return [good[0], here / "b.png", good[1]]


def test_of_several_pictures_the_good_ones_are_saved_and_the_others_named(
    mixed: list[Path], weights: Path, tiny: Model
) -> None:
    done = npembed("embed", *mixed, "--weights", weights)
    assert done.code == 1
    assert re.fullmatch(r"npembed: \S+b\.png cannot be read as an image: [^\n]+\n", done.err)
    assert done.out.endswith("1 of 3 pictures failed\n")
    found = load_tensors("embeddings.safetensors")
    assert found["image_index"].tolist() == [0, 1]
    for row, size in zip(found["embeddings"], ((60, 40), (30, 70)), strict=True):
        expected = final(synthetic_picture(*size), tiny)[0]
        assert np.array_equal(row[: len(expected)], expected)
    assert json.loads(metadata(Path("embeddings.safetensors"))["images"]) == [str(mixed[0]), str(mixed[2])]


def test_with_strict_one_failure_is_the_end(mixed: list[Path], weights: Path) -> None:
    assert_refused(npembed("embed", *mixed, "--weights", weights, "--strict"), r"b\.png cannot be read as an image")
    assert not Path("embeddings.safetensors").exists()


def test_if_all_fail_nothing_is_saved(mixed: list[Path], weights: Path) -> None:
    done = npembed("embed", mixed[1], mixed[1], "--weights", weights)
    assert done.code == 2
    assert done.err.splitlines()[-1] == "npembed: embed: none of the 2 pictures could be computed; nothing is saved"
    assert not Path("embeddings.safetensors").exists()


@pytest.mark.parametrize("words", [(".",), ("*.png",), ("a.png", "[bc].png")])
def test_folders_and_globs_stand_for_their_pictures(mixed: list[Path], weights: Path, words: tuple[str, ...]) -> None:
    (mixed[0].parent / "notes.txt").write_text("no picture")
    done = npembed("embed", *words, "--weights", weights)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert load_tensors("embeddings.safetensors")["image_index"].tolist() == [0, 1]


def test_a_folder_without_a_picture_is_refused(here: Path, weights: Path) -> None:
    (here / "empty").mkdir()
    assert_refused(npembed("embed", "empty", "--weights", weights), "no picture found in empty")


def test_the_most_slices_can_be_set(here: Path, weights: Path) -> None:
    saved(synthetic_picture(900, 800), here / "large.png")
    for most, slices in ((None, 5), (2, 3), (1, 1)):
        done_well(npembed("embed", "large.png", "--weights", weights, *(("--max-slices", most) if most else ())))
        assert len(load_tensors("embeddings.safetensors")["tgt_sizes"]) == slices
    assert metadata(here / "embeddings.safetensors")["max_slices"] == "1"


def test_what_would_not_fit_into_memory_is_refused_before_the_work(
    mixed: list[Path], weights: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = padded_bytes([(60, 40), (30, 70)], tiny, "embeddings")
    done_well(npembed("embed", mixed[0], mixed[2], "--weights", weights))
    assert load_tensors("embeddings.safetensors")["embeddings"].nbytes == needed
    monkeypatch.setattr("npembed.cli.several.memory_left", lambda: needed - 1)
    message = r"the padded results of 2 pictures take about 0\.0 GB, .* npembed corpus keeps each picture by itself"
    done = npembed("embed", mixed[0], mixed[2], "--weights", weights)
    assert_refused(done, message)
    assert " patches, " not in done.out


@given(st.integers(1, 4000), st.integers(1, 4000))
@settings(max_examples=20)
def test_the_estimate_is_near_to_what_is_cut(width: int, height: int) -> None:
    model = random_model(Config(vision=VisionConfig(hidden_size=8, num_attention_heads=2)))
    slices = model.config.family.cut(np.zeros((height, width, 3), dtype=np.uint8), model.config)
    exact = len(slices.tgt_sizes) * int(slices.tgt_sizes.prod(axis=1).max()) * 8 * 4
    assert padded_bytes([(width, height)], model, "embeddings") == pytest.approx(exact, rel=0.15)


@posix
def test_a_limit_of_the_process_is_seen() -> None:
    code = (
        "import resource; from npembed.cli.several import memory_left\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)); print(memory_left() < 2**33)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n"
