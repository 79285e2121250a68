"""A checkpoint's folder, a safetensors file with its config beside it, or an mmproj file, at any URL.

http and https are read by the standard library, with every answer checked: fsspec's own file system for them returns wrong
bytes without a word when a server answers short or with another part. Every other protocol is fsspec's.
"""

import base64
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from npembed.weights.checkpoint import Checkpoint, Files
from npembed.weights.gguf import is_gguf
from npembed.weights.mmproj import GgufSource
from npembed.weights.ranges import (
    BUSY,
    Answer,
    BrokenError,
    BusyError,
    HttpFile,
    LocalFile,
    MissingFileError,
    Patience,
    Ranged,
    Sleep,
)
from npembed.weights.source import MOST_JSON, WHO, Source, public

T = TypeVar("T")

TIMEOUT = 30
"""Seconds without a byte, after which a connection counts as broken."""

MISSING = (404, 410)


def open_url(url: str, sleep: Sleep = time.sleep) -> Source:
    """The source at a URL; nothing of it is kept.

    Parameters
    ----------
    url : str
        Of a folder with config.json and model.safetensors or its shards, of a .safetensors file with config.json beside
        it, or of an mmproj file, .gguf. http, https and every protocol that fsspec knows.
    sleep : callable
        Waits that many seconds, before a server is asked again.

    Returns
    -------
    Source
        A `GgufSource` or a `Checkpoint`, whose `prefetch` reads together what lies together.

    Raises
    ------
    ValueError
        A protocol that is unknown; a file that is missing or cannot be read; a server that answers wrongly, see `HttpFile`.
    ImportError
        A protocol whose package is missing.
    """
    folder, name = _opened(url, sleep)
    if not name:
        return Checkpoint(public(url).rstrip("/"), folder)
    file = folder.file(name)
    if file is None:
        raise ValueError(f"{WHO}: the file {public(url)} is missing")
    if name.endswith(".gguf") or is_gguf(file):
        return GgufSource(file)
    return Checkpoint(public(url), folder, name)


def _opened(url: str, sleep: Sleep) -> tuple[Files, str]:
    """The folder, and the file in it if the URL is a file's."""
    if urlsplit(url).scheme.lower() in ("http", "https"):
        return _cut_http(url, sleep)
    if "::" in url and "http" in url:
        raise ValueError(f"{WHO}: {public(url)} reaches a web server by way of another protocol; only its own URL can be read")
    return _cut_fsspec(url)


def _is_file(name: str) -> bool:
    return name.endswith((".gguf", ".safetensors"))


class _Web:
    """A folder of a web server."""

    def __init__(self, url: str, sleep: Sleep) -> None:
        parts = urlsplit(url)
        self._parts = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
        self._sleep, self._login = sleep, None
        if "@" in parts.netloc:
            user = unquote(parts.netloc.rpartition("@")[0])
            self._login = "Basic " + base64.b64encode(user.encode()).decode()
        self._opener = urllib.request.build_opener(_Redirects)

    def _url(self, name: str) -> str:
        return urlunsplit(self._parts._replace(path=f"{self._parts.path.rstrip('/')}/{quote(name)}"))

    def address(self, name: str) -> str:
        """A file, for messages."""
        return public(self._url(name))

    def has(self, name: str) -> bool:
        """Whether there is such a file; nothing of it is read."""
        return self._answered(name, lambda answer, where: True) is not None

    def whole(self, name: str) -> bytes | None:
        """A small file's bytes; None if there is none."""
        return self._answered(name, self._body)

    def _answered(self, name: str, take: Callable[[Answer, str], T]) -> T | None:
        """What is taken of the answer; None if there is no such file."""
        where = self.address(name)
        patience = Patience(where, self._sleep)
        while True:
            try:
                with self._asked(name, {}) as answer:
                    return take(answer, where)
            except MissingFileError:
                return None
            except BrokenError as error:
                patience.after(error)

    def _body(self, answer: Answer, where: str) -> bytes:
        if answer.status != 200 or answer.headers.get("content-encoding", "identity") != "identity":
            raise ValueError(f"{WHO}: the server of {where} answers with status {answer.status}, or compressed")
        found = bytearray()
        for part in answer.body:
            found += part
            if len(found) > MOST_JSON:
                raise ValueError(f"{WHO}: {where} has more than {MOST_JSON:,} bytes")
        if len(found) < int(answer.headers.get("content-length", "0")):
            raise BrokenError("the connection ended early")
        return bytes(found)

    def file(self, name: str) -> Ranged | None:
        """A large file, by ranges; None if there is none."""

        @contextmanager
        def ask(begin: int, stop: int) -> Iterator[Answer]:
            with self._asked(name, {"Range": f"bytes={begin}-{stop - 1}"}) as answer:
                yield answer

        try:
            return HttpFile(self.address(name), ask, self._sleep)
        except MissingFileError:
            return None

    @contextmanager
    def _asked(self, name: str, headers: dict[str, str]) -> Iterator[Answer]:
        """One answer that is not a refusal."""
        url = self._url(name)
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "npembed"} | headers)
        if self._login:
            request.add_header("Authorization", self._login)
        try:
            with self._opener.open(request, timeout=TIMEOUT) as response:
                stated = {key.lower(): value for key, value in response.headers.items()}
                yield Answer(response.status, stated, iter(lambda: response.read1(2**16), b""))
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error, public(url)) from None
        except (http.client.HTTPException, OSError) as error:
            raise _broken(error, public(url)) from None


def _refusal(error: urllib.error.HTTPError, where: str) -> Exception:
    """An answer of status 300 or more, in words."""
    if error.code in BUSY:
        return BusyError(error.code, {key.lower(): value for key, value in error.headers.items()})
    if error.code in MISSING:
        return MissingFileError(f"{WHO}: the file {where} is missing")
    if error.code in (401, 403):
        return ValueError(
            f"{WHO}: the server of {where} refuses it (status {error.code}): it may need https://user:password@host"
        )
    if error.code < 400:
        return ValueError(f"{WHO}: the server of {where} redirects without end, or nowhere")
    return ValueError(f"{WHO}: the server of {where} answers with status {error.code}")


def _broken(error: Exception, where: str) -> Exception:
    """No answer, or half of one: worth asking again, unless it would be the same."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, (ConnectionRefusedError, socket.gaierror, ssl.SSLError, http.client.InvalidURL, str)):
        return ValueError(f"{WHO}: {where} cannot be read: {type(reason).__name__}")
    return BrokenError(f"the connection broke ({type(reason).__name__})")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Goes along, but takes no password to another server, and leaves the web for no other protocol."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https"):
            raise ValueError(f"{WHO}: the server of {public(req.full_url)} redirects to another protocol, {new.scheme!r}")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            request.remove_header("Authorization")
        return request


def _cut_http(url: str, sleep: Sleep) -> tuple[Files, str]:
    parts = urlsplit(url)
    folder, _, name = parts.path.rpartition("/")
    if not _is_file(name):
        return _Web(url, sleep), ""
    return _Web(urlunsplit(parts._replace(path=folder)), sleep), unquote(name)


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
        if file is not None and file.size > MOST_JSON:
            raise ValueError(f"{WHO}: {file.where} has {file.size:,} bytes; at most {MOST_JSON:,} are read")
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
