"""What the stages of a case should give, and how far from it a port may be."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npembed.conformance.bounds import (
    HALF_TYPES,
    UNIT_ROUNDOFF,
    WIDE,
    Scale,
    embed_scale,
    half_allowed,
    stage_allowed,
)
from npembed.conformance.in_order import in_order
from npembed.records.family import Promise, Stage
from npembed.records.model import Model
from npembed.support.typing import Array

EQUAL: dict[str, Any] = {"kind": "equal"}


@dataclass(frozen=True)
class Answer:
    """One stage's expected result.

    Attributes
    ----------
    stage : Stage
    value : array
    tolerance : mapping
        As the manifest has it: {"kind": "equal"}, or "componentwise" or "per slice" with their numbers.
    counts : list of int or None
        How many places of each slice count; None where every place does.
    companions : dict of str to array
        What the tolerance needs beside it.
    """

    stage: Stage
    value: Array
    tolerance: Mapping[str, Any]
    counts: list[int] | None
    companions: Mapping[str, Array]

    @property
    def places(self) -> Array | None:
        """bool (B, L): the places that count; None where every place does."""
        return None if self.counts is None else np.arange(self.value.shape[1]) < np.array(self.counts)[:, None]

    def says(self, precision: str) -> bool:
        """Whether the case says anything at that precision."""
        allowed = self.allowed(precision)
        return allowed is None or bool(np.isfinite(allowed).all())

    def allowed(self, precision: str) -> Array | None:
        """The largest distance, element by element, at the port's precision; infinite where the case says nothing at it."""
        kind, numbers = self.tolerance["kind"], self.tolerance
        if kind == "equal":
            return None
        rounded = UNIT_ROUNDOFF["float32"] * np.abs(self.value.astype(np.float64))  # a pack's own values are float32
        if kind == "componentwise":
            magnitude, steps = (self.companions[name].astype(np.float64) for name in ("magnitude", "steps"))
            scale = Scale(numbers["terms"], magnitude, np.asarray(numbers["underflow"]), numbers["stores"], steps)
            return scale.allowed(precision) + rounded
        distances = numbers.get(precision, [np.inf]) if precision in HALF_TYPES else numbers["float32"]
        return np.asarray(np.array(distances).reshape(-1, *[1] * (self.value.ndim - 1)) + rounded)


def answer(
    stage: Stage, value: Array, tolerance: dict[str, Any] = EQUAL, counts: list[int] | None = None, **companions: Array
) -> Answer:
    """An `Answer`, its floats in float32."""
    stored = value.astype(np.float32) if value.dtype.kind == "f" else value
    return Answer(stage, stored, tolerance, counts, companions)


def case_answers(
    inputs: Mapping[str, Array], model: Model, stages: Sequence[Stage], rule: str | None = None
) -> Iterator[Answer]:
    """The answer of each stage in turn, as far as the model has the arrays.

    Each is computed in float64 from the float32 tensors that the pack holds, those of the stage before among them, so a
    port can be fed with the pack's own values stage by stage. Products are summed in one order (`in_order`), so that neither
    the answers nor the tolerances depend on how many threads there are.

    Raises
    ------
    ValueError
        An answer that is not a number, with its stage and place.
    """
    values: dict[str, Any] = {**inputs, "rule": rule}
    absent: set[str] = set()
    for stage in stages:
        if model.missing(stage) or absent & set(stage.reads):
            absent.add(stage.name)
            continue
        found = answer_of(stage, values, model)
        _check_finite(found)
        values[stage.name] = found.value
        yield found


def answer_of(stage: Stage, values: Mapping[str, Any], model: Model) -> Answer:
    """The answer of one stage from the tensors by name."""
    return _ANSWERS[stage.promise](stage, values, model)


def _check_finite(found: Answer) -> None:
    """An error if an answer is not a number: every port would fail, or none."""
    for name, array in {"": found.value, **found.companions}.items():
        wrong = np.argwhere(~np.isfinite(array)) if array.dtype.kind == "f" else np.empty(0)
        if len(wrong):
            index = tuple(wrong[0].tolist())
            where = f"{found.stage.name}{'.' * bool(name)}{name}{list(index)}"
            raise ValueError(f"golden write: {where} is {array[index]}; a pack's own answers must be finite numbers")


def _equal(stage: Stage, values: Mapping[str, Any], model: Model) -> Answer:
    return answer(stage, stage.call(values, model))


def _componentwise(stage: Stage, values: Mapping[str, Any], model: Model) -> Answer:
    strips, tgt_sizes = stage.arguments(values, model)[:2]
    scale = embed_scale(strips, tgt_sizes, model, values.get("rule"))
    tolerance = {
        "kind": "componentwise",
        "terms": scale.terms,
        "stores": scale.stores,
        "underflow": _rounded_up(scale.underflow.max()),
    }
    magnitude, steps = (
        np.nextafter(array.astype(np.float32), np.float32(np.inf)) for array in (scale.magnitude, np.asarray(scale.steps))
    )
    return answer(stage, stage.call(values, in_order(model, "float64")), tolerance, magnitude=magnitude, steps=steps)


def _distance(stage: Stage, values: Mapping[str, Any], model: Model) -> Answer:
    in_float64, in_float32 = (stage.call(values, in_order(model, dtype)) for dtype in ("float64", "float32"))
    tolerance = {
        "kind": "per slice",
        "float32": _numbers(stage_allowed(in_float32, in_float64)),
        **_half_tolerances(stage, values, model, in_float64),
    }
    counts = None
    if stage.sizes is not None and not stage.compares_padding:
        places = model.config.family.places(values["tgt_sizes"])  # those that take part in the tower are results
        counts = stage.sizes(places, model.config).prod(axis=1).tolist()
    return answer(stage, in_float64, tolerance, counts)


def _half_tolerances(stage: Stage, values: Mapping[str, Any], model: Model, exact: Array) -> dict[str, list[float]]:
    """The largest distances in half precision and with int8 weights, where the case says anything in them."""
    if model.config.vision.hidden_size < WIDE:
        return {}
    args = stage.arguments(values, model)
    allowed = {precision: half_allowed(stage.function, args, exact, precision) for precision in HALF_TYPES}
    return {precision: _numbers(numbers) for precision, numbers in allowed.items() if np.isfinite(numbers).all()}


def _numbers(allowed: Array) -> list[float]:
    return [_rounded_up(number) for number in allowed.ravel()]


_ANSWERS = {Promise.EQUAL: _equal, Promise.COMPONENTWISE: _componentwise, Promise.DISTANCE: _distance}
"""How a stage's answer and its tolerance are made, by what the stage promises."""


def _rounded_up(number: float) -> float:
    """To two digits, so that no platform's last bit is in the manifest."""
    digits = f"{number * 1.05:.1e}"
    return float(digits)
