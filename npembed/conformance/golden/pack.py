"""A golden pack on disk: writing one, and reading one back only if every byte is as it was written.

A pack is a folder with manifest.json; per case NAME.input.safetensors, what the stages read, and NAME.safetensors, what they
should give; and, unless a checkpoint was given, its own small models as checkpoint folders under models/.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import npembed
from npembed.conformance.golden.cases import CASES, Answer, Case, case_answers, case_inputs, own_model
from npembed.family import Stage
from npembed.files import load_tensors, save_tensors
from npembed.model import Model
from npembed.typing import Array

FORMAT = 1
MANIFEST = "manifest.json"


def write_pack(folder: str | Path, model: Model | None = None, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the cases and their answers into a folder of their own.

    Parameters
    ----------
    folder : path
        New, empty, or an earlier pack, which is replaced once the new one is whole.
    model : Model, optional
        In place of the packs' own small models. Its arrays are not copied into the pack.
    progress : callable, optional
        Called after each case with how many are done, and of how many.

    Raises
    ------
    ValueError
        A folder that holds something else, or that cannot be written.
    """
    target = Path(folder).resolve()
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or (target / MANIFEST).is_file())):
        raise ValueError(f"golden write: {folder} exists and is neither empty nor a golden pack")
    if not target.parent.is_dir():
        raise ValueError(f"golden write: the folder {target.parent} does not exist")
    try:
        with TemporaryDirectory(prefix=".npembed-", dir=target.parent) as beside:
            fresh = Path(beside) / "pack"
            fresh.mkdir()
            _write(fresh, model, progress or (lambda done, total: None))
            if target.exists():
                target.rename(Path(beside) / "old")
            fresh.rename(target)
    except OSError as error:
        raise ValueError(f"golden write: {folder} cannot be written: {error.strerror or error}") from None


def _write(folder: Path, model: Model | None, progress: Callable[[int, int], None]) -> None:
    models = {name: own_model(name) for name in sorted({case.model for case in CASES})} if model is None else {}
    for name, own in models.items():
        _write_model(folder / "models" / name, own)
    cases = []
    for done, case in enumerate(CASES, 1):
        cases.append(_write_case(folder, case, models[case.model] if model is None else model, given=model is not None))
        progress(done, len(CASES))
    files = {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in sorted(folder.rglob("*.*"))}
    manifest = {
        "format": FORMAT,
        "npembed": npembed.__version__,
        "numpy": np.__version__,
        "rule": "arange",
        "files": files,
        "cases": cases,
    }
    manifest["digest"] = _manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


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


def digest(content: bytes) -> str:
    """sha256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _manifest_digest(manifest: dict[str, Any]) -> str:
    """Of everything in the manifest but the digest itself."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return digest(json.dumps(rest, sort_keys=True).encode())


@dataclass(frozen=True)
class Pack:
    """A golden pack whose every byte is as it was written."""

    folder: Path
    manifest: dict[str, Any]

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
    path = root / MANIFEST
    if not path.is_file():
        raise ValueError(f"golden check: {root} is no golden pack: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        whole = manifest["digest"] == _manifest_digest(manifest)
    except (OSError, ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"golden check: the pack is damaged: {path} is not as it was written")
    if manifest["format"] != FORMAT:
        raise ValueError(f"golden check: {path} has format {manifest['format']}; this version reads {FORMAT}")
    for file, expected in manifest["files"].items():
        if not (root / file).is_file():
            raise ValueError(f"golden check: the pack is damaged: {root / file} is missing")
        if digest((root / file).read_bytes()) != expected:
            raise ValueError(f"golden check: the pack is damaged: {root / file} is not as it was written")
    return Pack(root, manifest)
