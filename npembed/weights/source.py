"""What every source of weights offers: names, shapes and types without reading, and one array read."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from npembed.typing import Floats


@dataclass(frozen=True)
class Entry:
    """What is known of an array without reading it.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
        As the file calls it: F32, F16, BF16, Q8_0, ...
    nbytes : int
        In the file.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class Source(Protocol):
    """Where a checkpoint's configs and arrays come from."""

    where: str
    """For messages and metadata; never with a credential."""

    def json(self, name: str) -> Mapping[str, Any] | None:
        """The JSON object in the file of that name, as `config.json`; None where there is no such file."""

    def entries(self) -> Mapping[str, Entry]:
        """Every array by its name in the checkpoint."""

    def names(self) -> Collection[str]:
        """Every array's name in the checkpoint, with as little read as can be."""

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Floats:
        """One array: float64 as it is, all else as float32; its type, its shape and its numbers are checked."""


READABLE = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
"""Bytes per number of the types that become float32 or stay float64."""


def entry_of(shape: Sequence[int], dtype: str) -> Entry:
    """What is known of an array of plain numbers."""
    return Entry(tuple(shape), dtype, math.prod(shape) * READABLE.get(dtype, 1))


def check_entry(entry: Entry, shape: tuple[int, ...] | None, where: str) -> None:
    """An error unless the array is of a type that can be read, and of that shape."""
    if entry.dtype not in READABLE:
        raise ValueError(f"load_model: {where} is of dtype {entry.dtype}; it must be one of {', '.join(READABLE)}")
    if shape is not None and entry.shape != shape:
        raise ValueError(f"load_model: {where} must have shape {shape} by the config; got {entry.shape}")


def finite(array: Floats, where: str) -> Floats:
    """The array, or an error that names its first element that is no number."""
    if np.isfinite(array.sum(dtype=np.float64)):  # one pass; only a sum that is not finite is looked into
        return array
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(f"load_model: {where} holds {array[place]} at {list(place)}; weights must be finite")
    return array
