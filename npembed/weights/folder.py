"""A checkpoint's folder on this machine."""

import os
from pathlib import Path

from npembed.weights.checkpoint import Checkpoint
from npembed.weights.ranges import LocalFile, Ranged
from npembed.weights.source import INDEX, MOST_JSON, SINGLE, WHO


class LocalFiles:
    """The files of a folder; each is open only as long as a part is read from it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def address(self, name: str) -> str:
        """A file, for messages."""
        return str(self.folder / name)

    def whole(self, name: str) -> bytes | None:
        """A small file's bytes; None if there is none."""
        file = self.file(name)
        if file is None and os.path.lexists(self.folder / name):
            raise ValueError(f"{WHO}: {self.address(name)} cannot be read as JSON: it is no regular file")
        if file is not None and file.size > MOST_JSON:
            raise ValueError(f"{WHO}: {file.where} has {file.size:,} bytes; at most {MOST_JSON:,} are read")
        return None if file is None else file.read(0, file.size)

    def file(self, name: str) -> Ranged | None:
        """A large file; None if there is none."""
        return LocalFile(self.folder / name) if (self.folder / name).is_file() else None


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
        folder = Path(path)
        if folder.is_file():
            super().__init__(str(path), LocalFiles(folder.parent), folder.name)
        elif folder.is_dir():
            super().__init__(str(path), LocalFiles(folder), _only(folder))
        else:
            raise ValueError(f"{WHO}: {path} is not a folder")


def _only(folder: Path) -> str | None:
    """A folder's only safetensors file, if neither its name nor an index tells that it is the model."""
    found = [path.name for path in folder.glob("*.safetensors")]
    usual = any((folder / name).is_file() for name in (SINGLE, INDEX))
    return found[0] if len(found) == 1 and not usual else None
