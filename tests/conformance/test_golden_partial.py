"""Golden packs and ports of a part: stages that are not there, other rules, departures that are known."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npembed
from npembed.conformance import Pack, Status, check_outputs, failed, first_departing, read_pack, write_pack
from npembed.conformance.golden.flat import read_flat, write_flat
from npembed.steps.positions import bucket_coords
from npembed.support.output_files import save_tensors
from npembed.support.typing import Array
from tests.command_line import done_well
from tests.command_line import npembed as command

SIDES = {"models/small": 70, "models/peaked": 70, "models/patch14": 70, "models/varied": 27, "models/same-width": 12}


def answered(pack: Pack, folder: Path, answer: Callable[[dict[str, Any], dict[str, Array]], Mapping[str, Array]]) -> Path:
    """A port's folder: of each case the tensors that (case, its inputs) gives, or no file."""
    folder.mkdir()
    for case in pack.manifest["cases"]:
        tensors = answer(case, pack.tensors(case["input"]))
        if tensors:
            save_tensors(folder / case["expected"], tensors, {})
    return folder


def ids_by(rule: str) -> Callable[[dict[str, Any], dict[str, Array]], dict[str, Array]]:
    """A port of the position ids alone."""

    def answer(case: dict[str, Any], given: dict[str, Array]) -> dict[str, Array]:
        if "position_ids" not in [stage["stage"] for stage in case["stages"]]:
            return {}
        return {"position_ids": npembed.position_ids(given["tgt_sizes"], SIDES[case["model"]], rule)}

    return answer


def test_a_right_port_of_one_stage_passes_with_one_command(pack: Pack, tmp_path: Path) -> None:
    folder = answered(pack, tmp_path / "out", ids_by("arange"))
    out = done_well(command("golden", "check", pack.folder, folder))
    assert out.endswith(f"{folder} agrees with the reference: 15 passed, 0 failed, 157 not provided.\n")
    assert re.search(r"^tokens +-  -", out, re.MULTILINE)
    alone = done_well(command("golden", "check", pack.folder, folder, "--stage", "position_ids"))
    assert alone.endswith("15 passed, 0 failed.\n")
    assert "tokens" not in alone


def test_what_is_required_must_be_there(pack: Pack, tmp_path: Path) -> None:
    folder = answered(pack, tmp_path / "out", ids_by("arange"))
    outcomes = check_outputs(pack, folder, require=["tokens", "position_ids"])
    wrong = [outcome for outcome in outcomes if failed([outcome])]
    assert {outcome.name.split(" / ")[1] for outcome in wrong} == {"tokens"}
    assert {outcome.summary for outcome in wrong} == {"not provided, but required"}
    assert command("golden", "check", pack.folder, folder, "--require", "tokens").code == 1
    only = check_outputs(pack, folder, stages=["text"], require=["position_ids"])
    assert {outcome.name.split(" / ")[1]: outcome.status for outcome in only} == {
        "position_ids": Status.PASS,
        "text": Status.ABSENT,
    }


def test_a_stage_that_some_cases_have_must_be_in_all(pack: Pack, tmp_path: Path) -> None:
    folder = answered(pack, tmp_path / "out", ids_by("arange"))
    (folder / "boundaries.safetensors").unlink()
    wrong = [outcome for outcome in check_outputs(pack, folder) if failed([outcome])]
    assert [outcome.name for outcome in wrong] == ["boundaries / position_ids"]
    assert wrong[0].summary.endswith("boundaries.safetensors is missing; other cases have position_ids")


def test_nothing_that_is_looked_for_is_no_verdict(pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"golden check: .*empty has no file of any case: expected are one-patch.safetensors"):
        check_outputs(pack, tmp_path / "empty")
    folder = answered(pack, tmp_path / "out", ids_by("arange"))
    with pytest.raises(ValueError, match=r"no tensor in them has the name of a stage that is looked for: tokens, text$"):
        check_outputs(pack, folder, stages=["tokens", "text"])
    for stages in ({"stages": ["positions_ids"]}, {"require": ["positions_ids"]}):
        with pytest.raises(ValueError, match=r"the pack has no stage 'positions_ids'; .*; did you mean 'position_ids'\?"):
            check_outputs(pack, folder, **stages)


def test_a_wrong_earlier_stage_takes_no_later_ones_cause(pack: Pack, tmp_path: Path) -> None:
    """Both are named: the ids by their rule, and the text by its newline."""

    def wrong(case: dict[str, Any], given: dict[str, Array]) -> dict[str, Array]:
        expected = pack.tensors(case["expected"])
        if "text" not in expected:
            return {**expected, **ids_by("exact")(case, given)}
        text = np.frombuffer(expected["text"].tobytes().replace(b"\n", b""), np.uint8)
        return {**expected, **ids_by("exact")(case, given), "text": text}

    outcomes = check_outputs(pack, answered(pack, tmp_path / "out", wrong))
    causes = {outcome.name.split(" / ")[1]: outcome.cause for outcome in outcomes if failed([outcome])}
    assert causes == {
        "position_ids": "matches rule `exact`, not `arange`",
        "text": "the newline between rows of slices is missing",
    }


def test_a_stage_that_is_fed_with_the_ports_own_wrong_result_is_told(pack: Pack, tmp_path: Path) -> None:
    def chained(case: dict[str, Any], given: dict[str, Array]) -> dict[str, Array]:
        expected = pack.tensors(case["expected"])
        if not {"hidden", "tokens"} <= set(expected):
            return {name: array for name, array in expected.items() if name == "tokens"}
        hidden = np.roll(expected["hidden"], 1, axis=-1)
        model = npembed.load_model(pack.folder / case["model"])
        return {"hidden": hidden, "tokens": npembed.resample(hidden, given["tgt_sizes"], model)}

    def neither(case: dict[str, Any], given: dict[str, Array]) -> dict[str, Array]:
        tensors = chained(case, given)
        return {name: array + np.float32(name == "tokens") for name, array in tensors.items()}

    told = "it is right for the port's own result of the stage before, which is wrong; feed it with the pack's"
    for answer, cause in ((chained, told), (neither, None)):
        outcomes = check_outputs(pack, answered(pack, tmp_path / answer.__name__, answer), stages=["tokens"])
        wrong = [outcome for outcome in outcomes if failed([outcome])]
        assert len(wrong) >= len(outcomes) - 1, "the case with hidden states of its own is right"
        assert {outcome.cause for outcome in wrong} == {cause}


def test_a_cause_must_hold_in_every_case(pack: Pack, tmp_path: Path) -> None:
    """A port by `exact` in one case only has no known cause."""

    def in_one(case: dict[str, Any], given: dict[str, Array]) -> dict[str, Array]:
        return ids_by("exact" if case["name"] == "boundaries" else "arange")(case, given)

    outcomes = check_outputs(pack, answered(pack, tmp_path / "out", in_one))
    wrong = [outcome for outcome in outcomes if failed([outcome])]
    assert [(outcome.name, outcome.cause) for outcome in wrong] == [("boundaries / position_ids", None)]


def test_all_rules_that_fit_are_named(pack: Pack, tmp_path: Path) -> None:
    def buckets(case: dict[str, Any], given: dict[str, Array]) -> dict[str, Array]:
        if "num_patches" not in given:
            return {}
        return {"bucket_coords": np.concatenate([bucket_coords(n, 70, "quotient") for n in given["num_patches"].tolist()])}

    outcomes = check_outputs(pack, answered(pack, tmp_path / "out", buckets))
    (wrong,) = (outcome for outcome in outcomes if failed([outcome]))
    assert wrong.cause is not None
    assert "matches rule `quotient`, not `arange`" in wrong.cause.split(" or: ")
    assert wrong.summary.startswith("n = 25, patch 5: element [305] is 14, should be 13")
    assert wrong.came == "[301:310] = 2, 5, 8, 11, >14<, 16, 19, 22, 25"


# Rules


@pytest.mark.parametrize("rule", ["exact", "quotient", "step"])
def test_a_declared_rule_is_judged_by(pack: Pack, tmp_path: Path, rule: str) -> None:
    def answer(case: dict[str, Any], given: dict[str, Array]) -> dict[str, Array]:
        if "strips.0" not in given:
            return {}
        model = npembed.load_model(pack.folder / case["model"])
        strips = [given[f"strips.{number}"] for number in range(len(given["tgt_sizes"]))]
        return {**ids_by(rule)(case, given), "embeddings": npembed.embed(strips, given["tgt_sizes"], model, rule)}

    folder = answered(pack, tmp_path / "out", answer)
    assert not failed(check_outputs(pack, folder, rule=rule))
    assert first_departing(pack, check_outputs(pack, folder)) == "position_ids"
    by_another = check_outputs(pack, folder, rule="shrunk")
    (cause,) = {o.cause for o in by_another if failed([o]) and o.name.endswith("position_ids")}
    assert cause is not None
    assert f"matches rule `{rule}`, not `shrunk`" in cause.split(" or: ")


def test_a_pack_by_a_rule(tmp_path: Path, pack: Pack) -> None:
    done_well(command("golden", "write", tmp_path / "pack", "--rule", "exact"))
    other = read_pack(tmp_path / "pack")
    assert other.manifest["rule"] == "exact"
    assert "position rule `exact`" in (other.folder / "README.md").read_text()
    folder = answered(other, tmp_path / "out", ids_by("exact"))
    assert not failed(check_outputs(other, folder))
    assert failed(check_outputs(pack, folder))
    assert failed(check_outputs(other, folder, rule="arange"))


def test_rules_that_cannot_be_asked_for(tmp_path: Path, pack: Pack, tiny: npembed.Model) -> None:
    with pytest.raises(ValueError, match=r"rule must be one of .*; got 'exakt'"):
        write_pack(tmp_path / "pack", rule="exakt")
    with pytest.raises(ValueError, match=r"rule must be one of .*; got 'exakt'"):
        check_outputs(pack, pack.folder, rule="exakt")
    with pytest.raises(ValueError, match=r"golden write: SigLIP .* has positions that follow no rule"):
        write_pack(tmp_path / "pack", family="siglip", rule="exact")
    write_pack(tmp_path / "given", tiny)
    given = read_pack(tmp_path / "given")
    with pytest.raises(ValueError, match=r"the pack is for weights that are not in it, and for rule 'arange'; give them with"):
        check_outputs(given, given.folder, rule="exact")
    assert not failed(check_outputs(given, given.folder, rule="arange"))


# Known departures


@pytest.fixture
def departing(pack: Pack, tmp_path: Path) -> tuple[Path, Path]:
    """A port's folder whose ids are by `exact` and whose tokens are a little off, and the report on it."""

    def wrong(case: dict[str, Any], given: dict[str, Array]) -> dict[str, Array]:
        expected = pack.tensors(case["expected"])
        return {
            **expected,
            **ids_by("exact")(case, given),
            **({"tokens": expected["tokens"] * 2} if "tokens" in expected else {}),
        }

    folder, report = answered(pack, tmp_path / "out", wrong), tmp_path / "known.json"
    assert command("golden", "check", pack.folder, folder, "--json", report).code == 1
    return folder, report


def check_against(pack: Pack, folder: Path, report: Path, *more: str) -> Any:
    return command("golden", "check", pack.folder, folder, "--expect", report, *more)


def change(folder: Path, case: str, **tensors: Array) -> None:
    from npembed.support.output_files import load_tensors

    path = folder / f"{case}.safetensors"
    save_tensors(path, load_tensors(path) | tensors, {})


def test_known_departures_are_green_while_they_stay(pack: Pack, departing: tuple[Path, Path], tmp_path: Path) -> None:
    folder, report = departing
    out = done_well(check_against(pack, folder, report, "--json", tmp_path / "again.json"))
    assert out.endswith("153 passed, 0 failed, 19 depart as expected.\n")
    assert re.search(r"^position_ids +\.  k  \.  \.", out, re.MULTILINE)
    done_well(check_against(pack, folder, tmp_path / "again.json"))
    done_well(check_against(pack, folder, report, "--stage", "tokens"))


def test_a_departure_that_changes_appears_or_goes_is_red(pack: Pack, departing: tuple[Path, Path]) -> None:
    folder, report = departing
    ids = pack.tensors("boundaries.safetensors")["position_ids"]
    changes: list[tuple[dict[str, Array], str]] = [
        ({"position_ids": ids}, r"the departure that .*known\.json expects is gone"),
        ({"position_ids": ids + 1}, r"known\.json expects another departure: element \[0, 10\] is 980"),
        ({"hidden": pack.tensors("boundaries.safetensors")["hidden"] + 1}, r"FAIL  boundaries / hidden  element"),
        ({"tokens": pack.tensors("boundaries.safetensors")["tokens"] * 20}, r"FAIL  boundaries / tokens  .*another departure"),
    ]
    kept = (folder / "boundaries.safetensors").read_bytes()
    for tensors, message in changes:
        change(folder, "boundaries", **tensors)
        done = check_against(pack, folder, report)
        assert done.code == 1
        assert [line for line in done.out.splitlines() if re.search(message, line)], done.out
        (folder / "boundaries.safetensors").write_bytes(kept)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("{", "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "has no outcomes; it must be a report written with --json"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"outcomes": [{"name": "a"}]}', r"outcomes\[0\] must have a name, a status and a summary"),
        (
            '{"outcomes": [{"name": "a / b", "status": "fail", "summary": "c"}]}',
            "names 'a / b', which is not in what is checked",
        ),
    ],
)
def test_what_is_no_report_is_refused(content: str | None, message: str, pack: Pack, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "r.json").write_text(content)
    done = check_against(pack, pack.folder, tmp_path / "r.json")
    assert done.code == 2
    assert re.fullmatch(rf"npembed: --expect:? .*r\.json:? {message}.*\n", done.err)


def test_a_report_may_not_replace_the_one_that_is_expected(pack: Pack, departing: tuple[Path, Path]) -> None:
    folder, report = departing
    before = json.loads(report.read_text())
    assert check_against(pack, folder, report, "--json", report).code == 2
    assert json.loads(report.read_text()) == before


# Answers in other files


def test_answers_may_be_npz_or_flat(pack: Pack, tmp_path: Path) -> None:
    folder = answered(pack, tmp_path / "out", ids_by("arange"))
    for path in sorted(folder.iterdir()):
        tensors = pack.tensors(path.name)
        path.unlink()
        if path.stem.startswith("b"):
            save_tensors(path.with_suffix(".npz"), {"position_ids": tensors["position_ids"]}, {})
        else:
            write_flat(path.with_suffix(""), {"position_ids": tensors["position_ids"].astype(np.int32)})
    outcomes = check_outputs(pack, folder, stages=["position_ids"])
    assert {outcome.status for outcome in outcomes} == {Status.PASS}
    flat = read_flat(folder / "seed")
    write_flat(folder / "seed", {"position_ids": flat["position_ids"] + 1})
    assert [o.name for o in check_outputs(pack, folder) if failed([o])] == ["seed / position_ids"]
    shutil.copy(folder / "boundaries.npz", folder / "beyond.safetensors")
    with pytest.raises(ValueError, match=r"answers beyond twice: beyond\.safetensors and beyond\.npz"):
        check_outputs(pack, folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ids int64 2 0", "it must have five words"),
        ("ids float8 2 0 16", "the dtype must be one of"),
        ("ids int64 2,x 0 16", "'x' must be a whole number"),
        ("ids int64 -2 0 16", "'-2' must be a whole number"),
        ("ids int64 3 0 16", r"int64 of shape \(3,\) takes 24 bytes"),
        ("ids int64 2 8 16", r"the \.bin has 16 bytes"),
        ("ids int64 2 0 16\nids int64 2 0 16", "ids has a line already"),
    ],
)
def test_a_flat_file_that_does_not_fit_is_refused(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(16))
    (tmp_path / "a.txt").write_text(line)
    with pytest.raises(ValueError, match=rf"line \d of .*a\.txt is .*: {message}"):
        read_flat(tmp_path / "a")
