"""HEIC: read with pillow-heif where it is installed, also in a corpus; without it the line names the extra."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from npembed.corpus.work import versions
from npembed.support.pictures import read_frames, read_image
from tests.command_line import assert_refused, done_well, npembed
from tests.synthetic import synthetic_picture

pillow_heif = pytest.importorskip("pillow_heif")
NEEDS = r"a\.heic is a HEIC picture, which needs pillow-heif: pip install 'npembed\[heif\]'"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a.heic, whose EXIF asks for a turn that its container has."""
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(synthetic_picture(64, 48))
    pillow_heif.from_pillow(picture).save("a.heic", quality=-1, chroma=444, exif=exif.tobytes())
    return tmp_path


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if pillow-heif was not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


def decoded(path: Path) -> np.ndarray:
    return np.asarray(pillow_heif.open_heif(path).to_pillow())


def test_a_heic_is_read_as_pillow_reads_it_with_the_plugin(here: Path) -> None:
    read, turn, pages = read_image("a.heic")
    assert np.array_equal(np.asarray(read), decoded(here / "a.heic"))
    assert (read.size, turn, pages) == ((48, 64), "", 1)
    assert "HEIF" not in Image.OPEN, "Pillow itself knows nothing of it"
    code = """
import sys, pillow_heif
from PIL import Image
pillow_heif.register_heif_opener()
sys.stdout.buffer.write(Image.open("a.heic").convert("RGB").tobytes())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=here)
    assert ran.stdout == read.tobytes()


def test_every_picture_of_a_heic_comes_in_the_order_of_the_file(here: Path) -> None:
    pictures = [Image.new("RGB", (64, 48), colour) for colour in ("red", "lime", "blue")]
    held = pillow_heif.from_pillow(pictures[0])
    for picture in pictures[1:]:
        held.add_from_pillow(picture)
    held.save("a.heic", quality=-1, chroma=444, primary_index=1)
    centres = [np.asarray(frame)[20, 20].argmax() for frame, _ in read_frames(here / "a.heic", "it", every=True)]
    assert centres == [0, 1, 2]
    shown, _, pages = read_image("a.heic")
    assert (np.asarray(shown)[20, 20].argmax(), pages) == (1, 3)


def test_its_size_is_known_before_it_is_decoded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"^a\.heic is too large to decode safely: 48 × 64 pixels, 2000 at most"):
        read_image("a.heic")
    assert read_image("a.heic", most_pixels=64 * 48)[0].size == (48, 64)


@pytest.mark.parametrize("length", [40, 200, -100])
def test_a_heic_that_is_cut_short_is_refused(here: Path, length: int) -> None:
    (here / "a.heic").write_bytes((here / "a.heic").read_bytes()[:length])
    with pytest.raises(ValueError, match=r"^a\.heic cannot be read as an image: "):
        read_image("a.heic")


def test_without_the_extra_the_line_names_it(here: Path, missing: None) -> None:
    assert_refused(npembed("embed", "a.heic"), NEEDS)
    for brand in (b"heic", b"hevx", b"mif1", b"msf1"):
        with pytest.raises(ValueError, match="it is a HEIC picture, which needs pillow-heif"):
            next(read_frames(io.BytesIO(bytes(4) + b"ftyp" + brand + bytes(40)), "it"))


def test_a_corpus_reads_heic_and_computes_what_it_could_not_read_once_it_can(
    here: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "p").mkdir()
    (here / "a.heic").rename(here / "p/a.heic")
    Image.fromarray(synthetic_picture(64, 48)).save("p/b.png")
    words = ("corpus", "p", "out", "--weights", data / "tiny-minicpmv", "--workers", 1)
    with monkeypatch.context() as patched:
        hidden = here / "hidden/pillow_heif"
        hidden.mkdir(parents=True)
        (hidden / "__init__.py").write_text("raise ImportError")
        patched.syspath_prepend(hidden.parent)  # which the workers have, too
        patched.delitem(sys.modules, "pillow_heif")
        for kept in (False, True):
            done = npembed(*words)
            assert (done.code, done.err) == (1, "")
            assert re.search(r"1 of 2 pictures are in out; 1 failed:\n  p/a\.heic: it" + NEEDS[7:], done.out)
            assert ("2 were there already" in done.out) == kept
        assert versions()["pillow-heif"] == "none"
    assert "2 pictures are in out\n" in done_well(npembed(*words))
    assert pq.read_table("out/index.parquet")["error"].to_pylist() == [None, None]
    assert "2 were there already" in done_well(npembed(*words))
