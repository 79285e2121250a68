"""What a word means as a source of weights, and opening it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from npembed.support.messages import brief
from npembed.support.messages import shown as line
from npembed.weights.cache import Planner
from npembed.weights.folder import DANGLING, Folder
from npembed.weights.gguf import is_gguf
from npembed.weights.mmproj import GgufSource
from npembed.weights.ranges import LocalFile
from npembed.weights.source import WHO, Progress, Source, public

if TYPE_CHECKING:
    from npembed.weights.hub import Hub, Repository

Say = Callable[[str], object]
"""Called with one line for the user."""

HUB = "hf://"

FORMS = "a folder, a .safetensors or GGUF file, owner/name or owner/name@revision of the Hugging Face Hub, hf://..., or a URL"
"""What a source may be, for help and messages."""


def to_stderr(line: str) -> None:
    """The line on the error stream."""
    print(f"npembed: {line}", file=sys.stderr, flush=True)


def open_source(
    source: str | Path, plan: Planner | None = None, say: Say = to_stderr, progress: Progress | None = None
) -> Source:
    """The source that a word means.

    The first of these that fits is meant:

    1. A path that exists. A folder is a checkpoint's: config.json, and model.safetensors or shards with their index. A file is
       an mmproj file of llama.cpp if it begins as GGUF, whatever its name, or a .safetensors file with config.json beside it.
    2. `hf://owner/name`, `hf://owner/name@revision`: a repository of the Hugging Face Hub; `hf://owner/name/FILE.gguf`,
       `hf://owner/name@revision/FILE.gguf`: an mmproj file in one.
    3. Any other word with `://` in it: a URL, of a folder or of a .safetensors or .gguf file. http and https are read here,
       every other protocol by fsspec.
    4. `owner/name`, `owner/name@revision`: a repository of the Hub.

    Anything else is refused. A `Path` object is a path, whether it exists or not.

    Parameters
    ----------
    source : str or Path
    plan : callable, optional
        Says what of the source is to be read: that much of a repository of the Hub is downloaded, and kept. Without it
        nothing is downloaded but configs and headers.
    say : callable, optional
        Called with one line for the user: what is downloaded, what an mmproj file contradicts or leaves open.
    progress : callable, optional
        Called with the bytes that are there, and the bytes that there will be.

    Returns
    -------
    Source

    Raises
    ------
    ValueError
        A word that means nothing; what the source's own kind refuses.
    ImportError
        A kind of source whose extra, or a protocol whose package, is missing.

    Examples
    --------
    >>> open_source("model.safetensors")
    Traceback (most recent call last):
    ...
    ValueError: load_model: model.safetensors is not a folder, nor a file that exists, a URL or owner/name of the Hub
    """
    opened = _opened(source, plan, say, progress)
    for note in opened.notes:
        say(note)
    return opened


def _opened(source: str | Path, plan: Planner | None, say: Say, progress: Progress | None) -> Source:
    if not isinstance(source, (str, Path)):
        raise TypeError(f"{WHO}: source must be a path, a URL or owner/name of the Hub; got {brief(source)}")
    if isinstance(source, Path) or os.path.lexists(source):
        return _at_path(Path(source), str(source))
    if source.startswith(HUB):
        return _of_hub(source, plan, say, progress)
    if "://" in source:
        from npembed.weights.url import open_url

        return open_url(source)
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        try:
            return _of_hub(source, plan, say, progress)
        except (ValueError, ImportError) as error:
            raise type(error)(f"{error}; and no folder or file here is called {public(source)}") from None
    words = "is not a folder, nor a file that exists, a URL or owner/name of the Hub"
    raise ValueError(f"{WHO}: {line(public(source))} {words}")


def _at_path(path: Path, shown: str) -> Source:
    if os.path.isdir(path):  # unlike the path's own method, it takes a name that is too long for one that is not there
        return Folder(shown)
    if os.path.islink(path) and not os.path.exists(path):
        raise ValueError(f"{WHO}: {shown} {DANGLING}")
    if not os.path.isfile(path):
        raise ValueError(f"{WHO}: {shown} is not a folder, nor a regular file")
    if is_gguf(LocalFile(path)) or path.suffix == ".gguf":
        return GgufSource(shown)
    if path.suffix in (".bin", ".pt", ".pth"):
        words = "which is not read: to load one runs its code; save it as safetensors"
        raise ValueError(f"{WHO}: {shown} is a pickle ({path.suffix}), {words}")
    if path.suffix != ".safetensors":
        raise ValueError(f"{WHO}: {shown} is not a folder, a .safetensors file or a GGUF file")
    return Folder(shown)


def _of_hub(word: str, plan: Planner | None, say: Say, progress: Progress | None) -> Source:
    from npembed.weights.hub import Hub, HubSource, Repository, fetch, shelf_of

    owner, _, rest = word.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    inside = word.startswith(HUB) and file.endswith(".gguf")
    repository = Repository.parse(f"{owner}/{name}" if inside else word)
    hub = Hub()
    if inside:
        return _gguf_of_hub(hub, repository, file)
    if plan is not None:
        return fetch(repository, plan, hub=hub, say=say, progress=progress).source
    shelf = shelf_of(repository, hub)
    commit = shelf.commit_of(repository.revision) if hub.offline else None
    kept = shelf.kept(commit) if commit else []
    return max(kept, key=lambda each: each.nbytes).source if kept else HubSource(repository, hub)


def _gguf_of_hub(hub: "Hub", repository: "Repository", name: str) -> Source:
    """An mmproj file in a repository, at the commit that the revision is now."""
    from npembed.weights.hub import Repository

    at = Repository(repository.name, hub.commit_of(repository))
    file = None if ".." in name.split("/") else hub.file(at, name)
    if file is None:
        raise ValueError(f"{WHO}: {repository} has no file {public(name)}")
    return GgufSource(file, f"{at}/{name}")
