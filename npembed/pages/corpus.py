"""`npembed corpus page` and `corpus search --html`: the pictures of a corpus by their neighbours, a map, the failures."""

import base64
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from npembed.pages.drawing import numbers, spread
from npembed.pages.page import render
from npembed.support.pictures import read_frames
from npembed.support.typing import Array, Floats, Ids

if TYPE_CHECKING:
    from npembed.corpus import Corpus, Neighbour

MOST = 400
"""Pictures that one page shows, at most: thumbnails of more would make it larger than 5 MB."""

ALIKE = 6
"""Neighbours of each picture that a page shows."""

SIDE = 96
"""Pixels of a thumbnail's longer side, where a page has many; a search's page has twice that."""

FAILURES = 1000
"""Failures that a page lists, at most."""


def corpus_page(corpus: "Corpus", sources: Sequence[str] = ()) -> str:
    """The page of a corpus, as text of one HTML file.

    Pictures are read again from this machine, and from below the URLs in `sources`; what is not as it was is not shown.

    With one vector for each picture: a map of the vectors by their two principal components, and of each picture those that are
    most like it. Of a large corpus, `MOST` pictures evenly spaced in the index are shown, and each one's neighbours are sought
    among these. The failures are listed in any case.
    """
    rows = corpus.index.to_pylist()
    good = [number for number, row in enumerate(rows) if row["status"] == "ok"]
    shown = spread(good, MOST)
    vectors = _vectors(corpus, good, shown) if corpus.has_vectors else None
    failures = [row for row in rows if row["status"] != "ok"]
    return render(
        "corpus.html.j2",
        ("base.js", "corpus.js"),
        data=corpus_data([_name(rows[number]) for number in shown], _thumbnails(corpus, rows, shown, sources), vectors),
        title=f"The corpus {corpus.shown}",
        made=corpus.manifest["settings"],
        total=len(rows),
        good=len(good),
        shown=len(shown),
        has_vectors=vectors is not None and len(shown) > 0,
        failures=[(_name(row), row["error"] or "") for row in failures[:FAILURES]],
        failed=len(failures),
        alike=ALIKE,
    )


def corpus_data(names: Sequence[str], thumbnails: Sequence[str], vectors: Array | None) -> dict[str, Any]:
    """What the page's script reads: names, thumbnails, places on the map and neighbours."""
    data: dict[str, Any] = {"names": list(names), "thumbnails": list(thumbnails)}
    if vectors is None or not len(vectors):
        return data
    places, share = principal_components(vectors)
    nearest, cosines = neighbours_of(vectors, ALIKE)
    return data | {
        "places": numbers(places),
        "share": numbers(share),
        "alike": nearest.tolist(),
        "cosines": numbers(cosines.round(6)),
    }


def _vectors(corpus: "Corpus", good: Sequence[int], shown: Sequence[int]) -> Floats:
    """float64 (len(shown), D): the vectors of those rows of the index."""
    place = {number: place for place, number in enumerate(good)}
    wanted = [place[number] for number in shown]
    found: list[Array] = []
    start = 0
    for _, block in corpus.vectors():
        found += [np.asarray(block[at - start], dtype=np.float64) for at in wanted if start <= at < start + len(block)]
        start += len(block)
    return np.stack(found) if found else np.empty((0, 0))


def principal_components(vectors: Array) -> tuple[Floats, Floats]:
    """(N, D) -> float64 (N, 2), (2,): places on the two axes along which vectors differ most, and their shares of all of it.

    The sign of each axis is such that the largest weight of a channel is positive, so that a map does not flip from run to run.

    Examples
    --------
    >>> places, share = principal_components(np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]))
    >>> places.round(6).tolist(), share.tolist()
    ([[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]], [1.0, 0.0])
    """
    from scipy.linalg import svd  # here, because SciPy takes longer to import than the rest of the package

    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, lengths, axes = svd(centred, full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    places = np.zeros((len(vectors), 2))
    kept = min(2, len(lengths))
    places[:, :kept] = (left * lengths * np.where(signs == 0, 1, signs))[:, :kept]
    total = float((lengths**2).sum())
    share = np.zeros(2)
    share[:kept] = lengths[:kept] ** 2 / total if total else 0
    return places + 0.0, share  # + 0.0: no -0.0


def neighbours_of(vectors: Array, most: int) -> tuple[Ids, Floats]:
    """(N, D) -> int64 (N, K), float64 (N, K): the most alike others of each, by the cosine; of equal ones the first.

    Examples
    --------
    >>> nearest, cosines = neighbours_of(np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]), 1)
    >>> nearest.tolist(), cosines.tolist()
    ([[2], [2], [1]], [[0.6], [0.8], [0.8]])
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors, dtype=np.float64), where=lengths > 0)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(most, len(vectors) - 1)]
    return nearest.astype(np.int64), np.take_along_axis(cosines, nearest, axis=1)


def search_page(
    neighbours: Sequence["Neighbour"], picture: str, title: str, sources: Sequence[str] = (), upright: bool = False
) -> str:
    """The page of a search: the picture, and each neighbour with its path and its cosine; `sources` as for `corpus_page`.

    Pictures are turned by their EXIF if the corpus was made `upright`.
    """
    from npembed.corpus.nearest import read_again, read_named

    found = [("the picture that was looked for", picture, thumbnail(partial(read_named, picture), 0, 2 * SIDE, upright))]
    for one in neighbours:
        name = _name({"path": one.path, "frame": one.frame})
        small = thumbnail(partial(read_again, one.path, one.sha256, sources), one.frame, 2 * SIDE, upright)
        found.append((f"{one.similarity:.4f}", name, small))
    return render("search.html.j2", title=title, found=found)


def _name(row: dict[str, Any]) -> str:
    frame = row["frame"] or 0
    return str(row["path"]) + (f", page {frame + 1}" if frame else "")


def _thumbnails(corpus: "Corpus", rows: Sequence[dict[str, Any]], shown: Sequence[int], sources: Sequence[str]) -> list[str]:
    from npembed.corpus.nearest import read_again

    upright = corpus.manifest["settings"]["upright"]
    each = (rows[number] for number in shown)
    contents = ((partial(read_again, row["path"], row["sha256"], sources), row["frame"] or 0) for row in each)
    return [thumbnail(read, frame, SIDE, upright) for read, frame in contents]


def thumbnail(read: Callable[[], bytes], frame: int, side: int, upright: bool = False) -> str:
    """A small JPEG as a data URI of what is in the bytes that `read` gives; "" for a picture that cannot be read now."""
    try:
        frames = enumerate(read_frames(io.BytesIO(read()), "it", upright=upright, every=frame > 0))
        picture = next(picture for number, (picture, _) in frames if number == frame).convert("RGB")
    except (ValueError, OSError, ImportError, MemoryError, StopIteration):
        return ""
    picture.thumbnail((side, side))
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()
