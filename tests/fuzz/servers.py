"""Servers that misbehave, on loopback: each fault of the tests' own, and answers of which any byte is altered."""

import io
import os
import random
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from npembed.cli import run
from npembed.weights import url
from tests import fake_hub
from tests.fake_hub import FakeHub
from tests.fuzz.cases import Case
from tests.fuzz.mutations import mutated_bytes
from tests.fuzz.originals import DATA, Originals
from tests.weights.test_url import REFUSED

FAULTS = (None, None, *REFUSED, "short", "changed", "corrupt", "other-commit")
SHARES = (0, 0.2, 0.6, 1)
"""Of a server's answers, how many are altered."""
LINES = (
    *(b"Content-Length: abc", b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: 3"),
    *(b"Content-Range: bytes 0-7/*", b"Content-Range: bytes 7-0/3", b"Content-Range: bytes 0-99999999999999999999/8"),
    *(b"Content-Range: items 0-7/9", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked"),
    *(
        b"Content-Encoding: br",
        b"ETag: \x1b[2J",
        b"Retry-After: 99999999999",
        b"Retry-After: Thu, 99 Jan 1970",
        b"Location: http://[::1",
    ),
    *(b"Location: file:///etc/passwd", b"Location: ftp://127.0.0.1/a", b"Location: //", b"Location: http://127.0.0.1:99999/"),
    *(b"Location: /again", b"Location: \xff\x00", b"X: " + b"x" * 70_000, b"no colon", b": no name", b"X: 1\r\n" * 300),
)
STATUSES = (b"HTTP/1.1 200 OK", b"HTTP/1.1 206 Part", b"HTTP/1.1 302 Found", b"HTTP/1.1 307 x", b"HTTP/1.1 100 Continue")
STATUSES += (b"HTTP/1.1 204 x", b"HTTP/1.1 404 x", b"HTTP/1.1 429 x", b"HTTP/1.1 999 x", b"HTTP/9.9 206 x", b"SSH-2.0", b"")


def served(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """Weights at the URL of a server with a fault, or that alters some of its answers."""
    (folder / "p.png").write_bytes(originals.pictures["PNG-0-RGB"])
    repositories = {
        "tiny/model": originals.checkpoints["tiny"],
        "tiny/shards": originals.checkpoints["shards"],
        "tiny/gguf": DATA / "gguf",
    }
    name = rng.choice(sorted(repositories))
    files = {"tiny/gguf": [path.name for path in originals.gguf], "tiny/model": ["", "model.safetensors"]}
    file = rng.choice(files.get(name, [""]))
    fault, which = rng.choice(FAULTS), rng.choice((None, {0}, {1}, {0, 2, 3}))
    share, redirect, stop = rng.choice(SHARES), rng.random() < 0.3, rng.choice(("embeddings", "tokens"))
    words = ["embed", "p.png", "-o", "o.npz", "--until", stop, "--weights"]
    handler = type("Altering", (_Altering,), {"rng": random.Random(rng.random()), "share": share})
    os.environ["no_proxy"] = "127.0.0.1"
    with patch.object(fake_hub, "_Handler", handler):
        hub = FakeHub(repositories, redirect=redirect).__enter__()  # which ends with the case's process
    hub.fault(fault, which)

    def act() -> int:
        with patch.object(url, "open_url", partial(url.open_url, sleep=lambda seconds: None)):
            return run([*words, "/".join(filter(None, (hub.folder(name), file)))])

    return Case([*words, f"{name}/{file}", f"fault {fault} {which}", f"alters {share}"], act, secrets=(), hosts=None)


class _Altering(fake_hub._Handler):
    """Answers of which some are altered; after those it hangs up, so that nobody waits."""

    rng: random.Random
    share: float

    def _answer(self, *words: Any, **named: Any) -> None:
        if self.rng.random() >= self.share:
            super()._answer(*words, **named)
            return
        stream, self.wfile = self.wfile, io.BytesIO()
        try:
            super()._answer(*words, **named)
        finally:
            answer, self.wfile = self.wfile.getvalue(), stream
        self.close_connection = True
        stream.write(altered(self.rng, answer))


def altered(rng: random.Random, answer: bytes) -> bytes:
    """An answer after a change of its first line, its headers or its body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    what = rng.randrange(7)
    if what == 0:
        first = rng.choice(STATUSES)
    elif what in (1, 2):
        line = rng.choice(LINES)
        headers = [each for each in headers if not each.startswith(line.partition(b":")[0])] if what == 1 else headers
        headers.insert(rng.randrange(len(headers) + 1), line)
        if line.startswith(b"Location"):
            first = b"HTTP/1.1 302 Found"
    elif what == 3:
        headers.pop(rng.randrange(len(headers)))
    elif what == 4:
        body = mutated_bytes(rng, body)
    elif what == 5:
        return mutated_bytes(rng, answer)
    else:
        return answer[: rng.randrange(len(answer))]
    return b"\r\n".join([first, *headers]) + b"\r\n\r\n" + body
