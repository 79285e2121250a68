"""What was read from the Hub, kept as whole checkpoint folders: the config and one file with the arrays that were asked for.

`CACHE/HOST/OWNER--NAME/COMMIT/STAGE/` is such a folder. One that is arriving is called `STAGE.partial`; its safetensors file
grows from the beginning, so its length says how much has come, and the next run goes on from there.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from npembed.support.atomic import file_beside, sweep
from npembed.support.reading import MOST_INDEX, MissingFileError, read_regular
from npembed.weights.checkpoint import MODULES, Checkpoint
from npembed.weights.folder import Folder
from npembed.weights.places import Place, bytes_of, in_order, pieces, runs
from npembed.weights.plan import Plan
from npembed.weights.ranges import LocalFile
from npembed.weights.safetensors_header import read_header
from npembed.weights.source import SINGLE, WHO, Progress, Source, json_object

RECORD = "npembed.json"
"""Says what a folder of the cache holds; no folder without it was made by npembed."""

PARTIAL = ".partial"

CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")

Planner = Callable[[Source], Plan]
"""A source -> what is to be read of it, found out by its names and its config."""


def cache_folder() -> Path:
    """NPEMBED_CACHE; else npembed under XDG_CACHE_HOME; else ~/.cache/npembed."""
    if os.environ.get("NPEMBED_CACHE"):
        return Path(os.environ["NPEMBED_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "npembed"


@dataclass(frozen=True)
class Kept:
    """One folder of the cache.

    Attributes
    ----------
    repository, commit, stage : str
    folder : Path
    nbytes : int
        On disk.
    whole : bool
        False for one that is arriving, or that was stopped.
    """

    repository: str
    commit: str
    stage: str
    folder: Path
    nbytes: int
    whole: bool

    def is_of(self, repository: str, revision: str | None = None) -> bool:
        """Whether it is of that repository and, if one is given, that branch, tag or commit."""
        if self.repository != repository:
            return False
        return revision is None or _commit_of(self.folder.parents[1], revision) == self.commit

    @property
    def source(self) -> "KeptFolder":
        """What is kept, as a source."""
        return KeptFolder(self)


class KeptFolder(Folder):
    """A folder of the cache, which knows the names of all arrays of the checkpoint, also of those that are not kept."""

    def __init__(self, each: Kept) -> None:
        super().__init__(each.folder)
        self.where = f"{each.repository}@{each.commit}"
        names = _json(each.folder / RECORD).get("names")
        self._file_of = {name: SINGLE for name in names if isinstance(name, str)} if isinstance(names, list) else {}

    def place(self, name: str) -> Place:
        """Where an array's bytes are."""
        if name not in self.held():
            raise ValueError(f"{WHO}: {name} is not kept in {self._source.address('')}")
        return super().place(name)

    def held(self) -> set[str]:
        """The names of the arrays that are kept."""
        return set(self._opened(SINGLE)[1].entries)


def _json(path: Path) -> dict[str, Any]:
    return json_object(read_regular(path, MOST_INDEX, WHO), str(path))


def _commit_of(shelf: Path, revision: str) -> str | None:
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    path = shelf / "refs" / quote(revision, safe="")
    stated = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return stated if re.fullmatch(r"[0-9a-f]{40}", stated) else None


class Shelf:
    """The part of the cache that holds one repository of one server."""

    def __init__(self, cache: Path, host: str, repository: str) -> None:
        self.repository = repository
        self.folder = cache / re.sub(r"[^\w.-]", "_", host) / repository.replace("/", "--")

    def commit_of(self, revision: str) -> str | None:
        """The commit that a revision was when something was read under it; a commit is itself."""
        return _commit_of(self.folder, revision)

    def remember(self, revision: str, commit: str) -> None:
        """That a revision is a commit."""
        path = self.folder / "refs" / quote(revision, safe="")
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, commit)

    def kept(self, commit: str) -> list[Kept]:
        """What is kept of a commit, and not still arriving."""
        return _kept_in(self.folder / commit, arriving=False)

    def find(self, commit: str, plan: Planner) -> tuple[Kept, Plan] | None:
        """A whole folder that has every array that is needed: the stage's own, or a later stage's."""
        found = [(each, plan(each.source)) for each in self.kept(commit)]
        for each, planned in sorted(found, key=lambda pair: (pair[0].stage != pair[1].stage, pair[0].nbytes)):
            try:
                if set(planned.shapes) <= each.source.held():
                    return each, planned
            except ValueError as error:
                raise ValueError(f"{error}; `npembed weights rm {self.repository}` deletes what is kept") from None
        return None

    def keep(self, source: Checkpoint, names: Sequence[str], commit: str, stage: str, progress: Progress | None) -> Kept:
        """Read these arrays into the stage's folder, which appears when all of it is there."""
        folder = self.folder / commit / stage
        partial = folder.with_name(stage + PARTIAL)
        record = {"repository": self.repository, "commit": commit, "stage": stage, "names": list(source.names())}
        places = in_order(source.place(name) for name in dict.fromkeys(names))
        with _locked(folder), _written(partial):
            if folder.is_dir():
                if {place.name for place in places} <= set(read_header(LocalFile(folder / SINGLE)).entries):
                    return _kept_at(folder)  # another process was faster
                _empty(folder)
            partial.mkdir(parents=True, exist_ok=True)
            _put(partial, RECORD, record)
            for name in CONFIGS:
                if (content := source.json(name)) is not None:
                    _put(partial, name, content)
            if modules := source.modules():
                _put(partial, MODULES, modules)
            try:
                _fill(partial / SINGLE, source, places, f"{self.repository}@{commit}", progress)
            except BaseException:
                _tidy(partial)
                raise
            os.rename(partial, folder)
        return _kept_at(folder)


def _put(folder: Path, name: str, content: Any) -> None:
    _write(folder / name, json.dumps(content, indent=1))


def _write(path: Path, text: str) -> None:
    """The whole file or none: a process that is killed leaves no half of it under its name."""
    sweep(path.parent)
    with file_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)


def _header_of(places: Sequence[Place], origin: str) -> bytes:
    """A safetensors file's beginning, for these arrays laid end to end."""
    content: dict[str, Any] = {"__metadata__": {"source": origin}}
    end = 0
    for place in places:
        entry = place.entry
        content[place.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [end, end + entry.nbytes]}
        end += entry.nbytes
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _fill(path: Path, source: Checkpoint, places: Sequence[Place], origin: str, progress: Progress | None) -> None:
    """Write the safetensors file, from where it ends if it begins as it should."""
    header, total = _header_of(places, origin), bytes_of(places)
    with path.open("ab+") as file:
        file.seek(0)
        if file.read(len(header)) != header or path.stat().st_size > len(header) + total:
            file.truncate(0)
            file.write(header)
            file.flush()
        done = before = path.stat().st_size - len(header)
        if progress:
            progress(done, total)
        for run in runs(places):
            length = bytes_of(run)
            skip, before = min(before, length), max(0, before - length)
            if skip == length:
                continue
            for _, part in pieces(source.ranged(run[0].file), run, _reached(run, skip)):
                file.write(part)
                file.flush()  # so that a process that is killed leaves all that came
                done += len(part)
                if progress:
                    progress(done, total)
        os.fsync(file.fileno())


def _reached(run: Sequence[Place], skip: int) -> int:
    """Where in the source's file the byte is that follows the first `skip` bytes of a run's arrays."""
    for place in run:
        if skip < place.entry.nbytes:
            return place.begin + skip
        skip -= place.entry.nbytes
    return run[-1].end


def _tidy(partial: Path) -> None:
    """Remove what was begun, if none of an array's bytes has come."""
    path = partial / SINGLE
    with suppress(OSError, ValueError):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if path.stat().st_size <= 8 + length:
            _empty(partial)


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Only one process at a time writes to a folder; another one waits. The lock's file stays: to delete it would be a race."""
    try:
        from filelock import FileLock, Timeout
    except ImportError:
        raise ImportError("the cache needs filelock, which comes with the extra hub: pip install 'npembed[hub]'") from None
    path = folder.parents[3] / ".locks" / f"{'--'.join(folder.parts[-4:])}.lock"
    with _written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(f"{WHO}: {folder} is being written by another process") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{WHO}: the cache at {path} cannot be written: {error.strerror or error}") from None


def kept(cache: Path | None = None) -> list[Kept]:
    """Every folder in the cache, whole or not, by repository, commit and stage."""
    cache = cache_folder() if cache is None else cache
    found = [each for folder in sorted(cache.glob("*/*--*/*")) for each in _kept_in(folder)]
    return sorted(found, key=lambda each: (each.repository, each.commit, each.stage, each.folder))


def _kept_in(commit: Path, arriving: bool = True) -> list[Kept]:
    """The folders of one commit, with those that are still arriving or without."""
    found = []
    for path in sorted(commit.glob(f"*/{RECORD}")):
        if arriving or not path.parent.name.endswith(PARTIAL):
            with suppress(MissingFileError, FileNotFoundError):  # another run has put it in its place, or deleted it
                found.append(_kept_at(path.parent))
    return found


def _kept_at(folder: Path) -> Kept:
    record = _json(folder / RECORD)
    repository, commit, stage = (str(record.get(key)) for key in ("repository", "commit", "stage"))
    nbytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return Kept(repository, commit, stage, folder, nbytes, not folder.name.endswith(PARTIAL))


def remove(each: Kept) -> None:
    """Delete a folder of the cache: the files that npembed put there, and what is empty then.

    Raises
    ------
    ValueError
        A folder that cannot be deleted, or that npembed did not make.
    """
    if not (each.folder / RECORD).is_file():
        raise ValueError(f"remove: {each.folder} was not made by npembed; it has no {RECORD}")
    with _locked(each.folder.with_name(each.stage), wait=False):
        try:
            _remove(each.folder)
        except OSError as error:
            raise ValueError(f"remove: {each.folder} cannot be deleted: {error.strerror or error}") from None


def _remove(folder: Path) -> None:
    """With what is empty above it then."""
    _empty(folder)
    commit, shelf = folder.parent, folder.parent.parent
    with suppress(OSError):  # something else is in it
        commit.rmdir()
        for ref in (shelf / "refs").glob("*"):
            if ref.read_text(encoding="utf-8").strip() == commit.name:
                ref.unlink()
        (shelf / "refs").rmdir()
        shelf.rmdir()


def _empty(folder: Path) -> None:
    """What npembed put there, and the folder itself; what is above it stays, where another run may be about to write."""
    sweep(folder)
    for name in (SINGLE, *CONFIGS, MODULES, RECORD):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        folder.rmdir()
