"""The ports in other languages: each is built by its own compiler, where that is there, and agrees with a golden pack."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from npembed.conformance import Pack, Status, check_outputs
from npembed.support.output_files import save_tensors
from npembed.support.typing import Array

EXAMPLES = Path(__file__).parents[2] / "npembed" / "conformance" / "examples"
STAGES = ("position_ids", "embeddings")
MODEL = "vpm.embeddings"

BUILDS = {
    "c": ("gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "port.c", "-lm", "-o", "{out}"),
    "rust": ("rustc", "--edition", "2021", "-O", "-D", "warnings", "port.rs", "-o", "{out}"),
    "javascript": ("node", "--check", "port.js"),
}
"""Per language, how it is built, the compiler first; JavaScript is only looked at."""


def write_flat(stem: Path, tensors: dict[str, Array]) -> None:
    """NAME.bin and NAME.txt, as the examples read them."""
    lines, content = ["# name dtype shape offset bytes"], b""
    for name, array in tensors.items():
        shape = ",".join(map(str, array.shape)) or "-"
        lines.append(f"{name} {array.dtype.name} {shape} {len(content)} {array.nbytes}")
        content += array.tobytes()
    stem.with_name(f"{stem.name}.txt").write_text("\n".join([*lines, ""]))
    stem.with_name(f"{stem.name}.bin").write_bytes(content)


def read_flat(stem: Path) -> dict[str, Array]:
    content, tensors = stem.with_name(f"{stem.name}.bin").read_bytes(), {}
    for line in stem.with_name(f"{stem.name}.txt").read_text().splitlines():
        name, dtype, shape, offset, size = line.split()
        lengths = [int(n) for n in shape.split(",")]
        tensors[name] = np.frombuffer(content[int(offset) : int(offset) + int(size)], dtype).reshape(lengths)
    return tensors


def built(language: str, folder: Path) -> list[str]:
    """The words that run the port."""
    compiler, *words = BUILDS[language]
    path = shutil.which(compiler)
    if path is None:
        pytest.skip(f"{compiler} is not there, so that the port in {language} is neither built nor run")
    program = folder / "port"
    subprocess.run([path, *(word.format(out=program) for word in words)], cwd=EXAMPLES, check=True, capture_output=True)
    return [path, str(EXAMPLES / "port.js")] if language == "javascript" else [str(program)]


@pytest.mark.parametrize("language", BUILDS)
def test_a_port_agrees_with_the_pack(language: str, pack: Pack, tmp_path: Path) -> None:
    command, answers = built(language, tmp_path), tmp_path / "answers"
    answers.mkdir()
    cases = [case for case in pack.manifest["cases"] if set(STAGES) <= {stage["stage"] for stage in case["stages"]}]
    for case in cases:
        write_flat(tmp_path / "input", pack.tensors(case["input"]))
        model = {name: array for name, array in pack.tensors(f"{case['model']}/model.safetensors").items() if MODEL in name}
        write_flat(tmp_path / "model", model)
        subprocess.run([*command, "input", "model", "output"], cwd=tmp_path, check=True)
        save_tensors(answers / case["expected"], read_flat(tmp_path / "output"), {})
    named = {case["name"] for case in cases}
    outcomes = {outcome.name: outcome for outcome in check_outputs(pack, answers)}
    looked_at = [outcomes[f"{name} / {stage}"] for name in named for stage in STAGES]
    assert {outcome.name: outcome.summary for outcome in looked_at if outcome.status is not Status.PASS} == {}
    assert len(looked_at) > 10


def test_without_its_compiler_a_port_is_skipped_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="rustc is not there, so that the port in rust is neither built nor run"):
        built("rust", tmp_path)
