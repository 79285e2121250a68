"""The nearest neighbours of a picture, by exact products with every vector of a corpus."""

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npembed import arguments
from npembed.corpus.index import OK
from npembed.corpus.reading import Corpus
from npembed.corpus.settings import WHO
from npembed.images import read_frames
from npembed.typing import Array, Floats

BLOCK = 4096
"""Vectors that are multiplied at once."""
_THUMBNAIL = 192


@dataclass(frozen=True)
class Neighbour:
    """One picture that was found.

    Attributes
    ----------
    path : str
    frame : int
    number : int
        Its row of the index.
    similarity : float
        The cosine of the angle between the two vectors: 1 for the same direction.
    """

    path: str
    frame: int
    number: int
    similarity: float


def search(corpus: Corpus, vector: ArrayLike, k: int = 10) -> list[Neighbour]:
    """The `k` pictures whose vectors make the smallest angles with this one; of equal angles, the first in the index.

    Parameters
    ----------
    corpus : Corpus
        With one vector for each picture.
    vector : float (D,)
    k : int

    Returns
    -------
    list of Neighbour
        The nearest first; fewer than `k` if the corpus has fewer.

    Raises
    ------
    ValueError, TypeError
        A corpus without vectors; a vector of another length, or without a direction.
    """
    most = arguments.as_count(k, "k", WHO)
    wanted = _directed(arguments.as_floats(vector, "vector", WHO))
    similar = np.concatenate([np.empty(0), *(_cosines(block, wanted) for block in _blocks(corpus))])
    rows = np.flatnonzero([status == OK for status in corpus.index["status"].to_pylist()])
    nearest = np.argsort(-similar, kind="stable")[:most]
    paths, frames = corpus.index["path"], corpus.index["frame"]
    return [
        Neighbour(paths[row].as_py(), frames[row].as_py(), row, float(similar[place]))
        for place, row in zip(nearest.tolist(), rows[nearest].tolist(), strict=True)
    ]


def _blocks(corpus: Corpus) -> Iterator[Array]:
    for _, vectors in corpus.vectors():
        for start in range(0, len(vectors), BLOCK):
            yield vectors[start : start + BLOCK]


def _directed(vector: Floats) -> Floats:
    """float64 (D,) of unit length."""
    length = np.linalg.norm(vector.astype(np.float64)) if vector.ndim == 1 else 0.0
    if not 0 < length < np.inf:
        raise ValueError(f"{WHO}: the vector must have shape (D,) and a direction; got shape {vector.shape}, length {length}")
    return np.asarray(vector / length)


def _cosines(block: Array, wanted: Floats) -> Floats:
    """(N, D), (D,) -> float64 (N,); -1 for a vector of zeros, which has no direction."""
    if block.shape[1] != len(wanted):
        raise ValueError(f"{WHO}: the vector must have {block.shape[1]} numbers as those of the corpus; got {len(wanted)}")
    wide: Floats = block.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    return np.asarray(np.divide(wide @ wanted, lengths, out=np.full(len(wide), -1.0), where=lengths > 0))


def as_page(neighbours: Sequence[Neighbour], picture: str, title: str) -> str:
    """One HTML page that stands alone: the picture, and each neighbour with its path and its similarity."""
    cells = [_cell(picture, 0, "the picture that was looked for")]
    cells += [_cell(one.path, one.frame, f"{one.similarity:.4f}") for one in neighbours]
    return _PAGE.format(title=html.escape(title), cells="\n".join(cells))


def _cell(path: str, frame: int, text: str) -> str:
    shown = html.escape(path + (f", page {frame + 1}" if frame else ""))
    source = _thumbnail(path, frame)
    inside = f'<img src="{source}" alt="">' if source else "<p>no longer there</p>"
    return f"<figure>{inside}<figcaption><b>{html.escape(text)}</b><br>{shown}</figcaption></figure>"


def _thumbnail(path: str, frame: int) -> str:
    """A small JPEG as the text of a URL; "" for a picture that cannot be read now."""
    try:
        with_frames = enumerate(read_frames(BytesIO(read_again(path)), path, every=frame > 0))
        picture = next(picture for number, (picture, _) in with_frames if number == frame).convert("RGB")
    except (ValueError, OSError, StopIteration):
        return ""
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    held = BytesIO()
    picture.save(held, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


def read_again(path: str) -> bytes:
    """The bytes of a picture by the path that the index gives it."""
    from npembed.corpus.sources import list_pictures

    archive, found, _ = path.rpartition("::")
    items: Any = list_pictures([archive if found else path]).items
    for item in items:
        if item.path == path:
            content: bytes = item.read()
            return content
    raise ValueError(f"{WHO}: {path} is no picture that can be read")


_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }}
main {{ display: flex; flex-wrap: wrap; gap: 1rem }}
figure {{ margin: 0; width: 12rem; overflow-wrap: anywhere }}
img {{ max-width: 100%; border-radius: 4px }}
figure:first-child {{ outline: 3px solid #06c; outline-offset: 6px }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #181818 }} }}
</style>
<h1>{title}</h1>
<main>
{cells}
</main>
</html>
"""
