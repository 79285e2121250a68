"""The command line: what it prints and writes, its exit codes, and bad input, which gets one line and changes nothing."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import npembed as package
from npembed import RULES, Config, Model, VisionConfig, embed, load_model, position_ids, random_model, slice_image
from npembed.cli import SAMPLE, run
from npembed.conformance.probes import CHECKS
from npembed.files import load_tensors, save_tensors
from npembed.positions.differences import TABLE_HEAD, compare_rules, compare_two, rules_as_markdown, table_row
from npembed.stages import run as run_stages
from tests.synthetic import synthetic_picture

posix = pytest.mark.skipif(os.name != "posix", reason="signals, limits and names as POSIX has them")


@dataclass(frozen=True)
class Done:
    """What one run of the command line left."""

    code: int
    out: str
    err: str


def npembed(*words: object) -> Done:
    """One run in this process, on streams as strict as a terminal's."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = run([str(word) for word in words])
    return Done(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def python_m_npembed(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """One run in a process of its own, with nothing in its environment but what is said."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    command = [sys.executable, "-m", "npembed", *words]
    return subprocess.run(command, capture_output=True, check=False, cwd=folder, env=kept | environment)


def done_well(done: Done) -> str:
    """What it printed, if it did all that was asked and had nothing to complain of."""
    assert (done.code, done.err) == (0, "")
    return done.out


def assert_refused(done: Done, message: str) -> None:
    assert done.code == 2
    assert re.fullmatch(r"npembed: [^\n]+\n", done.err), done.err
    assert re.search(message, done.err), done.err
    assert "Traceback" not in done.out


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        found: dict[str, str] = file.metadata()
    return found


def saved(picture: NDArray[np.uint8], path: Path, **options: Any) -> Path:
    Image.fromarray(picture).save(path, **options)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def weights(data: Path) -> Path:
    return data / "tiny-minicpmv"


@pytest.fixture
def picture(here: Path) -> Path:
    """A small picture, of one slice."""
    return saved(synthetic_picture(60, 40), here / "picture.png")


def final(picture: NDArray[np.uint8] | Image.Image, model: Model, until: str = "embeddings") -> NDArray[Any]:
    """What the functions make of a picture."""
    *_, (_, result) = run_stages(*slice_image(picture, model.config), model, until)
    return result


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
    assert sorted(found) == ["embeddings", "image_index", "patch_attn_mask", "position_ids", "tgt_sizes"]
    assert found["tgt_sizes"].tolist() == sizes
    assert found["image_index"].tolist() == [0, 0, 0]
    assert (found["patch_attn_mask"].dtype, found["patch_attn_mask"].shape) == (np.bool_, (3, 1, 1036))
    assert found["patch_attn_mask"][:, 0].tolist() == [[place < h * w for place in range(1036)] for h, w in sizes]
    assert np.array_equal(found["position_ids"], position_ids(sizes))
    assert all(found[name].dtype == np.int64 for name in ("position_ids", "tgt_sizes", "image_index"))


def test_the_screen_shows_what_became_of_it_and_where(embedded: Embedded) -> None:
    first, plainly, photo, last = embedded.out.splitlines()
    assert first == (
        f"npembed {package.__version__}, rule arange, weights: random (seed 0) in the sizes of MiniCPM-V 2.6 (D 1152, G 70)"
    )
    assert plainly == "With random weights the numbers mean nothing; --weights DIR takes a checkpoint's."
    told = re.fullmatch(r"(.*): 640×480 pixels, grid 2×1, slices 28×37, 39×26, 39×26, 3064 patches, \d+\.\d\d s", photo)
    assert told is not None
    assert told[1] == str(embedded.photo)
    assert last == f"embeddings (3, 1036, 1152) float32 is in {embedded.output}"


def test_the_file_says_where_it_comes_from(embedded: Embedded) -> None:
    assert metadata(embedded.output) == {
        "npembed": package.__version__,
        "stage": "embeddings",
        "rule": "arange",
        "weights": "random (seed 0) in the sizes of MiniCPM-V 2.6 (D 1152, G 70)",
        "images": json.dumps([str(embedded.photo)]),
    }


def test_with_weights_nothing_is_said_to_be_random(picture: Path, weights: Path) -> None:
    out = done_well(npembed("embed", picture, "--weights", weights))
    assert "random" not in out
    assert "mean nothing" not in out
    assert out.startswith(f"npembed {package.__version__}, rule arange, weights: {weights}\n")
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
    *_, (_, at_once) = run_stages(strips, tgt_sizes, model, until)
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
    saved(synthetic_picture(232, 100), here / "wide.png")  # 21 × 49 patches, and at 49 the rules part
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
        a_name(os.fsdecode(b"latin-1 \xfc"), "latin-1 \\udcfc", "latin-1 ?"),
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
    assert_refused(npembed("embed", "[red]nö[/red].png"), r"\[red\]nö\[/red\]\.png cannot be read as an image")
    assert_refused(npembed("embed", os.fsdecode(b"\xff.png")), r"\?\.png cannot be read as an image")
    assert_refused(npembed("embed", "two\nlines.png"), r"two lines\.png cannot be read as an image")


# Bad input


SMALL = Config(
    vision=VisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2),
    query_num=2,
    embed_dim=128,
)
BIAS = "vpm.embeddings.patch_embedding.bias"
KERNELS = "vpm.embeddings.patch_embedding.weight"
TABLE = "vpm.embeddings.position_embedding.weight"


def checkpoint(folder: Path, arrays: Mapping[str, NDArray[Any]] | None, config: str | None = "") -> Path:
    """A checkpoint's folder; without arrays, no model.safetensors; without config (None), no config.json."""
    folder.mkdir(parents=True)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    if config is not None:
        stated = json.dumps({"hidden_size": 128, "query_num": 2, "vision_config": vision})
        (folder / "config.json").write_text(config or stated)
    if arrays is not None:
        save_file(dict(arrays), folder / "model.safetensors")
    return folder


def bad_checkpoints(folder: Path) -> None:
    whole = random_model(SMALL, until="tokens").weights
    first = {name: array for name, array in whole.items() if name.startswith("vpm.embeddings.")}
    checkpoint(folder / "whole", whole)
    checkpoint(folder / "no-resampler", {name: array for name, array in whole.items() if name.startswith("vpm.")})
    checkpoint(folder / "no-encoder", first)
    checkpoint(folder / "no-bias", {name: array for name, array in whole.items() if name != BIAS})
    checkpoint(folder / "no-config", first, config=None)
    checkpoint(folder / "no-arrays", None)
    checkpoint(folder / "config-cut", first, config='{"hidden_size":')
    checkpoint(folder / "config-list", first, config="[]")
    checkpoint(folder / "config-size", first, config='{"vision_config": {"hidden_size": 0}}')
    checkpoint(folder / "shape", first | {TABLE: first[TABLE][:-1]})
    checkpoint(folder / "integers", first | {KERNELS: first[KERNELS].astype(np.int32)})
    checkpoint(folder / "two-towers", first | {f"other.{name.removeprefix('vpm.')}": first[name] for name in first})
    (content := checkpoint(folder / "cut", first) / "model.safetensors").write_bytes(content.read_bytes()[:-1])
    (checkpoint(folder / "text", None) / "model.safetensors").write_text("these are no arrays")
    for name, shard in (("no-shard", "gone.safetensors"), ("outside", "../whole/model.safetensors")):
        index = json.dumps({"weight_map": dict.fromkeys(first, shard)})
        (checkpoint(folder / name, None) / "model.safetensors.index.json").write_text(index)
    (checkpoint(folder / "index-cut", None) / "model.safetensors.index.json").write_text('{"weight_map":')
    renamed = {name.replace("vpm.", "model.vision." if "bias" in name else "tower."): array for name, array in first.items()}
    checkpoint(folder / "renamed", renamed)


def bad_pictures(folder: Path) -> None:
    picture = synthetic_picture(60, 40)
    saved(picture, folder / "picture.png")
    for name in ("cut.png", "cut.jpg", "cut.gif", "cut.webp"):
        content = saved(picture, folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    content = bytearray(saved(picture, folder / "odd.dds").read_bytes())
    content[80] = 0  # the flags of its pixel format; Pillow's error for them is no ValueError
    (folder / "odd.dds").write_bytes(content)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("a thousand words")
    saved(picture[..., 0].astype(np.uint16) * 256, folder / "deep.png")
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(1000))]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


PORT = """
def boundaries(num_patches_per_side, rule="arange"):
    import npembed
    return npembed.boundaries(num_patches_per_side, rule)
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that are wrong, and of old outputs; no test may change a byte of it."""
    folder = tmp_path_factory.mktemp("site")
    bad_pictures(folder)
    bad_checkpoints(folder / "w")
    for name in ("embeddings", "hidden", "tokens", "old"):
        (folder / f"{name}.safetensors").write_bytes(b"old")
    for name in ("folder", "folder.npz"):
        (folder / name).mkdir()
        (folder / name / "kept.txt").write_text("kept")
    ports = {"port": PORT, "nothing": "x = 1\n", "broken": "def f(:\n", "raises": "1 / 0\n", "leaves": "raise SystemExit(0)\n"}
    for name, code in ports.items():
        (folder / f"{name}.py").write_text(code)
    done_well(npembed("golden", "write", folder / "pack"))
    shutil.copytree(folder / "pack", folder / "unreadable")
    (folder / "unreadable" / "seed.safetensors").write_bytes(b"old")
    (folder / "link").symlink_to("pack/seed.safetensors")
    os.link(folder / "w" / "whole" / "model.safetensors", folder / "hard.safetensors")
    (folder / "same.safetensors").symlink_to("picture.png")
    (folder / "read-only.safetensors").write_bytes(b"old")
    (folder / "read-only.safetensors").chmod(0o444)
    if os.name == "posix":
        os.mkfifo(folder / "fifo.npz")
    return folder


def state(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every file and folder under one, hidden ones too: which it is, and when it was last written to."""
    stats = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (stat.st_ino, stat.st_mode, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def bad(words: str, message: str) -> Any:
    return pytest.param(words, message, id=words)


KNOWN_RULES = re.escape(", ".join(RULES))

BAD_PICTURES = [
    bad("embed none.png", r"none\.png cannot be read as an image: .*No such file"),
    bad("embed folder", r"folder cannot be read as an image: "),
    bad("embed empty.png", r"empty\.png is not an image that Pillow can read"),
    bad("embed text.png", r"text\.png is not an image that Pillow can read"),
    bad("embed w/whole/config.json", r"config\.json is not an image that Pillow can read"),
    bad("embed cut.png", r"cut\.png cannot be read as an image: "),
    bad("embed cut.jpg", r"cut\.jpg cannot be read as an image: image file is truncated"),
    bad("embed cut.gif", r"cut\.gif cannot be read as an image: "),
    bad("embed cut.webp", r"cut\.webp (cannot be read as an image|is not an image)"),
    bad("embed odd.dds", r"odd\.dds cannot be read as an image: Unknown pixel format flags 0"),
    bad("embed deep.png", r"image has mode I;16, 16- or 32-bit greyscale"),
    bad("embed huge.png", r"huge\.png is too large to decode safely: Image size \(900000000 pixels\)"),
    bad("embed picture.png text.png", r"text\.png is not an image"),
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
    bad("emebd", r"No such command 'emebd'"),
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
    bad("w/index-cut", r"index\.json is no index of shards"),
    bad("w/renamed", r"w/renamed lacks tower\.embeddings\.patch_embedding\.bias, which the stage 'embeddings' needs"),
    bad("w/no-encoder --until hidden", r"w/no-encoder lacks vpm\.encoder\..* 'hidden' needs; until='embeddings' still works"),
    bad("w/no-encoder --until tokens", r"w/no-encoder lacks vpm\.encoder\..* 'hidden' needs; until='embeddings' still works"),
    bad("w/no-resampler --until tokens", r"w/no-resampler lacks resampler\..* 'tokens' needs; until='hidden' still works"),
]

BAD_RULES = [
    bad("rules --side 0", r"num_patches_per_side must be a whole number from 1 to 32768; got 0"),
    bad("rules --side 32769", r"num_patches_per_side must be a whole number from 1 to 32768; got 32769"),
    bad("rules --side wide", r"Invalid value for '--side'"),
    bad("rules --up-to 0", r"up_to must be a whole number from 1 to 32768; got 0"),
    bad("rules --up-to -1", r"up_to must be a whole number from 1 to 32768; got -1"),
    bad("rules --up-to 2.5", r"Invalid value for '--up-to'"),
    bad("rules --n 5", r"rules: --compare A B and --n N go together"),
    bad("rules --compare arange exact", r"rules: --compare A B and --n N go together"),
    bad("rules --compare arange", r"Option '--compare' requires 2 arguments"),
    bad("rules --compare arange nearest --n 5", rf"rule must be one of {KNOWN_RULES}; got 'nearest'"),
    bad("rules --compare nearest arange --n 5", rf"rule must be one of {KNOWN_RULES}; got 'nearest'"),
    bad("rules --compare arange exact --n 0", r"num_patches must be a whole number from 1 to 32768; got 0"),
    bad("rules arange", r"unexpected extra argument"),
]

BAD_GOLDEN = [
    bad("golden", r"Missing command"),
    bad("golden read pack", r"No such command 'read'"),
    bad("golden write", r"Missing argument 'DIR'"),
    bad("golden write folder", r"golden write: folder exists and is neither empty nor a golden pack"),
    bad("golden write .", r"golden write: \. is or holds the current folder, which a new pack cannot replace"),
    bad("golden write ..", r"golden write: \.\. is or holds the current folder"),
    bad("golden write unreadable", r"golden write: unreadable exists and .*: seed\.safetensors is not as npembed wrote it"),
    bad(
        "golden write pack --weights pack/models/small", r"pack holds models/small/config\.json, which is an input of this run"
    ),
    bad("golden check pack pack --json pack/manifest.json", r"the output pack/manifest\.json is an input"),
    bad("golden check pack pack --html link", r"the output link is the input pack/seed\.safetensors"),
    bad("golden check pack pack --json r --html ./folder/../r", r"--json r and --html folder/\.\./r are the same file"),
    bad("golden write picture.png", r"golden write: picture\.png exists and is neither empty nor a golden pack"),
    bad("golden write none/pack", r"golden write: the folder .*none does not exist"),
    bad("golden write new --weights none", r"load_model: none is not a folder"),
    bad("golden check pack", r"Missing argument 'OUTPUTS'"),
    bad("golden check folder pack", r"golden check: folder is no golden pack: it has no manifest\.json"),
    bad("golden check none pack", r"golden check: none is no golden pack"),
    bad("golden check pack none", r"golden check: none is not a folder"),
    bad("golden check pack picture.png", r"golden check: picture\.png is not a folder"),
    bad("golden check pack unreadable", r"unreadable/seed\.safetensors cannot be read"),
    bad("golden check unreadable pack", r"the pack is damaged: unreadable/seed\.safetensors is not as it was written"),
    bad("golden check pack pack --precision int8", r"precision must be one of"),
    bad("golden check pack pack --json none/report.json", r"the output's folder .*none does not exist"),
]

BAD_PORTS = [
    bad("check", r"Missing argument 'MODULE'"),
    bad("check no_such.port", r"the port no_such\.port cannot be imported: ModuleNotFoundError"),
    bad("check none.py", r"the port none\.py cannot be imported: .*is not a file"),
    bad("check broken.py", r"the port broken\.py cannot be imported: SyntaxError"),
    bad("check raises.py", r"the port raises\.py cannot be imported: ZeroDivisionError: division by zero"),
    bad("check leaves.py", r"the port leaves\.py cannot be imported: SystemExit: 0"),
    bad("check nothing.py", rf"the port has none of the public functions {', '.join(CHECKS)}"),
    bad("check port.py --require nothing", rf"no public function is called nothing; there are {', '.join(CHECKS)}"),
    bad("check port.py --examples -1", r"Invalid value for '--examples'"),
    bad("check port.py --examples few", r"Invalid value for '--examples'"),
    bad("check port.py --seed -1", r"Invalid value for '--seed'"),
    bad("check port.py --precision int8", r"precision must be one of"),
    bad("check port.py --json none/report.json", r"the output's folder .*none does not exist"),
    bad("check port.py --json port.py", r"the output port\.py is an input$"),
    bad("check port --html folder/../port.py", r"the output folder/\.\./port\.py is the input .*port\.py$"),
    bad("check port.py --json /dev/null", r"the output /dev/null is no regular file$"),
    bad("check port.py --html folder", r"the output folder is a folder"),
    bad("check port.py --html", r"Option '--html' requires an argument"),
]


@pytest.mark.parametrize(("words", "message"), [*BAD_PICTURES, *BAD_OUTPUTS, *BAD_WORDS, *BAD_RULES, *BAD_GOLDEN, *BAD_PORTS])
def test_bad_input_gets_one_line_and_changes_nothing(
    words: str, message: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site)
    before = state(site)
    weights = ["--weights", "w/whole"] if words.startswith("embed ") and "--weights" not in words else []
    assert_refused(npembed(*words.split(), *([] if words.endswith("-o") else weights)), message)
    assert state(site) == before


@pytest.mark.parametrize(("words", "message"), BAD_WEIGHTS)
def test_bad_weights_get_one_line_and_change_nothing(
    words: str, message: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site)
    before = state(site)
    assert_refused(npembed("embed", "picture.png", "--weights", *words.split()), message)
    assert state(site) == before


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


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that nobody can write to")
@pytest.mark.parametrize(
    "words",
    [
        "embed picture.png --weights w/whole -o /proc/out.safetensors",
        "embed picture.png --weights w/whole -o /proc/out.npz",
        "golden write /proc/pack",
        "golden check pack pack --json /proc/report.json",
        "check port.py --examples 1 --html /proc/report.html",
    ],
)
def test_a_folder_that_takes_no_files_is_refused(words: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    assert_refused(npembed(*words.split()), "/proc.* cannot be written")


def test_a_write_that_stops_half_way_leaves_the_old_file(picture: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = picture.with_name("embeddings.safetensors")
    output.write_bytes(b"old")
    before = state(picture.parent)
    monkeypatch.setattr("npembed.files._little_endian", failing(OSError(28, "No space left on device")))
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


# A stop, and a bug


STOPS = [("npembed.cli.slice_image", "embeddings"), ("npembed.stages.embed", "hidden"), ("npembed.stages.resample", "tokens")]


@pytest.fixture
def old_output(picture: Path) -> Iterator[Path]:
    """The file that holds what it held before, when the test is over."""
    output = picture.with_name("out.safetensors")
    output.write_bytes(b"old")
    before = state(picture.parent)
    yield output
    assert state(picture.parent) == before


def failing(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(("stage", "until"), [*STOPS, ("npembed.files.os.replace", "embeddings")])
def test_a_stop_leaves_the_old_file(
    stage: str, until: str, picture: Path, old_output: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, failing(KeyboardInterrupt()))
    done = npembed("embed", picture, "--weights", weights, "--until", until, "-o", old_output)
    assert (done.code, done.err) == (130, "npembed: stopped\n")
    assert " is in " not in done.out


@pytest.mark.parametrize("error", [RuntimeError, KeyError, ZeroDivisionError, AssertionError, AttributeError])
def test_a_bug_is_not_put_in_a_line(
    error: type[Exception], picture: Path, old_output: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npembed.stages.embed", failing(error("a bug")))
    with pytest.raises(error, match="a bug"):
        npembed("embed", picture, "--weights", weights, "-o", old_output)


def test_a_stop_leaves_the_old_pack(site: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(site / "pack", here / "pack")
    before = state(here)
    monkeypatch.setattr("npembed.conformance.golden.contents._write_case", failing(KeyboardInterrupt()))
    done = npembed("golden", "write", "pack")
    assert (done.code, done.err) == (130, "npembed: stopped\n")
    assert state(here) == before


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
        Done(refused.returncode, refused.stdout.decode("ascii"), refused.stderr.decode("ascii")), r"n\?\.jpg cannot be"
    )


def test_the_table_on_a_screen_that_knows_ascii_alone(here: Path) -> None:
    ran = python_m_npembed("rules", folder=here, PYTHONIOENCODING="ascii", COLUMNS="80")
    assert (ran.returncode, ran.stderr) == (0, b"")
    lines = ran.stdout.decode("ascii").splitlines()
    assert lines[0].strip() == "Position rules against arange: n = 1 ... 1024 patches, G = 70"
    assert max(map(len, lines)) == 80
    assert all(any(line.startswith(f"| {name} ") for line in lines) for name in RULES)


def test_one_line_even_where_it_cannot_be_imported_whole(here: Path) -> None:
    ran = python_m_npembed("check", "no_such_port", folder=here)
    assert_refused(Done(ran.returncode, ran.stdout.decode(), ran.stderr.decode()), "the port no_such_port cannot be imported")
    assert list(here.iterdir()) == []


# Help


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_lists_the_commands(words: list[str]) -> None:
    out = done_well(npembed(*words))
    assert out.startswith("Usage: npembed [OPTIONS] COMMAND [ARGS]...")
    assert all(f"\n  {command} " in out for command in ("embed", "rules", "golden", "check"))


@pytest.mark.parametrize("command", ["embed", "rules", "golden", "golden write", "golden check", "check"])
def test_every_command_has_help(command: str) -> None:
    assert done_well(npembed(*command.split(), "--help")).startswith(f"Usage: npembed {command} ")


def test_the_version_is_the_packages() -> None:
    assert done_well(npembed("--version")) == f"npembed {package.__version__}\n"


# Rules


@pytest.mark.parametrize("side", [70, 26])
def test_the_json_of_the_rules_holds_upstreams_lists(side: int, data: Path) -> None:
    upstream = json.loads((data / "positions.json").read_text())["rules"]
    found = json.loads(done_well(npembed("rules", "--side", side, "--up-to", "1024", "--json")))
    assert (found["num_patches_per_side"], found["up_to"]) == (side, 1024)
    assert set(found["rules"]) == set(upstream)
    for name, row in found["rules"].items():
        expected = upstream[name][str(side)]
        assert row["differs_from_arange"] == expected["differs_from_arange"], name
        assert row["wrong_length"] == expected.get("wrong_length", []), name
        assert (row["min"], row["max"]) == (expected["min"], expected["max"]), name
        assert row["in_range"] == (0 <= expected["min"] <= expected["max"] < side), name


def cells_of(table: str) -> list[list[str]]:
    """The cells of each rule's row, each without its blanks, whatever lines it is broken into."""
    lines = table.splitlines()
    head = next(line for line in lines if line.strip().startswith(TABLE_HEAD[0]))
    starts = [head.index(column) for column in TABLE_HEAD[:-1]]
    rows: list[list[str]] = []
    for line in lines[lines.index(head) + 2 :]:
        parts = [line[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
        if parts[0].strip():
            rows.append([""] * len(starts))
        if any(part.strip() for part in parts):
            rows[-1] = [cell + "".join(part.split()) for cell, part in zip(rows[-1], parts, strict=True)]
    return rows


@pytest.mark.parametrize("columns", [80, 120, 300])
def test_the_table_loses_nothing_on_a_narrow_screen(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = done_well(npembed("rules", "--up-to", "60", "--side", "27"))
    assert max(map(len, out.splitlines())) <= columns
    expected = [table_row(row, 27)[:-1] for row in compare_rules(27, 60)]
    assert cells_of(out) == [["".join(cell.split()) for cell in row] for row in expected]
    assert all(any(line.startswith(f"  {name} ") for line in out.splitlines()) for name in RULES), "names are not broken"


def test_the_markdown_is_the_documents() -> None:
    assert done_well(npembed("rules", "--up-to", "60", "--markdown")) == rules_as_markdown(70, 60) + "\n"


@pytest.mark.parametrize(
    ("first", "second", "n", "side"),
    [
        ("arange", "exact", 25, 70),
        ("arange", "step", 24, 70),
        ("arange", "digitize", 5, 27),
        ("candle-right", "arange", 14, 70),
    ],
)
def test_two_rules_stand_side_by_side_and_differing_patches_are_marked(first: str, second: str, n: int, side: int) -> None:
    words = ("rules", "--compare", first, second, "--n", n, "--side", side)
    head, *rows, total = done_well(npembed(*words)).splitlines()
    pair = compare_two(first, second, n, side)
    assert head.split() == ["patch", first, second]
    one, other = pair["rules"].values()
    longer = max(len(one), len(other))
    filled = [[str(bucket) for bucket in buckets] + ["-"] * (longer - len(buckets)) for buckets in (one, other)]
    assert [row.split()[:3] for row in rows] == [[str(i), a, b] for i, (a, b) in enumerate(zip(*filled, strict=True))]
    marked = [i for i, row in enumerate(rows) if row.endswith("  <- differ")]
    assert marked == pair["differ"] == [i for i, (a, b) in enumerate(zip(*filled, strict=True)) if a != b]
    assert total == f"{len(marked)} of {n} patches differ (G = {side})"
    assert json.loads(done_well(npembed(*words, "--json"))) == pair


def test_a_patch_that_one_rule_does_not_have_is_a_dash(data: Path) -> None:
    wrong = json.loads((data / "positions.json").read_text())["rules"]["candle-right"]["70"]["wrong_length"][0]
    row = done_well(npembed("rules", "--compare", "arange", "candle-right", "--n", wrong)).splitlines()[-2]
    assert row.split() == [str(wrong), "-", "69", "<-", "differ"]


# Golden packs


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "pack"
    out = done_well(npembed("golden", "write", folder))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    cases = json.loads((folder / "manifest.json").read_text())["cases"]
    assert out == f"{len(cases)} cases, {size / 1e6:.1f} MB, are in {folder}\n"
    assert size < 20e6
    return folder


@pytest.fixture
def outputs(pack: Path, tmp_path: Path) -> Path:
    """A port's outputs, right in every case: the pack's own."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    for case in json.loads((pack / "manifest.json").read_text())["cases"]:
        shutil.copy(pack / case["expected"], folder)
    return folder


def stages_of(pack: Path) -> list[str]:
    cases = json.loads((pack / "manifest.json").read_text())["cases"]
    return [f"{case['name']} / {stage['stage']}" for case in cases for stage in case["stages"]]


def test_right_outputs_pass(pack: Path, outputs: Path) -> None:
    *lines, verdict = done_well(npembed("golden", "check", pack, outputs)).splitlines()
    assert [line.split("  ")[1].strip() for line in lines] == stages_of(pack)
    assert all(line.startswith("pass  ") for line in lines)
    assert verdict == f"{outputs} agrees with the reference: {len(lines)} passed, 0 failed."
    assert npembed("golden", "check", pack, pack).code == 0


@pytest.mark.parametrize(
    ("stage", "change", "summary"),
    [
        ("position_ids", lambda array: array + (np.arange(array.size) == 5).reshape(array.shape), r"element \[0, 5\] is"),
        ("embeddings", lambda array: array * np.float32(1.01), r"element \["),
        ("embeddings", lambda array: array * np.float32("nan"), r"nan"),
        ("hidden", lambda array: array[:, :-1], r"shape \(4, 71, 16\), should be \(4, 72, 16\)"),
        ("tokens", lambda array: array.reshape(-1, array.shape[-1]), r"shape \(16, 128\), should be \(4, 4, 128\)"),
        ("tokens", lambda array: None, r"ragged\.safetensors has no tensor tokens"),
    ],
    ids=["altered", "a little off", "not a number", "cut", "reshaped", "removed"],
)
def test_a_wrong_tensor_is_found(pack: Path, outputs: Path, stage: str, change: Any, summary: str) -> None:
    tensors = load_tensors(outputs / "ragged.safetensors")
    tensors[stage] = change(tensors[stage])
    save_tensors(outputs / "ragged.safetensors", {name: array for name, array in tensors.items() if array is not None}, {})
    done = npembed("golden", "check", pack, outputs)
    assert (done.code, done.err) == (1, "")
    failed = [line for line in done.out.splitlines() if line.startswith("FAIL  ")]
    assert len(failed) == 1
    assert re.match(rf"FAIL  ragged / {stage} +.*{summary}", failed[0]), failed[0]
    everything = len(stages_of(pack))
    assert done.out.endswith(
        f"{outputs} departs from the reference: {everything - 1} passed, 1 failed. The first stage that departs is {stage}.\n"
    )


def test_a_missing_file_of_the_port_is_a_failure(pack: Path, outputs: Path) -> None:
    (outputs / "ragged.safetensors").unlink()
    done = npembed("golden", "check", pack, outputs)
    assert (done.code, done.err) == (1, "")
    failed = [line for line in done.out.splitlines() if line.startswith("FAIL  ")]
    assert len(failed) == sum(name.startswith("ragged / ") for name in stages_of(pack))
    assert all("ragged.safetensors is missing" in line for line in failed)


@pytest.mark.parametrize("file", ["manifest.json", "seed.safetensors", "seed.input.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_pack_is_no_verdict(pack: Path, outputs: Path, tmp_path: Path, file: str, damage: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(pack, damaged)
    if damage == "gone":
        (damaged / file).unlink()
    else:
        content = bytearray((damaged / file).read_bytes())
        content[-len(content) // 3] ^= 1
        (damaged / file).write_bytes(content)
    message = {"gone": "it has no manifest|is missing", "flipped": "the pack is damaged: .*is not as it was written"}[damage]
    done = npembed("golden", "check", damaged, outputs)
    assert_refused(done, rf"golden check: .*({message})")
    assert done.out == ""


def test_a_pack_is_written_over_an_old_one_and_for_given_weights(site: Path, here: Path) -> None:
    weights = site / "w" / "whole"
    shutil.copytree(site / "pack", here / "pack")
    first = (here / "pack" / "manifest.json").read_bytes()
    out = done_well(npembed("golden", "write", "pack", "--weights", weights))
    assert " MB, are in pack, which replaces the earlier pack\n" in out
    assert out.endswith(f"They are for the weights in {weights}, which are not in the pack.\n")
    assert (here / "pack" / "manifest.json").read_bytes() != first
    assert [path.name for path in here.iterdir()] == ["pack"]
    assert npembed("golden", "check", "pack", "pack").code == 0


# Ports


EXACT_PORT = (
    PORT
    + """
def bucket_coords(num_patches, num_patches_per_side=70, rule="arange"):
    import numpy as np
    if rule != "arange":
        import npembed
        return npembed.bucket_coords(num_patches, num_patches_per_side, rule)
    return np.arange(num_patches) * num_patches_per_side // num_patches
"""
)


def test_the_reference_agrees_with_itself() -> None:
    *lines, verdict = done_well(npembed("check", "npembed", "--examples", "2")).splitlines()
    assert [line.split()[:2] for line in lines] == [["pass", name] for name in CHECKS]
    assert verdict == f"npembed agrees with the reference: {len(CHECKS)} passed, 0 failed."


def test_what_a_port_lacks_is_not_provided_and_a_failure_only_where_it_is_required(here: Path) -> None:
    (here / "port.py").write_text(PORT)
    *lines, verdict = done_well(npembed("check", "port.py", "--examples", "1")).splitlines()
    assert [line.split() for line in lines if "boundaries" not in line] == [
        [name, "not", "provided"] for name in CHECKS if name != "boundaries"
    ]
    assert verdict == f"port.py agrees with the reference: 1 passed, 0 failed, {len(CHECKS) - 1} not provided."
    assert npembed("check", "port.py", "--examples", "1", "--require", "boundaries").code == 0
    done = npembed("check", "port.py", "--examples", "1", "--require", "embed", "--require", "encode")
    assert (done.code, done.err) == (1, "")
    failed = [line.split(maxsplit=2) for line in done.out.splitlines() if line.startswith("FAIL")]
    assert failed == [["FAIL", name, "not provided, but required"] for name in ("embed", "encode")]


def test_a_wrong_function_is_shown_with_its_smallest_input(here: Path) -> None:
    (here / "port.py").write_text(EXACT_PORT)
    done = npembed("check", "port.py", "--examples", "1")
    assert (done.code, done.err) == (1, "")
    assert re.search(r"^FAIL  bucket_coords +element \[5\] is 14, should be 13", done.out, flags=re.MULTILINE)
    assert re.search(r"^      smallest input: bucket_coords\(25(, 70)?\)$", done.out, flags=re.MULTILINE)
    assert re.search(r"^      likely cause: .*exact", done.out, flags=re.MULTILINE)
    assert done.out.endswith(f"port.py departs from the reference: 1 passed, 1 failed, {len(CHECKS) - 2} not provided.\n")


def test_a_port_that_leaves_in_the_middle_is_wrong(here: Path) -> None:
    """Its exit code 0 must not pass for a verdict."""
    (here / "port.py").write_text("def boundaries(*_):\n    raise SystemExit(0)\n")
    done = npembed("check", "port.py", "--examples", "1")
    assert (done.code, done.err) == (1, "")
    assert re.search(r"^FAIL  boundaries +raised SystemExit: 0$", done.out, flags=re.MULTILINE)


def test_a_port_in_the_current_folder_is_found_by_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "port_in_this_folder.py").write_text(PORT)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    assert npembed("check", "port_in_this_folder", "--examples", "1").code == 0


def test_the_seed_and_the_number_of_examples_are_handed_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: dict[str, object] = {}
    monkeypatch.setattr("npembed.conformance.port.check_port", lambda port, **options: handed.update(options) or [])
    monkeypatch.setattr("npembed.cli._report", lambda *_: None)
    words = ("--examples", "7", "--seed", "3", "--precision", "float16", "--require", "embed")
    assert npembed("check", "npembed", *words).code == 0
    assert handed == {"examples": 7, "seed": 3, "precision": "float16", "require": ["embed"]}
    assert npembed("check", "npembed").code == 0
    assert handed == {"examples": 100, "seed": 0, "precision": None, "require": ()}


# The report in files


class Page(HTMLParser):
    """A page's tags, which must close in order, its attributes and its text."""

    EMPTY = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_page(path: Path, names: list[str], verdict: str) -> None:
    """One page that needs nothing beside it and says it all."""
    content = path.read_text(encoding="utf-8")
    page = Page(content)
    assert {"html", "head", "title", "style", "body", "table"} <= page.tags
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert not page.attributes & {"src", "href"}
    assert "http" not in content
    assert "url(" not in content
    assert verdict in page.text
    assert all(name in page.text for name in names)


def assert_json(path: Path, subject: str, verdict: str, names: list[str], wrong: list[str]) -> list[dict[str, Any]]:
    """The report for a program, with its stable fields."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content) == ["npembed", "subject", "verdict", "passed", "outcomes"]
    assert (content["npembed"], content["subject"]) == (package.__version__, subject)
    assert (content["verdict"], content["passed"]) == (verdict, not wrong)
    outcomes: list[dict[str, Any]] = content["outcomes"]
    assert [outcome["name"] for outcome in outcomes] == names
    assert [outcome["name"] for outcome in outcomes if outcome["status"] == "fail"] == wrong
    known = {"name", "status", "summary", "call", "came", "expected", "cause", "worst"}
    assert all({"name", "status", "summary"} <= set(outcome) <= known for outcome in outcomes)
    assert {outcome["status"] for outcome in outcomes} <= {"pass", "fail", "not provided"}
    return outcomes


def test_the_report_on_a_port_in_files(here: Path) -> None:
    (here / "port.py").write_text(EXACT_PORT)
    (here / "r.json").write_text("old")
    done = npembed("check", "port.py", "--examples", "1", "--json", "r.json", "--html", "r.html")
    assert (done.code, done.err) == (1, "")
    assert done.out.startswith("r.json replaces the earlier file\n")
    assert "r.html replaces" not in done.out
    verdict = done.out.splitlines()[-1]
    outcomes = assert_json(here / "r.json", "port.py", verdict, list(CHECKS), ["bucket_coords"])
    wrong = next(outcome for outcome in outcomes if outcome["status"] == "fail")
    assert wrong["call"].startswith("bucket_coords(25")
    assert all(f": {wrong[field]}" in done.out for field in ("call", "came", "expected", "cause"))
    assert_page(here / "r.html", list(CHECKS), verdict)
    assert sorted(path.name for path in here.iterdir() if path.is_file()) == ["port.py", "r.html", "r.json"]


def test_the_report_on_outputs_in_files(pack: Path, outputs: Path, here: Path) -> None:
    tensors = load_tensors(outputs / "ragged.safetensors")
    save_tensors(outputs / "ragged.safetensors", tensors | {"embeddings": tensors["embeddings"] + np.float32(0.1)}, {})
    done = npembed("golden", "check", pack, outputs, "--json", "r.json", "--html", "r.html")
    assert done.code == 1
    verdict, names = done.out.splitlines()[-1], stages_of(pack)
    outcomes = assert_json(here / "r.json", str(outputs), verdict, names, ["ragged / embeddings"])
    assert next(outcome["worst"] for outcome in outcomes if outcome["status"] == "fail") > 1
    assert_page(here / "r.html", names, verdict)


@posix
def test_a_report_on_a_port_of_any_name(here: Path) -> None:
    name = os.fsdecode(b"<b>&\xff.py")
    try:
        (here / name).write_text(PORT)
    except OSError:
        pytest.skip("this file system has no such names")
    done = npembed("check", name, "--examples", "1", "--json", "r.json", "--html", "r.html")
    assert (done.code, done.err) == (0, "")
    assert json.loads((here / "r.json").read_text(encoding="utf-8"))["subject"] == name
    assert_page(here / "r.html", list(CHECKS), "<b>&\\udcff.py agrees with the reference")
