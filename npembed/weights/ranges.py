"""Parts of files: bytes from a place on, and nothing else of the file.

Over HTTP, each answer is checked before a byte of its body is taken: its status, which part it says it is, of how long a
file, and whether that is still the same file. A server that ignores Range, or sends another part, is refused; a connection
that breaks is taken up again at the last byte that came.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from npembed.reading import MissingFileError as MissingFileError
from npembed.reading import check_regular, open_regular
from npembed.weights.source import WHO

PIECE = 2**26
"""Bytes of one request, at most."""

RETRIES = 5
"""In a row, before a file is given up."""

PATIENCE = 120
"""Seconds that a server may ask to wait."""

BUSY = (408, 429, 500, 502, 503, 504)
"""Answers after which to ask again."""

Sleep = Callable[[float], object]


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

    Raises
    ------
    ValueError
        A server that ignores ranges, answers with another part or with a compressed one, or is busy or broken for too
        long; a file that changes between two requests.

    Notes
    -----
    The first eight bytes are read at once, which tells the size.
    """

    def __init__(self, where: str, ask: Ask, sleep: Sleep = time.sleep) -> None:
        self.where, self._ask, self._sleep = where, ask, sleep
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
        at, patience = begin, Patience(self.where, self._sleep)
        while at < begin + length:
            came = 0
            try:
                for part in self._piece(at, min(begin + length, at + PIECE)):
                    came += len(part)
                    yield part
                patience.failures = 0
            except BrokenError as error:
                patience.failures = 0 if came >= 2**20 else patience.failures
                patience.after(error)
            at += came
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
