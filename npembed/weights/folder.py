"""A checkpoint's folder on this machine."""

import os
from contextlib import suppress
from pathlib import Path

from npembed.support.reading import MissingFileError, open_regular, read_regular
from npembed.weights.checkpoint import Checkpoint
from npembed.weights.ranges import LocalFile, Ranged
from npembed.weights.source import INDEX, SINGLE, WHO, most_bytes

DANGLING = "is a link that leads nowhere"


class LocalFiles:
    """The files of a folder; each is open only as long as a part is read from it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def address(self, name: str) -> str:
        """A file, for messages."""
        return str(self.folder / name)

    def has(self, name: str) -> bool:
        """Whether there is such a file, or a link of that name."""
        return os.path.lexists(self.folder / name)

    def whole(self, name: str) -> bytes | None:
        """A small file's bytes; None if there is none."""
        try:
            return read_regular(self.folder / name, most_bytes(name), WHO)
        except MissingFileError:
            self._refuse_dangling(name)
            return None

    def file(self, name: str) -> Ranged | None:
        """A large file; None if there is none."""
        try:
            return LocalFile(self.folder / name)
        except MissingFileError:
            self._refuse_dangling(name)
            return None

    def _refuse_dangling(self, name: str) -> None:
        """An error if there is a link all the same."""
        if os.path.islink(self.folder / name):
            raise ValueError(f"{WHO}: {self.address(name)} {DANGLING}") from None


class Folder(Checkpoint):
    """A checkpoint's folder on this machine, or one of its safetensors files with the config beside it.

    Parameters
    ----------
    path : path
        Of the folder, or of the file.

    Raises
    ------
    ValueError
        No folder, no file.
    """

    def __init__(self, path: str | Path) -> None:
        self._folder = Path(path)
        if self._folder.is_file():
            super().__init__(str(path), LocalFiles(self._folder.parent), self._folder.name)
        elif self._folder.is_dir():
            super().__init__(str(path), LocalFiles(self._folder), _only(self._folder))
        else:
            raise ValueError(f"{WHO}: {path} is not a folder")

    def hint(self) -> str:
        """What to do where the folder holds an adapter, weights of another kind, or the checkpoint's folder."""
        if found := super().hint():
            return found
        if next(self._folder.glob("*.bin"), None) or next(self._folder.glob("*.pt*"), None):
            return ", but a pickle (.bin, .pt, .pth), which is not read: to load one runs its code. Save it as safetensors"
        if gguf := next(self._folder.glob("*.gguf"), None):
            return f", but {gguf.name}: a GGUF file is read by its own name, not by its folder's"
        return _within(self._folder)


def _within(folder: Path) -> str:
    """Which folder in this one is a checkpoint's: of the Hub client's snapshots that of the branch main, if it is there."""
    if (folder / "config.json").exists():
        return ""
    found = sorted(folder.glob("snapshots/*/config.json")) or sorted(folder.glob("*/config.json"))
    if not found:
        return ", and none of its snapshots/ has one" if (folder / "snapshots").is_dir() else ""
    commit = b""
    with suppress(ValueError), open_regular(folder / "refs" / "main") as file:
        commit = file.read(40)
    best = next((path.parent for path in found if os.fsencode(path.parent.name) == commit), found[0].parent)
    return f", but {best.relative_to(folder)} has one: name that folder"


def _only(folder: Path) -> str | None:
    """A folder's only safetensors file, if neither its name nor an index tells that it is the model."""
    found = [path.name for path in folder.glob("*.safetensors")]
    usual = any(os.path.lexists(folder / name) for name in (SINGLE, INDEX))
    return found[0] if len(found) == 1 and not usual else None
