"""The page of a corpus and the page of a search, without a browser."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from npembed import FAMILIES, cli, corpus, random_model
from npembed.pages.corpus import MOST, corpus_data, corpus_page, neighbours_of, principal_components, search_page
from npembed.pages.drawing import spread
from tests.page_reading import Page

HOSTILE = "<script>alert(1)</script>&.png"


def test_the_map_is_the_two_axes_along_which_vectors_differ_most():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((30, 5)) * [1, 9, 2, 4, 0.5]
    places, share = principal_components(vectors)
    values, axes = np.linalg.eigh(np.cov(vectors.T))
    expected = (vectors - vectors.mean(axis=0)) @ axes[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-10)
    np.testing.assert_allclose(share, values[[-1, -2]] / values.sum())
    np.testing.assert_allclose(principal_components(vectors + 100)[0], places, atol=1e-8)


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (3, 1), (4, 3)])
def test_few_or_equal_vectors_have_a_map(shape):
    places, share = principal_components(np.ones(shape))
    assert places.tolist() == [[0, 0]] * shape[0]
    assert share.tolist() == [0, 0]


def test_neighbours_are_those_of_the_largest_cosines():
    vectors = np.random.default_rng(1).standard_normal((20, 4))
    nearest, cosines = neighbours_of(vectors, 6)
    for i, row in enumerate(nearest):
        exact = [vectors[i] @ other / np.linalg.norm(vectors[i]) / np.linalg.norm(other) for other in vectors]
        exact[i] = -2
        assert row.tolist() == sorted(range(20), key=lambda j: -exact[j])[:6]
        np.testing.assert_allclose(cosines[i], sorted(exact, reverse=True)[:6])


def test_a_vector_of_zeros_is_like_none_and_one_picture_has_no_neighbour():
    _, cosines = neighbours_of(np.array([[0.0, 0.0], [1.0, 0.0]]), 6)
    assert cosines.tolist() == [[0.0], [0.0]]
    assert neighbours_of(np.ones((1, 3)), 6)[0].shape == (1, 0)


@pytest.mark.parametrize(("count", "most"), [(0, 3), (1, 1), (10, 4), (1000, 400)])
def test_a_page_takes_pictures_evenly(count, most):
    found = spread(range(count), most)
    assert len(found) == min(count, most)
    assert found == sorted(set(found))
    assert not count or (found[0] == 0 and (most == 1 or found[-1] == count - 1))


def test_many_thumbnails_stay_below_five_megabytes():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    held = io.BytesIO()
    noise.save(held, "JPEG", quality=75)
    assert MOST * (held.tell() * 4 / 3 + 500) < 5_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A corpus of seven pictures, of which one is damaged and one has gone."""
    folder = tmp_path_factory.mktemp("corpus")
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(6):
        values = np.random.default_rng(number % 3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(values).save(pictures / f"{number}{HOSTILE.replace('/', '_') if number == 0 else '.png'}")
    (pictures / "broken.png").write_bytes((pictures / "1.png").read_bytes()[:400])
    family = FAMILIES["siglip"]
    model = random_model(family.small(), until="pooled")
    corpus.build([str(pictures)], str(folder / "out"), model, settings=corpus.Settings(until="pooled"), workers=1)
    (pictures / "5.png").unlink()
    return folder / "out"


def test_a_page_shows_a_corpus(made):
    page = Page(corpus_page(corpus.open(made)))
    assert page.outside() == []
    assert "7 pictures, made with --until pooled : 6 computed, 1 failed." in page.words
    assert "broken.png : it cannot be read" in page.words
    data: dict[str, Any] = page.data
    assert len(data["names"]) == len(data["places"]) == 6
    assert data["thumbnails"][5] == ""
    assert all(each.startswith("data:image/jpeg;base64,") for each in data["thumbnails"][:5])
    vectors = np.concatenate([block for _, block in corpus.open(made).vectors()]).astype(float)
    nearest, _ = neighbours_of(vectors, 6)
    assert data["alike"] == nearest.tolist()
    assert [row[0] for row in data["alike"]] == [3, 4, 5, 0, 1, 2], "equal pictures are the most alike"


def test_a_page_of_names_without_vectors():
    assert corpus_data(["a"], [""], None) == {"names": ["a"], "thumbnails": [""]}


def test_names_are_text():
    page = Page(search_page([corpus.Neighbour(HOSTILE, 1, 0, 0.5)], HOSTILE, f"Most like {HOSTILE}"))
    assert page.outside() == []
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert f"{HOSTILE}, page 2" in page.words
    assert "0.5000" in page.words
    assert page.words.count("no longer there") == 2


def test_the_command_writes_the_page(made, capsys, tmp_path):
    target = tmp_path / "c.html"
    assert cli.run(["corpus", "page", str(made), "-o", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    assert len(Page(target.read_text()).data["names"]) == 6


@pytest.mark.parametrize(
    ("args", "message"), [(["none"], "corpus: none is no corpus"), (["none", "-o", "c.txt"], "must end in .html")]
)
def test_wrong_use_is_one_line(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["corpus", "page", *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


@pytest.mark.parametrize("upright", [False, True])
def test_a_page_shows_pictures_turned_as_the_corpus_was_made(upright, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 40)).save(tmp_path / "a.jpg", exif=exif)
    family = FAMILIES["siglip"]
    settings = corpus.Settings(until="pooled", upright=upright)
    corpus.build(
        [str(tmp_path / "a.jpg")],
        str(tmp_path / "out"),
        random_model(family.small(), until="pooled"),
        settings=settings,
        workers=1,
    )
    there = corpus.open(tmp_path / "out")
    [row] = there.index.to_pylist()
    small = Page(corpus_page(there)).data["thumbnails"]
    neighbours = [corpus.Neighbour(row["path"], 0, 0, 1.0, row["sha256"])]
    large = re.findall(r"data:image/jpeg;base64,[^\"]+", search_page(neighbours, row["path"], "Alike", upright=upright))
    sizes = [Image.open(io.BytesIO(base64.b64decode(each.partition(",")[2]))).size for each in (*small, *large)]
    assert sizes == ([(40, 50)] * 3 if upright else [(50, 40)] * 3)
