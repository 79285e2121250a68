"""Temporary files beside what they will replace: named so that they are known, locked while they are written to.

A name is `.npembed-` and sixteen hexadecimal digits, of which the last eight follow from the first eight: no other program
makes such a name by chance. Whoever writes holds a lock on the file, which the system lifts when the process ends, however it
ends. So a file that bears such a name and is not locked is what a killed run left, and the next run that writes beside it
deletes it.
"""

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from npembed.support import stops

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, so nothing is swept
    fcntl = None  # type: ignore[assignment]


def _mark(token: str) -> str:
    """The eight digits that follow from the first eight."""
    return hashlib.sha256(f"npembed beside {token}".encode()).hexdigest()[:8]


@contextmanager
def file_beside(target: Path) -> Iterator[Path]:
    """An empty file in the target's folder with the target's suffix, locked; gone when the block ends.

    A stop in the block is raised there; one while the file is made or deleted waits until that is done.
    """
    with stops.held_back():
        path, lock = _create(target.parent, target.suffix)
        try:
            with stops.let_through():
                yield path
        finally:
            with suppress(OSError):  # it has taken its target's place, or the folder's refusal has been said
                path.unlink()
            os.close(lock)


def sweep(folder: Path) -> None:
    """Delete the files that killed runs left in a folder; what a live process writes to, or cannot be locked, stays."""
    if fcntl is None:
        return
    with suppress(OSError):  # a folder that cannot be read has nothing for us
        for name in os.listdir(folder):
            found = re.fullmatch(r"\.npembed-([0-9a-f]{8})([0-9a-f]{8})(\.[^/]*)?", name)
            if found is not None and found[2] == _mark(found[1]):
                _sweep_one(folder / name)


def _sweep_one(path: Path) -> None:
    with suppress(OSError):  # another run has swept it, or it is locked
        if not stat.S_ISREG(path.lstat().st_mode):
            return
        lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(lock)


def _create(folder: Path, suffix: str) -> tuple[Path, int]:
    """A new file under a name of ours, and the number under which it is open and locked."""
    while True:
        token = secrets.token_hex(4)
        path = folder / f".npembed-{token}{_mark(token)}{suffix}"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if _hold(path, lock):
            return path, lock
        os.close(lock)


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
