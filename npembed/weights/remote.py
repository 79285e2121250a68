"""A checkpoint's folder that is somewhere else: of its safetensors files only the parts that are asked for are read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from npembed.weights.ranges import Ranged, parts_of
from npembed.weights.safetensors_header import Header, as_array, read_header
from npembed.weights.source import INDEX, SINGLE, WHO, Entry, weight_map

GAP = 2**16
"""Bytes between two wanted arrays that are read with them, rather than asked for twice."""

Progress = Callable[[int, int], object]
"""Called with the bytes that are there and the bytes that there will be."""


@dataclass(frozen=True)
class Place:
    """Where an array's bytes are."""

    name: str
    file: str
    begin: int
    entry: Entry

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.begin + self.entry.nbytes


class RemoteCheckpoint:
    """A source: safetensors files and their config, somewhere else.

    Parameters
    ----------
    where : str
        For messages and metadata.
    json : callable
        A file's name -> the JSON object in it; None if there is none.
    file : callable
        A file's name -> the file; None if there is none.
    single : str
        The one file that holds all arrays; without it, an index says which files do.

    Notes
    -----
    Nothing is read before it is asked for. Of a checkpoint in several files, the index alone tells the names, so only the
    headers of files from which an array is asked are read.
    """

    def __init__(
        self,
        where: str,
        json: Callable[[str], dict[str, Any] | None],
        file: Callable[[str], Ranged | None],
        single: str = SINGLE,
    ) -> None:
        self.where, self._read_json, self._open, self._single = where, json, file, single
        self._json: dict[str, dict[str, Any] | None] = {}
        self._files: dict[str, tuple[Ranged, Header]] = {}
        self._file_of: dict[str, str] = {}
        self._held: dict[str, bytearray] = {}

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file `name`; None if there is no such file."""
        if name not in self._json:
            self._json[name] = self._read_json(name)
        return deepcopy(self._json[name])

    def names(self) -> Mapping[str, str]:
        """Every array's name -> the name of the file that holds it."""
        if not self._file_of:
            single = self._open(self._single)
            index = self.json(INDEX) if single is None else None
            if single is not None:
                self._files[self._single] = single, read_header(single)
                self._file_of = dict.fromkeys(self._files[self._single][1].entries, self._single)
            elif index is not None:
                self._file_of = weight_map(index, f"{self.where}/{INDEX}")
            else:
                raise ValueError(f"{WHO}: {self.where} has neither {self._single} nor {INDEX}")
        return self._file_of

    def entries(self) -> Mapping[str, Entry]:
        """Every array, under the checkpoint's own name; an entry is read when it is asked for."""
        return _Entries(self)

    def place(self, name: str) -> Place:
        """Where an array's bytes are."""
        file = self.names()[name]
        header = self._header(file)[1]
        if name not in header.entries:
            raise ValueError(f"{WHO}: {self.where}/{file} does not hold {name!r}, though {INDEX} says so")
        return Place(name, file, header.begins[name], header.entries[name])

    def size(self) -> int:
        """Bytes of the whole checkpoint, as far as it is known without asking for more."""
        index = self._json.get(INDEX) or {}
        stated = (index.get("metadata") or {}).get("total_size") if isinstance(index.get("metadata"), dict) else None
        return max(stated if type(stated) is int else 0, sum(file.size for file, _ in self._files.values()))

    def read(self, name: str) -> NDArray[Any]:
        """One array: float32, half types widened, or float64."""
        place = self.place(name)
        raw: bytes | bytearray | None = self._held.pop(name, None)
        if raw is None:
            raw = self.ranged(place.file).read(place.begin, place.entry.nbytes)
        return as_array(raw, place.entry, name, f"{self.where}/{place.file}")

    def prefetch(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Read these arrays' bytes together where they lie together, and keep each until it is read."""
        places = [self.place(name) for name in names]
        total, done = sum(place.entry.nbytes for place in places), 0
        held = {place.name: bytearray() for place in places}
        for run in runs(places):
            for place, part in pieces(self.ranged(run[0].file), run, run[0].begin):
                held[place.name] += part
                done += len(part)
                if progress:
                    progress(done, total)
        self._held |= held

    def ranged(self, file: str) -> Ranged:
        """One of the safetensors files."""
        return self._header(file)[0]

    def _header(self, file: str) -> tuple[Ranged, Header]:
        if file not in self._files:
            opened = self._open(file)
            if opened is None:
                raise ValueError(f"{WHO}: {self.where} has no file {file}")
            self._files[file] = opened, read_header(opened)
        return self._files[file]


class _Entries(Mapping[str, Entry]):
    """The names are known; an entry may have to be read."""

    def __init__(self, source: RemoteCheckpoint) -> None:
        self._source = source

    def __getitem__(self, name: str) -> Entry:
        return self._source.place(name).entry

    def __contains__(self, name: object) -> bool:
        return name in self._source.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.names())

    def __len__(self) -> int:
        return len(self._source.names())


def in_order(places: Iterable[Place]) -> list[Place]:
    """As they lie: file by file, from each file's beginning on."""
    return sorted(places, key=lambda place: (place.file, place.begin, place.end))


def runs(places: Iterable[Place]) -> list[list[Place]]:
    """Arrays that are read together: of one file, with at most `GAP` bytes between them.

    Examples
    --------
    >>> far = [Place(name, "m", begin, Entry((4,), "F32", 16)) for name, begin in (("c", 10**6), ("a", 0), ("b", 100))]
    >>> [[place.name for place in run] for run in runs(far)]
    [['a', 'b'], ['c']]
    """
    found: list[list[Place]] = []
    for place in in_order(places):
        if found and found[-1][-1].file == place.file and place.begin - found[-1][-1].end <= GAP:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def pieces(file: Ranged, run: Iterable[Place], start: int) -> Iterator[tuple[Place, memoryview]]:
    """The bytes of the arrays of a run, from byte `start` of the file on, as they come, without what lies between arrays."""
    places = [place for place in run if place.end > max(start, place.begin)]
    if not places:
        return
    at = max(start, places[0].begin)
    for part in parts_of(file, at, places[-1].end - at):
        after = at + len(part)
        while places and places[0].begin < after:
            first, last = max(at, places[0].begin), min(after, places[0].end)
            yield places[0], memoryview(part)[first - at : last - at]
            if places[0].end > after:
                break
            places.pop(0)
        at = after
