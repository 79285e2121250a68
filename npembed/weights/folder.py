"""A checkpoint's folder on this machine."""

import os
from pathlib import Path

from npembed.reading import MOST_INDEX, MOST_JSON, MissingFileError, read_regular
from npembed.weights.checkpoint import Checkpoint
from npembed.weights.ranges import LocalFile, Ranged
from npembed.weights.source import INDEX, SINGLE, WHO

PICKLES = "a pickle (.bin, .pt, .pth), which is not read: to load one runs its code; save it as safetensors"


class LocalFiles:
    """The files of a folder; each is open only as long as a part is read from it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def address(self, name: str) -> str:
        """A file, for messages."""
        return str(self.folder / name)

    def whole(self, name: str) -> bytes | None:
        """A small file's bytes; None if there is none."""
        try:
            return read_regular(self.folder / name, MOST_INDEX if name == INDEX else MOST_JSON, WHO)
        except MissingFileError:
            return None

    def file(self, name: str) -> Ranged | None:
        """A large file; None if there is none."""
        return LocalFile(self.folder / name) if os.path.lexists(self.folder / name) else None


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
        self._folder = folder
        if folder.is_file():
            super().__init__(str(path), LocalFiles(folder.parent), folder.name)
        elif folder.is_dir():
            super().__init__(str(path), LocalFiles(folder), _only(folder))
        else:
            raise ValueError(f"{WHO}: {path} is not a folder")

    def _indexed(self) -> dict[str, str]:
        if not os.path.lexists(self._folder / INDEX):
            self._refuse_other_kinds()
        return super()._indexed()

    def _refuse_other_kinds(self) -> None:
        """What to do where the folder holds weights of another kind alone."""
        words = f"{WHO}: {self.where} has neither {SINGLE} nor {INDEX}, but"
        if any(self._folder.glob("*.bin")) or any(self._folder.glob("*.pt*")):
            raise ValueError(f"{words} {PICKLES}")
        for found in self._folder.glob("*.gguf"):
            raise ValueError(f"{words} {found.name}: a GGUF file is read by its own name, not by its folder's")


def _only(folder: Path) -> str | None:
    """A folder's only safetensors file, if neither its name nor an index tells that it is the model."""
    found = [path.name for path in folder.glob("*.safetensors")]
    usual = any((folder / name).is_file() for name in (SINGLE, INDEX))
    return found[0] if len(found) == 1 and not usual else None
