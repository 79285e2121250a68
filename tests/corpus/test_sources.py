"""Which pictures a source stands for: the same sorted list on every run, whatever the source."""

import io
import os
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npembed.corpus.signatures import is_picture
from npembed.corpus.sources import Listing, list_pictures, without_credential
from tests.corpora import KINDS

posix = pytest.mark.skipif(os.name != "posix", reason="links and names as POSIX has them")


def content(kind: str = "png") -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.zeros((2, 3, 3), dtype=np.uint8)).save(held, kind.replace("jpg", "jpeg"))
    return held.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures and a text; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("p/b.png", "p/a.png", "p/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content())
    (tmp_path / "p/notes.txt").write_text("text")
    return tmp_path


def paths(found: Listing) -> list[str]:
    return [item.path for item in found.items]


def test_a_folder_is_searched_through_and_sorted(folder: Path) -> None:
    found = list_pictures(["p"])
    assert paths(found) == ["p/a.png", "p/b.png", "p/deep/c.png"]
    assert (found.no_pictures, found.repeated) == (1, 0)
    assert all(item.read() == content() for item in found.items)


def test_the_order_of_the_sources_makes_no_difference_and_a_path_given_again_counts_once(folder: Path) -> None:
    found = list_pictures(["p/deep/c.png", "p/deep", "p/a.png"])
    assert paths(found) == ["p/a.png", "p/deep/c.png"]
    assert found.repeated == 1


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.png"], ["deep/*"], ["p/a.png", "p/b.png"]),
        (["c*"], [], ["p/deep/c.png"]),
        ([], ["a.png", "b.png"], ["p/deep/c.png"]),
        (["*.jpg"], [], []),
    ],
)
def test_globs_choose(folder: Path, include: list[str], exclude: list[str], expected: list[str]) -> None:
    assert paths(list_pictures(["p"], include, exclude)) == expected


def test_globs_choose_in_archives_and_lists_too(folder: Path) -> None:
    write_zip(folder / "a.zip", {"x/1.png": content(), "y/1.png": content(), "2.png": content()})
    write_tar(folder / "b.tar", {"x/3.png": content(), "4.jpg": content("jpg")})
    (folder / "l.txt").write_text("p/a.png\np/b.png\n")
    found = list_pictures(["a.zip", "b.tar", "l.txt"], include=["*.png"], exclude=["x/*", "b.png"])
    assert paths(found) == ["a.zip::2.png", "a.zip::y/1.png", "p/a.png"]


def test_a_glob_that_the_shell_left_is_taken(folder: Path) -> None:
    assert paths(list_pictures(["p/*.png"])) == ["p/a.png", "p/b.png"]
    assert paths(list_pictures(["p/**/*.png"])) == ["p/a.png", "p/b.png", "p/deep/c.png"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
def test_a_list_names_sources(folder: Path, end: str) -> None:
    (folder / "list.txt").write_bytes(end.join(["p/b.png", "p/deep", "gone.png", ""]).encode())
    found = list_pictures(["list.txt"])
    assert paths(found) == ["gone.png", "p/b.png", "p/deep/c.png"]
    with pytest.raises(ValueError, match="does not exist"):
        found.items[0].read()


def test_a_hyphen_is_the_list_on_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"p/a.png\n")))
    assert paths(list_pictures(["-"])) == ["p/a.png"]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_an_archive_is_read_in_place(folder: Path, write: object) -> None:
    suffix = {write_tar: "tar", write_zip: "zip"}[write]  # type: ignore[index]
    write(folder / f"a.{suffix}", {"x/2.jpg": content("jpg"), "1.png": content(), "notes": b"text"})  # type: ignore[operator]
    found = list_pictures([f"a.{suffix}"], exclude=["nothing*"])
    assert paths(found) == [f"a.{suffix}::1.png", f"a.{suffix}::x/2.jpg"]
    assert [item.read() for item in found.items] == [content(), content("jpg")]
    assert found.no_pictures == 1
    assert sorted(path.name for path in folder.iterdir()) == [f"a.{suffix}", "p"]


def test_a_tar_that_ends_too_soon_gives_what_is_whole(folder: Path) -> None:
    big = content() + bytes(4000)
    whole = write_tar(folder / "a.tar", {"1.png": content(), "2.png": big}).read_bytes()
    (folder / "a.tar").write_bytes(whole[:2500])
    found = list_pictures(["a.tar"])
    assert found.notes == ["a.tar ends too soon; 2 files begin in it"]
    assert found.items[0].read() == content()
    with pytest.raises(ValueError, match=r"the archive ends after 964 of its 4,\d+ bytes"):
        found.items[1].read()


def test_damaged_and_locked_members_of_a_zip_are_named_not_lost(folder: Path) -> None:
    path = write_zip(folder / "a.zip", {"1.png": content()})
    held = bytearray(path.read_bytes())
    held[6] |= 1  # encrypted, says the file's own header
    held[held.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(held)
    with pytest.raises(ValueError, match=r"cannot be unpacked: .*encrypted"):
        list_pictures(["a.zip"]).items[0].read()


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("gone", None, "the source gone does not exist"),
        ("a.zip", b"PK no", r"the archive a\.zip cannot be read"),
        ("a.tar", b"no" * 999, r"the archive a\.tar cannot be read"),
        ("a.tar.gz", b"\x1f\x8b", r"a\.tar\.gz is compressed"),
        ("*.nothing", None, r"nothing matches the source \*\.nothing"),
        ("ftp://me:secret@127.0.0.1:1/a.png", None, r"corpus: ftp://127\.0\.0\.1:1/a\.png cannot be read"),
        ("nowhere://a", None, r"corpus: nowhere://a cannot be read"),
    ],
)
def test_a_source_that_is_none_is_refused(folder: Path, name: str, held: bytes | None, message: str) -> None:
    if held is not None:
        (folder / name).write_bytes(held)
    with pytest.raises(ValueError, match=message) as refused:
        list_pictures([name])
    assert "secret" not in str(refused.value)


@posix
def test_links_are_followed_but_not_in_a_circle(folder: Path) -> None:
    (folder / "p/deep/up").symlink_to(folder / "p")
    (folder / "p/other").symlink_to(folder / "elsewhere")
    (folder / "p/itself").symlink_to(folder / "p/itself")
    (folder / "more").mkdir()
    (folder / "more/d.png").write_bytes(content())
    (folder / "p/linked").symlink_to(folder / "more")
    found = list_pictures(["p"])
    assert paths(found) == ["p/a.png", "p/b.png", "p/deep/c.png", "p/itself", "p/linked/d.png", "p/other"]
    assert found.notes == ["p/deep/up leads back to a folder that holds it; it was not followed"]
    errors = {item.path: item.error for item in found.items if item.error}
    assert errors.keys() == {"p/itself", "p/other"}
    assert all(error.startswith("it cannot be read: ") for error in errors.values())


COMPANION = b"\0\5\x16\7\0\2\0\0Mac OS X        "
CLAIMS = {"empty.jpg": b"", "zeros.JPEG": bytes(100), "text.tif": b"text", "page.webp": b"<!DOCTYPE html>", "photo.heic": b"no"}
OTHERS = {"notes.txt": b"", "film.mpg": b"\0\0\1\xb3", "page.pdf": b"%PDF", "jpg": b"", "._a.jpg": COMPANION, "a.jpg.md5": b"0"}


@pytest.mark.parametrize("where", ["folder", "tar", "zip", "list", "URL"])
def test_what_claims_to_be_a_picture_by_its_name_is_listed(where: str, folder: Path) -> None:
    """Or it would be missing without a word."""
    (folder / "q").mkdir()
    for name, held in (CLAIMS | OTHERS).items():
        (folder / "q" / name).write_bytes(held)
    (folder / "q.list").write_text("".join(f"q/{name}\n" for name in (*CLAIMS, *OTHERS)))
    write_tar(folder / "q.tar", CLAIMS | OTHERS)
    write_zip(folder / "q.zip", CLAIMS | OTHERS)
    source = {"folder": "q", "list": "q.list", "URL": (folder / "q").as_uri()}.get(where, f"q.{where}")
    found = list_pictures([source])
    assert sorted(re.split("/|::", path)[-1] for path in paths(found)) == sorted(CLAIMS)
    assert found.no_pictures == len(OTHERS)
    assert not any(item.error for item in found.items)


@posix
def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "p/pipe.png")
    os.mkfifo(folder / "p/pipe")
    found = list_pictures(["p"])
    assert found.no_pictures == 2
    assert [(item.path, item.error) for item in found.items if item.error] == [("p/pipe.png", "it is no regular file")]


@posix
def test_names_that_are_no_utf_8_are_found(folder: Path) -> None:
    name = os.fsdecode(b"p/\xff.png")
    try:
        Path(name).write_bytes(content())
    except OSError:
        pytest.skip("this file system has no such names")
    (found,) = list_pictures(["p"], include=[os.fsdecode(b"\xff*")]).items
    assert (found.path, found.read()) == (name, content())


def test_the_corpus_itself_is_not_searched(folder: Path) -> None:
    assert paths(list_pictures(["p"], apart_from="p/deep")) == ["p/a.png", "p/b.png"]


def test_urls_are_opened_by_fsspec(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/many/a.png": content(), "/many/b/c.png": content("jpg"), "/many/d": b"text", "/z.tar": b""})
    memory.pipe("/z.tar", write_tar(folder / "z.tar", {"in.png": content()}).read_bytes())
    found = list_pictures(["memory://many", "memory://z.tar"])
    assert paths(found) == ["memory://many/a.png", "memory://many/b/c.png", "memory://z.tar::in.png"]
    assert [item.read() for item in found.items] == [content(), content("jpg"), content()]
    assert paths(list_pictures(["memory://many/*.png"])) == ["memory://many/a.png"]


@pytest.mark.parametrize("fails", [2, 3])
def test_a_network_may_fail_twice(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/once/a.png", content())
    (item,) = list_pictures(["memory://once"]).items
    opened, left = type(memory).open, [OSError("the line is dead")] * fails

    def failing(self: object, *words: object, **options: object) -> object:
        if left:
            raise left.pop()
        return opened(self, *words, **options)

    monkeypatch.setattr(type(memory), "open", failing)
    if fails == 2:
        assert item.read() == content()
    else:
        with pytest.raises(OSError, match="the line is dead"):
            item.read()


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_known_by_their_first_bytes(kind: str) -> None:
    assert is_picture(content(kind)[:32])


@pytest.mark.parametrize("first", [b"", b"P", b"P9\n", b"RIFF....WAVE", b"%PDF-1.7", b"PK\x03\x04", b"....ftypmp42", b"<svg>"])
def test_what_is_no_picture_is_known_too(first: bytes) -> None:
    assert not is_picture(first)


def test_a_credential_is_not_shown() -> None:
    assert without_credential("s3://key:secret@bucket/a b") == "s3://bucket/a b"
    assert without_credential("hf://datasets/me/photos@main/a.png") == "hf://datasets/me/photos@main/a.png"


def test_a_password_with_an_at_sign_is_not_shown_either() -> None:
    assert without_credential("ftp://me:p@ss@host/a@b.jpg") == "ftp://host/a@b.jpg"
    assert without_credential("gone: ftp://me:p@ss@host/a, ftp://host/b?c@d") == "gone: ftp://host/a, ftp://host/b?c@d"


# What would go without a word


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (lambda whole, second: whole[:second], "ends too soon; 1 files begin in it"),
        (lambda whole, second: whole[: second + 100], "ends too soon; 1 files begin in it"),
        (
            lambda whole, second: whole[: second + 150] + b"9" + whole[second + 151 :],
            "is damaged after 1 files; what lies behind is not read",
        ),
        (lambda whole, second: whole, None),
    ],
    ids=["between members", "in a header", "a changed header", "whole"],
)
def test_a_tar_says_where_it_is_damaged(folder: Path, damage: Callable[[bytes, int], bytes], note: str | None) -> None:
    whole = write_tar(folder / "a.tar", dict.fromkeys(("1.png", "2.png", "3.png"), content())).read_bytes()
    with tarfile.open(folder / "a.tar") as archive:
        second = archive.getmember("2.png").offset
    (folder / "a.tar").write_bytes(damage(whole, second))
    found = list_pictures(["a.tar"])
    assert found.notes == ([f"a.tar {note}"] if note else [])
    assert len(found.items) == (1 if note else 3)


def write_links(path: Path, links: dict[str, tuple[str, bytes]]) -> None:
    """Into a .tar that is there."""
    with tarfile.open(path, "a") as archive:
        for name, (target, kind) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)


@pytest.mark.parametrize("below", ["", "./"])
def test_links_in_a_tar_are_pictures_too(folder: Path, below: str) -> None:
    write_tar(folder / "a.tar", {f"{below}d/1.png": content()})
    links = {
        f"{below}d/softer.png": ("soft.png", tarfile.SYMTYPE),
        f"{below}d/soft.png": ("../hard.png", tarfile.SYMTYPE),
        f"{below}hard.png": (f"{below}d/1.png", tarfile.LNKTYPE),
        f"{below}lost.png": ("nothing.png", tarfile.SYMTYPE),
        f"{below}round.png": ("round.png", tarfile.SYMTYPE),
    }
    write_links(folder / "a.tar", links)
    found = list_pictures(["a.tar"])
    assert paths(found) == [f"a.tar::{below}{name}" for name in ("d/1.png", "d/soft.png", "d/softer.png", "hard.png")]
    assert {item.read() for item in found.items} == {content()}
    assert found.notes == [f"a.tar has 2 links that lead to no file in it; the first is {below}lost.png"]


def test_a_file_that_replaces_a_link_in_a_tar_counts(folder: Path) -> None:
    write_tar(folder / "a.tar", {"1.png": content()})
    write_links(folder / "a.tar", {"2.png": ("1.png", tarfile.SYMTYPE)})
    with tarfile.open(folder / "a.tar", "a") as archive:
        info = tarfile.TarInfo("2.png")
        info.size = len(content("jpg"))
        archive.addfile(info, io.BytesIO(content("jpg")))
    assert [item.read() for item in list_pictures(["a.tar"]).items] == [content(), content("jpg")]


def test_sparse_files_in_a_tar_are_counted(folder: Path) -> None:
    write_tar(folder / "a.tar", {"1.png": content()})
    with tarfile.open(folder / "a.tar", "a") as archive:
        sparse = tarfile.TarInfo("2.png")
        sparse.type = tarfile.GNUTYPE_SPARSE
        archive.addfile(sparse)
    found = list_pictures(["a.tar"])
    assert (paths(found), found.notes) == (["a.tar::1.png"], ["a.tar has 1 sparse files, which are not read"])


def damaged_zip(folder: Path, at: Callable[[bytes], int], byte: int) -> None:
    """Three pictures in a.zip, of which one byte is another."""
    held = bytearray(write_zip(folder / "a.zip", dict.fromkeys(("1.png", "2.png", "3.png"), content())).read_bytes())
    held[at(held)] = byte
    (folder / "a.zip").write_bytes(held)


def test_a_member_of_a_zip_that_cannot_be_unpacked_is_named(folder: Path) -> None:
    damaged_zip(folder, lambda held: 30 + len("1.png"), 0xFF)  # the first byte of the first member's data
    errors = {item.path: item.error for item in list_pictures(["a.zip"]).items}
    assert errors.pop("a.zip::1.png").startswith("it cannot be unpacked: Error -3 while decompressing data")
    assert errors == {"a.zip::2.png": "", "a.zip::3.png": ""}


def test_a_zip_of_a_later_version_is_refused(folder: Path) -> None:
    damaged_zip(folder, lambda held: held.index(b"PK\1\2") + 6, 99)
    with pytest.raises(ValueError, match=r"the archive a\.zip cannot be read: zip file version 9\.9"):
        list_pictures(["a.zip"])


def test_a_zip_says_that_its_directory_is_damaged(folder: Path) -> None:
    damaged_zip(folder, lambda held: held.index(b"PK\1\2") + 33, 1)  # the length of the first member's comment
    assert list_pictures(["a.zip"]).notes == ["a.zip is damaged; its directory names 1 of 3 files"]


@pytest.mark.parametrize("line", ["IMG[1].png", "memory://nothing/here.png", "bad.zip", "a.tar.gz", "gone.png"])
def test_a_bad_line_of_a_list_is_a_row_with_its_error(folder: Path, line: str) -> None:
    (folder / "bad.zip").write_bytes(b"no" * 99)
    (folder / "a.tar.gz").write_bytes(b"\x1f\x8b")
    (folder / "l.txt").write_text(f"p/a.png\n{line}\np/b.png\n")
    found = list_pictures(["l.txt"])
    assert set(paths(found)) == {"p/a.png", "p/b.png", line}
    assert [item.path for item in found.items if item.error] == [line]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_a_list_may_begin_with_the_mark_of_its_encoding(folder: Path, encoding: str) -> None:
    (folder / "l.txt").write_text("p/a.png\np/b.png\n", encoding=encoding)
    assert [(item.path, item.error) for item in list_pictures(["l.txt"]).items] == [("p/a.png", ""), ("p/b.png", "")]


def test_a_list_in_utf_16_is_not_taken_for_names_of_one_letter(folder: Path) -> None:
    """Among them would be the root of all folders."""
    (folder / "l.txt").write_bytes("/p/a.png\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"the list l\.txt is in UTF-16; write it in UTF-8"):
        list_pictures(["l.txt"])


def test_standard_input_that_is_closed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input, which is closed"):
        list_pictures(["-"])


def test_a_quoted_glob_is_what_the_shells_is(folder: Path) -> None:
    write_tar(folder / "p/t.tar", {"in.png": content()})
    assert paths(list_pictures(["p/*"])) == ["p/a.png", "p/b.png", "p/deep/c.png", "p/t.tar::in.png"]
    assert paths(list_pictures(["p"])) == ["p/a.png", "p/b.png", "p/deep/c.png"], "what merely lies in a folder"
    found = list_pictures(["p/**"])
    assert (paths(found), found.repeated) == (["p/a.png", "p/b.png", "p/deep/c.png", "p/t.tar::in.png"], 0)


def test_globs_choose_among_all_files(folder: Path) -> None:
    assert paths(list_pictures(["p/*"], exclude=["b*"])) == ["p/a.png", "p/deep/c.png"]
    assert paths(list_pictures(["p/a.png", "p/b.png"], exclude=["b*"])) == ["p/a.png"]
    (folder / "l.txt").write_text("p/a.png\np/deep/c.png\n")
    assert paths(list_pictures(["l.txt"], exclude=["*/deep/*"])) == ["p/a.png"]


def test_urls_are_as_folders_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    archive = write_tar(folder / "z.tar", {"in.png": content()}).read_bytes()
    memory.pipe({"/far/summer/a.png": content(), "/far/winter/b.png": content(), "/far/z.tar": archive})
    assert paths(list_pictures(["memory://far"], include=["summer/*"])) == ["memory://far/summer/a.png"]
    assert paths(list_pictures(["memory://far"])) == ["memory://far/summer/a.png", "memory://far/winter/b.png"]
    assert paths(list_pictures(["memory://far/summer/a.png"], include=["b*"])) == []
    with pytest.raises(ValueError, match=r"memory://far/\*\.nothing cannot be read: no file matches it"):
        list_pictures(["memory://far/*.nothing"])
    memory.rm("/far", recursive=True)


def test_one_bad_archive_of_those_that_a_glob_matches_at_a_url_is_a_row(folder: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    archive = write_tar(folder / "z.tar", {"in.png": content()}).read_bytes()
    memory.pipe({"/several/1.tar": archive, "/several/2.tar": b"no" * 999})
    good, bad = list_pictures(["memory://several/*.tar"]).items
    assert (good.path, good.read()) == ("memory://several/1.tar::in.png", content())
    assert (bad.path, bad.error) == ("memory://several/2.tar", "memory://several/2.tar cannot be read: invalid header")
    memory.rm("/several", recursive=True)


@pytest.mark.parametrize("fails", [2, 3])
def test_the_first_bytes_are_tried_three_times_too(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe({"/dull/a.png": content(), "/dull/b.png": content()})
    opened, left = type(memory).open, [OSError("no memory://me:secret@dull")] * fails

    def failing(self: object, *words: object, **options: object) -> object:
        if left:
            raise left.pop()
        return opened(self, *words, **options)

    monkeypatch.setattr(type(memory), "open", failing)
    found = list_pictures(["memory://dull"])
    assert [item.error for item in found.items] == ["" if fails < 3 else "it cannot be read: no memory://dull", ""]
    memory.rm("/dull", recursive=True)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hosted://me:p@ss@there/d", ["d/a.png", "d/e/b.png"]),
        ("hosted://me:p@ss@there/d/", ["d/a.png", "d/e/b.png"]),
        ("hosted://me:p@ss@there", ["d/a.png", "d/e/b.png"]),
        ("hosted://me:p@ss@there/d/*.png", ["d/a.png"]),
        ("hosted://me:p@ss@there/*/e/*", ["d/e/b.png"]),
    ],
)
def test_the_host_of_a_url_is_kept(source: str, expected: list[str]) -> None:
    import fsspec

    class Hosted(fsspec.AbstractFileSystem):  # type: ignore[misc]
        """A storage whose paths are without the host, as those of ftp and webhdfs are."""

        protocol = "hosted"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.rpartition("@there")[2].strip("/")

        def ls(self, path: str, detail: bool = True, **options: object) -> list[object]:
            below = {"/": ["/d"], "/d": ["/d/a.png", "/d/e"], "/d/e": ["/d/e/b.png"]}.get(path.rstrip("/") or "/", [path])
            found = [{"name": name, "size": 9, "type": "file" if name.endswith(".png") else "directory"} for name in below]
            return found if detail else below  # type: ignore[return-value]

        def open(self, path: str, mode: str = "rb", *words: object, **options: object) -> io.BytesIO:
            return io.BytesIO(content())

    fsspec.register_implementation("hosted", Hosted, clobber=True)
    found = list_pictures([source])
    assert paths(found) == [f"hosted://there/{name}" for name in expected]
    assert [item.where for item in found.items] == [f"hosted://me:p@ss@there/{name}" for name in expected]
