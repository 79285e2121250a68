"""Servers that mean no good, or are broken: none is waited for without end, and one line names the URL and what came."""

import itertools
import re
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from npembed import load_model, read_config
from npembed.weights.ranges import Answer, BrokenError, GivenUpError, HttpFile, Pace
from npembed.weights.source import public
from npembed.weights.url import open_url
from tests.raw_server import RawServer

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def clock(step):
    """Seconds that go on by a step each time that they are asked for, so that no test waits."""
    return partial(next, itertools.count(0.0, step))


def no_wait(seconds):
    """As a server wants it."""


def refused(begin, *endless, step=0.0):
    """The line that refuses a small file of a server that sends this, the last part of it for ever."""
    with (
        RawServer(lambda path, headers: itertools.chain(begin, itertools.cycle(endless))) as server,
        pytest.raises(ValueError, match=rf"^load_model: [^\n]*{server.url}/m/config\.json[^\n]*$") as caught,
    ):
        open_url(f"{server.url}/m", no_wait, clock(step)).json("config.json")
    return str(caught.value)


# Small files


SLOW = {
    "status line": ([], b"H"),
    "interim answers": ([], b"HTTP/1.1 100 Continue\r\n\r\n"),
    "header": ([OK, b"X: "], b"a"),
    "body": ([OK, b"\r\n{"], b" "),
    "body of a length": ([OK, b"Content-Length: 999999999\r\n\r\n"], b" "),
    "chunks": ([CHUNKED], b"1\r\n \r\n"),
    "length of a chunk": ([CHUNKED], b"0"),
    "trailers": ([CHUNKED, b"2\r\n{}\r\n0\r\n"], b"X: y\r\n"),
}


@pytest.mark.parametrize("where", SLOW)
def test_a_small_file_that_comes_too_slowly_is_given_up(where):
    assert re.search(r" sends too slowly: [\d,]+ bytes in 120 s$", refused(SLOW[where][0], SLOW[where][1], step=30.0))


def test_a_slow_server_that_comes_to_an_end_in_time_is_waited_for():
    with RawServer(lambda path, headers: [OK + b"Content-Length: 2\r\n\r\n", b"{}"]) as server:
        assert open_url(f"{server.url}/m", no_wait, clock(20.0)).json("config.json") == {}


def test_time_is_counted_over_all_attempts_together():
    """Each ends early, so each by itself is short."""
    line = refused([OK + b"Content-Length: 5\r\n\r\n{"], step=30.0)
    assert re.search(r" sends too slowly: [\d,]+ bytes in 120 s$", line)


def test_a_body_beside_a_redirect_is_not_waited_for():
    def script(path, headers):
        if path == "/m/config.json":
            return itertools.chain([b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n"], itertools.repeat(b"x"))
        return [OK + b'Content-Length: 8\r\n\r\n{"a": 1}']

    with RawServer(script) as server:
        assert open_url(f"{server.url}/m").json("config.json") == {"a": 1}
        assert server.asked == ["/m/config.json", "/elsewhere"]


WRONG = {
    "length in words": ([OK, b"Content-Length: abc\r\n\r\n{}"], "states the Content-Length 'abc'; it must be a number"),
    "negative length": ([OK, b"Content-Length: -2\r\n\r\n{}"], "states the Content-Length '-2'; it must be a number"),
    "length in Python's digits": ([OK, b"Content-Length: 1_0\r\n\r\n{}"], "states the Content-Length '1_0'; it must"),
    "length of 400 digits": (
        [OK, b"Content-Length: " + b"9" * 400 + b"\r\n\r\n{}"],
        "states the Content-Length '9+.*'; it must",
    ),
    "shorter than it says": ([OK, b"Content-Length: 5\r\n\r\n{}"], "after 6 attempts: the connection ended early"),
    "compressed": ([OK, b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b"], "answers compressed, .*: 'gzip'"),
    "coded": ([OK, b"Transfer-Encoding: gzip, chunked\r\n\r\n"], "states the Transfer-Encoding 'gzip, chunked', which is not"),
    "a part": ([b"HTTP/1.1 206 Partial Content\r\nContent-Length: 2\r\n\r\n{}"], "answers with status 206"),
    "nothing": ([b"HTTP/1.1 204 No Content\r\n\r\n"], "answers with status 204"),
    "too much": ([OK, b"\r\n", b" " * (2**24 + 1)], "has more than 16,777,216 bytes"),
    "no length of a chunk": ([CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n"], "after 6 attempts: the connection broke"),
    "a chunk that is not whole": ([CHUNKED, b"ffffffffffff\r\n{}"], "after 6 attempts: the connection broke"),
    "a chunk of less than nothing": ([CHUNKED, b"-5\r\nx"], "cannot be read as JSON|after 6 attempts"),
    "no HTTP": ([b"hello\r\n\r\n"], "after 6 attempts: the connection broke"),
    "another HTTP": ([b"HTTP/7.0 200 OK\r\n\r\n{}"], "after 6 attempts: the connection broke"),
    "no answer": ([], "after 6 attempts: the connection broke"),
    "a line too long": ([OK, b"X: " + b"a" * 100_000 + b"\r\n\r\n{}"], "after 6 attempts: the connection broke"),
    "too many headers": ([OK, b"X: a\r\n" * 200 + b"\r\n{}"], "after 6 attempts: the connection broke"),
    "a status of its own": ([b"HTTP/1.1 999 \x1b[2J\r\n\r\n"], "answers with status 999"),
    "no JSON": ([OK, b"Content-Length: 2\r\n\r\n\x1b["], "cannot be read as JSON"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_answer_that_is_wrong_is_named(what):
    script, words = WRONG[what]
    line = refused(script)
    assert re.search(words, line), line
    assert line.isprintable()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://[::1", r"redirects to 'http://\[::1', which is no URL"),
        ("http://ann:secret@[::1?token=secret", r"redirects to 'http://\[::1', which is no URL"),
        ("http://host:abc/", "redirects to 'http://host:abc/', which is no URL"),
        ("http://host:99999/", "redirects to 'http://host:99999/', which is no URL"),
        ("//[", "redirects to '//[', which is no URL".replace("[", r"\[")),
        ("http:///m", "redirects without end, or nowhere"),
        ("ftp://host/m", "redirects to another protocol, 'ftp'"),
        ("file:///etc/passwd", "redirects without end, or nowhere"),
        ("/m/config.json", "redirects without end, or nowhere"),
        ("", "redirects without end, or nowhere"),
    ],
)
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_that_leads_nowhere_is_named(target, words, code):
    line = refused([f"HTTP/1.1 {code} Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()])
    assert re.search(words, line), line
    assert "secret" not in line


def test_a_longer_body_than_it_says_is_not_read():
    with RawServer(lambda path, headers: [OK + b"Content-Length: 2\r\n\r\n{}garbage"]) as server:
        assert open_url(f"{server.url}/m").json("config.json") == {}


@pytest.mark.parametrize(
    "word", ["http://[::1/m", "http://host:abc/m", "http://host:99999/m", "https://[/m", "http://ann:x@[::1/m"]
)
def test_a_word_that_is_no_url_is_named(word):
    for call in (load_model, read_config):
        with pytest.raises(ValueError, match=rf"^{call.__name__}: {re.escape(public(word))} is no URL: ") as caught:
            call(word)
        assert "ann" not in str(caught.value)


def test_a_url_may_have_any_letters():
    with RawServer(lambda path, headers: [OK + b"Content-Length: 2\r\n\r\n{}"]) as server:
        assert open_url(f"{server.url}/модель %20").json("config.json") == {}
        assert server.asked == ["/%D0%BC%D0%BE%D0%B4%D0%B5%D0%BB%D1%8C%20%20/config.json"]


# Parts of large files


def ranges(size, parts, *, etag="x"):
    """An Ask for zeros; `parts` says for the bytes from one place to another how they come."""

    @contextmanager
    def ask(begin, stop):
        stop = min(stop, size)
        came = list(parts(begin, stop))
        end = begin + sum(map(len, came))
        headers = {"content-range": f"bytes {begin}-{min(end, stop) - 1}/{size}", "etag": etag}
        yield Answer(206, headers, iter(came))

    return ask


def file_of(parts, step):
    """A file of 10 MB whose first eight bytes come at once."""
    at_once = clock(0.0)
    file = HttpFile("x", ranges(10**7, lambda begin, stop: [bytes(stop - begin)] if stop <= 8 else parts(begin, stop)), no_wait)
    file._clock = at_once if step == 0 else clock(step)
    return file


@pytest.mark.parametrize(
    "parts",
    [lambda begin, stop: [b"\0"] * 1000, lambda begin, stop: [b"\0"]],
    ids=["one answer", "an answer for each byte"],
)
def test_a_large_file_that_comes_too_slowly_is_given_up(parts):
    with pytest.raises(ValueError, match=r"^load_model: the server of x sends too slowly: \d+ bytes in 60 s$"):
        file_of(parts, 20.0).read(8, 10**6)


def test_a_large_file_that_comes_fast_enough_is_read_to_the_end():
    file = file_of(lambda begin, stop: [bytes(2**13)] * ((stop - begin) // 2**13), 1.0)
    assert file.read(8, 2**20) == bytes(2**20)


def test_a_process_that_was_stopped_for_a_week_does_not_blame_the_server():
    seconds = iter([0.0, 7 * 86400.0, *np.arange(7 * 86400.0, 8 * 86400.0)])
    file = file_of(lambda begin, stop: [bytes(100), bytes(stop - begin - 100)], 0)
    file._clock = partial(next, seconds)
    assert file.read(8, 10**6) == bytes(10**6)


def breaking(length):
    """Each answer breaks off after so many bytes."""

    def parts(begin, stop):
        yield bytes(min(length, stop - begin))
        if begin + length < stop:
            raise BrokenError("it broke")

    @contextmanager
    def ask(begin, stop):
        stop = min(stop, 10**7)
        yield Answer(206, {"content-range": f"bytes {begin}-{stop - 1}/{10**7}"}, parts(begin, stop))

    return ask


def test_a_connection_that_breaks_often_is_kept_up_only_while_much_comes():
    assert HttpFile("x", breaking(2**20), no_wait).read(0, 10**7) == bytes(10**7)
    with pytest.raises(ValueError, match=r"^load_model: x could not be read, after 6 attempts: it broke$"):
        HttpFile("x", breaking(1000), no_wait).read(0, 10**7)


def test_what_follows_a_part_is_not_read_without_end():
    def script(path, headers):
        yield b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-7/1000\r\nTransfer-Encoding: chunked\r\n\r\n"
        yield b"8\r\n" + bytes(8) + b"\r\n0\r\n"
        yield from itertools.repeat(b"X: y\r\n" * 1000)

    with RawServer(script) as server, pytest.raises(ValueError, match=r"/m\.gguf sends without end: [\d,]+ bytes$"):
        open_url(f"{server.url}/m.gguf", no_wait)


@pytest.mark.parametrize("length", ["abc", "-8", "8, 9"])
def test_a_part_s_length_that_is_none_is_named(length):
    def script(path, headers):
        yield b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-7/1000\r\n"
        yield f"Content-Length: {length}\r\n\r\n".encode() + bytes(8)

    with (
        RawServer(script) as server,
        pytest.raises(ValueError, match=rf"/m\.gguf states the Content-Length '{length}'; it must"),
    ):
        open_url(f"{server.url}/m.gguf", no_wait)


def test_a_pace_counts_windows_by_themselves():
    pace = Pace("x", clock(10.0), window=20.0, least=10)
    for _ in range(5):
        pace.timed(lambda: bytes(5))
        pace.timed(lambda: bytes(5))
    pace.timed(lambda: bytes(5))
    with pytest.raises(GivenUpError, match=r"^load_model: the server of x sends too slowly: 9 bytes in 20 s$"):
        pace.timed(lambda: bytes(4))
