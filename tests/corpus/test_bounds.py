"""What claims to be huge, or becomes it: one failed row or one line, in bounded memory, without waiting."""

import bz2
import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from npembed.corpus import sources
from npembed.corpus.sources import Item, list_pictures
from npembed.support.pictures import MOST_FILE
from tests.corpus.test_sources import content, paths

posix = pytest.mark.skipif(os.name != "posix", reason="pipes and sparse files as POSIX has them")
PNG = b"\x89PNG\r\n\x1a\n"
MOST = 2**20
"""In place of `MOST_FILE`, so that a test takes no time."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_FILE", MOST)


@contextmanager
def within(megabytes: float) -> Iterator[None]:
    """An error if the block takes more memory at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes * 2**20, f"{peak:,} bytes"


def only(source: str) -> Item:
    [item] = list_pictures([source]).items
    return item


def test_the_most_of_a_file_is_what_embed_reads() -> None:
    assert sources.MOST_FILE == MOST_FILE == 2**30


# Files


def sparse(path: Path, size: int = 6 * 2**30) -> None:
    with path.open("ab") as file:
        file.truncate(size)


@posix
@pytest.mark.parametrize("when", ["before it is listed", "afterwards"])
def test_a_file_that_is_huge_is_a_failed_row(here: Path, when: str) -> None:
    path = here / "a.png"
    path.write_bytes(PNG)
    if when == "before it is listed":
        sparse(path)
    item = only("a.png")
    sparse(path)
    with within(1), pytest.raises(ValueError, match=r"^it has 6,442,450,944 bytes; at most 1,073,741,824 are read$"):
        item.read()


@pytest.mark.usefixtures("small")
def test_a_file_at_a_url_that_is_huge_is_a_failed_row(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "a.png").write_bytes(PNG + bytes(MOST))
    url = f"file://{here}/a.png"
    with pytest.raises(ValueError, match=r"^it has 1,048,584 bytes; at most 1,048,576 are read$"):
        only(url).read()
    with pytest.raises(ValueError, match=r"^it has 1,048,577 bytes; at most 1,048,576 are read$"):
        Item(url, url).read()  # whose server does not say its size
    tries = []
    monkeypatch.setattr(Item, "_content", lambda self: tries.append(1) or bytes(MOST + 1))
    with pytest.raises(ValueError, match="it has"):
        Item(url, url).read()
    assert len(tries) == 1, "what is too large is not fetched three times"


@posix
@pytest.mark.parametrize("name", ["a.png", "a.tar", "a.zip"])
def test_what_became_a_pipe_is_not_waited_for(here: Path, name: str) -> None:
    write(here / name)
    item = only(name)
    (here / name).unlink()
    os.mkfifo(here / name)
    sources._zip.cache_clear()
    with pytest.raises(ValueError, match=r"^it is no regular file$"):
        item.read()


@posix
@pytest.mark.parametrize(("name", "words"), [("a.png", None), ("a.tar", "the archive a.tar"), ("a.txt", "the list a.txt")])
def test_what_becomes_a_pipe_as_it_is_listed_is_not_waited_for(
    here: Path, name: str, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what it is and the opening."""
    write(here / name)
    was = os.stat(here / name)
    (here / name).unlink()
    os.mkfifo(here / name)
    monkeypatch.setattr(sources.os, "stat", lambda *_, **__: was)
    monkeypatch.setattr(sources.os.path, "isfile", lambda _: True)
    if words is None:
        assert only(name).error == "it cannot be read: it is no regular file"
    else:
        with pytest.raises(ValueError, match=f"^corpus: {words} cannot be read: it is no regular file$"):
            list_pictures([name])


def write(path: Path) -> None:
    """One small picture in a file of that kind."""
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            add(archive, "a.png", content())
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", content())
    else:
        path.write_bytes(content())


@posix
def test_folders_within_folders_are_searched_however_many(here: Path) -> None:
    """More than Python's calls may lie in one another."""
    try:
        for _ in range(1500):
            os.mkdir("a")
            os.chdir("a")
        Path("a.png").write_bytes(content())
        os.chdir(here)
        assert paths(list_pictures(["a"])) == ["a/" * 1500 + "a.png"]
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", str(here / "a")], check=True)  # Python's own goes too deep


@posix
def test_links_that_double_the_folders_at_each_level_end(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_TIMES", 3)
    for level in range(30):
        (here / f"p/{level}").mkdir(parents=True)
        (here / f"p/{level}/a.png").write_bytes(content())
    for level in range(29):
        for name in "bc":
            (here / f"p/{level}/{name}").symlink_to(here / f"p/{level + 1}")
    found = list_pictures(["p/0"])
    assert 30 <= len(found.items) <= 3 * 30
    assert any(note.endswith(" leads to a folder that was searched 3 times already") for note in found.notes)


# Lists


def test_a_line_that_is_huge_is_a_row_and_the_others_are_read(here: Path) -> None:
    (here / "a.png").write_bytes(content())
    (here / "l.txt").write_bytes(b"x" * 10**7 + b"\na.png\n")
    huge, good = sorted(list_pictures(["l.txt"]).items, key=lambda item: not item.error)
    assert huge.error == "a line of 10,000,000 characters is no path or URL"
    assert len(huge.path) <= 500
    assert good.read() == content()


@pytest.mark.usefixtures("small")
def test_a_list_that_is_huge_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "l.txt").write_bytes(b"a\n" * MOST)
    with pytest.raises(ValueError, match=r"^corpus: the list l\.txt has more than 1,048,576 bytes$"):
        list_pictures(["l.txt"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n" * MOST)))
    with pytest.raises(ValueError, match=r"^corpus: the list standard input has more than 1,048,576 bytes$"):
        list_pictures(["-"])


@pytest.mark.parametrize("byte", [b"\0", b"\n"])
def test_a_list_of_nothing_takes_no_more_than_itself(here: Path, byte: bytes) -> None:
    (here / "l.txt").write_bytes(byte * 2**22)
    with within(24):
        try:
            assert not list_pictures(["l.txt"]).items
        except ValueError as error:
            assert "UTF-16" in str(error)  # noqa: PT017  # zeros alone look like it


# .zip


PACKINGS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def zipped(path: Path, packing: int, held: bytes) -> None:
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("a.png", held)


@pytest.mark.parametrize("packing", PACKINGS)
def test_members_of_a_zip_are_unpacked(here: Path, packing: int) -> None:
    held = PNG + os.urandom(300_000) + bytes(300_000)
    zipped(here / "a.zip", packing, held)
    assert only("a.zip").read() == held


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_member_of_a_zip_that_becomes_huge_is_a_failed_row(here: Path, packing: int) -> None:
    zipped(here / "a.zip", packing, PNG + bytes(2**26))
    with within(80 if packing == zipfile.ZIP_LZMA else 4):
        item = only("a.zip")
        with pytest.raises(ValueError, match=r"^it has 67,108,872 bytes; at most 1,048,576 are read$"):
            item.read()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("packing", PACKINGS[1:])
def test_a_member_of_a_zip_that_becomes_more_than_it_says_is_a_failed_row(here: Path, packing: int) -> None:
    held = PNG + bytes(2**26)
    zipped(here / "a.zip", packing, held)
    whole = (here / "a.zip").read_bytes()
    (here / "a.zip").write_bytes(whole.replace(struct.pack("<L", len(held)), struct.pack("<L", 1000)))
    with within(80 if packing == zipfile.ZIP_LZMA else 4):
        item = only("a.zip")
        assert item.size == 1000
        with pytest.raises((ValueError, zipfile.BadZipFile), match=r"Bad CRC-32|at most 1,048,576 are read"):
            item.read()


@posix
def test_a_zip_whose_directory_claims_to_be_huge_is_one_line(here: Path) -> None:
    sparse(here / "a.zip")
    with (here / "a.zip").open("ab") as file:
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2**32 - 2, 2**31, 0))
    message = r"^corpus: the archive a\.zip cannot be read: something in it claims to take 4,294,967,294 bytes; at most"
    with within(20), pytest.raises(ValueError, match=message):
        list_pictures(["a.zip"])


# .tar


def add(archive: tarfile.TarFile, name: str, held: bytes, **about: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(held)
    for key, value in about.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(held))


def header(size: int, kind: bytes = tarfile.REGTYPE, name: str = "b.png") -> bytes:
    """A header alone, that claims what it likes."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def block(held: bytes) -> bytes:
    return held + bytes(-len(held) % 512)


def chained(kind: bytes, count: int = 3000) -> bytes:
    """Headers that each belong to the next one."""
    return (header(8, kind) + block(b"8 a=bcd\n" if kind == tarfile.XHDTYPE else b"b.png\0")) * count


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a name that claims 1 TB": lambda: header(2**40, tarfile.GNUTYPE_LONGNAME),
    "attributes that claim 1 TB": lambda: header(2**40, tarfile.XHDTYPE),
    "3,000 names of one file": lambda: chained(tarfile.GNUTYPE_LONGNAME),
    "3,000 attributes of one file": lambda: chained(tarfile.XHDTYPE),
    "a size below nothing": lambda: header(-1024),
    "a sparse file whose map ends": lambda: _sparse_header()[:512],
}


def _sparse_header() -> bytes:
    """Of the old kind, which says that its map goes on in the next block."""
    held = bytearray(header(512, tarfile.GNUTYPE_SPARSE))
    held[482] = 1
    held[148:156] = b" " * 8
    held[148:156] = b"%06o\0 " % sum(held[:512])
    return bytes(held)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_tar_with_a_hostile_header_gives_what_lies_before_it(here: Path, kind: str) -> None:
    (here / "a.tar").write_bytes(header(len(content()), name="a.png") + block(content()) + HOSTILE[kind]())
    with within(30):
        found = list_pictures(["a.tar"])
    assert found.items[0].read() == content()
    assert [note.partition(";")[0] for note in found.notes] in (
        ["a.tar is damaged after 1 files"],
        ["a.tar ends too soon"],
        ["a.tar ends too soon", "a.tar has 1 sparse files, which are not read"],
    )


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_tar_that_begins_with_a_hostile_header_is_one_line_or_empty(here: Path, kind: str) -> None:
    (here / "a.tar").write_bytes(HOSTILE[kind]())
    with within(30):
        try:
            assert not list_pictures(["a.tar"]).items
        except ValueError as error:
            assert str(error).startswith("corpus: the archive a.tar cannot be read: ")  # noqa: PT017


def test_a_file_in_a_tar_that_claims_to_be_huge_is_a_failed_row(here: Path) -> None:
    (here / "a.tar").write_bytes(header(2**40) + content())
    found = list_pictures(["a.tar"])
    assert found.notes == ["a.tar ends too soon; 1 files begin in it"]
    with pytest.raises(ValueError, match=r"^it has 1,099,511,627,776 bytes; at most 1,073,741,824 are read$"):
        found.items[0].read()
    (here / "b.tar").write_bytes(header(2**29) + content())
    with within(20), pytest.raises(ValueError, match=r"^the archive ends after \d+ of its 536,870,912 bytes$"):
        only("b.tar").read()


def test_attributes_of_all_files_of_a_tar_are_not_kept_for_each(here: Path) -> None:
    for_all = {str(number): "x" for number in range(5000)}
    with tarfile.open(here / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers=for_all) as archive:
        for number in range(300):
            add(archive, f"{number}.png", content(), pax_headers={"own": "y"})
    with within(20):
        assert len(list_pictures(["a.tar"]).items) == 300


@posix
def test_devices_and_pipes_in_a_tar_are_no_pictures(here: Path) -> None:
    with tarfile.open(here / "a.tar", "w") as archive:
        for name, kind in (("a.png", tarfile.CHRTYPE), ("b.png", tarfile.BLKTYPE), ("c.png", tarfile.FIFOTYPE)):
            add(archive, name, b"", type=kind)
        add(archive, "d.png", content())
    assert paths(list_pictures(["a.tar"])) == ["a.tar::d.png"]


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress], ids=["bzip2", "xz"])
def test_a_tar_that_is_packed_whatever_its_name_is_not_unpacked(here: Path, pack: Callable[[bytes], bytes]) -> None:
    (here / "a.tar").write_bytes(pack(bytes(2**26)))
    with within(1), pytest.raises(ValueError, match=r"^corpus: the archive a\.tar cannot be read: "):
        list_pictures(["a.tar"])
