"""A checkpoint's folder, a safetensors file with its config beside it, or an mmproj file, at any URL.

http and https are read by `web`; every other protocol is fsspec's.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from npembed.weights.checkpoint import Checkpoint, Files
from npembed.weights.gguf import is_gguf
from npembed.weights.mmproj import GgufSource
from npembed.weights.ranges import Clock, LocalFile, Ranged, Sleep
from npembed.weights.source import WHO, Source, most_bytes, public
from npembed.weights.web import Web


def open_url(url: str, sleep: Sleep = time.sleep, clock: Clock = time.monotonic) -> Source:
    """The source at a URL; nothing of it is kept.

    Parameters
    ----------
    url : str
        Of a folder with config.json and model.safetensors or its shards, of a .safetensors file with config.json beside
        it, or of an mmproj file, .gguf. http, https and every protocol that fsspec knows.
    sleep : callable
        Waits that many seconds, before a server is asked again.
    clock : callable
        Seconds, by which a server that sends too slowly is given up.

    Returns
    -------
    Source
        A `GgufSource` or a `Checkpoint`, whose `prefetch` reads together what lies together.

    Raises
    ------
    ValueError
        What is no URL; a protocol that is unknown; a file that is missing or cannot be read; a server that answers wrongly,
        see `HttpFile`, or so slowly that a small file takes two minutes, or less than 256 kB of a large one come in one.
    ImportError
        A protocol whose package is missing.
    """
    folder, name = _opened(url, sleep, clock)
    if not name:
        return Checkpoint(public(url).rstrip("/"), folder)
    file = folder.file(name)
    if file is None:
        raise ValueError(f"{WHO}: the file {public(url)} is missing")
    if name.endswith(".gguf") or is_gguf(file):
        return GgufSource(file)
    return Checkpoint(public(url), folder, name)


def _opened(url: str, sleep: Sleep, clock: Clock) -> tuple[Files, str]:
    """The folder, and the file in it if the URL is a file's."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https"):
            parts.port  # noqa: B018  # which is looked at only when it is asked for
            return _cut_http(parts, sleep, clock)
    except ValueError as error:
        raise ValueError(f"{WHO}: {public(url)} is no URL: {error}") from None
    if "::" in url and "http" in url:
        raise ValueError(f"{WHO}: {public(url)} reaches a web server by way of another protocol; only its own URL can be read")
    return _cut_fsspec(url)


def _is_file(name: str) -> bool:
    return name.endswith((".gguf", ".safetensors"))


def _cut_http(parts: SplitResult, sleep: Sleep, clock: Clock) -> tuple[Files, str]:
    folder, _, name = parts.path.rpartition("/")
    if not _is_file(name):
        return Web(parts, sleep, clock), ""
    return Web(parts._replace(path=folder), sleep, clock), unquote(name)


class _Filesystem:
    """A folder of one of fsspec's file systems."""

    def __init__(self, system: Any, root: str, where: str) -> None:
        self._system, self._root, self._where = system, root.rstrip("/"), where

    def address(self, name: str) -> str:
        """A file, for messages."""
        return f"{self._where}/{name}"

    def has(self, name: str) -> bool:
        """Whether there is such a file; nothing of it is read."""
        return self._info(name) is not None

    def whole(self, name: str) -> bytes | None:
        """A small file's bytes; None if there is none."""
        file = self.file(name)
        if file is not None and file.size > most_bytes(name):
            raise ValueError(f"{WHO}: {file.where} has {file.size:,} bytes; at most {most_bytes(name):,} are read")
        return None if file is None else file.read(0, file.size)

    def file(self, name: str) -> Ranged | None:
        """A large file; None if there is none."""
        path, where, info = f"{self._root}/{name}", self.address(name), self._info(name)
        if info is None:
            return None
        if "file" in self._system.protocol:
            return LocalFile(path)
        if type(info.get("size")) is not int:
            raise ValueError(f"{WHO}: the server of {where} does not state its size")
        return _FilesystemFile(self._system, path, where, info["size"])

    def _info(self, name: str) -> Mapping[str, Any] | None:
        """What the file system says of a file; None if there is none. Its own `exists` takes every error for no file."""
        with _told(self.address(name)):
            try:
                return dict(self._system.info(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None


class _FilesystemFile:
    """A file of one of fsspec's file systems; each part's length is checked."""

    def __init__(self, system: Any, path: str, where: str, size: int) -> None:
        self._system, self._path, self.where, self.size = system, path, where, size

    def read(self, begin: int, length: int) -> bytes:
        """Exactly `length` bytes from `begin` on."""
        with _told(self.where):
            part = bytes(self._system.cat_file(self._path, start=begin, end=begin + length))
        if len(part) != length:
            raise ValueError(f"{WHO}: {self.where} was asked for {length:,} bytes from {begin:,} on and gave {len(part):,}")
        return part


@contextmanager
def _told(where: str) -> Iterator[None]:
    """A file system's own error, in one line; its text may hold credentials, so its kind must do."""
    try:
        yield
    except Exception as error:  # each file system has its own kinds
        raise ValueError(f"{WHO}: {where} cannot be read: {type(error).__name__}") from None


def _cut_fsspec(url: str) -> tuple[Files, str]:
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError("reading from URLs needs fsspec: pip install 'npembed[url]'") from None
    where = public(url).rstrip("/")
    try:
        system, root = url_to_fs(url)
    except ImportError as error:  # which says what to install
        raise ImportError(f"{where} cannot be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"{WHO}: {where} cannot be read: {error}") from None
    except Exception as error:
        raise ValueError(f"{WHO}: {where} cannot be read: {type(error).__name__}") from None
    folder, _, name = root.rstrip("/").rpartition("/")
    if not _is_file(name):
        return _Filesystem(system, root, where), ""
    return _Filesystem(system, folder, where.rpartition("/")[0]), name
