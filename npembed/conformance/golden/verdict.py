"""Comparing a port's files with a golden pack: per case and stage, and the first stage that departs."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from npembed.conformance.bounds import HALF_TYPES, UNIT_ROUNDOFF, Scale, check_precision
from npembed.conformance.compare import Departure, compare
from npembed.conformance.golden import together
from npembed.conformance.golden.answers import answer_of
from npembed.conformance.golden.cases import BUCKET_COORDS, MORE_STAGES, bucket_of
from npembed.conformance.golden.causes import Tried, cause
from npembed.conformance.golden.contents import GIVEN
from npembed.conformance.golden.flat import read_flat
from npembed.conformance.golden.pack import Pack
from npembed.conformance.outcome import SEPARATOR, WITHIN_HALF, Outcome, Status, around, failed, text_diff
from npembed.families import get_family
from npembed.family import Family, Stage
from npembed.files import load_tensors
from npembed.model import Model
from npembed.positions.rules import get_rule
from npembed.typing import Array
from npembed.weights import read_config


def check_outputs(
    pack: Pack,
    outputs: str | Path,
    precision: str | None = None,
    *,
    stages: Iterable[str] = (),
    require: Iterable[str] = (),
    rule: str | None = None,
    model: Model | None = None,
) -> list[Outcome]:
    """Every stage of every case, as a port computed it.

    Parameters
    ----------
    pack : Pack
    outputs : path
        A folder with one file per case, named as the pack's expected file, with its tensor names: .safetensors, .npz, or
        .bin and .txt.
    precision : {"float32", "float64", "float16", "bfloat16", "int8"}, optional
        What the port computes in; int8 is of the weights alone. Without it, what each tensor's dtype says, and at least
        float32.
    stages : iterable of str
        Look at these alone; at all without any.
    require : iterable of str
        Stages that must be there. Others that no file has are "not provided".
    rule : str, optional
        The position rule to judge by, in place of the pack's.
    model : Model, optional
        For a pack of given weights, which are not in it: those weights. With them the causes of faults in the tower and the
        connector are looked for, and the port can be judged by another rule.

    Returns
    -------
    list of Outcome
        In the order of cases and stages; named "case / stage".

    Raises
    ------
    ValueError
        No such folder; a file in it that cannot be read; nothing in it of what is looked for; an unknown stage, rule or
        precision; a rule for a pack whose weights are neither in it nor given; weights that do not give the pack's answers.
    """
    folder = Path(outputs)
    if not folder.is_dir():
        raise ValueError(f"golden check: {folder} is not a folder")
    if precision is not None:
        check_precision(precision)
    if rule is not None:
        _check_rule(pack, rule, model)
    if model is not None:
        _check_model(pack, model)
    wanted, required = _known(pack, stages) or stage_names(pack), _known(pack, require)
    cases = [_Case(pack, case, folder, rule or pack.manifest["rule"], model) for case in pack.manifest["cases"]]
    provided = {name for case in cases for name in (case.got or ())}
    looked_at = dict.fromkeys((*wanted, *required))
    if not provided & set(looked_at) and not required:
        raise ValueError(f"golden check: {folder} {_nothing(cases, looked_at)}")
    seen = [
        _look(case, stage, provided, required, precision)
        for case in cases
        for stage in case.stages
        if stage["stage"] in looked_at
    ]
    return _explained(seen)


def stage_names(pack: Pack) -> list[str]:
    """The stages of a pack, in order."""
    return list(dict.fromkeys(stage["stage"] for case in pack.manifest["cases"] for stage in case["stages"]))


def outcome_names(pack: Pack) -> list[str]:
    """The names of all the outcomes that a check of everything gives."""
    return [f"{case['name']}{SEPARATOR}{stage['stage']}" for case in pack.manifest["cases"] for stage in case["stages"]]


def first_departing(pack: Pack, outcomes: Sequence[Outcome]) -> str | None:
    """The earliest stage at which any case departs, or None."""
    departing = {outcome.name.split(SEPARATOR)[1] for outcome in outcomes if failed([outcome])}
    return next((stage for stage in stage_names(pack) if stage in departing), None)


def causes_need_weights(pack: Pack, outcomes: Sequence[Outcome]) -> bool:
    """Whether there are failures without a cause in stages that read arrays, of weights that are not in the pack."""
    if GIVEN not in pack.manifest["models"]:
        return False
    reading = {stage.name for stage in _family(pack).vision_stages}
    return any(failed([each]) and each.cause is None and each.name.split(SEPARATOR)[1] in reading for each in outcomes)


def tried_in(
    pack: Pack,
    outputs: str | Path,
    name: str,
    precision: str | None = None,
    rule: str | None = None,
    model: Model | None = None,
) -> Tried | None:
    """What a port gave for the outcome of that name, and what it should have; None where its files do not have it."""
    wanted, _, stage = name.partition(SEPARATOR)
    told = next(case for case in pack.manifest["cases"] if case["name"] == wanted)
    case = _Case(pack, told, Path(outputs), rule or pack.manifest["rule"], model)
    if case.got is None or stage not in case.got:
        return None
    return _tried(case, next(each for each in case.stages if each["stage"] == stage), precision)[0]


def _known(pack: Pack, names: Iterable[str]) -> list[str]:
    """The names, if the pack has stages of these names."""
    known, given = stage_names(pack), list(names)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"golden check: the pack has no stage {name!r}; it has {', '.join(known)}{hint}")
    return given


def _check_rule(pack: Pack, rule: str, model: Model | None) -> None:
    """An error unless the pack can be judged by that rule."""
    get_rule(rule, "golden check")
    if pack.manifest["rule"] is None:
        title = _family(pack).title
        raise ValueError(f"golden check: {title} has positions that follow no rule, so none can be chosen; got {rule!r}")
    if rule != pack.manifest["rule"] and GIVEN in pack.manifest["models"] and model is None:
        raise ValueError(
            f"golden check: the pack is for weights that are not in it, and for rule {pack.manifest['rule']!r}; give them with "
            f"--weights, or write it with --rule {rule}"
        )


def _check_model(pack: Pack, model: Model) -> None:
    """An error unless the pack is of given weights, and these give its answers."""
    if GIVEN not in pack.manifest["models"]:
        raise ValueError("golden check: the pack has models of its own, so no weights can be given")
    for record in _family(pack).vision_stages:
        found = ((case, stage) for case in pack.manifest["cases"] for stage in case["stages"] if stage["stage"] == record.name)
        told, stage = next(found, (None, None))
        if told is None or stage is None:
            continue
        if model.config.family is not _family(pack) or model.missing(record):
            raise ValueError(f"golden check: these weights cannot give the pack's {record.name}")
        case = _Case(pack, told, pack.folder, pack.manifest["rule"], model)
        tried, _, _ = _tried(case, stage, None)
        departure = compare(record.call(case.values, model), tried.expected, tried.allowed, tried.places)
        if departure is not None:
            raise ValueError(
                f"golden check: these are not the weights that the pack was written for: with them {case.name}{SEPARATOR}"
                f"{record.name} differs, {departure.what}"
            )


def _family(pack: Pack) -> Family:
    return get_family(pack.manifest["family"], "golden check")


def _nothing(cases: Sequence["_Case"], wanted: Collection[str]) -> str:
    if all(case.got is None for case in cases):
        return f"has no file of any case: expected are {cases[0].stem}.safetensors and so on, or .npz, or .bin and .txt"
    return f"has files, but no tensor in them has the name of a stage that is looked for: {', '.join(wanted)}"


class _Case:
    """One case: the pack's tensors and the port's."""

    def __init__(self, pack: Pack, told: dict[str, Any], folder: Path, rule: str | None, given: Model | None = None) -> None:
        self.pack, self.told, self.rule, self.given = pack, told, rule, given
        self.name, self.stages = told["name"], told["stages"]
        self.stem = told["expected"].removesuffix(".safetensors")
        self.file = folder / told["expected"]
        self.got = _answers(folder, self.stem)

    @cached_property
    def expected(self) -> dict[str, Array]:
        return _as_told(self.pack, self.told["expected"], self.stages)

    @cached_property
    def values(self) -> dict[str, Any]:
        """What any stage of the case reads: the pack's own tensors, and the rule."""
        given = self.pack.tensors(self.told["input"])
        return {**given, **{name: array for name, array in self.expected.items() if name not in given}, "rule": self.rule}

    @cached_property
    def model(self) -> Model:
        """The case's; that of a pack of given weights without arrays, unless they are given again."""
        where = self.told["model"]
        if where != GIVEN:
            return _model(self.pack.folder / where, self.pack.manifest["digest"])
        return self.given or Model(read_config(self.pack.folder / where), {})

    def record(self, name: str) -> Stage | None:
        """The record of one of its stages."""
        stages = (*_family(self.pack).stages, *MORE_STAGES)
        return next((stage for stage in stages if stage.name == name), None)


@lru_cache(maxsize=8)
def _model(folder: Path, _: str) -> Model:
    """The model in that folder, of the pack with that digest; with the arrays that only a faulty port reads."""
    return Model(read_config(folder), load_tensors(folder / "model.safetensors"))


def _answers(folder: Path, stem: str) -> dict[str, Array] | None:
    """The port's tensors for one case, in whichever form it wrote them; None if there is no file."""
    paths = [path for ending in (".safetensors", ".npz", ".txt") if (path := folder / f"{stem}{ending}").is_file()]
    safe = [path for path in paths if path.suffix != ".txt"]
    if len(safe) > 1:
        raise ValueError(f"golden check: {folder} answers {stem} twice: {safe[0].name} and {safe[1].name}")
    if safe:
        return load_tensors(safe[0])
    return read_flat(folder / stem) if paths else None


def _as_told(pack: Pack, file: str, stages: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The pack's tensors, if they are those that the manifest tells of."""
    tensors = pack.tensors(file)
    for stage in stages:
        named = {stage["stage"]: stage}
        named |= {f"{stage['stage']}.{name}": told for name, told in stage["tolerance"].get("companions", {}).items()}
        for name, told in named.items():
            found = tensors.get(name)
            if found is None or list(found.shape) != told["shape"] or str(found.dtype) != told["dtype"]:
                raise ValueError(
                    f"golden check: the pack is damaged: {pack.folder / file} has no tensor {name} of {told['dtype']} and "
                    f"shape {tuple(told['shape'])}"
                )
    return tensors


@dataclass(frozen=True)
class _Look:
    """What became of one stage of one case; where there is a result, what the manifest tells of it and the port's precision."""

    outcome: Outcome
    case: _Case
    stage: str
    tried: Tried | None = None
    told: Mapping[str, Any] = field(default_factory=dict)
    at: str = ""


def _look(case: _Case, told: dict[str, Any], provided: set[str], required: Collection[str], precision: str | None) -> _Look:
    name, tensor = f"{case.name}{SEPARATOR}{told['stage']}", told["stage"]
    if tensor not in provided:
        needed = tensor in required
        status = Status.FAIL if needed else Status.ABSENT
        return _Look(Outcome(name, status, "not provided" + ", but required" * needed), case, tensor)
    if case.got is None:
        return _Look(Outcome(name, Status.FAIL, f"{case.file} is missing; other cases have {tensor}"), case, tensor)
    if tensor not in case.got:
        return _Look(Outcome(name, Status.FAIL, f"{case.file.name} has no tensor {tensor}; other cases have it"), case, tensor)
    tried, told, at = _tried(case, told, precision)
    departure = compare(tried.came, tried.expected, tried.allowed, tried.places)
    outcome = _agreement(name, tried, at) if departure is None else _failure(name, tensor, tried, departure)
    return _Look(outcome, case, tensor, tried, told, at)


def _agreement(name: str, tried: Tried, at: str) -> Outcome:
    """A case that says nothing at that precision is not judged."""
    if tried.allowed is None:
        return Outcome(name, Status.PASS, "equal")
    if not np.isfinite(tried.allowed).all():
        return Outcome(name, Status.ABSENT, f"not judged: the case says nothing in {at}")
    return Outcome(name, Status.PASS, f"within {at}'s bound")


def _tried(case: _Case, told: dict[str, Any], precision: str | None) -> tuple[Tried, dict[str, Any], str]:
    """What came and what should, by the rule that is asked for; the stage as the manifest has it then; the precision."""
    assert case.got is not None
    tensor, expected = told["stage"], case.expected
    came, record = case.got[tensor], case.record(tensor)
    if case.rule != case.pack.manifest["rule"] and record is not None and record.by_rule:
        other = answer_of(record, case.values, case.model)
        told = {**told, "tolerance": other.tolerance}
        expected = {tensor: other.value, **{f"{tensor}.{name}": array for name, array in other.companions.items()}}
    at = max({precision or "float32", str(came.dtype)} & set(UNIT_ROUNDOFF), key=UNIT_ROUNDOFF.__getitem__)
    places = None if told["places"] == "all" else np.arange(expected[tensor].shape[1]) < np.array(told["counts"])[:, None]
    allowed = _allowed(told["tolerance"], tensor, expected, at)
    return Tried(case.values, case.model, came, expected[tensor], allowed, places, case.got, at), told, at


def _failure(name: str, tensor: str, tried: Tried, departure: Departure) -> Outcome:
    """What is known of a departure: both results around the first difference, a text as a diff."""
    outcome = Outcome(name, Status.FAIL, departure.what, worst=departure.worst)
    if tensor == "text" and tried.came.dtype == np.uint8 and tried.came.ndim == 1:
        texts = [array.tobytes().decode(errors="backslashreplace") for array in (tried.came, tried.expected)]
        different = compare(texts[0], texts[1])
        return replace(outcome, summary=different.what if different else departure.what, diff=text_diff(texts[0], texts[1]))
    if departure.index is None:
        return outcome
    if tensor == BUCKET_COORDS.name:
        n, patch = bucket_of(departure.index[0])
        outcome = replace(outcome, summary=f"n = {n}, patch {patch}: {departure.what}")
    return replace(outcome, came=around(tried.came, departure.index), expected=around(tried.expected, departure.index))


def _explained(seen: Sequence[_Look]) -> list[Outcome]:
    """The outcomes, each failure with its cause: a fault that explains the stage in every case."""
    outcomes = {id(look): look.outcome for look in seen}
    for stage in dict.fromkeys(look.stage for look in seen):
        looks = [look for look in seen if look.stage == stage and look.tried is not None]
        record = next(look.case.record(stage) for look in seen if look.stage == stage)
        if record is not None and looks:
            outcomes |= _explained_stage(record, looks)
    return list(outcomes.values())


def _explained_stage(stage: Stage, looks: Sequence[_Look]) -> dict[int, Outcome]:
    """One stage's failures with their cause. In half precision all its cases together may tell of one that no case shows."""
    failing = [look for look in looks if failed([look.outcome])]
    pointed = together.found(stage, [(look.tried, look.at) for look in looks if look.tried is not None])
    if pointed is not None and not failing:
        fault, clearest = pointed
        look = next(look for look in looks if look.tried is clearest)
        return {id(look): Outcome(look.outcome.name, Status.FAIL, fault.summary, cause=fault.cause)}
    told = None if not failing else pointed[0].cause if pointed is not None else _cause(stage, looks, failing)
    return {id(look): replace(look.outcome, cause=told) for look in failing}


def _cause(stage: Stage, looks: Sequence[_Look], failing: Sequence[_Look]) -> str | None:
    """The known faults that explain every case, or what the size of the failures suggests."""
    passing = [look for look in looks if not failed([look.outcome])]
    known = cause(stage, *([look.tried for look in some if look.tried is not None] for some in (failing, passing)))
    return known or (WITHIN_HALF if _are_within_half(failing) else None)


def _are_within_half(failing: Sequence[_Look]) -> bool:
    """Whether these failures in float32 would pass for a float16 port, as far as their cases say anything in float16."""
    found = [within for look in failing if (within := _is_within_half(look)) is not None]
    return bool(found) and all(found)


def _is_within_half(look: _Look) -> bool | None:
    if look.at != "float32" or look.tried is None or look.tried.allowed is None:
        return False
    allowed = _allowed(look.told["tolerance"], look.stage, look.case.expected, "float16")
    if not np.isfinite(np.asarray(allowed)).all():
        return None
    return compare(look.tried.came, look.tried.expected, allowed, look.tried.places) is None


def _allowed(tolerance: Mapping[str, Any], tensor: str, expected: Mapping[str, Array], precision: str) -> Array | None:
    """The largest distance, element by element, at the port's precision; infinite where the case says nothing at it."""
    if tolerance["kind"] == "equal":
        return None
    rounded = UNIT_ROUNDOFF["float32"] * np.abs(expected[tensor].astype(np.float64))  # the pack's own values are float32
    if tolerance["kind"] == "componentwise":
        magnitude, steps = (expected[f"{tensor}.{name}"].astype(np.float64) for name in ("magnitude", "steps"))
        underflow = np.asarray(tolerance["underflow"])
        scale = Scale(tolerance["terms"], magnitude, underflow, tolerance["stores"], steps)
        return scale.allowed(precision) + rounded
    numbers = tolerance.get(precision if precision in HALF_TYPES else "float32", [np.inf])
    return np.asarray(np.array(numbers).reshape(-1, *[1] * (expected[tensor].ndim - 1)) + rounded)
