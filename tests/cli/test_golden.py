"""`npembed golden`: packs that are written, verdicts on outputs, and what is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npembed.support.output_files import load_tensors, save_tensors
from tests.command_line import (
    assert_json,
    assert_page,
    assert_refused,
    assert_refused_and_unchanged,
    bad,
    done_well,
    failing,
    npembed,
)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "pack"
    out = done_well(npembed("golden", "write", folder))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    cases = json.loads((folder / "manifest.json").read_text())["cases"]
    assert out == f"{len(cases)} cases, {size / 1e6:.1f} MB, are in {folder}\n"
    assert size < 20e6
    return folder


@pytest.fixture
def outputs(pack: Path, tmp_path: Path) -> Path:
    """A port's outputs, right in every case: the pack's own."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    for case in json.loads((pack / "manifest.json").read_text())["cases"]:
        shutil.copy(pack / case["expected"], folder)
    return folder


def stages_of(pack: Path) -> list[str]:
    cases = json.loads((pack / "manifest.json").read_text())["cases"]
    return [f"{case['name']} / {stage['stage']}" for case in cases for stage in case["stages"]]


def test_right_outputs_pass(pack: Path, outputs: Path) -> None:
    head, *lines, verdict = done_well(npembed("golden", "check", pack, outputs)).splitlines()
    cases = json.loads((pack / "manifest.json").read_text())["cases"]
    assert head.split() == [str(number) for number in range(1, len(cases) + 1)]
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.endswith(".")}
    assert list(rows) == list(dict.fromkeys(name.split(" / ")[1] for name in stages_of(pack)))
    assert sum(map(len, rows.values())) == len(stages_of(pack))
    assert {mark for marks in rows.values() for mark in marks} == {"."}
    assert verdict == f"{outputs} agrees with the reference: {len(stages_of(pack))} passed, 0 failed."
    assert npembed("golden", "check", pack, pack).code == 0


@pytest.mark.parametrize(
    ("stage", "change", "summary"),
    [
        ("position_ids", lambda array: array + (np.arange(array.size) == 5).reshape(array.shape), r"element \[0, 5\] is"),
        ("embeddings", lambda array: array * np.float32(1.01), r"element \["),
        ("embeddings", lambda array: array * np.float32("nan"), r"nan"),
        ("hidden", lambda array: array[:, :-1], r"shape \(4, 71, 16\), should be \(4, 72, 16\)"),
        ("tokens", lambda array: array.reshape(-1, array.shape[-1]), r"shape \(16, 128\), should be \(4, 4, 128\)"),
        ("tokens", lambda array: None, r"ragged\.safetensors has no tensor tokens"),
    ],
    ids=["altered", "a little off", "not a number", "cut", "reshaped", "removed"],
)
def test_a_wrong_tensor_is_found(pack: Path, outputs: Path, stage: str, change: Any, summary: str) -> None:
    tensors = load_tensors(outputs / "ragged.safetensors")
    tensors[stage] = change(tensors[stage])
    save_tensors(outputs / "ragged.safetensors", {name: array for name, array in tensors.items() if array is not None}, {})
    done = npembed("golden", "check", pack, outputs)
    assert (done.code, done.err) == (1, "")
    failed = [line for line in done.out.splitlines() if line.startswith("FAIL  ")]
    assert len(failed) == 1
    assert re.match(rf"FAIL  ragged / {stage} +.*{summary}", failed[0]), failed[0]
    everything = len(stages_of(pack))
    assert done.out.endswith(
        f"{outputs} departs from the reference: {everything - 1} passed, 1 failed. The first stage that departs is {stage}.\n"
    )


def test_a_missing_file_of_the_port_is_a_failure(pack: Path, outputs: Path) -> None:
    (outputs / "ragged.safetensors").unlink()
    done = npembed("golden", "check", pack, outputs)
    assert (done.code, done.err) == (1, "")
    failed = [line for line in done.out.splitlines() if line.startswith("FAIL  ")]
    assert len(failed) == sum(name.startswith("ragged / ") for name in stages_of(pack))
    assert all("ragged.safetensors is missing; other cases have " in line for line in failed)


@pytest.mark.parametrize("file", ["manifest.json", "seed.safetensors", "seed.input.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_pack_is_no_verdict(pack: Path, outputs: Path, tmp_path: Path, file: str, damage: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(pack, damaged)
    if damage == "gone":
        (damaged / file).unlink()
    else:
        content = bytearray((damaged / file).read_bytes())
        content[-len(content) // 3] ^= 1
        (damaged / file).write_bytes(content)
    message = {"gone": "it has no manifest|is missing", "flipped": "the pack is damaged: .*is not as it was written"}[damage]
    done = npembed("golden", "check", damaged, outputs)
    assert_refused(done, rf"golden check: .*({message})")
    assert done.out == ""


def test_a_pack_for_given_weights(site: Path, here: Path) -> None:
    weights = site / "w" / "whole"
    out = done_well(npembed("golden", "write", "new/pack", "--weights", weights))
    assert " MB, are in new/pack\n" in out
    assert out.endswith(f"They are for the weights in {weights}, which are not in the pack.\n")
    assert npembed("golden", "check", "new/pack", "new/pack").code == 0


def test_the_report_on_outputs_in_files(pack: Path, outputs: Path, here: Path) -> None:
    tensors = load_tensors(outputs / "ragged.safetensors")
    save_tensors(outputs / "ragged.safetensors", tensors | {"embeddings": tensors["embeddings"] + np.float32(0.1)}, {})
    done = npembed("golden", "check", pack, outputs, "--json", "r.json", "--html", "r.html")
    assert done.code == 1
    verdict, names = done.out.splitlines()[-1], stages_of(pack)
    outcomes = assert_json(here / "r.json", str(outputs), verdict, names, ["ragged / embeddings"])
    assert next(outcome["worst"] for outcome in outcomes if outcome["status"] == "fail") > 1
    assert_page(here / "r.html", names, verdict)


def test_a_stop_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npembed.conformance.golden.contents._write_case", failing(KeyboardInterrupt()))
    done = npembed("golden", "write", "pack")
    assert (done.code, done.err) == (130, "npembed: stopped\n")
    assert list(here.iterdir()) == []


BAD_GOLDEN = [
    bad("golden", r"Missing command"),
    bad("golden read pack", r"No such command 'read'"),
    bad("golden write", r"Missing argument 'DIR'"),
    bad("golden write folder", r"golden write: folder exists and is no empty folder; delete it first, or name another"),
    bad("golden write .", r"golden write: \. exists and is no empty folder"),
    bad("golden write pack", r"golden write: pack exists and is no empty folder; delete it first"),
    bad("golden write pack --weights none", r"golden write: pack exists and is no empty folder; delete it first"),
    bad("golden check pack pack --json pack/manifest.json", r"the output pack/manifest\.json is an input"),
    bad("golden check pack pack --html link", r"the output link is the input pack/seed\.safetensors"),
    bad("golden check pack pack --json r --html ./folder/../r", r"--json r and --html folder/\.\./r are the same file"),
    bad("golden write picture.png", r"golden write: picture\.png exists and is no empty folder"),
    bad("golden write picture.png/pack", r"golden write: picture\.png/pack cannot be made: .*picture\.png is no folder"),
    bad("golden write new --weights none", r"load_model: none is not a folder"),
    bad("golden check pack", r"Missing argument 'OUTPUTS'"),
    bad("golden check folder pack", r"golden check: folder is no golden pack: it has no manifest\.json"),
    bad("golden check none pack", r"golden check: none is no golden pack"),
    bad("golden check pack none", r"golden check: none is not a folder"),
    bad("golden check pack picture.png", r"golden check: picture\.png is not a folder"),
    bad("golden check pack unreadable", r"unreadable/seed\.safetensors cannot be read"),
    bad("golden check unreadable pack", r"the pack is damaged: unreadable/seed\.safetensors is not as it was written"),
    bad("golden check pack pack --precision int4", r"precision must be one of"),
    bad("golden write new --family idefics", r"golden write: family must be one of .*; got 'idefics'; did you mean 'idefics"),
    bad("golden write new --rule exakt", r"rule must be one of .*; got 'exakt'"),
    bad("golden write new --family siglip --rule exact", r"positions that follow no rule, so none can be chosen"),
    bad(
        "golden write new --family idefics2 --weights w/whole", r"family is 'idefics2', but the weights are of 'minicpm-v-2\.6'"
    ),
    bad("golden check pack pack --stage token", r"the pack has no stage 'token'; it has .*; did you mean 'tokens'\?"),
    bad("golden check pack pack --require token", r"the pack has no stage 'token'"),
    bad("golden check pack pack --rule exakt", r"rule must be one of .*; got 'exakt'"),
    bad("golden check pack pack --expect none.json", r"--expect: none\.json is missing"),
    bad("golden check pack folder", r"golden check: folder has no file of any case: expected are one-patch\.safetensors"),
    bad("golden check pack pack --json none/report.json", r"the output's folder .*none does not exist"),
]


@pytest.mark.parametrize(("words", "message"), BAD_GOLDEN)
def test_bad_input_gets_one_line_and_changes_nothing(
    words: str, message: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused_and_unchanged(words.split(), message, site, monkeypatch)
