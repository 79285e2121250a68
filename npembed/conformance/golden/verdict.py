"""Comparing a port's files with a golden pack: per case and stage, and the first stage that departs."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from npembed.conformance import aggregate, signed
from npembed.conformance.bounds import HALF_TYPES, MANY, check_precision
from npembed.conformance.compare import Departure, compare
from npembed.conformance.golden.answered import AnsweredCase
from npembed.conformance.golden.causes import cause
from npembed.conformance.golden.contents import GIVEN
from npembed.conformance.golden.more_stages import BUCKET_COORDS, bucket_of
from npembed.conformance.golden.pack import Pack, one_line
from npembed.conformance.outcome import SEPARATOR, WITHIN_HALF, Outcome, Status, around, failed, text_diff
from npembed.conformance.suspects import SUSPECTS
from npembed.conformance.tried import Tried, are_within_half
from npembed.records.family import Promise, Stage
from npembed.records.model import Model
from npembed.steps.positions.rules import get_rule
from npembed.support.messages import did_you_mean


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
    if not Path(outputs).is_dir():
        raise ValueError(f"golden check: {outputs} is not a folder")
    if precision is not None:
        check_precision(precision)
    with one_line(pack.folder):
        if rule is not None:
            _check_rule(pack, rule, model)
        if model is not None:
            _check_model(pack, model)
        cases = [AnsweredCase(pack, entry, Path(outputs), rule, model) for entry in pack.manifest["cases"]]
        return _outcomes(cases, _known(pack, stages) or stage_names(pack), _known(pack, require), precision)


def _outcomes(
    cases: Sequence[AnsweredCase], wanted: Sequence[str], required: Sequence[str], precision: str | None
) -> list[Outcome]:
    """What became of the stages that are looked at, in the order of cases and stages."""
    looked_at = set(wanted) | set(required)
    provided = {name for case in cases for name in case.got or ()}
    if not provided & looked_at and not required:
        raise ValueError(f"golden check: {cases[0].file.parent} {_nothing(cases, wanted)}")
    found: dict[str, list[tuple[Outcome, Tried | None]]] = {}
    for case in cases:
        for stage in (stage for stage in case.stages if stage in looked_at):
            found.setdefault(stage, []).append(_judged(case, stage, provided, required, precision))
    explained = {stage: iter(_explained(stage, pairs)) for stage, pairs in found.items()}
    return [next(explained[stage]) for case in cases for stage in case.stages if stage in looked_at]


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
    reading = {stage.name for stage in pack.family.vision_stages}
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
    entry = next(entry for entry in pack.manifest["cases"] if entry["name"] == wanted)
    return AnsweredCase(pack, entry, Path(outputs), rule, model).tried(stage, precision)


def _known(pack: Pack, names: Iterable[str]) -> list[str]:
    """The names, if the pack has stages of these names."""
    known, given = stage_names(pack), list(names)
    for name in given:
        if name not in known:
            raise ValueError(
                f"golden check: the pack has no stage {name!r}; it has {', '.join(known)}{did_you_mean(name, known)}"
            )
    return given


def _check_rule(pack: Pack, rule: str, model: Model | None) -> None:
    """An error unless the pack can be judged by that rule."""
    get_rule(rule, "golden check")
    if pack.manifest["rule"] is None:
        raise ValueError(
            f"golden check: {pack.family.title} has positions that follow no rule, so none can be chosen; got {rule!r}"
        )
    if rule != pack.manifest["rule"] and GIVEN in pack.manifest["models"] and model is None:
        raise ValueError(
            f"golden check: the pack is for weights that are not in it, and for rule {pack.manifest['rule']!r}; give them with "
            f"--weights, or write it with --rule {rule}"
        )


def _check_model(pack: Pack, model: Model) -> None:
    """An error unless the pack is of given weights, and these give its answers."""
    if GIVEN not in pack.manifest["models"]:
        raise ValueError("golden check: the pack has models of its own, so no weights can be given")
    for stage in pack.family.vision_stages:
        found = (entry for entry in pack.manifest["cases"] if stage.name in [each["stage"] for each in entry["stages"]])
        entry = next(found, None)
        if entry is None:
            continue
        if model.config.family is not pack.family or model.missing(stage):
            raise ValueError(f"golden check: these weights cannot give the pack's {stage.name}")
        case = AnsweredCase(pack, entry, pack.folder, None, model)
        answer = case.answers[stage.name]
        departure = compare(stage.call(case.values, model), answer.value, answer.allowed("float32"), answer.places)
        if departure is not None:
            raise ValueError(
                f"golden check: these are not the weights that the pack was written for: with them "
                f"{case.outcome_name(stage.name)} differs, {departure.what}"
            )


def _nothing(cases: Sequence[AnsweredCase], wanted: Collection[str]) -> str:
    if all(case.got is None for case in cases):
        return f"has no file of any case: expected are {cases[0].file.name} and so on, or .npz, or .bin and .txt"
    return f"has files, but no tensor in them has the name of a stage that is looked for: {', '.join(wanted)}"


def _judged(
    case: AnsweredCase, stage: str, provided: set[str], required: Collection[str], precision: str | None
) -> tuple[Outcome, Tried | None]:
    """What became of one stage of one case."""
    name = case.outcome_name(stage)
    if stage not in provided:
        needed = stage in required
        return Outcome(name, Status.FAIL if needed else Status.ABSENT, "not provided" + ", but required" * needed), None
    if case.got is None:
        return Outcome(name, Status.FAIL, f"{case.file} is missing; other cases have {stage}"), None
    tried = case.tried(stage, precision)
    if tried is None:
        return Outcome(name, Status.FAIL, f"{case.file.name} has no tensor {stage}; other cases have it"), None
    return (_agreement(name, tried) if tried.departure is None else _failure(name, stage, tried, tried.departure)), tried


def _agreement(name: str, tried: Tried) -> Outcome:
    """A case that says nothing at that precision is not judged."""
    if not tried.says(tried.precision):
        return Outcome(name, Status.ABSENT, f"not judged: the case says nothing in {tried.precision}")
    exact = tried.allowed(tried.precision) is None
    return Outcome(name, Status.PASS, "equal" if exact else f"within {tried.precision}'s bound")


def _failure(name: str, stage: str, tried: Tried, departure: Departure) -> Outcome:
    """What is known of a departure: both results around the first difference, a text as a diff."""
    outcome = Outcome(name, Status.FAIL, departure.what, worst=departure.worst)
    if stage == "text" and tried.came.dtype == np.uint8 and tried.came.ndim == 1:
        texts = [array.tobytes().decode(errors="backslashreplace") for array in (tried.came, tried.expected)]
        different = compare(texts[0], texts[1])
        return replace(outcome, summary=different.what if different else departure.what, diff=text_diff(texts[0], texts[1]))
    if departure.index is None:
        return outcome
    if stage == BUCKET_COORDS.name:
        n, patch = bucket_of(departure.index[0])
        outcome = replace(outcome, summary=f"n = {n}, patch {patch}: {departure.what}")
    return replace(outcome, came=around(tried.came, departure.index), expected=around(tried.expected, departure.index))


def _explained(name: str, found: Sequence[tuple[Outcome, Tried | None]]) -> list[Outcome]:
    """One stage's outcomes, each failure with its cause: a fault that explains the stage in every case.

    In half precision all its cases together may point to one that no case shows alone.
    """
    tried = [one for _, one in found if one is not None]
    if not tried:
        return [outcome for outcome, _ in found]
    stage = tried[0].given.answers[name].stage
    pointed, failing = _pointed_to(stage, tried), [one for one in tried if not one.right]
    if pointed is not None and not failing:
        fault, clearest = pointed
        worst = Outcome("", Status.FAIL, fault.summary, cause=fault.cause)
        return [replace(worst, name=outcome.name) if one is clearest else outcome for outcome, one in found]
    why = None
    if failing:
        why = pointed[0].cause if pointed is not None else cause(stage, tried)
        why = why or (WITHIN_HALF if are_within_half(failing) else None)
    return [outcome if one is None or one.right else replace(outcome, cause=why) for outcome, one in found]


def _pointed_to(stage: Stage, tried: Sequence[Tried]) -> tuple[signed.Found, Tried] | None:
    """The known fault that a stage's errors in half precision point to, and the case that shows it most."""
    if stage.promise is not Promise.DISTANCE:
        return None
    telling = [one for one in tried if one.precision in HALF_TYPES and not one.given.model.missing(stage)]
    few = [one for one in telling if one.args[0].size <= MANY]  # for more, a run takes too long
    return aggregate.found(stage.function, SUSPECTS.get(stage.function.__name__, ()), few)
