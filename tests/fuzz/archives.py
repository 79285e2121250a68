"""Archives that a stranger made: names that lead elsewhere, bombs, sizes that lie, chained headers, and any of their bytes."""

import gzip
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.corpus.test_bounds import HOSTILE, PACKINGS, PNG, add, sparse
from tests.fuzz.cases import Case
from tests.fuzz.corpora import made
from tests.fuzz.mutations import EDGES, mutated_bytes
from tests.fuzz.originals import Originals

NAMES = (
    *("a.png", "b.png", "a.jpg", "deep/a.png", "../secret.png", "/etc/passwd", "p/../../x.png", "c:\\x.png", "a\\b.png"),
    *(
        "a::b.png",
        "http://127.0.0.1:1/a.png",
        "a\x1b[2J\u202e.png",
        "two\nlines.png",
        "é.png",
        " ",
        "-x.png",
        ".png",
        "x" * 200,
    ),
    *("deep/", "a.zip", "notes.txt", "deep/" * 40 + "a.png"),
)
BOMB, NO_BOMB = 2**28, 2**24
"""Bytes of zeros in a member of a .zip, and of a .tar, where they are as many bytes of a file, which the case itself writes."""


def packed(rng: random.Random, folder: Path, originals: Originals) -> Case:
    """An archive, of which a corpus is made."""
    kind = rng.choice(("a.zip", "a.zip", "a.tar", "a.tar", "a.tar.gz", "a.tgz"))
    path = folder / kind
    Image.new("RGB", (30, 30), (200, 0, 0)).save(folder / "secret.png")
    zeros = BOMB if kind == "a.zip" else NO_BOMB
    members = [(rng.choice(NAMES), _content(rng, originals, zeros)) for _ in range(rng.randrange(5))]
    (_zip if kind == "a.zip" else _tar)(rng, path, members)
    content = path.read_bytes()
    for _ in range(rng.choice((0, 1, 1, 2))):
        content = rng.choice(ZIPS if kind == "a.zip" else TARS)(rng, content)
    if kind.endswith("gz") and rng.random() < 0.7:
        content = gzip.compress(content, 1)
        path = path if rng.random() < 0.5 else folder / "a.tar"
    path.write_bytes(content)
    if rng.random() < 0.03:
        sparse(path, 2**31 - 1)
    return made([path.name, "out", "--weights", str(originals.checkpoints["tiny"])])


def _content(rng: random.Random, originals: Originals, zeros: int) -> bytes:
    picture = originals.pictures[rng.choice(sorted(originals.pictures))]
    what = rng.random()
    if what < 0.03:
        return PNG + bytes(zeros)
    return (
        picture if what < 0.6 else mutated_bytes(rng, picture) if what < 0.9 else rng.choice((b"", b"text", bytes(2**20), PNG))
    )


def _zip(rng: random.Random, path: Path, members: list[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings(action="ignore"):  # two files may have one name
        for name, content in members:
            packing = zipfile.ZIP_DEFLATED if len(content) > 2**20 else rng.choice(PACKINGS)
            info = zipfile.ZipInfo(name)
            info.external_attr = rng.choice((0, 0o100644 << 16, 0o120777 << 16, 0o010644 << 16))  # a file, a link, a pipe
            archive.writestr(info, content, packing, 1)
        archive.comment = rng.choice((b"", b"", b"PK\5\6" + bytes(18), bytes(60_000)))


def _tar(rng: random.Random, path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as archive:
        for name, content in members:
            add(archive, name, content)
        for _ in range(rng.choice((0, 0, 1, 3))):
            kind = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.CONTTYPE, b"Q"))
            add(archive, rng.choice(NAMES), b"", type=kind, linkname=rng.choice((*NAMES, "../secret.png", "/dev/zero")))


# Changes


def _any_bytes(rng: random.Random, content: bytes) -> bytes:
    return mutated_bytes(rng, content)


def _end(rng: random.Random, content: bytes) -> bytes:
    """A .zip's directory lies there."""
    return content[:-300] + mutated_bytes(rng, content[-300:])


def _field(rng: random.Random, content: bytes) -> bytes:
    """A number in one of the headers of a .zip: flags (encrypted among them), how it is packed, its sizes, where it lies."""
    header, fields = rng.choice(
        (
            (b"PK\1\2", ((6, 2), (8, 2), (10, 2), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4))),
            (b"PK\3\4", ((6, 2), (8, 2), (18, 4), (22, 4), (26, 2), (28, 2))),
            (b"PK\5\6", ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
        )
    )
    places = [at for at in range(len(content)) if content.startswith(header, at)] if len(content) < 2**20 else []
    if not places:
        return content
    at, width = rng.choice(fields)
    at += rng.choice(places)
    value = rng.choice((*EDGES, 12, 14, 93, 99, rng.randrange(2**16))) % 2 ** (8 * width)
    return content[:at] + value.to_bytes(width, "little") + content[at + width :]


def _claims(rng: random.Random, content: bytes) -> bytes:
    """A directory that claims to be huge, or to be elsewhere."""
    numbers = rng.choice(EDGES) % 2**16, rng.choice(EDGES) % 2**16, rng.choice(EDGES) % 2**32, rng.choice(EDGES) % 2**32
    return content + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *numbers, 0)


def _before(rng: random.Random, content: bytes) -> bytes:
    return rng.choice((PNG, b"#!/bin/sh\n", content, bytes(512))) + content


def _twice(rng: random.Random, content: bytes) -> bytes:
    return content + content


def _header(rng: random.Random, content: bytes) -> bytes:
    """A .tar with one of the hostile headers before, behind or in place of what it has."""
    held = HOSTILE[rng.choice(sorted(HOSTILE))]()
    return rng.choice((held + content, content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % 512) + held, held))


def _header_bytes(rng: random.Random, content: bytes) -> bytes:
    """A header whose sum is right again, so that what is wrong in it is read."""
    at = 512 * rng.randrange(max(1, min(len(content) // 512, 8)))
    held = bytearray(mutated_bytes(rng, content[at : at + 500])[:512].ljust(512, b"\0"))
    held[148:156] = b" " * 8
    held[148:156] = b"%06o\0 " % sum(held)
    return content[:at] + bytes(held) + content[at + 512 :]


Change = Callable[[random.Random, bytes], bytes]
ZIPS: tuple[Change, ...] = (_any_bytes, _end, _field, _field, _field, _claims, _before, _twice)
TARS: tuple[Change, ...] = (_any_bytes, _before, _twice, _header, _header, _header_bytes, _header_bytes, _header_bytes)
