"""Neighbours: exact, found whatever the blocks; near-duplicates that were planted; the page of thumbnails."""

import base64
import os
import shutil
import zipfile
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import npembed.corpus
from npembed import FAMILIES, Model, random_model
from npembed.corpus import Settings, search
from npembed.corpus.index import schema
from npembed.corpus.nearest import read_again, read_named
from npembed.corpus.sources import list_pictures
from npembed.corpus.vectors import overview, vector_of
from npembed.pages.corpus import thumbnail
from tests.command_line import assert_refused, done_well
from tests.command_line import npembed as command
from tests.corpora import write_pictures
from tests.page_reading import Page


def planted(folder: Path) -> Path:
    """Twelve pictures of smooth noise, and of three of them a smaller copy, a JPEG of low quality and a brighter one."""
    rng = np.random.default_rng(5)
    folder.mkdir()
    for number in range(12):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((200, 200), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    for number, change in ((2, "smaller"), (5, "worse"), (9, "brighter")):
        with Image.open(folder / f"{number:02d}.png") as picture:
            if change == "smaller":
                picture.resize((150, 150)).save(folder / "like 02.png")
            elif change == "worse":
                picture.save(folder / "like 05.jpg", quality=20)
            else:
                picture.point(lambda value: min(255, value + 12)).save(folder / "like 09.png")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Made by the command line, with a worker of its own."""
    folder = tmp_path_factory.mktemp("search")
    words = ("--weights", data / "tiny-minicpmv", "--vector", "mean", "--until", "hidden", "--normalize", "--workers", 1)
    out = done_well(command("corpus", planted(folder / "pictures"), folder / "out", *words))
    assert "was not trained for search" in out
    assert "\n15 pictures are in " in out
    return folder / "out"


def names(corpus: Path, picture: str, k: int) -> list[str]:
    there = npembed.corpus.open(corpus)
    return [Path(one.path).name for one in search(there, there[picture]["pooled"][0], k)]


@pytest.mark.parametrize("number", ["02", "05", "09"])
def test_the_near_duplicate_that_was_planted_is_found_first(corpus: Path, number: str) -> None:
    path = str(corpus.parent / "pictures" / f"{number}.png")
    first, second = names(corpus, path, 2)
    assert first == f"{number}.png"
    assert second.startswith(f"like {number}")


def test_the_command_shows_them_and_writes_a_page(corpus: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    out = done_well(command("corpus", "search", corpus, corpus.parent / "pictures/05.png", "-k", 3, "--html", page))
    assert "1.0000" in out
    assert "05.jpg" in out.replace("\n", "")
    text = page.read_text()
    parser = Pictures()
    parser.feed(text)
    assert len(parser.found) == 4
    for source in parser.found:
        with Image.open(BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))) as thumbnail:
            assert max(thumbnail.size) <= 192
    assert Page(text).outside() == [], "the page stands alone"


class Pictures(HTMLParser):
    """Collects what a page shows."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """The sources of pictures."""
        self.found += [value or "" for name, value in attrs if tag == "img" and name == "src"]


def test_a_picture_that_is_not_in_the_corpus_is_computed_as_the_corpus_was(corpus: Path, tmp_path: Path) -> None:
    shutil.copy(corpus.parent / "pictures/09.png", tmp_path / "other.png")
    out = done_well(command("corpus", "search", corpus, tmp_path / "other.png", "-k", 1))
    assert "1.0000" in out
    assert "09.png" in out.replace("\n", "")


def test_other_weights_are_refused(corpus: Path, tmp_path: Path, tiny: Model, data: Path) -> None:
    shutil.copytree(data / "tiny-minicpmv", tmp_path / "w")
    from safetensors.numpy import load_file, save_file

    arrays = load_file(tmp_path / "w/model.safetensors")
    arrays["vpm.post_layernorm.bias"] = arrays["vpm.post_layernorm.bias"] + 1
    save_file(arrays, tmp_path / "w/model.safetensors")
    shutil.copy(corpus.parent / "pictures/09.png", tmp_path / "other.png")
    words = ("corpus", "search", corpus, tmp_path / "other.png", "--weights", tmp_path / "w")
    assert_refused(command(*words), "are not the weights that .* was made with")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gone", "a.png"), "gone is no corpus: it has no manifest.json"),
        (("OUT", "a.png"), "the source a.png does not exist"),
        (("OUT", "text"), "text is not an image that Pillow can read"),
        (("file:///x", "a.png"), "must be a folder on this machine"),
    ],
)
def test_bad_input_gets_one_line(
    words: tuple[str, ...], message: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("text")
    assert_refused(command("corpus", "search", *(str(corpus) if word == "OUT" else word for word in words)), message)


class Held:
    """As much of a corpus as `search` reads."""

    def __init__(self, vectors: Any, statuses: list[str]) -> None:
        import pyarrow

        rows = [{"path": str(n), "frame": 0, "status": status} for n, status in enumerate(statuses)]
        self.index, self._vectors = pyarrow.Table.from_pylist(rows, schema=schema()), vectors

    def vectors(self) -> Any:
        """In two shards."""
        half = len(self._vectors) // 2
        return iter([("a", self._vectors[:half]), ("b", self._vectors[half:])])


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 2**32), st.integers(1, 7))
@settings(max_examples=40)
def test_neighbours_are_those_of_the_plain_definition(count: int, k: int, seed: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (count, 3)).astype(np.float32)
    statuses = ["ok"] * count
    for place in rng.integers(0, count, 3):
        statuses.insert(int(place), "failed")
    wanted = np.array([1.0, 2.0, -1.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npembed.corpus.nearest.BLOCK", block)
        found = search(Held(vectors, statuses), wanted, k)  # type: ignore[arg-type]
    lengths = np.sqrt((vectors.astype(float) ** 2).sum(axis=1) * 6)
    cosines = [float(v @ wanted) / length if length else -1.0 for v, length in zip(vectors.astype(float), lengths, strict=True)]
    rows = [row for row, status in enumerate(statuses) if status == "ok"]
    assert [one.similarity for one in found] == pytest.approx(sorted(cosines, reverse=True)[:k])
    for one in found:
        assert one.similarity == pytest.approx(cosines[rows.index(one.number)])
        assert one.path == str(one.number)


@pytest.mark.parametrize(
    ("vector", "message"),
    [([0.0] * 3, "a direction"), ([1.0], "must have 3 numbers"), ([[1.0]], r"shape \(D,\)"), ([np.nan] * 3, "a direction")],
)
def test_a_vector_that_is_none_is_refused(vector: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(Held(np.ones((2, 3), np.float32), ["ok"] * 2), vector)  # type: ignore[arg-type]


def test_a_corpus_without_vectors_is_refused(tmp_path: Path) -> None:
    family = FAMILIES["minicpm-v-2.6"]
    model = random_model(family.small())
    folder = write_pictures(tmp_path / "few", 2)
    npembed.corpus.build([str(folder)], str(tmp_path / "out"), model, workers=1)
    done = command("corpus", "search", tmp_path / "out", next(folder.rglob("*.jpg")))
    assert_refused(done, "has embeddings, not one vector for each picture; make it with --until pooled or --vector mean")


@pytest.mark.parametrize("name", ["in/a.png", "x::a.png", "b.zip/a.png"])
def test_what_lies_in_an_archive_is_read_again(tmp_path: Path, name: str) -> None:
    write_archive(tmp_path / "a.zip", {name: b"\x89PNG\r\n\x1a\n"})
    assert read_named(f"{tmp_path}/a.zip::{name}") == b"\x89PNG\r\n\x1a\n"


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, held in members.items():
            archive.writestr(name, held)


def test_an_archive_is_listed_once_until_it_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {name: b"\x89PNG\r\n\x1a\n" + name.encode() for name in ("a", "b")}
    archive = tmp_path / "a.zip"
    write_archive(archive, members)
    listed: list[object] = []
    monkeypatch.setattr("npembed.corpus.nearest.list_pictures", lambda words: listed.append(words) or list_pictures(words))
    assert [read_named(f"{archive}::{name}") for name in members] == list(members.values())
    assert len(listed) == 1
    write_archive(archive, {"c": members["a"]})
    os.utime(archive, (1, 1))
    assert read_named(f"{archive}::c") == members["a"]


@pytest.mark.parametrize("family", [key for key in FAMILIES if FAMILIES[key].vision_stages[-1].sizes is not None])
def test_every_family_has_a_mean_or_says_that_it_has_none(family: str) -> None:
    model = random_model(FAMILIES[family].small(), until="hidden")
    held = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)).save(held, "PNG")
    vector = vector_of(held.getvalue(), "it", model, Settings(until="hidden", vector="mean"))
    assert vector.shape == (model.config.vision.hidden_size,)
    boxes = FAMILIES[family].cut(Image.open(held), model.config).boxes
    number = overview(boxes)
    assert boxes[number, 2:] - boxes[number, :2] == pytest.approx(boxes[:, 2:].max(axis=0), rel=0.1)


# What has the name of a picture, and is another


@pytest.fixture
def moved(corpus: Path) -> Iterator[Path]:
    """A picture of the corpus in whose place another one lies."""
    picture, away = corpus.parent / "pictures/03.png", corpus.parent / "away.png"
    picture.rename(away)
    shutil.copy(corpus.parent / "pictures/07.png", picture)
    yield picture
    away.replace(picture)


def test_what_is_there_now_is_looked_for(corpus: Path, moved: Path) -> None:
    out = done_well(command("corpus", "search", corpus, moved, "-k", 1)).replace("\n", "")
    assert "1.0000" in out
    assert "07.png" in out


def test_no_thumbnail_is_another_pictures(corpus: Path, moved: Path) -> None:
    there = npembed.corpus.open(corpus)
    digest = there.row(str(moved))["sha256"]
    with pytest.raises(ValueError, match="is another picture than when the corpus was made"):
        read_again(str(moved), digest)
    assert thumbnail(partial(read_again, str(moved), digest), 0, 50) == ""
    other = there.row(str(moved.with_name("07.png")))["sha256"]
    assert thumbnail(partial(read_again, str(moved), other), 0, 50) != ""


def test_a_picture_that_is_gone_is_found_by_its_own_vector(corpus: Path, moved: Path) -> None:
    moved.unlink()
    try:
        assert "03.png" in done_well(command("corpus", "search", corpus, moved, "-k", 1)).replace("\n", "")
    finally:
        moved.touch()


@pytest.mark.parametrize("name", ["a::b.png", "list.txt"])
def test_a_picture_is_read_whatever_its_name_would_mean(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"as it is")
    assert read_named(f"{tmp_path}/{name}") == b"as it is"


@pytest.mark.parametrize("name", ["01.png", "part-00000.safetensors", "page"])
def test_a_page_is_written_over_nothing_else(corpus: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"a user's")
    words = ("corpus", "search", corpus, corpus.parent / "pictures/07.png", "--html", tmp_path / name)
    assert_refused(command(*words), r"the output \S+ must end in \.html or \.htm")
    assert (tmp_path / name).read_bytes() == b"a user's"
