"""Pictures' rows -> shards: files of bounded size in which every row is real."""

import mmap
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from npembed.corpus.place import Place
from npembed.corpus.vectors import Packed
from npembed.support.output_files import write_safetensors
from npembed.support.typing import Array
from npembed.weights.safetensors_header import header_length, parse_header
from npembed.weights.source import WHO

_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}


SPARE: list[Array] = []
"""Memory of groups that are done, for the next: the system takes longer to give out new memory than it takes to fill it."""


def part_name(group: int, overflow: int = 0) -> str:
    """The file of a group of pictures; where the group fills several, the later ones have a number of their own.

    Examples
    --------
    >>> part_name(7), part_name(7, 1)
    ('part-00007.safetensors', 'part-00007-1.safetensors')
    """
    return f"part-{group:05d}{f'-{overflow}' if overflow else ''}.safetensors"


def group_of(name: object) -> int:
    """The group that has a shard of that name, which must be as `part_name` gives it; -1 if none has.

    Examples
    --------
    >>> group_of(part_name(7, 1)), group_of("part-7.safetensors"), group_of("/tmp/part-00007.safetensors")
    (7, -1, -1)
    """
    found = re.fullmatch(r"part-([0-9]{5,15})(?:-([0-9]{1,15}))?\.safetensors", name) if isinstance(name, str) else None
    return int(found[1]) if found and part_name(int(found[1]), int(found[2] or 0)) == name else -1


class Packer:
    """Takes a group's pictures one by one and writes a shard whenever one is full; `end` writes the last.

    Beside the picture that is added, it holds one shard.

    Parameters
    ----------
    place : Place
    group : int
    name : str
        Of the array of rows.
    dtype : dtype
        In which they are stored.
    most_bytes : int
        Of rows in one shard.
    metadata : mapping of str to str
    """

    def __init__(
        self, place: Place, group: int, name: str, dtype: DTypeLike, most_bytes: int, metadata: Mapping[str, str]
    ) -> None:
        self._place, self._group, self._name, self._metadata = place, group, name, dict(metadata)
        self._dtype, self._most = np.dtype(dtype), most_bytes
        self.written: list[tuple[str, int]] = []
        """Name and size of each shard."""
        self._buffer = SPARE.pop() if SPARE else np.empty((0, 0))
        self._begin()

    def _begin(self) -> None:
        self._filled = 0
        self._pictures: list[Packed] = []

    def add(self, picture: Packed) -> dict[str, Any]:
        """Take one picture, and say where in which shard it lies."""
        count, width = sum(map(len, picture.parts)), picture.parts[0].shape[1]
        most = max(1, self._most // (width * self._dtype.itemsize))
        if self._pictures and self._filled + count > most:
            self.flush()
        capacity = max(most, count)  # a picture that is larger than a shard has one of its own
        if self._buffer.shape != (capacity, width) or self._buffer.dtype != self._dtype:
            self._buffer = np.empty((capacity, width), dtype=self._dtype)
        end = self._filled + count
        np.concatenate(picture.parts, out=self._buffer[self._filled : end], casting="same_kind")
        lies = {
            "shard": part_name(self._group, len(self.written)),
            "image": len(self._pictures),
            "first_slice": sum(len(own.tgt_sizes) for own in self._pictures) if len(picture.lengths) else 0,
            "first_row": self._filled,
            "rows": count,
        }
        self._filled = end
        self._pictures.append(replace(picture, parts=[]))
        return lies

    def end(self) -> None:
        """Write what there is, and leave the memory to the next group; nothing is added afterwards."""
        self.flush()
        if self._buffer.nbytes <= self._most:
            SPARE.append(self._buffer)

    def flush(self) -> None:
        """Write what there is."""
        if not self._pictures:
            return
        name = part_name(self._group, len(self.written))
        tensors = {self._name: self._buffer[: self._filled], **self._companions()}
        self._place.write(name, partial(write_safetensors, arrays=tensors, metadata=self._metadata), kept=False)
        self.written.append((name, self._place.size(name)))
        self._begin()

    def _companions(self) -> dict[str, Array]:
        """`offsets`, the slices' sizes and places, and which picture each slice is of; nothing for vectors."""
        if not len(self._pictures[0].lengths):
            return {}
        joined = {
            "offsets": np.concatenate([[0], np.cumsum(np.concatenate([own.lengths for own in self._pictures]))]),
            "tgt_sizes": np.concatenate([own.tgt_sizes for own in self._pictures]),
            "slice_boxes": np.concatenate([own.boxes for own in self._pictures]),
            "image_index": np.repeat(np.arange(len(self._pictures)), [len(own.tgt_sizes) for own in self._pictures]),
        }
        more = {name: np.concatenate([own.more[name] for own in self._pictures]) for name in self._pictures[0].more}
        return joined | more


def map_tensors(path: str | Path) -> dict[str, Array]:
    """The arrays of a safetensors file, read-only and memory-mapped: pages that several processes read are there once.

    Raises
    ------
    ValueError
        A file that is missing, or is no whole safetensors file; an array of a type that shards do not have.
    """
    try:
        with open(path, "rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ValueError(f"corpus: {path} cannot be read: {error}") from None
    try:
        length = header_length(whole[:8], len(whole), str(path))
        header = parse_header(whole[8 : 8 + length], len(whole), str(path))
    except ValueError as error:
        raise ValueError(f"corpus: {str(error).removeprefix(f'{WHO}: ')}") from None
    arrays = {}
    for name, entry in header.entries.items():
        if entry.dtype not in _TYPES:
            raise ValueError(f"corpus: {name} in {path} is of dtype {entry.dtype}; it must be one of {', '.join(_TYPES)}")
        count = int(np.prod(entry.shape, dtype=np.int64))
        arrays[name] = np.frombuffer(whole, _TYPES[entry.dtype], count, header.begins[name]).reshape(entry.shape)
    return arrays
