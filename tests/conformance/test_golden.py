"""Golden packs: byte-equal, whole or refused, and the first stage at which a port's files depart is named."""

import json
import os
import re
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import npembed
from npembed.conformance import Pack, Status, check_outputs, failed, first_departing, read_pack, write_pack
from npembed.conformance.bounds import HALF_TYPES
from npembed.conformance.golden import pack as pack_module
from npembed.conformance.golden.cases import cases_of
from npembed.records.model import Model
from npembed.support.output_files import load_tensors, save_tensors
from tests.answering import answer, at_precision
from tests.ports import RIGHT_PORTS, as_module


def run_port(pack: Pack, port: SimpleNamespace, folder: Path, *, chained: bool, precision: str = "float32") -> Path:
    """A port's own files: each stage from the pack's values, or (chained) from what the port itself gave before."""
    return answer(pack, at_precision(port, precision), folder, chained=chained)


def changed(pack: Pack, folder: Path, case: str, **tensors: np.ndarray | None) -> Path:
    """The pack's own answers, with some tensors of one case replaced or (None) left out."""
    folder.mkdir()
    for entry in pack.manifest["cases"]:
        answers = pack.tensors(entry["expected"])
        if entry["name"] == case:
            answers = {name: tensors.get(name, array) for name, array in answers.items()}
        save_tensors(folder / entry["expected"], {name: array for name, array in answers.items() if array is not None}, {})
    return folder


def failures(pack: Pack, folder: Path, **options: str) -> dict[str, str]:
    return {outcome.name: outcome.summary for outcome in check_outputs(pack, folder, **options) if failed([outcome])}


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_reference_passes_stage_by_stage_and_chained(pack: Pack, tmp_path: Path, precision: str) -> None:
    for chained in (False, True):
        folder = run_port(pack, npembed, tmp_path / f"{chained}", chained=chained, precision=precision)
        assert failures(pack, folder) == {}


@pytest.mark.parametrize("name", RIGHT_PORTS)
def test_a_right_port_passes(pack: Pack, tmp_path: Path, name: str) -> None:
    port = as_module(RIGHT_PORTS[name]())
    assert failures(pack, run_port(pack, port, tmp_path / "stage by stage", chained=False)) == {}
    chained = run_port(pack, port, tmp_path / "chained", chained=True)
    assert failures(pack, chained, precision=name if name in HALF_TYPES else "float32") == {}


def test_a_pack_is_byte_equal_on_one_machine_and_small(pack: Pack, tmp_path: Path) -> None:
    write_pack(tmp_path / "again")
    files = {path.relative_to(pack.folder): path.read_bytes() for path in pack.folder.rglob("*.*")}
    assert files == {path.relative_to(tmp_path / "again"): path.read_bytes() for path in (tmp_path / "again").rglob("*.*")}
    assert sum(map(len, files.values())) < 20e6


def test_the_manifest_describes_every_tensor(pack: Pack) -> None:
    assert [case["name"] for case in pack.manifest["cases"]] == [case.name for case in cases_of(npembed.MINICPM_V_2_6.family)]
    for case in pack.manifest["cases"]:
        inputs, answers = pack.tensors(case["input"]), pack.tensors(case["expected"])
        described = {stage["stage"]: stage for stage in case["stages"]}
        assert set(inputs) == set(case["inputs"])
        assert {name for name in answers if "." not in name} == set(described)
        for name, stage in described.items():
            assert (stage["shape"], stage["dtype"]) == (list(answers[name].shape), str(answers[name].dtype))
            readable = set(inputs) | set(answers)
            assert all(any(Path(tensor).match(read) for tensor in readable) for read in stage["reads"])


def test_the_packs_models_are_checkpoints(pack: Pack) -> None:
    for name in {case["model"] for case in pack.manifest["cases"]}:
        model = npembed.load_model(pack.folder / name)
        assert not any(map(model.missing, model.config.family.vision_stages))


def test_a_pack_for_a_given_checkpoint(tmp_path: Path, tiny: Model) -> None:
    write_pack(tmp_path / "pack", tiny)
    pack = read_pack(tmp_path / "pack")
    assert not (tmp_path / "pack" / "models").exists()
    assert sorted(os.listdir(tmp_path / "pack" / "given")) == ["config.json", "preprocessor_config.json"]
    assert {case["model"] for case in pack.manifest["cases"]} == {"given"}
    assert failures(pack, tmp_path / "pack") == {}
    exact = load_tensors(tmp_path / "pack" / "seed.safetensors")["embeddings"]
    assert exact.shape == (3, 1036, 48)


def test_a_checkpoint_without_towers_gives_a_pack_until_embeddings(tmp_path: Path) -> None:
    config = npembed.Config(vision=npembed.VisionConfig(hidden_size=4, num_attention_heads=1))
    write_pack(tmp_path / "pack", npembed.random_model(config))
    stages = [stage["stage"] for stage in read_pack(tmp_path / "pack").manifest["cases"][0]["stages"]]
    assert "embeddings" in stages
    assert not {"hidden", "tokens"} & set(stages)


@pytest.mark.parametrize(
    ("change", "summary"),
    [
        (lambda array: None, "seed.safetensors has no tensor tokens"),
        (lambda array: np.full_like(array, np.nan), "not a number"),
        (lambda array: array[:, :-1], "shape (3, 3, 128), should be (3, 4, 128)"),
        (lambda array: array.astype(np.int64), "dtype int64, should be float"),
    ],
)
def test_a_missing_or_unusable_tensor_is_told(pack: Pack, tmp_path: Path, change, summary: str) -> None:
    tokens = pack.tensors("seed.safetensors")["tokens"]
    found = failures(pack, changed(pack, tmp_path / "out", "seed", tokens=change(tokens)))
    assert list(found) == ["seed / tokens"]
    assert summary in found["seed / tokens"]


def test_padded_places_of_hidden_states_do_not_count_and_those_of_embeddings_do(pack: Pack, tmp_path: Path) -> None:
    answers = pack.tensors("ragged.safetensors")
    padded = ~answers["patch_attn_mask"][:, 0]
    hidden, embeddings = answers["hidden"].copy(), answers["embeddings"].copy()
    hidden[padded], embeddings[padded] = np.nan, 0
    assert failures(pack, changed(pack, tmp_path / "hidden", "ragged", hidden=hidden)) == {}
    found = failures(pack, changed(pack, tmp_path / "embeddings", "ragged", embeddings=embeddings))
    assert list(found) == ["ragged / embeddings"]


def test_how_far_is_told_in_units_of_the_allowed_error(pack: Pack, tmp_path: Path) -> None:
    tokens = pack.tensors("seed.safetensors")["tokens"].copy()
    stages = next(case for case in pack.manifest["cases"] if case["name"] == "seed")["stages"]
    allowed = next(stage for stage in stages if stage["stage"] == "tokens")["tolerance"]["float32"]
    tokens[1, 2, 3] += np.float32(10 * allowed[1])
    outcomes = check_outputs(pack, changed(pack, tmp_path / "out", "seed", tokens=tokens))
    wrong = next(outcome for outcome in outcomes if failed([outcome]))
    assert wrong.summary.startswith("element [1, 2, 3] is ")
    assert wrong.worst == pytest.approx(10, rel=0.1)


def test_a_missing_file_of_the_port_fails_every_stage_of_its_case(pack: Pack, tmp_path: Path) -> None:
    folder = changed(pack, tmp_path / "out", "seed")
    (folder / "ragged.safetensors").unlink()
    found = failures(pack, folder)
    assert {name.split(" / ")[0] for name in found} == {"ragged"}
    assert len(found) == 11
    assert all(re.search(r"ragged\.safetensors is missing; other cases have ", summary) for summary in found.values())


def test_half_precision_is_known_by_the_dtype_or_said(pack: Pack, tmp_path: Path) -> None:
    rounded = pack.tensors("one-sign.safetensors")["embeddings"].astype(np.float16)
    halves = changed(pack, tmp_path / "half", "one-sign", embeddings=rounded)
    assert failures(pack, halves) == {}
    widened = changed(pack, tmp_path / "widened", "one-sign", embeddings=rounded.astype(np.float32))
    assert list(failures(pack, widened)) == ["one-sign / embeddings"]
    assert failures(pack, widened, precision="float16") == {}


@pytest.mark.parametrize("file", ["seed.safetensors", "seed.input.safetensors", "models/small/config.json"])
@pytest.mark.parametrize("damage", ["flip", "gone"])
def test_a_damaged_pack_is_refused(pack: Pack, tmp_path: Path, file: str, damage: str) -> None:
    shutil.copytree(pack.folder, tmp_path / "pack")
    path = tmp_path / "pack" / file
    if damage == "flip":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    words = "is not as it was written" if damage == "flip" else "is missing"
    with pytest.raises(ValueError, match=f"golden check: the pack is damaged: .*{path.name} {words}"):
        read_pack(tmp_path / "pack")


def test_a_manifest_that_was_changed_is_refused(pack: Pack, tmp_path: Path) -> None:
    shutil.copytree(pack.folder, tmp_path / "pack")
    path = tmp_path / "pack" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["cases"][0]["stages"][0]["tolerance"] = {"kind": "per slice", "float32": [1e9]}
    for content in (json.dumps(manifest), "{", "[]", "{}"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"the pack is damaged: .*manifest.json is not as it was written"):
            read_pack(tmp_path / "pack")


def test_what_is_no_pack_or_no_folder_is_refused(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no golden pack: it has no manifest.json"):
        read_pack(tmp_path)
    with pytest.raises(ValueError, match=r"golden check: .*missing is not a folder"):
        check_outputs(pack, tmp_path / "missing")
    with pytest.raises(ValueError, match="precision must be one of"):
        check_outputs(pack, pack.folder, precision="int4")


def test_a_port_file_that_cannot_be_read_is_an_error_not_a_verdict(pack: Pack, tmp_path: Path) -> None:
    folder = changed(pack, tmp_path / "out", "seed")
    (folder / "seed.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match=r"seed.safetensors cannot be read"):
        check_outputs(pack, folder)


def test_a_pack_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("npembed.conformance.golden.contents.case_inputs", lambda *args: 1 / 0)
    for name in ("new", "empty"):
        with pytest.raises(ZeroDivisionError):
            write_pack(tmp_path / name)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["empty"]


@pytest.fixture
def ready(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of writing a pack is a copy of one."""

    def copy(folder: Path, *_: object) -> None:
        shutil.copytree(pack.folder, folder, dirs_exist_ok=True)

    monkeypatch.setattr(pack_module, "write_contents", copy)


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All under a folder: its mode and, of files and links, what is in it."""
    found = {}
    for path in folder.rglob("*"):
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path)] = (path.lstat().st_mode, content)
    return found


OCCUPIED = {
    "a file": lambda place: place.write_text("keep"),
    "a folder with a file": lambda place: (place / "models").mkdir(parents=True) or (place / "models" / "a").touch(),
    "a hidden file": lambda place: place.mkdir() or (place / ".notes").touch(),
    "an empty sub-folder": lambda place: (place / "mine").mkdir(parents=True),
    "a link in it": lambda place: place.mkdir() or (place / "link").symlink_to("nowhere"),
    "a link to a full folder": lambda place: (place.parent / "full" / "a").mkdir(parents=True) or place.symlink_to("full"),
    "a FIFO": os.mkfifo,
}


@pytest.mark.parametrize("kind", OCCUPIED)
def test_what_is_there_is_neither_deleted_nor_written_to(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before any work."""
    OCCUPIED[kind](tmp_path / "pack")
    before = everything(tmp_path)
    monkeypatch.setattr(pack_module, "write_contents", lambda *_: pytest.fail("that is work"))
    with pytest.raises(
        ValueError, match=r"golden write: .*pack exists and is no empty folder; delete it first, or name another$"
    ):
        write_pack(tmp_path / "pack")
    assert everything(tmp_path) == before


@pytest.mark.usefixtures("ready")
def test_an_earlier_pack_is_refused_as_anything_else_is(tmp_path: Path) -> None:
    write_pack(tmp_path / "pack")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match="exists and is no empty folder; delete it first"):
        write_pack(tmp_path / "pack")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("what", ["a file in the folder", "a file in its place"])
def test_what_turns_up_during_the_work_is_kept(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "pack" / "notes.txt" if "in the folder" in what else tmp_path / "pack"

    def write_contents(folder: Path, *_: object) -> None:
        (folder / "manifest.json").touch()
        notes.parent.mkdir(exist_ok=True)
        notes.write_text("keep")

    monkeypatch.setattr(pack_module, "write_contents", write_contents)
    with pytest.raises(ValueError, match=r"golden write: .*pack cannot be written: (Directory not empty|Not a directory)$"):
        write_pack(tmp_path / "pack")
    assert notes.read_text() == "keep"
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {notes}


@pytest.mark.usefixtures("ready")
def test_the_current_folder_is_refused_before_anything_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    monkeypatch.chdir(tmp_path / "empty")
    for name in (".", "../empty", "../link", tmp_path / "empty"):
        with pytest.raises(ValueError, match=rf"golden write: {re.escape(str(name))} is the current folder"):
            write_pack(name)
    with pytest.raises(ValueError, match=r"golden write: \.\. exists and is no empty folder"):
        write_pack("..")
    assert sorted(os.listdir(tmp_path)) == ["empty", "link"]


@pytest.mark.usefixtures("ready")
def test_folders_above_are_made_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new/sub/pack")
    write_pack(tmp_path / "link")
    assert os.readlink(tmp_path / "link") == "new/sub/pack"
    assert not (tmp_path / "new" / "sub" / "pack").is_symlink()
    read_pack(tmp_path / "new" / "sub" / "pack")
    assert os.listdir(tmp_path / "new" / "sub") == ["pack"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=r"golden write: the folder .*loop cannot be written: its links lead nowhere"):
        write_pack(tmp_path / "loop")


@pytest.mark.usefixtures("ready")
def test_an_empty_folder_keeps_its_mode_and_a_new_one_has_any_new_folders(tmp_path: Path) -> None:
    for name in ("given", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "given").chmod(0o750)
    for name in ("given", "new"):
        write_pack(tmp_path / name)
    modes = {name: oct(stat.S_IMODE((tmp_path / name).stat().st_mode)) for name in ("given", "new", "other")}
    assert (modes["given"], modes["new"]) == (oct(0o750), modes["other"])


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"golden write: .*pack cannot be made: .*file is no folder$"):
        write_pack(tmp_path / "file" / "in" / "pack")
    with pytest.raises(ValueError, match=r"golden write: /proc/pack cannot be written: "):
        write_pack("/proc/pack")


def test_every_stage_passes_or_fails_with_its_own_status(pack: Pack) -> None:
    outcomes = check_outputs(pack, pack.folder)
    assert {outcome.status for outcome in outcomes} == {Status.PASS}
    assert len(outcomes) == sum(len(case["stages"]) for case in pack.manifest["cases"])
    assert first_departing(pack, outcomes) is None
