"""Pictures' cost is known before they are decoded or resized; every message about a picture names its file."""

import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from npembed import FAMILIES, Config, SlicingConfig, slice_image
from npembed.steps.pixels.strips import MOST_BETWEEN, MOST_RESIZED, as_rgb, as_rgb_on_white, check_resize
from npembed.support.pictures import read_frames, read_image, silent_libraries
from tests.command_line import assert_refused, done_well, npembed, saved
from tests.synthetic import synthetic_picture

ROOT = Path(__file__).parents[2]


def png(width: int, height: int) -> bytes:
    """A black picture of one bit per pixel, row by row: small, however long it is."""
    packer, row = zlib.compressobj(1), bytes(1 + (width + 7) // 8)
    block = row * max(1, 2**20 // len(row))
    body = b"".join(packer.compress(block[: len(row) * min(height - at, len(block) // len(row))])
                    for at in range(0, height, len(block) // len(row))) + packer.flush()  # fmt: skip

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("key", FAMILIES)
@pytest.mark.parametrize("size", [(1, 2_000_000), (2_000_000, 1)])
def test_a_thin_picture_is_refused_or_costs_little(key: str, size: tuple[int, int]) -> None:
    family = FAMILIES[key]
    config = next(iter(family.presets().values()))
    picture = Image.new("L", size)
    try:
        slices = family.cut(picture, config)
    except ValueError as error:
        assert str(error).startswith("slice_image: ")  # noqa: PT017  # either is right
    else:
        assert sum(strip.nbytes for strip in slices.strips) < 12 * 2 * MOST_RESIZED


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ((1, 10**7), (14, 1_416_688), "would be resized to 14 x 1416688; at most 16777216 pixels are made of one"),
        ((1, 10**8), (384, 384), "is too thin to be resized to 384 x 384"),
        ((20_000, 20_000), (8000, 8000), "would be resized to 8000 x 8000"),
    ],
)
def test_what_a_resize_takes_is_bounded(before: tuple[int, int], after: tuple[int, int], words: str) -> None:
    with pytest.raises(ValueError, match=f"^slice_image: a picture of {before[0]} x {before[1]} pixels {words}"):
        check_resize(before, after)


def test_ordinary_pictures_are_within_the_bounds() -> None:
    check_resize((13_377, 13_377), (1344, 1344))
    check_resize((3_000, 59_000), (448, 9_000))
    check_resize((1, MOST_BETWEEN // 384), (384, 384))
    check_resize((4096, 4096), (4096, 4096))


def test_a_config_cannot_ask_for_slices_without_bound() -> None:
    with pytest.raises(ValueError, match=r"^SlicingConfig: scale_resolution must be a whole number from 1 to 4096; got 20000$"):
        SlicingConfig(scale_resolution=20_000)


def test_slices_that_are_too_long_are_refused_before_they_are_made() -> None:
    with pytest.raises(ValueError, match=r"^slice_image: tgt_sizes\[0\] is \(\d+, 1\); each side must be from 1 to 32768$"):
        slice_image(Image.new("L", (1, 10**7)))


def test_a_picture_that_is_not_resized_is_bounded_too() -> None:
    config = Config(slicing=SlicingConfig(slice_mode=False))
    with pytest.raises(ValueError, match="would be resized to 4200 x 4200; at most"):
        slice_image(Image.new("L", (4200, 4200)), config)


def test_the_option_raises_pillows_limit_and_lowers_it(here: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(synthetic_picture(60, 40), here / "p.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    words = ("embed", path, "--weights", weights)
    assert_refused(npembed(*words), r"p\.png is too large to decode safely: .*--max-pixels allows more")
    assert "60×40 pixels" in done_well(npembed(*words, "--max-pixels", 2400))
    assert Image.MAX_IMAGE_PIXELS == 1000
    assert_refused(npembed(*words, "--max-pixels", 2399), r"p\.png is too large: 60 × 40 pixels, 2399 at most")
    assert_refused(npembed(*words, "--max-pixels", 0), "--max-pixels")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF"])
def test_threads_each_have_their_own_limit_and_pillows_is_as_it_was(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them may read the picture; the others may not, while Pillow's limit is raised for the first."""
    buffer, frames = io.BytesIO(), [Image.new("RGB", (60, 40), colour).convert("P") for colour in ("red", "lime", "blue")]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    content, filters = buffer.getvalue(), list(warnings.filters)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    def read(number: int) -> Any:
        most = (2400, None, 10_000, 2399)[number % 4]
        try:
            return [as_rgb(frame).size for frame, _ in read_frames(io.BytesIO(content), "it", every=True, most_pixels=most)]
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(400)))
    assert all(result == [(60, 40)] * 3 for result in found[::2])
    assert all(result.startswith("it is too large to decode safely") for result in found[1::4])
    assert all(result == "it is too large: 60 × 40 pixels, 2399 at most" for result in found[3::4])
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == (1000, filters)


def test_threads_that_cut_palettes_leave_the_filters_of_warnings_as_they_were() -> None:
    picture = Image.new("P", (60, 40))
    picture.info["transparency"] = bytes(range(16))
    filters = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: as_rgb(picture).tobytes(), range(400)))) == 1
    assert (list(warnings.filters), picture.info["transparency"]) == (filters, bytes(range(16)))


def test_only_the_command_line_changes_what_is_one_for_the_whole_process() -> None:
    """What says `catch_warnings` or sets a limit of Pillow's in a function that a thread may call fails here."""
    package = Path(slice_image.__code__.co_filename).parent
    found = {
        str(path.relative_to(package).as_posix())
        for path in package.rglob("*.py")
        if re.search(
            r"catch_warnings|simplefilter|filterwarnings|LOAD_TRUNCATED|MAX_IMAGE_PIXELS =|os\.dup2", path.read_text("utf-8")
        )
    }
    assert found <= {"images.py", "cli/__init__.py", "corpus/quiet.py", "conformance/serving.py", "conformance/trial.py"}


def test_no_memory_is_one_line_with_the_size(here: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(synthetic_picture(60, 40), here / "p.png")

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("PIL.PngImagePlugin.PngImageFile.load", full)
        done = npembed("embed", path, "--weights", weights)
        assert_refused(done, r"there is not enough memory: .*p\.png: no memory for 60 × 40 pixels")
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["npembed.cli.embed"], "run_stages", lambda *_, **__: np.empty(2**62, dtype=np.uint8))
        assert_refused(npembed("embed", path, "--weights", weights), r"memory: .*p\.png: Unable to allocate 4\.00 EiB")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process took at most, as Linux counts it")
def test_a_large_picture_is_held_at_most_twice(tmp_path: Path) -> None:
    """4,000 x 4,000 pixels take 64 MB; the slices are small beside them."""
    code = """
import resource, sys
import numpy as np
from PIL import Image
from npembed import SlicingConfig, Config, slice_image
from npembed.steps.pixels.strips import as_rgb_on_white
from npembed.support.pictures import read_image
config = Config(slicing=SlicingConfig(scale_resolution=56))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
slice_image(Image.new("RGB", (100, 100)), config)
read_image(sys.argv[1])
before = peak()
picture = read_image(sys.argv[2]).picture
slice_image(as_rgb_on_white(picture), config)
print(peak() - before)
"""
    for mode in ("RGB", "RGBA", "L"):
        small, large = tmp_path / "small.png", tmp_path / "large.png"
        Image.new(mode, (10, 10)).save(small)
        Image.new(mode, (4000, 4000)).save(large, compress_level=1)
        ran = subprocess.run([sys.executable, "-c", code, small, large], capture_output=True, text=True, check=True, cwd=ROOT)
        assert float(ran.stdout) < 2 * 64 + 40, mode


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_a_picture_on_white_is_the_same_in_bands(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 7, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels, "RGBA" if mode in ("RGBA", "LA") else None).convert(mode)
    if mode in ("P", "L"):
        picture.info["transparency"] = 3
    whole = picture.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), whole).convert("RGB")
    assert np.array_equal(np.asarray(as_rgb_on_white(picture)), np.asarray(expected))


def test_a_picture_in_rgb_is_not_copied() -> None:
    picture = Image.new("RGB", (3, 3))
    assert as_rgb(picture) is picture


def test_results_that_are_not_finite_are_refused(here: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(synthetic_picture(60, 40), here / "p.png")
    whole = sys.modules["npembed.cli.embed"].run_stages

    def too_large(*args: Any, **options: Any) -> Any:
        return {name: array * np.float32(1e38) * np.float32(1e38) for name, array in whole(*args, **options).items()}

    monkeypatch.setattr(sys.modules["npembed.cli.embed"], "run_stages", too_large)
    assert_refused(
        npembed("embed", path, "--weights", weights), r"p\.png: embed: the stage embeddings leaves the range of float"
    )
    assert not (here / "embeddings.safetensors").exists()


# Messages


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\0\0\0\x18ftypisom\0\0\0\0", "it is a video; save its frames as pictures"),
        (b"%PDF-1.7", "it is a PDF; save its pages as pictures"),
        (b"<svg xmlns=''>", "it is an SVG or XML file; draw it as a PNG"),
        (b"GGUF\3\0\0\0", "it is a GGUF file, which holds a model's weights"),
        (b"PK\3\4", "it is a zip archive"),
    ],
)
def test_what_is_no_picture_is_recognised(head: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jpg"
    path.write_bytes(head + bytes(100))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is not an image that Pillow can read: {words}"):
        read_image(path)


def test_a_url_and_a_folder_are_recognised(here: Path) -> None:
    assert_refused(npembed("embed", "https://example.org/a.png"), r"https:/example\.org/a\.png is a URL; download the picture")
    (here / "folder").mkdir()
    assert_refused(npembed("embed", "folder"), "no picture found in folder")
    with pytest.raises(ValueError, match=r"^folder is a folder, not a picture; give the files in it, folder.\*$"):
        read_image("folder")


@pytest.mark.parametrize("place", [0, 1])
def test_every_message_about_a_picture_names_it_in_a_batch_too(place: int, here: Path, weights: Path) -> None:
    good = saved(synthetic_picture(60, 40), here / "good.png")
    Image.new("I;16", (20, 20)).save(here / "grey.png")
    Image.new("L", (1, 5000)).save(here / "short.tiff")
    (here / "long.png").write_bytes(png(1, 10**7))
    (here / "cut.png").write_bytes(good.read_bytes()[:300])
    for name, words in (
        ("grey.png", "image has mode I;16"),
        ("long.png", "each side must be from 1 to 32768"),
        ("cut.png", "cannot be read as an image"),
    ):
        names = [good, good]
        names[place] = here / name
        assert_refused(npembed("embed", *names, "--weights", weights, "--strict"), f"{re.escape(name)}:? .*{words}")
        assert not (here / "embeddings.safetensors").exists()


def test_a_closed_image_and_a_reader_that_fails_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("L", (3, 3))
    picture.close()
    with pytest.raises(ValueError, match=r"^slice_image: image cannot be decoded: .*closed"):
        slice_image(picture)

    def fail(*_: object) -> None:
        raise RuntimeError("Failed to decode frame\x1b[2J")

    broken = Image.new("L", (3, 3))
    monkeypatch.setattr(broken, "load", fail)
    with pytest.raises(ValueError, match=r"^slice_image: image cannot be decoded: Failed to decode frame\\x1b\[2J$"):
        slice_image(broken)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_the_page_that_is_embedded_is_said(kind: str, here: Path, weights: Path) -> None:
    first, *others = (Image.new("RGB", (60, 40), colour) for colour in ("red", "lime", "blue"))
    path = here / f"p.{kind.lower()}"
    first.save(path, kind, save_all=True, append_images=others)
    assert read_image(path).pages == 1 + len(others)
    out = done_well(npembed("embed", path, "--weights", weights))
    assert f"  it is page 1 of {1 + len(others)}; the others are left out, as upstream does" in out
    single = here / f"one.{kind.lower()}"
    first.save(single, kind)
    assert "it is page" not in done_well(npembed("embed", single, "--weights", weights))


@pytest.mark.skipif(os.name != "posix", reason="the number of the error stream")
def test_what_libraries_print_by_themselves_does_not_reach_the_screen(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with silent_libraries():
        os.write(2, b"a library's complaint\n")
    os.write(2, b"ours\n")
    assert capfd.readouterr().err == "ours\n"
    buffer = io.BytesIO()
    Image.fromarray(synthetic_picture(60, 40)).save(buffer, "TIFF", compression="tiff_lzw")
    content = bytearray(buffer.getvalue())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    (here / "p.tiff").write_bytes(content)
    ran = subprocess.run([sys.executable, "-m", "npembed", "embed", "p.tiff"], capture_output=True, text=True, check=False,
                         env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (ran.returncode, ran.stderr.count("\n")) in ((0, 0), (2, 1))
