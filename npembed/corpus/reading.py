"""A corpus that is there: its pictures by path or number, as arrays that are read from the disk when they are looked at."""

from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from npembed.corpus.build import MANIFEST, _read_manifest
from npembed.corpus.index import FAILED, INDEX, OK, open_index
from npembed.corpus.place import Place
from npembed.corpus.settings import WHO, Settings, one_vector
from npembed.corpus.shards import map_tensors
from npembed.families import get_family
from npembed.support import arguments
from npembed.support.typing import Array

_LOOKED_UP = ("tgt_sizes", "slice_boxes")


class Corpus:
    """What `npembed corpus` has written.

    Parameters
    ----------
    out : path
        On this machine.

    Attributes
    ----------
    manifest : dict
        What manifest.json says.
    index : pyarrow.Table
        index.parquet: one row per picture, without the column of vectors: `vectors` gives them.

    Raises
    ------
    ValueError
        No corpus; one that is not finished. Later, when arrays are asked for: one that was changed since it was opened.
    ImportError
        Without the extra `corpus`.
    """

    def __init__(self, out: str | Path) -> None:
        self._place = Place(str(out))
        if not self._place.is_local:
            raise ValueError(f"{WHO}: {self._place.shown} must be a folder on this machine, so that it can be memory-mapped")
        if self._place.size(MANIFEST) < 0:
            raise ValueError(f"{WHO}: {out} is no corpus: it has no {MANIFEST}")
        self.manifest = _read_manifest(self._place)
        if self._place.size(INDEX) < 0:
            raise ValueError(f"{WHO}: {out} is not finished; the command that began it goes on with it")
        self._stamp = self._stamp_now()
        self.index = open_index(self._place.path(INDEX))
        self.name: str = "pooled" if self.manifest["settings"]["vector"] else self.manifest["settings"]["until"]
        """Of the array of rows."""

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"Corpus({self._place.shown!r}, {len(self)} pictures, {self.name})"

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        """Path of a file -> the row of its first picture."""
        frames = self.index["frame"].to_pylist()
        return {path: row for row, path in enumerate(self.index["path"].to_pylist()) if frames[row] == 0}

    @property
    def shown(self) -> str:
        """The folder, as it was given."""
        return self._place.shown

    def has(self, path: str) -> bool:
        """Whether a picture of that path was computed."""
        return path in self._numbers and self.row(path)["status"] == OK

    def row(self, key: int | str) -> dict[str, Any]:
        """What the index says of one picture, by its number or its path (a file's first page)."""
        if isinstance(key, str):
            if key not in self._numbers:
                raise ValueError(f"{WHO}: {self._place.shown} has no picture {key!r}")
            key = self._numbers[key]
        number = arguments.as_count(key, "number", WHO, least=0, most=len(self) - 1)
        found: dict[str, Any] = self.index.slice(number, 1).to_pylist()[0]
        return found

    def __getitem__(self, key: int | str) -> dict[str, Array]:
        """One picture's arrays, read-only and memory-mapped: its rows under the stage's name, and what goes with them.

        `offsets` counts from the picture's own first row: slice i has the rows offsets[i] to offsets[i + 1].

        Raises
        ------
        ValueError, TypeError
            No such picture; a picture that failed, with its error; an index that does not fit the shard.
        """
        row = self.row(key)
        if row["status"] == FAILED:
            raise ValueError(f"{WHO}: the picture {row['path']!r} failed: {row['error']}")
        tensors = self._tensors(row["shard"])
        try:
            return _picture_in(tensors, self.name, row)
        except (LookupError, TypeError, ValueError):  # whatever is missing or lies elsewhere
            raise self._disagreeing(row["shard"]) from None

    def vectors(self) -> Iterator[tuple[str, Array]]:
        """Each shard's name and its vectors (pictures, D), memory-mapped, in the order of the index.

        Raises
        ------
        ValueError
            A corpus with more than one row for each picture; an index that does not fit the shards.
        """
        if not self.has_vectors:
            raise ValueError(
                f"{WHO}: {self._place.shown} has {self.name}, not one vector for each picture; make it with --until pooled or "
                "--vector mean"
            )
        columns = (self.index[name].to_pylist() for name in ("status", "shard", "first_row"))
        good = [(shard, row) for status, shard, row in zip(*columns, strict=True) if status == OK]
        width = None
        for name, places in groupby(good, itemgetter(0)):
            vectors = self._tensors(name).get(self.name, np.empty(0))
            width = width or vectors.shape[1:]
            if len(width) != 1 or vectors.shape[1:] != width or [row for _, row in places] != [*range(len(vectors))]:
                raise self._disagreeing(name)
            yield name, vectors

    @property
    def has_vectors(self) -> bool:
        """Whether there is one vector for each picture."""
        settings = Settings(**self.manifest["settings"])
        return one_vector(settings, get_family(self.manifest["family"], WHO).stage(settings.until, WHO))

    def _disagreeing(self, name: str | None) -> ValueError:
        words = f"{WHO}: {self._place.shown}/{INDEX} and {name or 'the shards'} do not agree, so one is damaged"
        return ValueError(f"{words}; delete both, and the command that made the corpus makes them again")

    def _tensors(self, name: str | None) -> dict[str, Array]:
        if name is None:
            raise self._disagreeing(name)
        tensors = _mapped(self._place.path(name), self._stamp)
        if self._stamp_now() != self._stamp:  # a run takes the index away before it writes a shard
            raise ValueError(f"{WHO}: {self._place.shown} was changed since it was opened; open it again")
        return tensors

    def _stamp_now(self) -> tuple[int, ...]:
        """What changes when another index takes the place of the one that was opened."""
        try:
            found = self._place.path(INDEX).stat()
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size


def _picture_in(tensors: Mapping[str, Array], name: str, row: Mapping[str, Any]) -> dict[str, Array]:
    """What a shard has of the picture of that row of the index; an error, whichever, where it has not."""
    first, end = row["first_row"], row["first_row"] + row["rows"]
    found = {name: _part(tensors[name], slice(first, end))}
    if "offsets" not in tensors:
        if end - first != 1:
            raise ValueError
        return found
    offsets = tensors["offsets"]
    slices = slice(row["first_slice"], row["first_slice"] + row["slices"])
    results = slices if len(offsets) == len(tensors["tgt_sizes"]) + 1 else slice(*offsets.searchsorted([first, end]).tolist())
    for other, array in tensors.items():
        if other not in (name, "offsets", "image_index"):
            found[other] = _part(array, slices if other in _LOOKED_UP else results)
    own = _part(offsets, slice(results.start, results.stop + 1)) - first
    if own[0] != 0 or own[-1] != end - first or (np.diff(own) < 0).any():
        raise ValueError
    return found | {"offsets": own}


def _part(array: Array, part: slice) -> Array:
    """All of a part, of which NumPy would give what there is."""
    if not 0 <= part.start <= part.stop <= len(array):
        raise IndexError
    return array[part]


@lru_cache(maxsize=64)
def _mapped(path: Path, stamp: tuple[int, ...]) -> dict[str, Array]:
    """A shard's arrays, kept for as long as the corpus has that index."""
    return map_tensors(path)


def open_corpus(out: str | Path) -> Corpus:
    """The corpus in a folder, for reading.

    Parameters
    ----------
    out : path

    Returns
    -------
    Corpus

    Raises
    ------
    ValueError, ImportError
        As `Corpus`.

    Examples
    --------
    >>> open_corpus("no/such/folder")
    Traceback (most recent call last):
    ...
    ValueError: corpus: no/such/folder is no corpus: it has no manifest.json
    """
    return Corpus(out)
