"""The nearest neighbours of a picture, by exact products with every vector of a corpus."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

import numpy as np
from numpy.typing import ArrayLike

from npembed.corpus.index import OK
from npembed.corpus.reading import Corpus
from npembed.corpus.settings import WHO
from npembed.corpus.sources import Item, list_pictures, without_credential
from npembed.support import arguments
from npembed.support.pictures import MOST_FILE
from npembed.support.reading import is_here, read_regular
from npembed.support.typing import Array, Floats

BLOCK = 4096
"""Vectors that are multiplied at once."""
_IN_ARCHIVE = re.compile(r"(.+?(?:\.tar|\.zip))::", re.IGNORECASE | re.DOTALL)
"""The archive's path begins it; the name in it may have "::" too."""


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
    sha256 : str
        Of the picture's file, by which another of the same name is told from it.
    """

    path: str
    frame: int
    number: int
    similarity: float
    sha256: str | None = None


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
    paths, frames, digests = (corpus.index[name] for name in ("path", "frame", "sha256"))
    return [
        Neighbour(paths[row].as_py(), frames[row].as_py(), row, float(similar[place]), digests[row].as_py())
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


def read_again(path: str, sha256: str | None, sources: Sequence[str] = ()) -> bytes:
    """The bytes of a picture by the path that the index gives it, which a stranger may have written.

    Parameters
    ----------
    path : str
        Of a regular file of this machine, or in an archive that is one.
    sha256 : str or None
        As the index has it; without it nothing is read.
    sources : sequence of str
        URLs that the user names: what lies below one of them is read too.

    Raises
    ------
    OSError, ValueError
        A picture that is not there, lies elsewhere, or is another than the one of that digest.
    """
    if not sha256:
        raise ValueError(f"{WHO}: the index has no digest of {path}")
    content = read_named(_allowed(path, sources))
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{WHO}: {path} is another picture than when the corpus was made")
    return content


def _allowed(path: str, sources: Sequence[str]) -> str:
    """The path as it may be read: a file's of this machine, or below a source, whose credential it then has."""
    archive = _IN_ARCHIVE.match(path)
    file = archive[1] if archive and not (is_here(path) and os.path.isfile(path)) else path
    if is_here(file) and os.path.isfile(file) and os.path.getsize(file):  # what the system makes up has no size, and may wait
        return path
    for source in sources:
        bare = without_credential(source)
        below = file[len(bare) :]
        leads_out = "::" in below or ".." in re.split(r"[/\\?#]", unquote(below))
        if (file == bare or file.startswith(f"{bare.rstrip('/')}/")) and not leads_out:
            return source + path[len(bare) :]
    raise ValueError(f"{WHO}: {path} is no file of this machine, and below no source that was named")


def read_named(path: str) -> bytes:
    """The bytes of a picture that the user names: a file, what lies in an archive, a URL.

    Raises
    ------
    OSError, ValueError, ImportError
        A picture that is not there, or of more bytes than are read.
    """
    if os.path.isfile(path):  # whatever its name would mean as a source
        return read_regular(path, MOST_FILE, WHO)
    archive = _IN_ARCHIVE.match(path)
    source = archive[1] if archive else path
    for item in _items(source, os.stat(source).st_mtime_ns if os.path.isfile(source) else 0):
        if item.path == path:
            return item.read()
    raise ValueError(f"{WHO}: {path} is no picture that can be read")


@lru_cache(maxsize=4)
def _items(source: str, changed: int) -> list[Item]:
    """An archive's, kept until it is changed: it is long to list, and a page shows many pictures of it."""
    return list_pictures([source]).items
