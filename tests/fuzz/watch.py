"""What a command opens, alters and connects to, seen by Python's own audit: nothing but what its call names."""

import os
import sys
import tempfile
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

ALTERS = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown")
"""Events that alter what their first arguments name; a rename alters both."""


def watch(folder: Path, secrets: frozenset[str], hosts: Container[str] | None) -> list[str]:
    """From now on until this process ends: what is done that must not be, in words, as a list that grows.

    Parameters
    ----------
    folder : Path
        Nothing outside it may be written, made or deleted.
    secrets : set of str
        Real paths that may not be opened.
    hosts : container of str, or None
        Servers that may be asked; what asks for another gets an error, so that it is not. None: those of this machine, and
        it is nothing wrong to try others.
    """
    seen: list[str] = []
    inside = f"{os.path.realpath(folder)}{os.sep}"
    sys.dont_write_bytecode = True
    tempfile.tempdir = str(folder / "tmp")
    Path(tempfile.tempdir).mkdir()

    def opened(path: Any, mode: Any = "", flags: int = 0, *_: Any) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            real = os.path.realpath(os.fsdecode(path))
            if real in secrets:
                seen.append(f"opens {real}")
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not real.startswith((inside, "/dev/null")):
                seen.append(f"writes {real}")

    def altered(*paths: Any) -> None:
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)):
                parent, name = os.path.split(os.path.abspath(os.fsdecode(path)))  # a link itself, not what it leads to
                if not f"{os.path.realpath(parent)}{os.sep}{name}".startswith(inside):
                    seen.append(f"alters {path!r}")

    def asked(*words: Any) -> None:
        host = words[1][0] if isinstance(words[1], tuple) else words[0] if isinstance(words[0], str) else words[1]
        if hosts is not None and host not in hosts:
            seen.append(f"asks {host}")
        if host != "127.0.0.1":
            raise OSError("a host was asked that nobody named")

    handlers: dict[str, Callable[..., None]] = {"open": opened, "socket.connect": asked, "socket.getaddrinfo": asked}
    handlers |= dict.fromkeys(ALTERS, altered)

    def hook(event: str, words: tuple[Any, ...]) -> None:
        if handler := handlers.get(event):
            handler(*words)

    sys.addaudithook(hook)
    return seen
