"""A golden pack on disk: writing one whole or not at all, and reading one back only if every byte is as it was written."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from npembed import families
from npembed.conformance.golden.answers import Answer
from npembed.conformance.golden.contents import FORMAT, GIVEN, MANIFEST, SCHEMA, manifest_digest, write_contents
from npembed.conformance.golden.more_stages import MORE_STAGES
from npembed.records.family import Family
from npembed.records.model import Model
from npembed.steps.positions.rules import get_rule
from npembed.support import stops
from npembed.support.messages import raised
from npembed.support.output_files import load_tensors, resolved
from npembed.support.reading import MOST_JSON, json_object, open_regular, read_regular
from npembed.support.typing import Array


def write_pack(
    folder: str | Path,
    model: Model | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    family: str | None = None,
    rule: str | None = None,
) -> None:
    """Write the cases and their answers into a folder of their own.

    The folder appears when the pack is whole. Until then it is written beside that place, in a hidden folder `.npembed-…`,
    which is gone when the work ends, unless the process is killed.

    Parameters
    ----------
    folder : path
        New or empty. Those above it are made. Its name may be a link to such a folder.
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
        for a case; a model whose answers are not finite numbers; a folder that holds anything, is the current one, or cannot
        be written.
    """
    kind = _family(family, model)
    name = _rule(rule, kind)
    target = check_folder(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with stops.held_back(), TemporaryDirectory(prefix=".npembed-", dir=target.parent) as beside, stops.let_through():
            fresh = Path(beside, "pack")
            fresh.mkdir()
            write_contents(fresh, kind, model, name, progress or (lambda done, total: None))
            mode = (target if target.exists() else fresh).stat().st_mode
            if target.exists():
                target.rmdir()  # the system refuses it if it is no longer empty
            fresh.rename(target)
            target.chmod(mode)
    except OSError as error:
        raise ValueError(f"golden write: {folder} cannot be written: {error.strerror or error}") from None


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


def check_folder(folder: str | Path) -> Path:
    """The folder itself, through any link, if a pack can be written there: it is new or empty, and not the current one.

    Raises
    ------
    ValueError
        As `write_pack` says.
    """
    target = resolved(folder, "golden write: the folder")
    try:
        if target.exists() and not (target.is_dir() and next(target.iterdir(), None) is None):
            raise ValueError(f"golden write: {folder} exists and is no empty folder; delete it first, or name another")
        above = next(parent for parent in target.parents if parent.exists())
        if not above.is_dir():
            raise ValueError(f"golden write: {folder} cannot be made: {above} is no folder")
        if target.exists() and target.samefile(os.curdir):
            raise ValueError(f"golden write: {folder} is the current folder, which a pack cannot replace; run it from outside")
    except OSError as error:
        raise ValueError(f"golden write: {folder} cannot be read: {error.strerror}") from None
    return target


@dataclass(frozen=True)
class Pack:
    """A golden pack whose every byte is as it was written.

    Attributes
    ----------
    folder : path
    manifest : dict
    size : int
        The bytes of all its files.
    """

    folder: Path
    manifest: dict[str, Any]
    size: int

    @property
    def family(self) -> Family:
        """The family that its answers are of."""
        return families.get_family(self.manifest["family"], "golden check")

    def files(self) -> list[Path]:
        """All its files, the manifest among them."""
        return [self.folder / name for name in (MANIFEST, *self.manifest["files"])]

    def tensors(self, file: str) -> dict[str, Array]:
        """The arrays of one of its files."""
        return load_tensors(self.folder / file)

    def answers(self, case: Mapping[str, Any]) -> list[Answer]:
        """The right answers of one of the manifest's cases, in the order of its stages.

        Raises
        ------
        ValueError
            A tensor that is not there, or not as the manifest says; a stage that the family has not.
        """
        tensors, stages = self.tensors(case["expected"]), {stage.name: stage for stage in (*self.family.stages, *MORE_STAGES)}
        where, answers = f"golden check: the pack is damaged: {self.folder / case['expected']} has no", []
        for entry in case["stages"]:
            name, tolerance, counts = entry["stage"], entry["tolerance"], entry.get("counts")
            companions = tolerance.get("companions", {})
            for tensor, told in {name: entry, **{f"{name}.{each}": companions[each] for each in companions}}.items():
                found = tensors.get(tensor)
                if found is None or list(found.shape) != told["shape"] or str(found.dtype) != told["dtype"]:
                    raise ValueError(f"{where} tensor {tensor} of {told['dtype']} and shape {tuple(told['shape'])}")
            numbers = [each for each in (counts, *tolerance.values()) if isinstance(each, list)]
            if any(len(each) != len(tensors[name]) for each in numbers):
                raise ValueError(f"{where} number for each slice of {name}, which the manifest says")
            found_companions = {each: tensors[f"{name}.{each}"] for each in companions}
            answers.append(Answer(stages[name], tensors[name], tolerance, counts, found_companions))
        return answers


@contextmanager
def one_line(pack: Path) -> Iterator[None]:
    """What the code in the block stumbles over in a pack whose digests are right, as one line."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"golden check: the pack is damaged: {pack} is not as {SCHEMA.name} and its stages need it: {raised(error)}"
        ) from error


def read_pack(folder: str | Path) -> Pack:
    """The pack in a folder.

    Raises
    ------
    ValueError
        No pack; a manifest or a file that is not as it was written, or gone; a format that this version does not read.
    """
    root = Path(folder)
    path = root / MANIFEST
    if not path.is_file():
        raise ValueError(f"golden check: {root} is no golden pack: it has no {MANIFEST}")
    try:
        content = read_regular(path, MOST_JSON)
        described = json_object(content, str(path))
        whole = described["digest"] == manifest_digest(described)
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"golden check: the pack is damaged: {path} is not as it was written")
    if described.get("format") != FORMAT:
        raise ValueError(
            f"golden check: {path} has format {described.get('format')!r}; this version reads {FORMAT}: write the pack again"
        )
    with one_line(root):
        _check_names(described, str(path))
        size = len(content) + sum(_check_file(root, file, expected) for file, expected in described["files"].items())
    return Pack(root, described, size)


FILE = r"([A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*"
"""What a file in a pack may be called: nothing that leads out of it."""


def _check_names(manifest: Mapping[str, Any], where: str) -> None:
    """An error where a manifest names a file outside its pack, or what the pack or npembed has not."""
    who, files = f"golden check: the pack is damaged: in {where}", manifest["files"]
    if manifest["rule"] is not None:
        get_rule(manifest["rule"], who)
    known = {stage.name for stage in (*families.get_family(manifest["family"], who).stages, *MORE_STAGES)}
    outside = [file for file in files if not re.fullmatch(FILE, file)]
    for case in manifest["cases"]:
        model = [f"{case['model']}/config.json", f"{case['model']}/model.safetensors"]
        needed = [case["input"], case["expected"], *model[: 1 if case["model"] == GIVEN else 2]]
        outside += [file for file in needed if file not in files]
        unknown = [stage["stage"] for stage in case["stages"] if stage["stage"] not in known]
        if unknown:
            raise ValueError(f"{who} {case['name']!r} has the stage {unknown[0]!r}, which the family has not")
    if outside:
        raise ValueError(f"golden check: the pack is damaged: {where} names {outside[0]!r}, which is no file of the pack")


def _check_file(root: Path, file: str, expected: str) -> int:
    """The file's size, if it is as it was written and lies in the pack itself, not behind a link."""
    path = root / file
    for part in (path, *path.parents[: file.count("/")]):
        if part.is_symlink():
            raise ValueError(f"golden check: the pack is damaged: {part} is a link, which could lead out of the pack")
    try:
        with open_regular(path) as opened:
            found, size = hashlib.file_digest(opened, "sha256").hexdigest(), opened.tell()  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        raise ValueError(f"golden check: the pack is damaged: {getattr(error, 'strerror', None) or error}") from None
    if found != expected:
        raise ValueError(f"golden check: the pack is damaged: {path} is not as it was written")
    return size
