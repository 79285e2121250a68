"""Where arrays' bytes are in files, and reading together what lies together."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from npembed.weights.ranges import LocalFile, Ranged, parts_of
from npembed.weights.source import Entry, Progress

GAP = 2**16
"""Bytes between two wanted arrays that are read with them, rather than asked for twice."""


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


def bytes_of(places: Iterable[Place]) -> int:
    """Of all of them together."""
    return sum(place.entry.nbytes for place in places)


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


class Ahead:
    """Arrays' bytes that were read before they are asked for; each is kept until it is taken.

    Parameters
    ----------
    file_of : callable
        A file's name -> the file.
    """

    def __init__(self, file_of: Callable[[str], Ranged]) -> None:
        self._file_of, self._held = file_of, dict[str, bytearray]()

    def far(self, places: Iterable[Place]) -> list[Place]:
        """The places that are not on this machine."""
        return [place for place in places if not isinstance(self._file_of(place.file), LocalFile)]

    def read(self, places: Iterable[Place], progress: Progress | None = None) -> None:
        """Read these arrays' bytes; of files on this machine none, because to read them one by one takes less memory."""
        far = self.far(places)
        total, done = bytes_of(far), 0
        held = {place.name: bytearray() for place in far}
        for run in runs(far):
            for place, part in pieces(self._file_of(run[0].file), run, run[0].begin):
                held[place.name] += part
                done += len(part)
                if progress:
                    progress(done, total)
        self._held |= held

    def take(self, place: Place) -> bytes | bytearray:
        """One array's bytes."""
        raw = self._held.pop(place.name, None)
        return self._file_of(place.file).read(place.begin, place.entry.nbytes) if raw is None else raw
