"""A folder of a web server, read by the standard library, with every answer checked and no server waited for without end.

fsspec's own file system for http and https returns wrong bytes without a word when a server answers short or with another part.
"""

import base64
import http.client
import io
import math
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from npembed.support.messages import brief, shown
from npembed.weights.ranges import (
    BUSY,
    Answer,
    BrokenError,
    BusyError,
    Clock,
    GivenUpError,
    HttpFile,
    MissingFileError,
    Pace,
    Patience,
    Ranged,
    Sleep,
)
from npembed.weights.source import WHO, most_bytes, public

T = TypeVar("T")

TIMEOUT = 30
"""Seconds without a byte, after which a connection counts as broken."""

SECONDS = 120.0
"""Of waiting for a small file, in all."""

MISSING = (404, 410)


class ForbiddenError(ValueError):
    """A server's 403: a file that is not for this caller, or that is not there."""


class Web:
    """A folder of a web server.

    Parameters
    ----------
    parts : SplitResult
        Of its URL.
    sleep : callable
        Waits that many seconds, before the server is asked again.
    clock : Clock
    """

    def __init__(self, parts: SplitResult, sleep: Sleep, clock: Clock) -> None:
        path = quote(parts.path, safe="/%:@!$&'()*+,;=~")  # what it has of other letters; the rest is as it was given
        self._parts = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=path, fragment="")
        self._sleep, self._clock, self._login = sleep, clock, None
        if "@" in parts.netloc:
            user = unquote(parts.netloc.rpartition("@")[0])
            self._login = "Basic " + base64.b64encode(user.encode()).decode()

    def _url(self, name: str) -> str:
        return urlunsplit(self._parts._replace(path=f"{self._parts.path.rstrip('/')}/{quote(name)}"))

    def address(self, name: str) -> str:
        """A file, for messages."""
        return public(self._url(name))

    def has(self, name: str) -> bool:
        """Whether there is such a file; nothing of it is read.

        Storage that does not list its files answers 403 for one that is not there.
        """
        try:
            return self._answered(name, lambda answer: True) is not None
        except ForbiddenError:
            return False

    def whole(self, name: str) -> bytes | None:
        """A small file's bytes; None if there is none."""
        return self._answered(name, partial(_body, where=self.address(name), most=most_bytes(name)))

    def _answered(self, name: str, take: Callable[[Answer], T]) -> T | None:
        """What is taken of the answer; None if there is no such file."""
        where = self.address(name)
        patience, pace = Patience(where, self._sleep), Pace(where, self._clock, SECONDS, math.inf)
        while True:
            try:
                with self._asked(name, {}, pace) as answer:
                    return take(answer)
            except MissingFileError:
                return None
            except BrokenError as error:
                patience.after(error)

    def file(self, name: str) -> Ranged | None:
        """A large file, by ranges; None if there is none."""
        where = self.address(name)

        @contextmanager
        def ask(begin: int, stop: int) -> Iterator[Answer]:
            pace = Pace(where, self._clock, most=2 * (stop - begin) + 2**20)  # with headers, and where each chunk ends
            with self._asked(name, {"Range": f"bytes={begin}-{stop - 1}"}, pace) as answer:
                yield answer

        try:
            return HttpFile(where, ask, self._sleep, self._clock)
        except MissingFileError:
            return None

    @contextmanager
    def _asked(self, name: str, headers: dict[str, str], pace: Pace) -> Iterator[Answer]:
        """One answer that is not a refusal."""
        url = self._url(name)
        where = public(url)
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "npembed"} | headers)
        if self._login:
            request.add_header("Authorization", self._login)
        opener = urllib.request.build_opener(_Redirects, _Http(pace), _Https(pace))
        try:
            with opener.open(request, timeout=TIMEOUT) as response:
                stated = {key.lower(): value for key, value in response.headers.items()}
                _check_length(stated, where)
                yield Answer(response.status, stated, iter(lambda: response.read1(2**16), b""))
        except urllib.error.HTTPError as error:
            error.close()
            raise _refusal(error, where) from None
        except GivenUpError as error:
            raise ValueError(str(error)) from None
        except (http.client.HTTPException, OSError) as error:
            raise _broken(error, where) from None
        except ValueError as error:
            if str(error).startswith(WHO):
                raise
            raise ValueError(f"{WHO}: {where} cannot be read: {shown(error)}") from None


def _check_length(headers: Mapping[str, str], where: str) -> None:
    """An error unless it is clear where the body ends."""
    length, coding = headers.get("content-length", "0"), headers.get("transfer-encoding", "identity")
    if not re.fullmatch("[0-9]{1,18}", length):
        raise ValueError(
            f"{WHO}: the server of {where} states the Content-Length {brief(length)}; it must be a number of bytes"
        )
    if coding.lower() not in ("identity", "chunked"):
        raise ValueError(f"{WHO}: the server of {where} states the Transfer-Encoding {brief(coding)}, which is not read")


def _body(answer: Answer, where: str, most: int) -> bytes:
    """All of a small file."""
    coding = answer.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise ValueError(f"{WHO}: the server of {where} answers compressed, which was not asked for: {brief(coding)}")
    if answer.status != 200:
        raise ValueError(f"{WHO}: the server of {where} answers with status {answer.status}")
    found = bytearray()
    for part in answer.body:
        found += part
        if len(found) > most:
            raise ValueError(f"{WHO}: {where} has more than {most:,} bytes")
    if len(found) < int(answer.headers.get("content-length", "0")):
        raise BrokenError("the connection ended early")
    return bytes(found)


def _refusal(error: urllib.error.HTTPError, where: str) -> Exception:
    """An answer of status 300 or more, in words."""
    if error.code in BUSY:
        return BusyError(error.code, {key.lower(): value for key, value in error.headers.items()})
    if error.code in MISSING:
        return MissingFileError(f"{WHO}: the file {where} is missing")
    if error.code in (401, 403):
        return (ForbiddenError if error.code == 403 else ValueError)(
            f"{WHO}: the server of {where} refuses it (status {error.code}): it may need https://user:password@host"
        )
    if error.code < 400:
        return ValueError(f"{WHO}: the server of {where} redirects without end, or nowhere")
    return ValueError(f"{WHO}: the server of {where} answers with status {error.code}")


def _broken(error: Exception, where: str) -> Exception:
    """No answer, or half of one: worth asking again, unless it would be the same."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, (ConnectionRefusedError, socket.gaierror, ssl.SSLError, http.client.InvalidURL, str)):
        return ValueError(f"{WHO}: {where} cannot be read: {reason if isinstance(reason, str) else type(reason).__name__}")
    return BrokenError(f"the connection broke ({type(reason).__name__})")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Goes along, but takes no password to another server, and leaves the web for no other protocol."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Follow the address, without what is said beside it, which may be endless."""
        fp.close()
        target = headers.get("location", "")
        try:
            urlsplit(urljoin(req.full_url, target)).port  # noqa: B018  # which is looked at only when it is asked for
        except ValueError:
            words = f"redirects to {brief(public(target))}, which is no URL"
            raise ValueError(f"{WHO}: the server of {public(req.full_url)} {words}") from None
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https"):
            raise ValueError(f"{WHO}: the server of {public(req.full_url)} redirects to another protocol, {new.scheme!r}")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            request.remove_header("Authorization")
        return request


class _Counted(io.RawIOBase):
    """A socket's bytes, each read of which is timed, of headers too: a slow server may never come to their end."""

    def __init__(self, raw: io.RawIOBase, pace: Pace) -> None:
        self._raw, self._pace = raw, pace

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """So many bytes of the socket, into the buffer."""
        part = self._pace.timed(lambda: self._raw.read(len(buffer)) or b"")
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        """The socket's end too."""
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose bytes are counted from the first on."""

    def __init__(self, pace: Pace, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.fp = io.BufferedReader(_Counted(self.fp.detach(), pace))


class _Paced(urllib.request.AbstractHTTPHandler):
    """Connections whose answers are counted."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def do_open(self, http_class: Any, req: Any, **named: Any) -> Any:
        """As always, by such a connection."""

        def connect(*given: Any, **more: Any) -> Any:
            connection = http_class(*given, **more)
            connection.response_class = partial(_Response, self._pace)
            return connection

        return super().do_open(connect, req, **named)


class _Http(_Paced, urllib.request.HTTPHandler):
    """http."""


class _Https(_Paced, urllib.request.HTTPSHandler):
    """https."""
