"""Parts of files: bytes from a place on, and nothing else of the file.

Over HTTP, each answer is checked before a byte of its body is taken: its status, which part it says it is, of how long a
file, and whether that is still the same file. A server that ignores Range, or sends another part, is refused; a connection
that breaks is taken up again at the last byte that came.
"""

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from npembed.support.reading import MissingFileError as MissingFileError
from npembed.support.reading import check_regular, open_regular
from npembed.weights.source import WHO

PIECE = 2**26
"""Bytes of one request, at most."""

RETRIES = 5
"""In a row, before a file is given up."""

PATIENCE = 120
"""Seconds that a server may ask to wait."""

BUSY = (408, 429, 500, 502, 503, 504)
"""Answers after which to ask again."""

WINDOW, LEAST = 60.0, 2**18
"""In so many seconds of waiting for a server, so many bytes must come."""

Sleep = Callable[[float], object]

Clock = Callable[[], float]
"""Seconds, from any beginning."""


class Ranged(Protocol):
    """A file of known size, of which parts can be read."""

    @property
    def where(self) -> str:
        """The file, for messages; never holds a credential."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, begin: int, length: int) -> bytes:
        """Exactly `length` bytes from `begin` on."""


class LocalFile:
    """A file on this machine; open only while a part is read.

    Raises
    ------
    ValueError
        A file that is missing or cannot be read, or that is no longer the file that it was at first.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self.where = Path(path), str(path)
        check_regular(path, who=WHO)
        stat = self._path.stat()
        self.size, self._changed = stat.st_size, stat.st_mtime_ns

    def read(self, begin: int, length: int) -> bytes:
        """Exactly `length` bytes from `begin` on."""
        try:
            with open_regular(self._path, who=WHO) as file:
                stat = os.fstat(file.fileno())
                if (stat.st_size, stat.st_mtime_ns) != (self.size, self._changed):
                    raise ValueError(f"{WHO}: {self.where} has changed since it was first read")
                file.seek(begin)
                part = file.read(length)
        except OSError as error:
            raise ValueError(f"{WHO}: {self.where} cannot be read: {error.strerror or error}") from None
        if len(part) != length:
            raise ValueError(f"{WHO}: {self.where} ends before byte {begin + length:,}")
        return part


def parts_of(file: Ranged, begin: int, length: int) -> Iterator[bytes]:
    """Exactly `length` bytes from `begin` on, in parts as they come: what came before a failure need not be read again."""
    if isinstance(file, HttpFile):
        yield from file.parts(begin, length)
        return
    for at in range(begin, begin + length, PIECE):
        yield file.read(at, min(PIECE, begin + length - at))


@dataclass(frozen=True)
class Answer:
    """A server's: the status, the headers under lower-case names, and the body as it comes, not decoded."""

    status: int
    headers: Mapping[str, str]
    body: Iterator[bytes]


class BrokenError(Exception):
    """The connection broke, or answered too late: it is worth asking again."""


class BusyError(BrokenError):
    """The server asks to come again later."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(f"status {status}")
        self.wait = _retry_after(headers.get("retry-after", ""))


def _retry_after(stated: str) -> float | None:
    """Seconds, of a number of them or of a date."""
    if re.fullmatch(r"[0-9]{1,9}", stated.strip()):
        return float(stated)
    from email.utils import parsedate_to_datetime  # here, because it takes longer to import than most of the package

    try:
        return max(0.0, parsedate_to_datetime(stated).timestamp() - time.time())
    except ValueError:
        return None


class GivenUpError(Exception):
    """A server that is not waited for any longer. No ValueError: http.client takes that for a chunk's length that is none."""


class Pace:
    """How fast a server sends: given up when less than `least` bytes come in `window` seconds, or more than `most` in all.

    Parameters
    ----------
    where : str
        What is read, for messages.
    clock : Clock
    window, least, most : float
        With an infinite `least` it is given up after the first window, however much has come.

    Notes
    -----
    Only waits are counted, each as half a window at most: meanwhile this process may have been stopped.
    """

    def __init__(self, where: str, clock: Clock, window: float = WINDOW, least: float = LEAST, most: float = math.inf) -> None:
        self._where, self._clock, self._window, self._least, self._most = where, clock, window, least, most
        self._seconds, self._came, self._total = 0.0, 0, 0

    def timed(self, read: Callable[[], bytes]) -> bytes:
        """What one read gives, with the time that it took counted.

        Raises
        ------
        GivenUpError
            Too little came, or too much.
        """
        begun = self._clock()
        part = read()
        self._seconds += min(self._clock() - begun, self._window / 2)
        self._came, self._total = self._came + len(part), self._total + len(part)
        if self._total > self._most:
            raise GivenUpError(f"{WHO}: the server of {self._where} sends without end: {self._total:,} bytes")
        if self._seconds >= self._window:
            if self._came < self._least:
                words = f"sends too slowly: {self._came:,} bytes in {self._seconds:,.0f} s"
                raise GivenUpError(f"{WHO}: the server of {self._where} {words}")
            self._seconds, self._came = 0.0, 0
        return part


class Patience:
    """Counts failures in a row, and waits after each; longer each time, or as long as the server asks."""

    def __init__(self, where: str, sleep: Sleep) -> None:
        self._where, self._sleep, self.failures = where, sleep, 0

    def after(self, error: BrokenError) -> None:
        """Wait, or raise ValueError when it has failed too often."""
        self.failures += 1
        wait = getattr(error, "wait", None)
        if self.failures > RETRIES:
            raise ValueError(f"{WHO}: {self._where} could not be read, after {RETRIES + 1} attempts: {error}") from None
        if wait is not None and wait > PATIENCE:
            raise ValueError(f"{WHO}: the server of {self._where} is busy; it asks to come again in {wait:,.0f} s") from None
        self._sleep(min(2.0 ** (self.failures - 1), 8.0) if wait is None else wait)


Ask = Callable[[int, int], AbstractContextManager[Answer]]
"""Asks for the bytes from the first number up to, and without, the second. Raises BrokenError or ValueError, also
while the body is read."""


class HttpFile:
    """A file on a server, which answers to ranges.

    Parameters
    ----------
    where : str
        For messages.
    ask : Ask
        Sends one request.
    sleep : callable
        Waits that many seconds.
    clock : Clock

    Raises
    ------
    ValueError
        A server that ignores ranges, answers with another part or with a compressed one, is busy or broken for too long, or
        sends too slowly; a file that changes between two requests.

    Notes
    -----
    The first eight bytes are read at once, which tells the size.
    """

    def __init__(self, where: str, ask: Ask, sleep: Sleep = time.sleep, clock: Clock = time.monotonic) -> None:
        self.where, self._ask, self._sleep, self._clock = where, ask, sleep, clock
        self._size: int | None = None
        self._same: str | None = None
        self._first = b"".join(self.parts(0, 8))

    @property
    def size(self) -> int:
        """In bytes."""
        return self._size or 0

    def read(self, begin: int, length: int) -> bytes:
        """Exactly `length` bytes from `begin` on."""
        if begin + length <= len(self._first):
            return self._first[begin : begin + length]
        return b"".join(self.parts(begin, length))

    def parts(self, begin: int, length: int) -> Iterator[bytes]:
        """Exactly `length` bytes from `begin` on, as they come."""
        if self._size is not None and begin + length > self._size:
            raise ValueError(f"{WHO}: {self.where} ends before byte {begin + length:,}")
        at, since, patience, pace = begin, 0, Patience(self.where, self._sleep), Pace(self.where, self._clock)
        while at < begin + length:
            read = partial(next, self._piece(at, min(begin + length, at + PIECE)), b"")
            try:
                while part := pace.timed(read):
                    at, since = at + len(part), since + len(part)
                    yield part
            except GivenUpError as error:
                raise ValueError(str(error)) from None
            except BrokenError as error:
                if since >= 2**20:  # it goes on well enough
                    patience.failures, since = 0, 0
                patience.after(error)
            if self._size is not None:  # the first eight bytes may be more than there are
                length = min(length, self._size - begin)

    def _piece(self, at: int, stop: int) -> Iterator[bytes]:
        """One answer's bytes, from `at` on; not beyond `stop`, perhaps fewer."""
        with self._ask(at, stop) as answer:
            left = self._checked(answer, at, stop)
            for part in answer.body:
                if len(part) > left:
                    raise ValueError(f"{WHO}: the server of {self.where} sends more bytes than it says")
                left -= len(part)
                yield part
            if left:
                raise BrokenError(f"the connection ended {left:,} bytes early")

    def _checked(self, answer: Answer, at: int, stop: int) -> int:
        """How many bytes the answer says it has, if it is the one that was asked for."""
        if answer.status in BUSY:
            raise BusyError(answer.status, answer.headers)
        if answer.status == 200:
            raise ValueError(
                f"{WHO}: the server of {self.where} ignores Range: it would send the whole file, so nothing is read"
            )
        if answer.status != 206:
            raise ValueError(f"{WHO}: the server of {self.where} answers with status {answer.status}")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise ValueError(f"{WHO}: the server of {self.where} answers a range compressed; its bytes cannot be told")
        stated = answer.headers.get("content-range", "")
        match = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", stated)
        first, last, size = map(int, match.groups()) if match else (-1, -1, -1)
        if first != at or not at <= last < min(stop, size):
            raise ValueError(
                f"{WHO}: the server of {self.where} was asked for bytes {at}-{stop - 1} and answers with {stated[:60]!r}"
            )
        self._remember(size, answer.headers)
        return last - first + 1

    def _remember(self, size: int, headers: Mapping[str, str]) -> None:
        """That it is still the same file."""
        same = headers.get("etag") or headers.get("last-modified")
        if (self._size not in (None, size)) or (self._same is not None and same != self._same):
            raise ValueError(f"{WHO}: {self.where} has changed on the server between two requests")
        self._size, self._same = size, same
