"""Golden packs in half precision and with int8 weights: what is allowed, who passes, who is caught, and what cannot be seen."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import ml_dtypes
import numpy as np
import pytest

import npembed
from npembed.conformance import Outcome, Pack, Status, aggregate, bounds, check_outputs, failed, read_pack, signed, write_pack
from npembed.conformance.golden import tried_in
from npembed.conformance.golden.cases import CASES
from npembed.conformance.half import quantised
from npembed.conformance.suspects import SUSPECTS
from npembed.conformance.suspects.suspect import with_arrays
from npembed.records.model import Model
from npembed.support.output_files import save_tensors
from npembed.support.typing import Array
from tests.command_line import done_well
from tests.command_line import npembed as command
from tests.ports import Port, QuickGelu, as_module, in_half, wrong_port

HALVES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
FEW = ("one-patch", "full-side", "beyond", "ragged", "faint", "one-sign", "one-row")
FEW += ("square-of-two", "square-of-six", "varied", "same-width", "peaked")
TOWER = ("hidden", "tokens")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """A pack of small cases."""
    folder = tmp_path_factory.mktemp("golden") / "pack"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npembed.conformance.golden.cases.CASES", [case for case in CASES if case.name in FEW])
        write_pack(folder)
    return read_pack(folder)


def answered(pack: Pack, folder: Path, port: Any, *stages: str, change: Callable[[Any], Any] = lambda model: model) -> Path:
    """A port's folder: the stages from the pack's own tensors, with the pack's models, or others made of them."""
    folder.mkdir()
    for case in pack.manifest["cases"]:
        model = change(npembed.load_model(pack.folder / case["model"]))
        values = {**pack.tensors(case["input"]), **pack.tensors(case["expected"])}
        arrays = {stage: as_saved(computed(port, stage, values, model)) for stage in stages}
        save_tensors(folder / case["expected"], arrays, {})
    return folder


def computed(port: Any, stage: str, values: Mapping[str, Array], model: Any) -> Array:
    sizes = values["tgt_sizes"]
    if stage == "embeddings":
        return port.embed([values[f"strips.{b}"] for b in range(len(sizes))], sizes, model)
    if stage == "hidden":
        return port.encode(values["embeddings"], sizes, model)
    return port.resample(values["hidden"], sizes, model)


def as_saved(array: Array) -> Array:
    """In float32, as a port may write what it computed in a half type."""
    return array.astype(np.float32)


def statuses(outcomes: list[Outcome], stage: str) -> dict[str, Status]:
    return {outcome.name.split(" / ")[0]: outcome.status for outcome in outcomes if outcome.name.endswith(f" / {stage}")}


def tolerances(pack: Pack) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for case in pack.manifest["cases"]:
        yield from ((case["name"], stage["stage"], stage["tolerance"]) for stage in case["stages"] if stage["stage"] in TOWER)


def test_each_case_has_a_number_for_each_precision_where_it_says_anything(pack: Pack) -> None:
    for case, stage, tolerance in tolerances(pack):
        judged = {"kind", "float32"} if case == "one-sign" else {"kind", "float32", *bounds.HALF_TYPES}  # its tower has width 8
        assert set(tolerance) == judged, (case, stage)
        if case != "one-sign":
            float32, float16, bfloat16 = (max(tolerance[precision]) for precision in ("float32", "float16", "bfloat16"))
            assert float32 < float16 < bfloat16


def test_the_numbers_are_per_case_not_a_factor(pack: Pack) -> None:
    factors = [max(told["bfloat16"]) / max(told["float32"]) for _, _, told in tolerances(pack) if "bfloat16" in told]
    assert max(factors) > 2 * min(factors)


def test_the_schema_takes_them_and_the_readme_tells_of_them(pack: Pack) -> None:
    jsonschema.validate(pack.manifest, json.loads((pack.folder / "manifest.schema.json").read_text()))
    told = json.loads(json.dumps(pack.manifest))
    (tolerance,) = (s["tolerance"] for s in told["cases"][0]["stages"] if s["stage"] == "hidden")
    tolerance["bfloat16"] = ["x"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(told, json.loads((pack.folder / "manifest.schema.json").read_text()))
    text = " ".join((pack.folder / "README.md").read_text().split())
    assert f"`bfloat16` and `int8` it is {bounds.HALF_MULTIPLE} times the largest distance of runs of the reference" in text
    assert "`--precision int8` is for weight-only int8" in text


@pytest.mark.parametrize("precision", HALVES)
def test_a_right_half_port_passes_and_uses_at_most_a_third(pack: Pack, precision: str, tmp_path: Path) -> None:
    folder = answered(pack, tmp_path / "out", in_half(Port, HALVES[precision])(), *TOWER)
    outcomes = check_outputs(pack, folder, precision)
    assert [outcome for outcome in outcomes if failed([outcome])] == []
    for stage in TOWER:
        assert statuses(outcomes, stage) == {name: Status.ABSENT if name == "one-sign" else Status.PASS for name in FEW}
        assert shares(pack, folder, precision, stage) < 1 / 3
        assert shares(pack, folder, "float32", stage) > 1


def shares(pack: Pack, folder: Path, precision: str, stage: str) -> float:
    """The most that is used of what is allowed."""
    worst = 0.0
    for name in (name for name in FEW if name != "one-sign"):
        tried = tried_in(pack, folder, f"{name} / {stage}", precision)
        assert tried is not None
        units = np.abs(tried.came.astype(np.float64) - tried.expected) / tried.allowed(tried.precision)
        worst = max(worst, float((units if tried.places is None else units[tried.places]).max()))
    return worst


def test_a_case_that_says_nothing_is_not_judged_and_its_shape_is(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npembed.conformance.golden.verdict.cause", lambda *looked_at: None)
    folder = answered(pack, tmp_path / "out", in_half(Port)(), *TOWER)
    (outcome,) = (o for o in check_outputs(pack, folder, "bfloat16") if o.name == "one-sign / hidden")
    assert (outcome.status, outcome.summary) == (Status.ABSENT, "not judged: the case says nothing in bfloat16")
    hidden = pack.tensors("one-sign.safetensors")["hidden"][:, :1]
    save_tensors(folder / "one-sign.safetensors", {"hidden": hidden, "tokens": hidden}, {})
    assert {o.name for o in check_outputs(pack, folder, "bfloat16") if failed([o])} == {
        "one-sign / hidden",
        "one-sign / tokens",
    }


WRONG = [
    ("keys without positions", "tokens", "the keys have no positions"),
    ("cosines before sines", "tokens", "sines and cosines are exchanged in the table of positions"),
    ("rows before columns in the sine table", "tokens", "rows and columns are exchanged in the table of positions"),
    ("unbiased variance", "tokens", "the variance is the unbiased one"),
    ("unbiased variance", "hidden", "the variance is the unbiased one"),
    ("quick gelu", "hidden", "gelu in its quick form, x * sigmoid(1.702 x), not the tanh form"),
]


@pytest.mark.parametrize(
    ("name", "stage", "cause", "precision"), [*((*wrong, "bfloat16") for wrong in WRONG), (*WRONG[3], "float16")]
)
def test_a_wrong_half_port_is_caught_and_its_cause_named(
    pack: Pack, name: str, stage: str, cause: str, precision: str, tmp_path: Path
) -> None:
    folder = answered(pack, tmp_path / "out", in_half(wrong_port(name), HALVES[precision])(), stage)
    wrong = [outcome for outcome in check_outputs(pack, folder, precision) if failed([outcome])]
    assert wrong
    for outcome in wrong:
        assert outcome.cause is not None
        assert [words.split(" (as ")[0] for words in outcome.cause.split(" or: ")] == [cause]


@pytest.mark.parametrize("precision", bounds.HALF_TYPES)
@pytest.mark.parametrize(("stage", "function"), [("hidden", "encode"), ("tokens", "resample")])
def test_what_a_pack_cannot_tell_apart_is_listed(pack: Pack, precision: str, stage: str, function: str) -> None:
    record = npembed.FAMILIES["minicpm-v-2.6"].stage(stage, "test")
    found = (tried_in(pack, pack.folder, f"{name} / {stage}", precision) for name in FEW)
    tried = [one for one in found if one is not None]
    listed = bounds.INDISTINGUISHABLE_IN_PACKS[precision][function]
    surely, perhaps = (
        aggregate.not_told_apart(record.function, SUSPECTS[function], tried, share * signed.NOISE) for share in (1.25, 0.8)
    )
    assert set(surely) <= set(listed) <= set(perhaps)


# int8


def in_int8(model: npembed.Model) -> npembed.Model:
    return with_arrays(model, quantised, ("weight",))


def test_int8_weights_pass_as_int8_and_not_as_float32(pack: Pack, tmp_path: Path) -> None:
    folder = answered(pack, tmp_path / "out", npembed, "embeddings", *TOWER, change=in_int8)
    out = done_well(command("golden", "check", pack.folder, folder, "--precision", "int8"))
    assert "embeddings         .  .  ." in out
    assert all(shares(pack, folder, "float32", stage) > 1 for stage in ("embeddings", *TOWER))


@pytest.mark.parametrize("name", ["cosines before sines", "keys without positions"])
def test_a_fault_shows_under_int8_weights(pack: Pack, name: str, tmp_path: Path) -> None:
    folder = answered(pack, tmp_path / "out", as_module(wrong_port(name)()), "tokens", change=in_int8)
    assert failed(check_outputs(pack, folder, "int8"))


def test_embeddings_with_a_row_scaled_wrong_are_caught_as_int8(pack: Pack, tmp_path: Path) -> None:
    def off(model: npembed.Model) -> npembed.Model:
        return with_arrays(in_int8(model), lambda array: array * np.float32(1.02), ("patch_embedding.weight",))

    assert failed(check_outputs(pack, answered(pack, tmp_path / "out", npembed, "embeddings", change=off), "int8"))


# A float32 failure within float16's promise


class GeluInFloat16(Port):
    """As llama.cpp's, by a table in float16."""

    def _gelu(self, x):  # type: ignore[no-untyped-def]
        return super()._gelu(x.astype(np.float16).astype(np.float32)).astype(np.float16).astype(np.float32)


def test_a_float32_failure_within_float16s_promise_says_so(pack: Pack, tmp_path: Path) -> None:
    folder = answered(pack, tmp_path / "out", GeluInFloat16(), "hidden")
    wrong = [outcome for outcome in check_outputs(pack, folder) if failed([outcome])]
    assert wrong
    assert all(outcome.cause is not None and "within what float16 may be off" in outcome.cause for outcome in wrong)
    other = answered(pack, tmp_path / "other", QuickGelu(), "hidden")
    causes = {str(outcome.cause) for outcome in check_outputs(pack, other) if failed([outcome])}
    assert not any("within what float16 may be off" in cause for cause in causes)


@pytest.mark.parametrize("again", [False, True])
def test_a_pack_of_given_weights_judges_half_types_with_and_without_them(again: bool, tiny: Model, tmp_path: Path) -> None:
    write_pack(tmp_path / "pack", model=tiny)
    pack = read_pack(tmp_path / "pack")
    (tmp_path / "out").mkdir()
    for case in pack.manifest["cases"]:
        floats = {each["stage"] for each in case["stages"] if each["tolerance"]["kind"] != "equal"}
        right = {name: array for name, array in pack.tensors(case["expected"]).items() if name in floats}
        save_tensors(tmp_path / "out" / case["expected"], {n: a.astype(ml_dtypes.bfloat16) for n, a in right.items()}, {})
    outcomes = check_outputs(pack, tmp_path / "out", model=tiny if again else None)
    assert not failed(outcomes)
    assert any(outcome.status is Status.PASS and "bfloat16" in outcome.summary for outcome in outcomes)
