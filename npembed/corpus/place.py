"""The folder that a corpus is in: on this machine, or wherever fsspec reaches. Its files are written whole or not at all."""

import io
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from npembed.corpus.sources import _filesystem, _read, without_credential
from npembed.support.atomic import file_beside, sweep
from npembed.support.messages import brief, shown
from npembed.support.reading import open_at_once

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_NAME = re.compile(r"((rows|scratch)/)?[A-Za-z0-9][\w.-]*|\.lock|", re.ASCII)
"""What a file or a folder of a corpus may be called: nothing that leads out of it."""


class Place:
    """Files by their names in one folder, "/" between folders.

    Parameters
    ----------
    out : str
        A path or a URL of fsspec. It may be given to another process as it is in `out`, where a path is absolute.
    """

    def __init__(self, out: str) -> None:
        self.shown = without_credential(out)
        self.out = out if "://" in out else os.path.abspath(out)
        self._system: Any
        self._system, self._root = _filesystem(out) if "://" in out else (None, self.out)
        self._is_here = self._system is None or "file" in getattr(self._system, "protocol", ())

    @property
    def is_local(self) -> bool:
        """Whether it is a folder that this machine sees."""
        return self._system is None

    def check(self, name: str) -> None:
        """An error for a name, or for what bears it, that could lead out of the folder. Every way to a file comes by here.

        Raises
        ------
        ValueError
            A name that is no corpus's; a link, a pipe or the like, or something in a folder that is a link.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"corpus: {self.shown} is damaged: no file of a corpus is called {brief(name)}")
        above, _, _ = name.rpartition("/")
        for each in filter(None, (above, name) if self._is_here else ()):
            with suppress(FileNotFoundError, NotADirectoryError):
                mode = os.lstat(f"{self._root}/{each}").st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    kind = "a link" if stat.S_ISLNK(mode) else "no regular file"
                    raise ValueError(f"corpus: {self.shown}/{each} is {kind}; the files of a corpus must lie in its own folder")

    def path(self, name: str) -> Path:
        """The file of that name, for a folder on this machine."""
        assert self.is_local
        self.check(name)
        return Path(self._root, name)

    def make(self) -> None:
        """The folder, and those above it, if they are not there."""
        if self._system is None:
            try:
                os.makedirs(self._root, exist_ok=True)
            except OSError as error:
                raise ValueError(f"corpus: {self.shown} cannot be made: {error.strerror}") from None
            return
        try:
            self._system.makedirs(self._root, exist_ok=True)
        except Exception as error:
            raise ValueError(f"corpus: {self.shown} cannot be made: {_words(error)}") from None

    def names(self, folder: str = "") -> list[str]:
        """What lies in the folder itself, or in one within it, without the lock; nothing if there is no folder.

        Raises
        ------
        ValueError
            The storage's refusal, in words.
        """
        self.check(folder)
        try:
            found = os.listdir(self.path(folder)) if self._system is None else [_last(p) for p in self._listed(folder)]
        except FileNotFoundError:
            return []
        except Exception as error:  # every kind of storage has errors of its own
            raise ValueError(f"corpus: {self.shown} cannot be read as a folder: {_words(error)}") from None
        return sorted(name for name in found if name != LOCK)

    def _listed(self, folder: str) -> list[str]:
        self._system.invalidate_cache()
        listed: list[str] = self._system.ls(self._below(folder).rstrip("/"), detail=False)
        return listed

    def size(self, name: str) -> int:
        """In bytes; -1 if there is no such file."""
        try:
            return self.path(name).stat().st_size if self._system is None else int(self._system.size(self._below(name)))
        except (OSError, TypeError):
            return -1

    def open(self, name: str, most: int | None = None) -> BinaryIO:
        """A file, opened to read its bytes; of one far away only so many, and they are read at once.

        Raises
        ------
        FileNotFoundError
        ValueError
            The storage's refusal, in words.
        """
        where = self._below(name)
        with self._refusal(name, "read"):
            return open_at_once(where) if self._system is None else io.BytesIO(self._system.cat_file(where, 0, most))

    def read(self, name: str, most: int | None = None) -> bytes:
        """All of a file.

        Raises
        ------
        FileNotFoundError
        ValueError
            A file of more than so many bytes; the storage's refusal, in words.
        """
        beyond = None if most is None else most + 1
        with self.open(name, beyond) as file, self._refusal(name, "read"):
            content = file.read() if beyond is None else _read(file, beyond)
        if most is not None and len(content) > most:
            raise ValueError(f"corpus: {self.shown}/{name} has more than {most:,} bytes")
        return content

    @contextmanager
    def _refusal(self, name: str, verb: str) -> Iterator[None]:
        """What a storage raises, as an error in words; every kind of storage has errors of its own."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"corpus: {self.shown}/{name} cannot be {verb}: {_words(error)}") from None

    def write(self, name: str, write: Callable[[Path], Any], *, kept: bool = True) -> None:
        """Let `write` fill a file, which then takes its name; without `kept`, the system need not keep it in memory as well.

        Raises
        ------
        ValueError
            The storage's refusal, in words.
        """
        if self._system is None:
            self._write_here(name, write, kept)
            return
        with tempfile.TemporaryDirectory(prefix="npembed-") as folder:
            here = Path(folder, _last(name))
            write(here)
            self._put(here, name)

    def _write_here(self, name: str, write: Callable[[Path], Any], kept: bool) -> None:
        """As `replacing`, but nothing is swept: without locks, that would delete what another machine's worker writes."""
        path = self.path(name)
        try:
            if "/" in name:  # the corpus's own folder is made once: one that was taken away stays away
                path.parent.mkdir(exist_ok=True)
            with file_beside(path) as beside:
                write(beside)
                _to_disk(beside)
                if not kept:
                    _out_of_cache(beside)
                os.replace(beside, path)
        except OSError as error:
            raise ValueError(f"corpus: {self.shown}/{name} cannot be written: {error.strerror or error}") from None

    def sweep(self) -> None:
        """Delete what killed runs left; for the one run that holds the lock."""
        if self._system is None:
            for folder in ("", "rows", "scratch"):
                sweep(self.path(folder))

    def _put(self, here: Path, name: str) -> None:
        beside = f"{self._root.rstrip('/')}/.npembed-{secrets.token_hex(8)}"
        try:
            self._system.makedirs(self._below(name).rpartition("/")[0], exist_ok=True)
            self._system.put_file(str(here), beside)
            self._system.mv(beside, self._below(name))
        except Exception as error:  # every kind of storage has errors of its own
            with suppress(Exception):
                self._system.rm_file(beside)
            raise ValueError(f"corpus: {self.shown}/{name} cannot be written: {_words(error)}") from None

    def remove(self, name: str) -> None:
        """Delete a file of the corpus, if it is there.

        Raises
        ------
        ValueError
            The storage's refusal, in words.
        """
        where = self._below(name)
        with suppress(FileNotFoundError), self._refusal(name, "removed"):
            os.unlink(where) if self._system is None else self._system.rm_file(where)
        if self._system is None and "/" in name:
            with suppress(OSError):  # something is in it yet, or it is not there
                self.path(name).parent.rmdir()

    def _below(self, name: str) -> str:
        self.check(name)
        return f"{self._root.rstrip('/')}/{name}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one run at a time writes here. The system lifts the lock when the process ends, however it ends.

        Raises
        ------
        ValueError
            Another run holds it; a folder that is gone, or that cannot be written to.

        Notes
        -----
        A folder that is reached by a URL has no such lock, nor have Windows and some file systems of a network.
        """
        if self._system is not None or fcntl is None:
            yield
            return
        path = self.path(LOCK)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ValueError(f"corpus: {self.shown} cannot be written to: {error.strerror}") from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"corpus: another run is writing to {self.shown}; wait for it or stop it") from None
            except OSError:  # a file system without locks
                pass
            yield
        finally:
            os.close(lock)


def _words(error: Exception) -> str:
    """What a storage says, which may quote a URL."""
    said = getattr(error, "strerror", None) or str(error)
    return shown(without_credential(said)) if said else type(error).__name__


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _to_disk(path: Path) -> None:
    """So that a machine that loses its power has the old file or the whole new one."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _out_of_cache(path: Path) -> None:
    """Let the system's copy of a file go, so that a corpus that is larger than the memory does not push out all else."""
    if hasattr(os, "posix_fadvise"):  # Linux and its like
        with path.open("rb") as file, suppress(OSError):  # it is advice
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
