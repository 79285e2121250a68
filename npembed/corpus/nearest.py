"""The nearest neighbours of a picture, by exact products with every vector of a corpus."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npembed import arguments
from npembed.corpus.index import OK
from npembed.corpus.reading import Corpus
from npembed.corpus.settings import WHO
from npembed.typing import Array, Floats

BLOCK = 4096
"""Vectors that are multiplied at once."""


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
