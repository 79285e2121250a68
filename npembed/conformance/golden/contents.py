"""What is in a golden pack: its files, and the manifest that lists them.

A pack is a folder with manifest.json, its schema and a README.md; per case NAME.input.safetensors, what the stages read, and
NAME.safetensors, what they should give; and its own small models as checkpoint folders under models/, or of a checkpoint
that was given its config alone. Beside each .safetensors lie the same tensors as .bin and .txt.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import npembed
from npembed.conformance.golden.answers import Answer, case_answers
from npembed.conformance.golden.cases import Case, cases_of, own_configs, own_model
from npembed.conformance.golden.flat import write_flat
from npembed.conformance.golden.inputs import case_inputs
from npembed.conformance.golden.readme import readme
from npembed.records.family import Family
from npembed.records.model import Model
from npembed.support.output_files import save_tensors
from npembed.support.typing import Array

FORMAT = 3
MANIFEST = "manifest.json"
SCHEMA = Path(__file__).with_name("manifest.schema.json")
GIVEN = "given"
"""The folder of a model that was given: its config, without its arrays."""


def digest(content: bytes) -> str:
    """The sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def manifest_digest(manifest: dict[str, Any]) -> str:
    """The digest of everything in the manifest but the digest itself."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return digest(json.dumps(rest, sort_keys=True).encode())


def write_contents(
    folder: Path, family: Family, model: Model | None, rule: str | None, progress: Callable[[int, int], None]
) -> None:
    """Write every file of a pack into an empty folder, the manifest last."""
    cases = cases_of(family, model)
    models = _write_models(folder, family, cases) if model is None else _write_given(folder, model)
    described = []
    for done, case in enumerate(cases, 1):
        where = GIVEN if model is not None else f"models/{case.model}"
        described.append(_write_case(folder, case, where, models[where], rule))
        progress(done, len(cases))
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "npembed": npembed.__version__,
        "numpy": np.__version__,
        "family": family.key,
        "rule": rule,
        "models": {where: _sizes(model.config) for where, model in models.items()},
        "cases": described,
    }
    (folder / SCHEMA.name).write_bytes(SCHEMA.read_bytes())
    (folder / "README.md").write_text(readme(manifest), encoding="utf-8", newline="\n")
    manifest["files"] = {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in sorted(folder.rglob("*.*"))}
    manifest["digest"] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _write_models(folder: Path, family: Family, cases: tuple[Case, ...]) -> dict[str, Model]:
    """The packs' own models, each a checkpoint's folder that any loader of the family reads."""
    used = {case.model for case in cases}
    models = {f"models/{name}": own_model(name, family) for name in sorted(own_configs(family)) if name in used}
    for where, model in models.items():
        _write_config(folder / where, model)
        _write_tensors(folder / where / "model.safetensors", model.weights)
    return models


def _write_given(folder: Path, model: Model) -> dict[str, Model]:
    """The config of the given model, by which the causes of faults are found in stages that read no arrays."""
    _write_config(folder / GIVEN, model)
    return {GIVEN: model}


def _write_config(folder: Path, model: Model) -> None:
    folder.mkdir(parents=True)
    contents = model.config.family.as_json(model.config)
    for name, content in zip(("config.json", "preprocessor_config.json"), contents, strict=True):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    save_tensors(path, tensors, {})
    write_flat(path.with_suffix(""), tensors)


def _write_case(folder: Path, case: Case, where: str, model: Model, rule: str | None) -> dict[str, Any]:
    """The case's files; what the manifest says of it."""
    stages = case.stages_of(model.config.family)
    inputs = case_inputs(case, model, stages)
    try:
        answers = list(case_answers(inputs, model, stages, rule))
    except ValueError as error:
        raise ValueError(f"golden write: case {case.name}: {str(error).removeprefix('golden write: ')}") from None
    tensors = {answer.stage.name: answer.value for answer in answers}
    for answer in answers:
        tensors |= {f"{answer.stage.name}.{name}": array for name, array in answer.companions.items()}
    names = {"input": f"{case.name}.input.safetensors", "expected": f"{case.name}.safetensors"}
    _write_tensors(folder / names["input"], inputs)
    _write_tensors(folder / names["expected"], tensors)
    return {
        "name": case.name,
        "about": case.about,
        "model": where,
        **names,
        "inputs": {name: _tensor(array) for name, array in inputs.items()},
        "stages": [_stage(answer) for answer in answers],
    }


def _stage(answer: Answer) -> dict[str, Any]:
    companions = {name: _tensor(array) for name, array in answer.companions.items()}
    return {
        "stage": answer.stage.name,
        "reads": list(answer.stage.reads),
        **_tensor(answer.value),
        "places": "all" if answer.counts is None else "patches",
        **({} if answer.counts is None else {"counts": answer.counts}),
        "tolerance": dict(answer.tolerance) | ({"companions": companions} if companions else {}),
    }


def _tensor(array: Array) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest(np.ascontiguousarray(array).tobytes())}


def _sizes(config: Any) -> dict[str, Any]:
    """A config's sizes under names that have one meaning, which config.json's have not."""
    vision = config.vision
    return {
        "C": vision.num_channels,
        "P": vision.patch_size,
        "D": vision.hidden_size,
        "G": vision.num_patches_per_side,
        "E": config.embed_dim,
        "layers": vision.num_hidden_layers,
        "heads": vision.num_attention_heads,
        "intermediate": vision.intermediate_size,
        "eps": vision.layer_norm_eps,
    }
