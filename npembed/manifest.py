"""A folder whose manifest lists its files with their digests, so that npembed can prove that they are its own.

Only such files are ever deleted.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from npembed.reading import MOST_JSON, json_object, open_regular, read_regular

MANIFEST = "manifest.json"


def digest(content: bytes) -> str:
    """sha256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """`digest` of a regular file's content, a part of it at a time."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Of everything in the manifest but the digest itself."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return digest(json.dumps(rest, sort_keys=True).encode())


def foreign(folder: Path) -> str | None:
    """The first thing in a folder that npembed cannot prove to be its own, and why; None if there is none.

    A file is its own if the manifest lists it with its digest; the manifest, if its own digest is right; a folder, if it holds
    a listed file. Links are never its own. An empty folder holds nothing foreign.
    """
    entries = list(_walk(folder))
    if not entries:
        return None
    listed = _listed(folder)
    if listed is None:
        first = MANIFEST if any(name == MANIFEST for name, _ in entries) else entries[0][0]
        return f"{first} is no file that npembed wrote"
    folders = {parent.as_posix() for name in listed for parent in Path(name).parents}
    for name, entry in entries:
        if entry.is_dir(follow_symlinks=False):
            known = name in folders
        else:
            known = entry.is_file(follow_symlinks=False) and (name == MANIFEST or name in listed)
        if not known:
            return f"{name} is no file that npembed wrote"
        if name in listed and file_digest(folder / name) != listed[name]:
            return f"{name} is not as npembed wrote it"
    return None


def own_files(folder: Path) -> list[Path]:
    """The files of a folder in which nothing is foreign, its manifest last."""
    names = [name for name, entry in _walk(folder) if not entry.is_dir(follow_symlinks=False)]
    return [folder / name for name in sorted(names, key=lambda name: name == MANIFEST)]


def remove_own(folder: Path) -> bool:
    """Delete a folder, unless something in it is foreign. A stop in the middle leaves what can still be proved.

    Returns
    -------
    bool
        Whether it is gone.
    """
    if foreign(folder) is not None:
        return False
    *files, manifest = own_files(folder) or [folder / MANIFEST]
    folders = [folder / name for name, entry in _walk(folder) if entry.is_dir(follow_symlinks=False)]
    with suppress(OSError):  # what came into the folder since then keeps it there
        for file in files:
            file.unlink(missing_ok=True)
        for inner in reversed(folders):
            inner.rmdir()
        manifest.unlink(missing_ok=True)
        folder.rmdir()
    return not folder.exists()


def _walk(folder: Path, within: str = "") -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Everything under a folder by its name there, in order, a folder before what it holds; links are not followed."""
    with os.scandir(folder / within) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name = f"{within}{entry.name}"
        yield name, entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder, name + "/")


def _listed(folder: Path) -> dict[str, str] | None:
    """The manifest's files with their digests; None if it is not as npembed wrote it."""
    path = folder / MANIFEST
    try:
        if path.is_symlink():
            return None
        manifest = json_object(read_regular(path, MOST_JSON), str(path))
        if manifest["digest"] != manifest_digest(manifest):
            return None
        files = manifest["files"]
        return files if isinstance(files, dict) and "npembed" in manifest else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
