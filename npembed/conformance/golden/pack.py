"""A golden pack on disk: writing one, and reading one back only if every byte is as it was written.

A pack is a folder with manifest.json; per case NAME.input.safetensors, what the stages read, and NAME.safetensors, what they
should give; and, unless a checkpoint was given, its own small models as checkpoint folders under models/.
"""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import npembed
from npembed import manifest, stops
from npembed.beside import PART, WHOLE, exchange, folder_beside, sweep
from npembed.conformance.golden.cases import CASES, Answer, Case, case_answers, case_inputs, own_model
from npembed.family import Stage
from npembed.files import load_tensors, resolved, same_file, save_tensors
from npembed.manifest import MANIFEST, digest
from npembed.model import Model
from npembed.typing import Array

FORMAT = 1


def write_pack(folder: str | Path, model: Model | None = None, progress: Callable[[int, int], None] | None = None) -> None:
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

    Raises
    ------
    ValueError
        A folder that holds anything that npembed did not write, that is the current one, or that cannot be written; an earlier
        pack where the system cannot let two folders change places in one step.
    """
    target = check_folder(folder)
    try:
        sweep(target.parent)
        with folder_beside(target) as beside:
            fresh = beside / PART
            fresh.mkdir()
            if _holds_something(target):
                _try_exchange(fresh, beside / WHOLE, folder)
            _write(fresh, model, progress or (lambda done, total: None))
            with stops.held_back():
                _place(fresh, beside / WHOLE, target, folder)
    except OSError as error:
        raise ValueError(f"golden write: {folder} cannot be written: {error.strerror or error}") from None


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
    if not target.is_dir():
        raise ValueError(f"golden write: {folder} exists and is neither empty nor a golden pack")
    sweep(target)
    found = manifest.foreign(target)
    if found is not None:
        raise ValueError(
            f"golden write: {folder} exists and is neither empty nor a golden pack alone: {found}; nothing is deleted"
        )
    for path in (target, *manifest.own_files(target)):
        if not path.stat().st_mode & 0o222:
            raise ValueError(f"golden write: {path} is read-only")


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


def _write(folder: Path, model: Model | None, progress: Callable[[int, int], None]) -> None:
    models = {name: own_model(name) for name in sorted({case.model for case in CASES})} if model is None else {}
    for name, own in models.items():
        _write_model(folder / "models" / name, own)
    cases = []
    for done, case in enumerate(CASES, 1):
        cases.append(_write_case(folder, case, models[case.model] if model is None else model, given=model is not None))
        progress(done, len(CASES))
    files = {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in sorted(folder.rglob("*.*"))}
    described: dict[str, Any] = {
        "format": FORMAT,
        "npembed": npembed.__version__,
        "numpy": np.__version__,
        "rule": "arange" if model is None else model.config.family.rule,
        "files": files,
        "cases": cases,
    }
    described["digest"] = manifest.manifest_digest(described)
    (folder / MANIFEST).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def _write_model(folder: Path, model: Model) -> None:
    """A checkpoint's folder that any loader of the family reads."""
    folder.mkdir(parents=True)
    for name, content in zip(
        ("config.json", "preprocessor_config.json"), model.config.family.as_json(model.config), strict=True
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    save_tensors(folder / "model.safetensors", model.weights, {})


def _write_case(folder: Path, case: Case, model: Model, given: bool) -> dict[str, Any]:
    """The case's two files; what the manifest says of it."""
    inputs = case_inputs(case, model)
    answers = list(case_answers(inputs, model))
    stages = {stage.name: stage for stage in model.config.family.stages}
    tensors = {answer.stage: answer.value for answer in answers}
    for answer in answers:
        tensors |= {f"{answer.stage}.{name}": array for name, array in answer.companions.items()}
    names = {"input": f"{case.name}.input.safetensors", "expected": f"{case.name}.safetensors"}
    save_tensors(folder / names["input"], inputs, {})
    save_tensors(folder / names["expected"], tensors, {})
    return {
        "name": case.name,
        "about": case.about,
        "model": "given" if given else f"models/{case.model}",
        **names,
        "inputs": {name: _tensor(array) for name, array in inputs.items()},
        "stages": [_stage(answer, stages[answer.stage]) for answer in answers],
    }


def _stage(answer: Answer, stage: Stage) -> dict[str, Any]:
    companions = {name: _tensor(array) for name, array in answer.companions.items()}
    return {
        "stage": answer.stage,
        "reads": list(stage.reads),
        **_tensor(answer.value),
        "places": "all" if answer.counts is None else "patches",
        **({} if answer.counts is None else {"counts": answer.counts}),
        "tolerance": answer.tolerance | ({"companions": companions} if companions else {}),
    }


def _tensor(array: Array) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest(np.ascontiguousarray(array).tobytes())}


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
        content = path.read_bytes()
        described = json.loads(content)
        whole = described["digest"] == manifest.manifest_digest(described)
    except (OSError, ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"golden check: the pack is damaged: {path} is not as it was written")
    if described["format"] != FORMAT:
        raise ValueError(f"golden check: {path} has format {described['format']}; this version reads {FORMAT}")
    size = len(content)
    for file, expected in described["files"].items():
        size += _check_file(root / file, expected)
    return Pack(root, described, size)


def _check_file(path: Path, expected: str) -> int:
    """The file's size, if it is as it was written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"golden check: the pack is damaged: {path} is missing") from None
    except OSError as error:
        raise ValueError(f"golden check: the pack is damaged: {path} cannot be read: {error.strerror}") from None
    if digest(content) != expected:
        raise ValueError(f"golden check: the pack is damaged: {path} is not as it was written")
    return len(content)
