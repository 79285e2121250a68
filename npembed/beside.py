"""Temporary files and folders beside what they will replace: named so that they are known, locked while they are written to.

A name is `.npembed-` and sixteen hexadecimal digits, of which the last eight follow from the first eight: no other program
makes such a name by chance. Whoever writes holds a lock on the file or folder, which the system lifts when the process ends,
however it ends. So what bears such a name and is not locked is what a killed run left, and the next run that writes beside it
deletes it.
"""

import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from npembed import manifest, stops

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, so nothing is swept
    fcntl = None  # type: ignore[assignment]

PART, WHOLE = "part", "whole"
"""Within a working folder: what is being written, which is npembed's own; what is written, of which that must be proved."""


def _mark(token: str) -> str:
    """The eight digits that follow from the first eight."""
    return hashlib.sha256(f"npembed beside {token}".encode()).hexdigest()[:8]


def _is_ours(name: str) -> bool:
    found = re.fullmatch(r"\.npembed-([0-9a-f]{8})([0-9a-f]{8})(\.[^/]*)?", name)
    return found is not None and found[2] == _mark(found[1])


@contextmanager
def file_beside(target: Path) -> Iterator[Path]:
    """An empty file in the target's folder with the target's suffix, locked; gone when the block ends.

    A stop in the block is raised there; one while the file is made or deleted waits until that is done.
    """
    with stops.held_back():
        path, lock = _create(target.parent, target.suffix, is_folder=False)
        try:
            with stops.let_through():
                yield path
        finally:
            with suppress(OSError):  # it has taken its target's place, or the folder's refusal has been said
                path.unlink()
            os.close(lock)


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A working folder in the target's folder, locked; gone when the block ends with all in it that is npembed's own."""
    with stops.held_back():
        path, lock = _create(target.parent, "", is_folder=True)
        try:
            with stops.let_through():
                yield path
        finally:
            _clear(path)
            if lock >= 0:
                os.close(lock)


def sweep(folder: Path) -> None:
    """Delete what killed runs left in a folder; what a live process writes to, or cannot be locked, stays."""
    if fcntl is None:
        return
    with suppress(OSError):  # a folder that cannot be read has nothing for us
        for name in os.listdir(folder):
            if _is_ours(name):
                _sweep_one(folder / name)


def _sweep_one(path: Path) -> None:
    with suppress(OSError):  # another run has swept it, or it is locked
        found = path.lstat()
        is_folder = stat.S_ISDIR(found.st_mode)
        if not (is_folder or stat.S_ISREG(found.st_mode)):
            return
        lock = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_folder:
                _clear(path)
            else:
                path.unlink()
        finally:
            os.close(lock)


def _clear(path: Path) -> None:
    """Delete a working folder; what is not provably npembed's own keeps it there."""
    with suppress(OSError):
        for name in os.listdir(path):
            if name == PART:
                shutil.rmtree(path / PART)
            elif name == WHOLE and not (path / WHOLE).is_symlink():
                manifest.remove_own(path / WHOLE)
        path.rmdir()


def _create(folder: Path, suffix: str, *, is_folder: bool) -> tuple[Path, int]:
    """A new file or folder under a name of ours, and the open file that holds the lock on it; -1 where there are no locks."""
    while True:
        token = secrets.token_hex(4)
        path = folder / f".npembed-{token}{_mark(token)}{suffix}"
        if is_folder:
            path.mkdir(mode=0o700)
            lock = _open_folder(path)
        else:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if lock is not None and _hold(path, lock):
            return path, lock
        if lock is not None:
            os.close(lock)


def _open_folder(path: Path) -> int | None:
    """The folder, opened to be locked; None if another process has swept it already; -1 where there are no locks."""
    if fcntl is None:
        return -1
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None


def _hold(path: Path, lock: int) -> bool:
    """Lock what was just made; False if a sweep in another process took it for left over before that."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, on which no sweep can lock either
        return True
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def exchange(one: Path, other: Path) -> None:
    """Let two folders change places in one step.

    Raises
    ------
    OSError
        Where the system or the file system cannot do that (ENOSYS), or refuses it.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old C library
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    here, exchange_flag = -100, 2
    if rename(here, os.fsencode(one), here, os.fsencode(other), exchange_flag):
        number = ctypes.get_errno()
        raise OSError(errno.ENOSYS if number in (errno.EINVAL, errno.EOPNOTSUPP) else number, os.strerror(number))
