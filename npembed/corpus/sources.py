"""Files, folders, lists, archives and URLs -> the sorted list of the pictures in them, made before any is decoded."""

import bz2
import codecs
import copy
import fnmatch
import glob
import os
import posixpath
import re
import stat
import sys
import tarfile
import weakref
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, BinaryIO

from npembed.corpus.signatures import FIRST_BYTES, claims_to_be_picture, is_picture
from npembed.support.messages import shown
from npembed.support.pictures import MOST_FILE
from npembed.support.reading import open_at_once

LISTS = (".txt", ".list", ".lst")
"""Suffixes of files that list sources, one on each line."""
ARCHIVES = (".tar", ".zip")
TRIES = 3
"""To read a picture from a URL."""
MOST_LINKS = 40
"""That are followed from one to the next in a .tar, as Linux does."""
MOST_TIMES = 1000
"""That one folder is searched, by however many links: each level of a few could double the number."""
MOST_LINE = 2**16
"""Bytes of a line in a list: paths and URLs are shorter."""
MOST_HEADER = 2**17
"""Bytes that the name or the like of one file in a .tar may take: Linux has no attribute of more than half of that."""
STEP, SMALL_STEP = 2**24, 2**12
"""Bytes that are read at once; and of packed ones, of which each may become 7,000."""
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_Member = tuple[str, bytes, dict[str, Any]]
"""Of an archive: name, first bytes, and where it lies, as `Item` has it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One picture's file, wherever it is.

    Attributes
    ----------
    path : str
        As the corpus calls it: the source as it was given, and below it the name in the folder; in an archive
        `ARCHIVE::NAME`. Bytes that are no UTF-8 are surrogates, as `os.fsdecode` makes them.
    where : str
        The file, or the archive that holds it: an absolute path or a URL.
    member : str
        Its name in a .zip; "" otherwise.
    offset : int
        Where it begins in `where`, for a .tar.
    size : int
        In bytes; -1 where it is not known.
    stamp : str
        Changes when the file does: its time of change, or what a URL's server says of it.
    error : str
        Why it cannot be read, if that is known already.
    """

    path: str
    where: str
    member: str = ""
    offset: int = 0
    size: int = -1
    stamp: str = ""
    error: str = ""

    def read(self) -> bytes:
        """The whole file's bytes.

        Raises
        ------
        OSError, ValueError
            A file that is gone, cannot be read or ends too soon.
        """
        if self.error:
            raise ValueError(self.error)
        _check_size(self.size)
        content = _try_again(self._content) if "://" in self.where else self._content()
        _check_size(len(content))
        return content

    def _content(self) -> bytes:
        if self.member:
            archive = _zip(self.where, self.stamp)
            return _unpacked(archive, archive.getinfo(self.member), MOST_FILE + 1)
        with _open(self.where) as file:
            whole = 0 if "://" in self.where else os.fstat(file.fileno()).st_size
            if not self.offset:
                _check_size(whole)
                return _read(file, MOST_FILE + 1, whole + 1 if whole else STEP)
            file.seek(self.offset)
            content = _read(file, self.size, min(self.size, whole or STEP))
        if len(content) < self.size:
            raise ValueError(f"the archive ends after {len(content):,} of its {self.size:,} bytes")
        return content


@dataclass
class Listing:
    """The pictures that were found, in order, and what else was.

    Attributes
    ----------
    items : list of Item
        Sorted by the bytes of their paths.
    no_pictures : int
        Files that are no pictures by their first bytes, and do not claim to be any by their names.
    repeated : int
        How often a path came again.
    notes : list of str
        What a person should know: an archive that ends too soon, links that go round in a circle.
    """

    items: list[Item] = field(default_factory=list)
    no_pictures: int = 0
    repeated: int = 0
    notes: list[str] = field(default_factory=list)


def list_pictures(
    sources: Sequence[str], include: Sequence[str] = (), exclude: Sequence[str] = (), apart_from: str | None = None
) -> Listing:
    """Every picture in the sources, the same on every run.

    Parameters
    ----------
    sources : sequence of str
        Files, folders (searched through), globs (each match is a source), .tar and .zip (read in place, unless they merely lie
        in a folder), lists (.txt, .list, .lst; "-" is standard input), and URLs that fsspec opens. A line of a list that is
        nothing is a picture with an error.
    include, exclude : sequence of str
        Globs; of all files, however they were given, only what one of `include` matches, if there are any, and none of
        `exclude`. They are compared with the name within a folder or an archive, or as it was given, and with its last part.
    apart_from : str, optional
        A folder that is not searched: the corpus itself.

    Raises
    ------
    ValueError
        A source that is not there, cannot be read, or is a compressed .tar.
    ImportError
        A URL without fsspec.
    """
    found = Listing()
    hidden = None if apart_from is None else _identity(apart_from)
    walk = _Walk(found, _chooser(include, exclude), hidden)
    for source in sources:
        walk.add(os.fspath(source))
    counts = Counter(item.path for item in walk.items)
    found.repeated = sum(counts.values()) - len(counts)
    found.items = sorted({item.path: item for item in walk.items}.values(), key=lambda item: _bytes_of(item.path))
    return found


def _bytes_of(path: str) -> bytes:
    return path.encode("utf-8", "surrogatepass")


def _chooser(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name is wanted."""

    def matches(name: str, globs: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(part, pattern) for pattern in globs for part in (name, name.rpartition("/")[2]))

    return lambda name: (not include or matches(name, include)) and not matches(name, exclude)


class _Walk:
    """Goes through the sources and collects what it finds."""

    def __init__(self, found: Listing, wanted: Callable[[str], bool], hidden: "_Identity | None") -> None:
        self.items: list[Item] = []
        self._found, self._wanted, self._hidden = found, wanted, hidden

    def add(self, source: str, within_list: bool = False) -> None:
        """What one SOURCE, or one line of a list, stands for."""
        if source == "-" and not within_list:
            if sys.stdin is None:
                raise ValueError("corpus: the source - is standard input, which is closed")
            self._add_lines(_read(sys.stdin.buffer, MOST_FILE + 1), "standard input")
        elif "://" in source:
            self._add_url(source)
        elif source.lower().endswith(_COMPRESSED):
            raise ValueError(f"corpus: {source} is compressed, so nothing in it can be found without unpacking; give a .tar")
        elif os.path.isdir(source):
            self._add_folder(source)
        elif source.lower().endswith(ARCHIVES) and os.path.isfile(source):
            self._add_archive(source, os.path.abspath(source), _stamp(os.stat(source)))
        elif source.lower().endswith(LISTS) and os.path.isfile(source) and not within_list:
            self._add_lines(_readable(source), source)
        elif os.path.lexists(source):
            if self._wanted(source):
                self._add_file(source, source)
        elif glob.has_magic(source):
            self._add_glob(source)
        elif within_list:
            self.items.append(Item(source, os.path.abspath(source), error="it does not exist"))
        else:
            raise ValueError(f"corpus: the source {source} does not exist")

    def _add_lines(self, content: bytes, where: str) -> None:
        """A line is a source; where there are zero bytes, as `find -print0` writes them, these end a name instead."""
        if len(content) > MOST_FILE:
            raise ValueError(f"corpus: the list {where} has more than {MOST_FILE:,} bytes")
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            content = content.decode("utf-16", "replace").encode()
        content = content.removeprefix(codecs.BOM_UTF8)
        if b"\0" in content and len(content) > 2 and not re.search(rb"[^\0]{2}", content):  # every letter would be a source
            raise ValueError(f"corpus: the list {where} is in UTF-16; write it in UTF-8")
        for line in re.finditer(rb"[^\0]+" if b"\0" in content else rb"[^\n]+", content):
            name = os.fsdecode(line[0].removesuffix(b"\r"))
            if len(name) > MOST_LINE:
                self.items.append(Item(shown(name), "", error=f"a line of {len(name):,} characters is no path or URL"))
            elif name.strip():
                self._add_line(name)

    def _add_line(self, source: str) -> None:
        """One line of many: what is wrong with it does not end the others."""
        try:
            self.add(source, within_list=True)
        except ValueError as error:
            where = source if "://" in source else os.path.abspath(source)
            self.items.append(Item(without_credential(source), where, error=str(error).removeprefix("corpus: ")))

    def _add_glob(self, pattern: str) -> None:
        names = sorted(glob.glob(pattern, recursive=True))
        if not names:
            raise ValueError(f"corpus: nothing matches the source {pattern}")
        for name in names:
            if "**" not in pattern or not os.path.isdir(name):  # whose files match, too
                self._add_line(name)

    def _add_folder(self, folder: str) -> None:
        for path in self._files_below(folder):
            if self._wanted(os.path.relpath(path, folder).replace(os.sep, "/")):
                self._add_file(path, path)

    def _files_below(self, folder: str) -> Iterator[str]:
        """Through links to folders too, but not into one that is above, nor too often into the same."""
        waiting: list[tuple[str, tuple[_Identity | None, ...]]] = [(folder, (_identity(folder),))]
        times = Counter[_Identity | None]()
        while waiting:
            folder, above = waiting.pop()
            try:
                with os.scandir(folder) as entries:
                    found = list(entries)
            except OSError as error:
                self._found.notes.append(f"the folder {folder} cannot be read: {error.strerror}")
                continue
            for entry in found:
                if not _is_folder(entry):
                    yield entry.path
                    continue
                own = _identity(entry.path)
                times[own] += 1
                if own in above:
                    self._found.notes.append(f"{entry.path} leads back to a folder that holds it; it was not followed")
                elif times[own] == MOST_TIMES + 1:
                    self._found.notes.append(f"{entry.path} leads to a folder that was searched {MOST_TIMES:,} times already")
                elif times[own] <= MOST_TIMES and (own != self._hidden or own is None):
                    waiting.append((entry.path, (*above, own)))

    def _add_file(self, path: str, shown: str) -> None:
        where = os.path.abspath(path)
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                error = "it is no regular file" if claims_to_be_picture(path, b"") else ""
                self._add_if_picture(b"", Item(shown, where, error=error))
                return
            with _open(where) as file:
                first = _read(file, FIRST_BYTES)
        except (OSError, ValueError) as error:  # ValueError: it has become something else meanwhile
            why = getattr(error, "strerror", None) or str(error)
            self.items.append(Item(shown, where, error=f"it cannot be read: {why}"))
            return
        self._add_if_picture(first, Item(shown, where, size=status.st_size, stamp=_stamp(status)))

    def _add_if_picture(self, first: bytes, item: Item) -> None:
        if item.error or is_picture(first) or claims_to_be_picture(item.path, first):
            self.items.append(item)
        else:
            self._found.no_pictures += 1

    def _add_archive(self, shown: str, where: str, stamp: str) -> None:
        try:
            with _open(where) as file:
                members = _tar_members if where.lower().endswith(".tar") else _zip_members
                for name, first, place in members(file, lambda note: self._found.notes.append(f"{shown} {note}")):
                    if self._wanted(name):
                        self._add_if_picture(first, Item(f"{shown}::{name}", where, stamp=stamp, **place))
        except Exception as error:  # a damaged archive raises whatever its reader stumbles on
            why = str(error) or type(error).__name__
            raise ValueError(f"corpus: the archive {shown} cannot be read: {why}") from None

    def _add_url(self, url: str) -> None:
        shown = without_credential(url)
        try:
            system, path = _filesystem(url)
            for found, info in sorted(_remote_files(system, path, url)):
                if found == path:
                    self._add_remote(system, found, info, url, url, shown)
                else:
                    where = _url_below(system, found, path, url)
                    self._add_remote(system, found, info, where, url, found.removeprefix(path).lstrip("/"))
        except ImportError as error:
            raise ImportError(f"corpus: {shown} needs another package: {error}") from None
        except Exception as error:  # every kind of storage has errors of its own
            why = without_credential(str(error)).removeprefix(f"corpus: the archive {shown} cannot be read: ")
            raise ValueError(f"corpus: {shown} cannot be read: {why or type(error).__name__}") from None

    def _add_remote(self, system: Any, path: str, info: dict[str, Any], where: str, url: str, name: str) -> None:
        alone, shown = where == url, without_credential(where)
        stamp = next(
            (str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "updated", "created") if info.get(key)), ""
        )
        if path.lower().endswith(ARCHIVES) and alone:
            self._add_archive(shown, where, stamp)
        elif path.lower().endswith(ARCHIVES) and "*" in url:
            self._add_line(where)
        elif self._wanted(name):
            item = Item(shown, where, size=info.get("size") or -1, stamp=stamp)
            try:
                first = _try_again(lambda: _first_bytes(system, path))
            except Exception as error:
                if alone:
                    raise
                first, item = b"", replace(item, error=f"it cannot be read: {without_credential(str(error))}")
            self._add_if_picture(first, item)


def _try_again(read: Callable[[], bytes]) -> bytes:
    """What it reads from far away: a network may fail once; the last try says why."""
    for _ in range(TRIES - 1):
        with suppress(Exception):
            return read()
    return read()


def _first_bytes(system: Any, path: str) -> bytes:
    with system.open(path, "rb") as file:
        first: bytes = file.read(FIRST_BYTES)
    return first


def _readable(path: str) -> bytes:
    try:
        with _open(path) as file:
            return _read(file, MOST_FILE + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"corpus: the list {path} cannot be read: {why}") from None


def _read(file: Any, most: int, step: int = STEP) -> bytes:
    """So many bytes of a file, or all that there are: by steps, so that nothing is taken for what is merely claimed."""
    parts = []
    while most > 0 and (part := file.read(min(step, most))):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def _check_size(size: int) -> None:
    """An error for what is larger than any picture's file that `embed` reads."""
    if size > MOST_FILE:
        raise ValueError(f"it has {size:,} bytes; at most {MOST_FILE:,} are read")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere
        return False


_Identity = tuple[int, int]
"""Of a folder, by whichever name: its device, and its number there."""


def _identity(folder: str) -> _Identity | None:
    """None where there is none."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _stamp(status: os.stat_result) -> str:
    return str(status.st_mtime_ns)


def _tar_members(file: BinaryIO, note: Callable[[str], None]) -> Iterator[_Member]:
    """Name, first bytes and place of each file; of two with one name the later one counts, as when it is unpacked."""
    found: dict[str, _Member] = {}
    links: dict[str, str] = {}
    sparse = 0
    with tarfile.open(fileobj=_Bounded(file, MOST_HEADER), mode="r:") as archive:
        try:
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # where tarfile keeps all of them, with all that headers say of each
                if archive.offset <= member.offset:
                    raise tarfile.HeaderError("a size below nothing")  # with which it would go round in a circle
                if member.issym() or member.islnk():
                    folder = posixpath.dirname(member.name) if member.issym() else ""
                    links[member.name] = posixpath.normpath(posixpath.join(folder, member.linkname))
                elif member.issparse():
                    sparse += 1
                elif member.isreg():
                    links.pop(member.name, None)
                    place = {"offset": member.offset_data, "size": member.size}
                    file.seek(member.offset_data)
                    found[member.name] = (member.name, file.read(min(FIRST_BYTES, member.size)), place)
            if how := _how_it_ends(file, archive.offset, len(found)):
                note(how)
        except tarfile.ReadError:
            note(f"ends too soon; {len(found)} files begin in it")
        except (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError):  # whatever tarfile stumbles on
            note(_damaged_after(len(found)))
    _add_links(found, links, note)
    if sparse:
        note(f"has {sparse} sparse files, which are not read")
    yield from found.values()


def _add_links(found: dict[str, _Member], links: dict[str, str], note: Callable[[str], None]) -> None:
    """What the links in a .tar lead to, maybe by other links."""
    files = {posixpath.normpath(name): member for name, member in found.items()}
    targets = {posixpath.normpath(name): target for name, target in links.items()}
    lost = []
    for name, target in links.items():
        for _ in range(MOST_LINKS):
            target = target if target in files else targets.get(target, target)
        if target in files:
            found[name] = (name, *files[target][1:])
        else:
            lost.append(name)
    if lost:
        note(f"has {len(lost)} links that lead to no file in it; the first is {lost[0]}")


def _how_it_ends(file: BinaryIO, offset: int, count: int) -> str:
    """What is wrong with a .tar after its last member, which tarfile does not say; empty where its end is marked."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return f"ends too soon; {count} files begin in it"
    return _damaged_after(count) if any(block) else ""


def _damaged_after(count: int) -> str:
    return f"is damaged after {count} files; what lies behind is not read"


def _zip_members(file: BinaryIO, note: Callable[[str], None]) -> Iterator[_Member]:
    with zipfile.ZipFile(_Bounded(file, MOST_FILE)) as archive:
        _check_count(file, archive, note)
        for info in {info.filename: info for info in archive.infolist()}.values():
            if info.is_dir():
                continue
            place: dict[str, Any] = {"member": info.filename, "size": info.file_size}
            try:
                first = _unpacked(archive, info, FIRST_BYTES)
            except Exception as error:  # encrypted, damaged, compressed in a way that Python lacks: the others are read
                first, place["error"] = b"", f"it cannot be unpacked: {error}"
            yield info.filename, first, place


def _check_count(file: BinaryIO, archive: zipfile.ZipFile, note: Callable[[str], None]) -> None:
    """Of a damaged directory zipfile reads what it can; the record at the archive's end says how many it should be."""
    file.seek(-22 - len(archive.comment), os.SEEK_END)
    record = file.read(12)
    there, said = len(archive.infolist()), int.from_bytes(record[10:], "little")
    if record.startswith(b"PK\5\6") and said not in (there % 2**16, 0xFFFF):
        note(f"is damaged; its directory names {there} of {said} files")


@lru_cache(maxsize=2)
def _zip(where: str, stamp: str) -> zipfile.ZipFile:
    """An archive kept open: its directory is long to read."""
    file = _open(where)
    try:
        archive = zipfile.ZipFile(_Bounded(file, MOST_FILE))
    except BaseException:
        file.close()
        raise
    weakref.finalize(archive, file.close)  # it closes only what it has opened itself
    return archive


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """So many bytes of a member, or all, in memory that does not depend on what else they would become."""
    if info.compress_type == zipfile.ZIP_BZIP2:  # zipfile unpacks all that it has read: 4 KiB may become 4 GB
        packed = copy.copy(info)
        packed.compress_type, packed.file_size = zipfile.ZIP_STORED, info.compress_size
        del packed.CRC  # of what is unpacked; bzip2 has its own
        with archive.open(packed) as stream, bz2.open(stream) as member:
            return _read(member, most)
    with archive.open(info) as member:
        return _read(member, most, STEP if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else SMALL_STEP)


class _Bounded:
    """An archive's file, of which no more is read at once, whatever is claimed in it."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._most = file, most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        """So many bytes; the rest of the file, as far as is allowed."""
        if size > self._most:
            raise ValueError(f"something in it claims to take {size:,} bytes; at most {self._most:,} are read")
        return _read(self._file, self._most if size < 0 else size)


def _open(where: str) -> BinaryIO:
    """A file here, or at a URL.

    Raises
    ------
    OSError
    ValueError
        Something here that is no file. Whatever a storage raises.
    """
    if "://" not in where:
        try:
            return open_at_once(where)
        except ValueError as error:
            raise ValueError(f"it {error}") from None
    system, path = _filesystem(where)
    opened: BinaryIO = system.open(path, "rb")
    return opened


def _filesystem(url: str) -> tuple[Any, str]:
    """The storage that a URL names, and the path in it."""
    try:
        import fsspec  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError("fsspec: pip install 'npembed[corpus]'") from None
    system, path = fsspec.core.url_to_fs(url)
    return system, path


def _remote_files(system: Any, path: str, url: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Each file that a URL stands for, with what is known of it."""
    over_http = url.startswith(("http://", "https://"))
    if "*" in path:
        files = [(name, info) for name, info in system.glob(path, detail=True).items() if info["type"] == "file"]
        if not files:
            raise FileNotFoundError("no file matches it")
        return files
    if url.endswith("/") if over_http else system.isdir(path):
        files = list(system.find(path, detail=True).items())
        if not files:
            system.ls(path)  # says why, where `find` passes over what does not answer
        return files
    return [(path, system.info(path))]


def _url_below(system: Any, found: str, path: str, url: str) -> str:
    """The URL of a file found in a folder, or by a glob, at another: some storages' own names leave out the host."""
    if "*" in url:
        above, below = (text.partition("*")[0].rpartition("/")[0] for text in (url, path))
    else:
        above, below = url.removesuffix("/"), path.rstrip("/")
    if "::" in url or not found.startswith(below):
        own: str = system.unstrip_protocol(found)
        return own
    return f"{above}/{found.removeprefix(below).lstrip('/')}"


def without_credential(url: str) -> str:
    """The URL without the name and password in it, if any.

    Examples
    --------
    >>> without_credential("ftp://me:secret@host/a.jpg")
    'ftp://host/a.jpg'
    """
    return re.sub(r"(://)[^/?#\s]*@", r"\1", url)
