"""Parts of files: bytes from a place on, and nothing else of the file."""

import os
from pathlib import Path
from typing import Protocol

from npembed.weights.source import WHO


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
        if not self._path.is_file():
            raise ValueError(f"{WHO}: the file {path} is missing")
        stat = self._path.stat()
        self.size, self._changed = stat.st_size, stat.st_mtime_ns

    def read(self, begin: int, length: int) -> bytes:
        """Exactly `length` bytes from `begin` on."""
        try:
            with self._path.open("rb") as file:
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
