"""GGUF, the container of llama.cpp: its header, read within bounds, and one array at a time.

The container is a magic word, a version, two counts, pairs of key and value, a record per array, and the arrays' bytes.
The package gguf hangs on files that lie about a count and accepts arrays that overlap, so the header is read here; the
quantised numbers are computed by the package.
"""

import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npembed.weights.places import Ahead, Place, bytes_of
from npembed.weights.ranges import LocalFile, Ranged
from npembed.weights.safetensors_header import as_array
from npembed.weights.source import FLOATS, WHO, Entry, Progress

MAGIC, VERSIONS = b"GGUF", (2, 3)

MOST_HEADER = 2**22
"""Bytes of a header, at most: an mmproj file's has some 30,000."""

MOST_PAIRS = MOST_ARRAYS = 65_536
MOST_KEY, MOST_NAME, MOST_DIMS = 65_535, 64, 4

NUMBERS = dict(enumerate(("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", None, None, "<u8", "<i8", "<f8")))
"""NumPy's type of a value's kind; None for a text (8) and for an array (9)."""

BOOL, TEXT, ARRAY = 7, 8, 9

ALIGNMENT = "general.alignment"


class _Cursor:
    """Walks through the header; every length is compared with the bytes that are left before anything is made of it."""

    def __init__(self, file: Ranged) -> None:
        self.file, self.at = file, 0
        self._held, self._from, self._end = b"", 0, min(file.size, MOST_HEADER)

    def fail(self, words: str) -> ValueError:
        return ValueError(f"{WHO}: {self.file.where} {words}")

    def take(self, length: int, what: str) -> bytes:
        if length > self._end - self.at:
            left = "the header may have" if self._end == MOST_HEADER else "the file has"
            raise self.fail(f"is cut short or damaged: {what} takes {length:,} bytes, {left} {self._end - self.at:,} left")
        if self.at + length > self._from + len(self._held):
            self._from, least = self.at, max(length, 2**16)
            self._held = self.file.read(self.at, min(least, self._end - self.at))
        begin, self.at = self.at - self._from, self.at + length
        return self._held[begin : begin + length]

    def number(self, form: str, what: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form), what))[0])

    def count(self, what: str, most: int) -> int:
        count = self.number("<Q", what)
        if count > most:
            raise self.fail(f"claims {count:,} {what}; at most {most:,} are read")
        return count

    def text(self, what: str, most: int = MOST_HEADER) -> str:
        raw = self.take(self.count(f"bytes of {what}", most), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.fail(f"has {what} that is not UTF-8: {raw[:40]!r}") from None

    def value(self, kind: int, key: str) -> Any:
        """A value of that kind; an array as a list."""
        if kind == ARRAY:
            kind, count = self.number("<I", f"the kind of {key!r}"), self.number("<Q", f"the length of {key!r}")
            return self._several(kind, count, key)
        return self._several(kind, 1, key)[0]

    def _several(self, kind: int, count: int, key: str) -> list[Any]:
        if kind == TEXT:
            if count > (self._end - self.at) // 8:
                raise self.fail(f"is cut short or damaged: {key!r} claims {count:,} texts")
            return [self.text(f"the text of {key!r}") for _ in range(count)]
        stored = NUMBERS.get(kind)
        if stored is None:
            raise self.fail(f"gives {key!r} the kind {kind}, which is unknown here")
        raw = self.take(count * np.dtype(stored).itemsize, repr(key))
        if kind == BOOL and raw.strip(b"\0\1"):
            raise self.fail(f"gives {key!r} a truth value that is neither 0 nor 1")
        values: list[Any] = np.frombuffer(raw, stored).tolist()
        return values


class GgufFile:
    """One GGUF file: its metadata, what arrays it holds, and one array at a time.

    Parameters
    ----------
    file : path or Ranged
    architecture : str
        Refused as soon as the file says that it is of another one: a language model's file has a long header.

    Attributes
    ----------
    where : str
    metadata : mapping
        Key -> value; an array as a list.
    entries : mapping
        The file's own names -> `Entry`, shapes in NumPy's order.

    Raises
    ------
    ValueError
        No GGUF file, of an unknown version, big-endian, cut short or damaged; a type that the package gguf does not know.
    ImportError
        Without the extra `gguf`.

    Notes
    -----
    The file is never mapped: a file that is cut off later is an error.
    """

    def __init__(self, file: str | Path | Ranged, architecture: str = "clip") -> None:
        self._gguf = _package()
        self._file = LocalFile(file) if isinstance(file, (str, Path)) else file
        self.where = self._file.where
        cursor = _Cursor(self._file)
        arrays, pairs = _counts(cursor)
        self.metadata: Mapping[str, Any] = _metadata(cursor, pairs, architecture)
        records = [self._record(cursor) for _ in range(arrays)]
        self._places = _places(cursor, records, self._alignment(cursor))
        self.entries: Mapping[str, Entry] = {name: place.entry for name, place in self._places.items()}
        self._ahead = Ahead(lambda name: self._file)

    def _alignment(self, cursor: _Cursor) -> int:
        alignment = self.metadata.get(ALIGNMENT, 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise cursor.fail(f"has the {ALIGNMENT} {str(alignment)[:40]!r}; it must be a power of two")
        return alignment

    def _record(self, cursor: _Cursor) -> tuple[str, Entry, int]:
        """One array's name, entry and offset from the beginning of the data."""
        name = cursor.text("an array's name", MOST_NAME)
        dims = cursor.number("<I", f"the dimensions of {name!r}")
        if not 1 <= dims <= MOST_DIMS:
            raise cursor.fail(f"gives {name!r} {dims:,} dimensions; from 1 to {MOST_DIMS} are read")
        shape = tuple(cursor.number("<Q", f"the shape of {name!r}") for _ in range(dims))[::-1]
        kind, offset = cursor.number("<I", f"the type of {name!r}"), cursor.number("<Q", f"the offset of {name!r}")
        if 0 in shape:
            raise cursor.fail(f"gives {name!r} the shape {shape}, which has an empty axis")
        try:
            dtype = self._gguf.GGMLQuantizationType(kind)
        except ValueError:
            raise cursor.fail(f"gives {name!r} the type {kind}, which the package gguf does not know") from None
        block, nbytes = self._gguf.GGML_QUANT_SIZES[dtype]
        if shape[-1] % block:
            raise cursor.fail(f"gives {name!r} rows of {shape[-1]:,} numbers; {dtype.name} takes a multiple of {block}")
        return name, Entry(shape, dtype.name, math.prod(shape) // block * nbytes, self._readable(dtype)), offset

    def _readable(self, dtype: Any) -> bool:
        """Whether the type is one of floats, or the package can dequantise it."""
        if dtype.name in FLOATS:
            return True
        nbytes = self._gguf.GGML_QUANT_SIZES[dtype][1]
        try:
            self._gguf.quants.dequantize(np.zeros((1, nbytes), np.uint8), dtype)
        except NotImplementedError:
            return False
        return True

    def size(self) -> int:
        """Of the file, in bytes."""
        return self._file.size

    def far(self, names: Iterable[str]) -> int:
        """How many bytes of these arrays are not on this machine."""
        return bytes_of(self._ahead.far(self._places[name] for name in names))

    def prefetch(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Read these arrays' bytes together where they lie together, if the file is far away."""
        self._ahead.read((self._places[name] for name in names), progress)

    def read(self, name: str) -> NDArray[Any]:
        """One array: float32, half and quantised types widened, or float64."""
        place = self._places[name]
        entry, raw = place.entry, self._ahead.take(place)
        if entry.dtype in FLOATS:
            return as_array(raw, entry, name, self.where)
        kind = self._gguf.GGMLQuantizationType[entry.dtype]
        rows = np.frombuffer(raw, np.uint8).reshape(math.prod(entry.shape[:-1]), -1)
        try:
            with np.errstate(all="ignore"):  # a block may hold any bits
                return np.asarray(self._gguf.quants.dequantize(rows, kind), np.float32).reshape(entry.shape)
        except NotImplementedError:
            raise ValueError(f"{WHO}: {name!r} in {self.where} is of type {entry.dtype}, which cannot be dequantised") from None


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """How many arrays and how many pairs follow."""
    if cursor.file.size < 24 or cursor.take(4, "the magic word") != MAGIC:
        raise cursor.fail("is no GGUF file")
    version = cursor.number("<I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in (1, *VERSIONS):
            raise cursor.fail("is a big-endian GGUF file; only little-endian ones are read")
        raise cursor.fail(f"is a GGUF file of version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read")
    return cursor.count("arrays", MOST_ARRAYS), cursor.count("pairs of key and value", MOST_PAIRS)


def _metadata(cursor: _Cursor, pairs: int, architecture: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text("a key", MOST_KEY)
        shown = key[:60]
        if key in found:
            raise cursor.fail(f"has the key {shown!r} twice")
        found[key] = cursor.value(cursor.number("<I", f"the kind of {shown!r}"), shown)
        if key == "general.architecture":
            _check_architecture(cursor, found[key], architecture)
    _check_architecture(cursor, found.get("general.architecture"), architecture)
    return found


def _check_architecture(cursor: _Cursor, found: Any, expected: str) -> None:
    if found != expected:
        what = "states no general.architecture" if found is None else f"is of the architecture {str(found)[:40]!r}"
        raise cursor.fail(f"{what}; an mmproj file, {expected!r}, is needed, not the language model's")


def _places(cursor: _Cursor, records: list[tuple[str, Entry, int]], alignment: int) -> dict[str, Place]:
    """Each array's entry, and where it begins in the file; none overlaps another or leaves the file."""
    data, end = -(-cursor.at // alignment) * alignment, 0
    places: dict[str, Place] = {}
    for name, entry, offset in sorted(records, key=lambda record: record[2]):
        if name in places:
            raise cursor.fail(f"has the array {name!r} twice")
        if offset % alignment:
            raise cursor.fail(f"puts {name!r} at {offset:,}, which is no multiple of {alignment}")
        if offset < end:
            raise cursor.fail(f"puts {name!r} at {offset:,}, where another array is")
        end = offset + entry.nbytes
        if data + end > cursor.file.size:
            raise cursor.fail(
                f"is cut short or damaged: {name!r} ends at byte {data + end:,}, the file at {cursor.file.size:,}"
            )
        places[name] = Place(name, cursor.file.where, data + offset, entry)
    return places


def is_gguf(file: Ranged) -> bool:
    """Whether a file begins as one; its name says nothing."""
    return file.size >= len(MAGIC) and file.read(0, len(MAGIC)) == MAGIC


def _package() -> Any:
    try:
        import gguf
        from gguf import quants  # noqa: F401
    except ImportError:
        raise ImportError("GGUF files need the package gguf: pip install 'npembed[gguf]'") from None
    return gguf
