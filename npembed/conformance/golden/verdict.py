"""Holding a port's files against a golden pack: per case and stage, and the first stage that departs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npembed.conformance.bounds import UNIT_ROUNDOFF, check_precision, precision_factor, relative_bound
from npembed.conformance.compare import compare
from npembed.conformance.golden.pack import Pack
from npembed.conformance.outcome import Outcome, Status, failed
from npembed.files import load_tensors
from npembed.typing import Array
from npembed.weights import load_model

SEPARATOR = " / "
"""Between the case and the stage in an outcome's name."""


def check_outputs(pack: Pack, outputs: str | Path, precision: str | None = None) -> list[Outcome]:
    """Every stage of every case, as a port computed it.

    Parameters
    ----------
    pack : Pack
    outputs : path
        A folder with one file per case, named as the pack's expected file, with its tensor names.
    precision : {"float32", "float64", "float16", "bfloat16"}, optional
        What the port computes in. Without it, what each tensor's dtype says, and at least float32.

    Returns
    -------
    list of Outcome
        In the order of cases and stages; named "case / stage".

    Raises
    ------
    ValueError
        No such folder; a file in it that cannot be read; an unknown precision.
    """
    folder = Path(outputs)
    if not folder.is_dir():
        raise ValueError(f"golden check: {folder} is not a folder")
    if precision is not None:
        check_precision(precision)
    return [outcome for case in pack.manifest["cases"] for outcome in _check_case(pack, case, folder, precision)]


def first_departing(pack: Pack, outcomes: Sequence[Outcome]) -> str | None:
    """The earliest stage at which any case departs, or None."""
    stages = [stage["stage"] for case in pack.manifest["cases"] for stage in case["stages"]]
    departing = {outcome.name.split(SEPARATOR)[1] for outcome in outcomes if failed([outcome])}
    return next((stage for stage in dict.fromkeys(stages) if stage in departing), None)


def _check_case(pack: Pack, case: dict[str, Any], folder: Path, precision: str | None) -> list[Outcome]:
    file = folder / case["expected"]
    if not file.is_file():
        absent = f"{file} is missing"
        return [Outcome(_name(case, stage), Status.FAIL, absent) for stage in case["stages"]]
    got, expected = load_tensors(file), pack.tensors(case["expected"])
    outcomes: list[Outcome] = []
    for stage in case["stages"]:
        outcomes.append(_check_stage(pack, case, stage, got, expected, precision, explain=not failed(outcomes)))
    return outcomes


def _name(case: dict[str, Any], stage: dict[str, Any]) -> str:
    return f"{case['name']}{SEPARATOR}{stage['stage']}"


def _check_stage(
    pack: Pack,
    case: dict[str, Any],
    stage: dict[str, Any],
    got: dict[str, Array],
    expected: dict[str, Array],
    precision: str | None,
    explain: bool,
) -> Outcome:
    name, tensor = _name(case, stage), stage["stage"]
    if tensor not in got:
        return Outcome(name, Status.FAIL, f"{case['expected']} has no tensor {tensor}")
    came = got[tensor]
    at = max({precision or "float32", str(came.dtype)} & set(UNIT_ROUNDOFF), key=UNIT_ROUNDOFF.__getitem__)
    places = None if stage["places"] == "all" else _places(stage["counts"], expected[tensor])
    departure = compare(came, expected[tensor], _allowed(stage["tolerance"], tensor, expected, at), places)
    if departure is None:
        return Outcome(name, Status.PASS, "equal" if stage["tolerance"]["kind"] == "equal" else f"within {at}'s bound")
    cause = _cause(pack, case, tensor, came, expected, at) if explain else None
    return Outcome(name, Status.FAIL, departure.what, cause=cause, worst=departure.worst)


def _places(counts: list[int], expected: Array) -> Array:
    """bool (B, L): the places of each slice that count."""
    return np.arange(expected.shape[1]) < np.array(counts)[:, None]


def _allowed(tolerance: dict[str, Any], tensor: str, expected: dict[str, Array], precision: str) -> Array | None:
    """The largest distance, element by element, at the port's precision."""
    if tolerance["kind"] == "equal":
        return None
    rounded = UNIT_ROUNDOFF["float32"] * np.abs(expected[tensor].astype(np.float64))  # the pack's own values are float32
    if tolerance["kind"] == "componentwise":
        bound = relative_bound(tolerance["terms"], precision, tolerance["stores"]) * expected[f"{tensor}.magnitude"].astype(
            np.float64
        )
        return np.asarray(bound + rounded + (tolerance["underflow"] if precision == "float16" else 0.0))
    per_slice = np.array(tolerance["float32"]).reshape(-1, *[1] * (expected[tensor].ndim - 1))
    return np.asarray(per_slice * precision_factor(precision) + rounded)


def _cause(pack: Pack, case: dict[str, Any], tensor: str, came: Array, expected: dict[str, Array], at: str) -> str | None:
    """The known faults that give just this result."""
    if case["model"] == "given":
        return None
    from npembed.conformance.probes import CHECKS, Call
    model = load_model(pack.folder / case["model"])
    stage = next(stage for stage in model.config.family.stages if stage.name == tensor)
    if stage.function not in CHECKS:
        return None
    values = {**pack.tensors(case["input"]), **{name: value for name, value in expected.items() if name != "tgt_sizes"}}
    check, call = CHECKS[stage.function], Call(stage.arguments(values, model))
    words = []
    for suspect in check.suspects:
        try:
            if check.departure(call, came, at, suspect.function) is None:
                words.append(suspect.words)
        except Exception:  # a faulty function may well fail
            continue
    return " or: ".join(words) or None
