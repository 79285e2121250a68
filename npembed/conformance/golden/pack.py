"""A golden pack on disk: writing one whole or not at all, and reading one back only if every byte is as it was written."""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from npembed import families, manifest, stops
from npembed.beside import PART, WHOLE, exchange, folder_beside, sweep
from npembed.conformance.golden.contents import FORMAT, write_contents
from npembed.conformance.golden.schema import fault
from npembed.family import Family
from npembed.files import load_tensors, resolved, same_file
from npembed.manifest import MANIFEST
from npembed.model import Model
from npembed.positions.rules import get_rule
from npembed.reading import MOST_JSON, json_object, read_regular
from npembed.typing import Array


def write_pack(
    folder: str | Path,
    model: Model | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    family: str | None = None,
    rule: str | None = None,
) -> None:
    """Write the cases and their answers into a folder of their own.

    At every moment the earlier pack or the new one is there, whole, under its name; a stop changes nothing of that.

    Parameters
    ----------
    folder : path
        New, empty, or an earlier pack, which is replaced once the new one is whole. Its name may be a link to such a folder.
    model : Model, optional
        In place of the packs' own small models. Its arrays are not copied into the pack.
    progress : callable, optional
        Called after each case with how many are done, and of how many.
    family : str, optional
        A key in `FAMILIES`; without it the model's, or MiniCPM-V 2.6.
    rule : str, optional
        A name in `RULES`, by which the position ids and what follows from them are computed; the family's own by default.

    Raises
    ------
    ValueError
        An unknown family, or not the model's; an unknown rule, one for a family without rules, or one that gives no usable id
        for a case; a model whose answers are not finite numbers; a folder that holds anything that npembed did not write, that
        is the current one, or that cannot be written; an earlier pack where the system cannot let two folders change places in
        one step.
    """
    kind = _family(family, model)
    name = _rule(rule, kind)
    target = check_folder(folder)
    try:
        sweep(target.parent)
        with folder_beside(target) as beside:
            fresh = beside / PART
            fresh.mkdir()
            if _holds_something(target):
                _try_exchange(fresh, beside / WHOLE, folder)
            _write(fresh, kind, model, name, progress or (lambda done, total: None))
            with stops.held_back():
                _place(fresh, beside / WHOLE, target, folder)
    except OSError as error:
        raise ValueError(f"golden write: {folder} cannot be written: {error.strerror or error}") from None


_write = write_contents


def _family(key: str | None, model: Model | None) -> Family:
    """The family of that key, or the model's own, or the default one."""
    if key is None:
        return model.config.family if model is not None else families.MINICPM_V_2_6.family
    family = families.get_family(key, "golden write")
    if model is not None and model.config.family.key != key:
        raise ValueError(f"golden write: family is {key!r}, but the weights are of {model.config.family.key!r}")
    return family if model is None else model.config.family


def _rule(name: str | None, family: Family) -> str | None:
    """The rule of that name, if the family has rules; its own without a name."""
    if name is None:
        return family.rule
    get_rule(name, "golden write")
    if family.rule is None:
        raise ValueError(f"golden write: {family.title} has positions that follow no rule, so none can be chosen; got {name!r}")
    return name


def check_folder(folder: str | Path, inputs: Iterable[str | Path] = ()) -> Path:
    """The folder itself, through any link, if a pack can be written there and nothing is lost by it.

    Parameters
    ----------
    folder : path
    inputs : iterable of path
        Files that the same run reads: none of them may be in an earlier pack that is to be replaced.

    Raises
    ------
    ValueError
        As `write_pack` says.
    """
    target = resolved(folder, "golden write: the folder")
    if not target.parent.is_dir():
        raise ValueError(f"golden write: the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"golden write: {folder} cannot be written: its parent folder {target.parent} cannot be written to")
    if _is_current(target):
        raise ValueError(
            f"golden write: {folder} is or holds the current folder, which a new pack cannot replace; run it from outside"
        )
    if target.exists():
        _check_earlier(target, folder)
        for file, source in product(manifest.own_files(target), inputs):
            if same_file(file, source):
                raise ValueError(f"golden write: {folder} holds {file.relative_to(target)}, which is an input of this run")
    return target


def _is_current(target: Path) -> bool:
    try:
        here = Path.cwd()
    except OSError:  # it has been deleted
        return False
    return target == here or target in here.parents


def _check_earlier(target: Path, folder: str | Path) -> None:
    """An error unless the folder is empty or an earlier pack, which may be replaced."""
    while True:
        with _opened(target) as still_there:
            try:
                return _check_replaceable(target, folder)
            except (ValueError, OSError):
                if still_there():
                    raise  # else another run has put its pack in its place meanwhile


def _check_replaceable(target: Path, folder: str | Path) -> None:
    if not target.is_dir():
        raise ValueError(f"golden write: {folder} exists and is neither empty nor a golden pack")
    sweep(target)
    found = _foreign(target)
    if found is not None:
        raise ValueError(
            f"golden write: {folder} exists and is neither empty nor a golden pack alone: {found}; nothing is deleted"
        )
    for path in (target, *manifest.own_files(target)):
        if not path.stat().st_mode & 0o222:
            raise ValueError(f"golden write: {path} is read-only")


def _foreign(target: Path) -> str | None:
    """`manifest.foreign` of the folder that has the name: another run may give it to another while it is looked at."""
    while True:
        with _opened(target) as still_there:
            try:
                found = manifest.foreign(target)
            except (OSError, ValueError):
                if still_there():
                    raise
                continue
            if found is None or still_there():
                return found


def _holds_something(target: Path) -> bool:
    return target.is_dir() and any(target.iterdir())


def _try_exchange(one: Path, other: Path, folder: str | Path) -> None:
    """Find out before the work whether the earlier pack and the new one will be able to change places."""
    other.mkdir()
    _exchange(one, other, folder)
    other.rmdir()


def _exchange(one: Path, other: Path, folder: str | Path) -> None:
    try:
        exchange(one, other)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        raise ValueError(
            f"golden write: {folder} holds an earlier pack, which this system cannot replace in one step; remove it first"
        ) from None


def _place(fresh: Path, whole: Path, target: Path, folder: str | Path) -> None:
    """Give the whole new pack its name; an earlier one is then under the other name, which its working folder clears."""
    if target.exists():
        fresh.chmod(stat.S_IMODE(target.stat().st_mode))
    fresh.rename(whole)
    try:
        whole.rename(target)  # where nothing is, or an empty folder
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _check_earlier(target, folder)  # again: the work may have taken long
        _exchange(whole, target, folder)
        found = manifest.foreign(whole)
        if found is not None:  # it came at the last moment, and goes back to where it was
            _exchange(whole, target, folder)
            raise ValueError(f"golden write: {folder} has changed meanwhile: {found}; nothing is deleted") from None


@dataclass(frozen=True)
class Pack:
    """A golden pack whose every byte is as it was written."""

    folder: Path
    manifest: dict[str, Any]
    size: int
    """Of all its files, in bytes."""

    def files(self) -> list[Path]:
        """All its files, the manifest among them."""
        return [self.folder / name for name in (MANIFEST, *self.manifest["files"])]

    def tensors(self, file: str) -> dict[str, Array]:
        """The arrays of one of its files."""
        return load_tensors(self.folder / file)


def read_pack(folder: str | Path) -> Pack:
    """The pack in a folder.

    Raises
    ------
    ValueError
        No pack; a manifest or a file that is not as it was written, or gone; a format that this version does not read.
    """
    root = Path(folder)
    while True:
        with _opened(root) as still_there:
            try:
                return _read(root)
            except ValueError:
                if still_there():
                    raise  # else another pack has taken its place while it was read


@contextmanager
def _opened(root: Path) -> Iterator[Callable[[], bool]]:
    """Tells whether the name still stands for the same folder. While that is open, no other folder can get its number."""
    try:
        opened = os.open(root, os.O_RDONLY)
    except OSError:  # nothing is there; or Windows, where no folder takes another's place
        yield lambda: True
        return
    try:
        yield lambda: _is(root, os.fstat(opened))
    finally:
        os.close(opened)


def _is(root: Path, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(root.stat(), found)
    except OSError:
        return False


def _read(root: Path) -> Pack:
    path = root / MANIFEST
    if not path.is_file():
        raise ValueError(f"golden check: {root} is no golden pack: it has no {MANIFEST}")
    try:
        content = read_regular(path, MOST_JSON)
        described = json_object(content, str(path))
        whole = described["digest"] == manifest.manifest_digest(described)
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"golden check: the pack is damaged: {path} is not as it was written")
    if described.get("format") != FORMAT:
        raise ValueError(
            f"golden check: {path} has format {described.get('format')!r}; this version reads {FORMAT}: write the pack again"
        )
    wrong = fault(described) or _fault(described)
    if wrong is not None:
        raise ValueError(f"golden check: the pack is damaged: in {path} {wrong}")
    size = len(content)
    for file, expected in described["files"].items():
        size += _check_file(root, file, expected)
    return Pack(root, described, size)


def _fault(told: dict[str, Any]) -> str | None:
    """What is wrong in a manifest of the right types: something that it names and does not have."""
    if told["family"] not in families.FAMILIES:
        return f"family {told['family'][:60]!r} is not known"
    names = [case["name"] for case in told["cases"]]
    if len(set(names)) != len(names):
        return "two cases have one name"
    found = (_fault_of_case(told, case) for case in told["cases"])
    return next((wrong for wrong in found if wrong is not None), None)


def _fault_of_case(told: dict[str, Any], case: dict[str, Any]) -> str | None:
    name, files, model = case["name"], told["files"], case["model"]
    for file in (case["input"], case["expected"], f"{model}/config.json"):
        if file not in files:
            return f"case {name} names {file}, which is not among the files"
    if model not in told["models"]:
        return f"case {name} names the model {model}, which is not among the models"
    for stage in case["stages"]:
        slices = stage["shape"][0] if stage["shape"] else 0
        if stage["places"] == "patches" and len(stage.get("counts", ())) != slices:
            return f"case {name}: {stage['stage']} must have a count for each of its {slices} slices"
        distances = (told for told in stage["tolerance"].values() if isinstance(told, list))
        if any(len(each) != slices for each in distances):
            return f"case {name}: {stage['stage']} must have a tolerance for each of its {slices} slices"
    return None


def _check_file(root: Path, file: str, expected: str) -> int:
    """The file's size, if it is as it was written and lies in the pack itself, not behind a link."""
    path = root / file
    for part in (path, *path.parents[: file.count("/")]):
        if part.is_symlink():
            raise ValueError(f"golden check: the pack is damaged: {part} is a link, which could lead out of the pack")
    try:
        found, size = manifest.file_digest(path), path.stat().st_size
    except (OSError, ValueError) as error:
        raise ValueError(f"golden check: the pack is damaged: {getattr(error, 'strerror', None) or error}") from None
    if found != expected:
        raise ValueError(f"golden check: the pack is damaged: {path} is not as it was written")
    return size
