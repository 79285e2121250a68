"""EXIF orientations: a picture is as `PIL.Image.open` of its path has it, wherever it lies; `upright` turns it once."""

import io
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from npembed import FAMILIES, random_model, slice_image
from npembed.corpus.settings import Settings
from npembed.corpus.sources import list_pictures
from npembed.corpus.vectors import frames_of
from npembed.support.pictures import Turn, read_frames, read_image
from tests.command_line import done_well, npembed
from tests.synthetic import synthetic_picture

ORIENTATION = 0x0112
STEPS = (None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")


def rgb() -> Image.Image:
    return Image.fromarray(synthetic_picture(60, 40))


def in_mode(mode: str) -> Image.Image:
    if mode == "LAB":
        return Image.merge("LAB", rgb().split())
    return (
        rgb().convert("P").convert("PA")
        if mode == "PA"
        else rgb().convert("L" if mode in ("I;16", "F") else "RGB").convert(mode)
    )


def asking(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    step = STEPS[orientation - 1]
    return picture if step is None else picture.transpose(Image.Transpose[step])


def assert_same(found: Image.Image, expected: Image.Image) -> None:
    assert (found.mode, found.size) == (expected.mode, expected.size)
    assert found.tobytes() == expected.tobytes()


def of_content(path: Path, **options: Any) -> list[tuple[Image.Image, Turn]]:
    """As a corpus reads it: without a name."""
    return [(frame.copy(), turn) for frame, turn in read_frames(io.BytesIO(path.read_bytes()), "it", **options)]


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits"])
@pytest.mark.parametrize("mode", MODES)
def test_a_tiff_is_what_pillow_makes_of_a_file_with_a_name(mode: str, compression: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    in_mode(mode).save(path, compression=compression)
    stored, _, _ = read_image(path)
    for orientation in range(1, 9):
        in_mode(mode).save(path, exif=asking(orientation), compression=compression)
        with Image.open(path) as opened:
            opened.load()
        picture, turn, _ = read_image(path)
        [(nameless, same_turn)] = of_content(path)
        assert_same(picture, opened)
        assert_same(nameless, opened)
        right = turned(stored, orientation)
        mixed = opened.tobytes() != right.tobytes()
        assert mixed == (orientation > 4 and compression == "raw" and mode in ("L", "P", "RGBA", "CMYK", "I;16"))
        assert turn == same_turn == (Turn.MIXED_UP if mixed else Turn.BY_PILLOW if orientation > 1 else Turn.NONE)
        upright, turn, _ = read_image(path, upright=True)
        assert_same(upright, right)
        assert turn == (Turn.BY_PILLOW if orientation > 1 else Turn.NONE)


def test_each_page_of_a_tiff_is_what_pillow_makes_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    asked = (6, 1, 8, 3)
    pages = [in_mode(mode) for mode in ("L", "RGB", "CMYK", "L")]
    for page, orientation in zip(pages, asked, strict=True):
        page.encoderinfo = {"tiffinfo": {ORIENTATION: orientation}}  # as Pillow keeps what each page is saved with
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with Image.open(path) as opened:
        for number, (found, turn) in enumerate(of_content(path, every=True)):
            opened.seek(number)
            opened.load()
            assert_same(found, opened)
            assert turn == (Turn.MIXED_UP, Turn.NONE, Turn.MIXED_UP, Turn.BY_PILLOW)[number], number
    assert number == 3


@pytest.mark.parametrize("kind", sorted(set(Image.SAVE) | {"PNG"}))
def test_every_format_is_what_pillow_makes_of_a_file_with_a_name(kind: str, tmp_path: Path) -> None:
    for mode in MODES:
        path = tmp_path / mode.replace(";", "")
        try:
            in_mode(mode).save(path, kind, exif=asking(6))
            with Image.open(path) as opened:
                opened.load()
        except (OSError, KeyError, ValueError, SystemError):
            continue
        assert_same(read_image(path)[0], opened)
        assert_same(of_content(path)[0][0], opened)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_other_orientations_are_ignored_unless_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    rgb().save(path, exif=asking(orientation), **({"lossless": True} if suffix == ".webp" else {}))
    as_stored, turn, _ = read_image(path)
    assert turn == (Turn.IGNORED if orientation > 1 else Turn.NONE)
    assert_same(as_stored, rgb())
    upright, turn, _ = read_image(path, upright=True)
    assert turn == (Turn.APPLIED if orientation > 1 else Turn.NONE)
    assert_same(upright, turned(rgb(), orientation))
    assert upright.getexif().get(ORIENTATION, 1) == 1, "nobody turns it again"


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_means_nothing_turns_nothing(orientation: int, tmp_path: Path) -> None:
    rgb().save(tmp_path / "a.png", exif=asking(orientation))
    picture, turn, _ = read_image(tmp_path / "a.png", upright=True)
    assert (turn, picture.size) == (Turn.NONE, (60, 40))


# What cannot be read

WHOLE = asking(6).tobytes()
RUBBISH = {
    "zeros": b"Exif\0\0" + bytes(40),
    "text": b"a photo of my cat",
    "a byte order": b"Exif\0\0MM",
    "no place": b"Exif\0\0II*\0",
    "no tags": WHOLE[:14],
    "cut short": WHOLE[:20],
    "far away": b"Exif\0\0II*\0\xff\xff\xff\0",
    "nothing": b"Exif\0\0",
}


def with_exif(path: Path, exif: bytes) -> Path:
    """A picture of noise with that EXIF, however wrong: AVIF has it only where it is right."""
    rgb().save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else {}))
    return path


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Possibly corrupt", "ignore:Truncated")
@pytest.mark.parametrize("rubbish", RUBBISH)
@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_an_exif_that_cannot_be_read_is_no_orientation(suffix: str, rubbish: str, tmp_path: Path) -> None:
    path = with_exif(tmp_path / f"a{suffix}", RUBBISH[rubbish])
    with Image.open(path) as opened:
        picture, turn, _ = read_image(path)
        assert_same(picture, opened)
        assert turn == Turn.NONE
        picture, turn, _ = read_image(path, upright=True)
        assert_same(picture, opened)
        assert turn == (Turn.UNREADABLE if "exif" in opened.info else Turn.NONE)


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        ("\nexif\n       4\nzzzz\n", Turn.UNREADABLE),
        ("\nexif\n       4\nabc", Turn.UNREADABLE),
        ("\nexif\n       4\n00000000", Turn.UNREADABLE),
        ("", Turn.UNREADABLE),
        (f"\nexif\n{len(WHOLE):8}\n{WHOLE.hex()}\n", Turn.APPLIED),
        (f"\nexif\n{len(asking(1).tobytes()):8}\n{asking(1).tobytes().hex()}\n", Turn.NONE),
    ],
)
def test_a_profile_in_the_text_of_a_png_is_an_exif_too(text: str, turn: Turn, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("Raw profile type exif", text, zip=True)
    rgb().save(tmp_path / "a.png", pnginfo=info)
    assert read_image(tmp_path / "a.png").turn == (Turn.IGNORED if turn == Turn.APPLIED else Turn.NONE)
    upright, found, _ = read_image(tmp_path / "a.png", upright=True)
    assert found == turn
    assert_same(upright, turned(rgb(), 6 if turn == Turn.APPLIED else 1))


def test_an_exif_whose_other_tags_are_rubbish_turns_the_picture(tmp_path: Path) -> None:
    """Pillow's own `exif_transpose` writes all tags anew, and cannot."""
    tags = struct.pack(">HHHIHHHHII", 2, ORIENTATION, 3, 1, 6, 0, 0x010E, 11, 1, 5) + bytes(4)  # a title that is a float
    path = with_exif(tmp_path / "a.png", b"Exif\0\0MM\0*\0\0\0\x08" + tags)
    upright, turn, _ = read_image(path, upright=True)
    assert turn == Turn.APPLIED
    assert_same(upright, turned(rgb(), 6))


# On the command line and in a corpus


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "RGB"])
def test_a_corpus_and_embed_read_a_tiff_as_pillow_opens_it(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.tiff"
    in_mode(mode).save(path, exif=asking(6))
    with tarfile.open("a.tar", "w") as tar, zipfile.ZipFile("a.zip", "w") as archive:
        tar.add(path, "a.tiff")
        archive.write(path, "a.tiff")
    family = FAMILIES["minicpm-v-2.6"]
    config = random_model(family.small()).config
    expected = slice_image(Image.open(path), config)
    for source in ("a.tiff", "a.tar", "a.zip", path.as_uri()):
        [item] = list_pictures([source]).items
        [(picture, _)] = frames_of(item.read(), "it", Settings())
        found = slice_image(picture, config)
        assert np.array_equal(found[1], expected[1])
        assert all(np.array_equal(*pair) for pair in zip(found[0], expected[0], strict=True))
    assert all(np.array_equal(*pair) for pair in zip(slice_image(read_image(path)[0], config)[0], expected[0], strict=True))


def test_the_line_says_what_became_of_the_orientation(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    in_mode("L").save("mixed.tiff", exif=asking(6))
    rgb().save("turned.tiff", exif=asking(6))
    with_exif(Path("rubbish.png"), RUBBISH["text"])
    words = ("embed", "mixed.tiff", "turned.tiff", "rubbish.png", "--weights", data / "tiny-minicpmv")
    lines = done_well(npembed(*words)).splitlines()
    assert lines[2] == f"  {Turn.MIXED_UP.words}"
    assert lines[4] == f"  {Turn.BY_PILLOW.words}"
    assert lines[5].startswith("rubbish.png: 60×40 pixels")
    assert lines[6].startswith("embeddings ")
    lines = done_well(npembed(*words, "--upright")).splitlines()
    assert lines[2] == lines[4] == f"  {Turn.BY_PILLOW.words}"
    assert "40×60 pixels" in lines[1]
    assert lines[6] == f"  {Turn.UNREADABLE.words}"
