"""Why a stage departs: the known faults that give the port's answers in every case, not in one alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import npembed
from npembed.conformance.bounds import UNIT_ROUNDOFF
from npembed.conformance.compare import compare, overflowed_alike
from npembed.conformance.filling import model_at
from npembed.conformance.suspects import explain, positions, suspects_of
from npembed.family import Promise, Stage
from npembed.model import Model
from npembed.positions import RULES
from npembed.typing import Array


@dataclass(frozen=True, eq=False)
class Tried:
    """One case in which a port gave a stage: what it was computed from, and what came.

    Attributes
    ----------
    values : mapping of str to array
        The pack's own tensors, and the rule.
    model : Model
        Of a pack of given weights it may have no arrays: then no fault of a stage that reads any can be tried.
    came, expected : array
    allowed : array or None
        The largest distance, element by element.
    places : bool (B, L) or None
        Those that count.
    own : mapping of str to array
        The port's other tensors of this case.
    precision : str
        By which it is judged.
    """

    values: Mapping[str, Any]
    model: Model
    came: Array
    expected: Array
    allowed: Array | None
    places: Array | None
    own: Mapping[str, Array]
    precision: str = "float32"

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    @property
    def rule(self) -> str | None:
        """The position rule by which it is judged."""
        return self.values["rule"]  # type: ignore[no-any-return]

    def is_from(self, result: Array) -> bool:
        """Whether what came is that result, as far as the pack allows."""
        return compare(self.came, result, self.allowed, self.places) is None

    def is_from_fault(self, result: Array) -> bool:
        """The same of a fault's result, to which the bounds of the right one may not do justice, or which may overflow."""
        came, faulty = overflowed_alike(self.came, result)
        allowed = self.allowed
        if allowed is not None and self.precision in ("float32", "float64"):
            largest = np.abs(faulty).max(axis=-1, keepdims=True)
            allowed = allowed + MORE * UNIT_ROUNDOFF[self.precision] * largest
        return compare(came, faulty, allowed, self.places) is None


SMALL = 10_000_000
"""Numbers of a model from which on faults are tried by themselves alone, and in its own float type."""

MORE = 8
"""Unit roundoffs of a faulty result's largest channel that are allowed besides: it may be far larger than the right one."""

Fault = Callable[[Tried], Any]
"""What a port with that fault gives."""


def cause(stage: Stage, failing: Sequence[Tried], passing: Sequence[Tried]) -> str | None:
    """The faults, in words, that explain what came in every case; None if none of the known ones does.

    The smallest case is tried first, because most faults are out by it.
    """
    ordered = sorted((*failing, *passing), key=lambda tried: tried.came.size)
    found = [words for words, fault in _faults(stage, ordered[0].rule) if all(_explains(fault, tried) for tried in ordered)]
    return " or: ".join(found or _suspected(stage, ordered, set(map(id, failing)))) or None


def _explains(fault: Fault, tried: Tried, judge: Callable[[Tried, Array], bool] = Tried.is_from) -> bool:
    try:
        with np.errstate(all="ignore"):
            return judge(tried, _as_expected(fault(tried)))
    except Exception:  # a faulty function may well fail
        return False


def _as_expected(value: Any) -> Array:
    """As a pack has a result: text as bytes."""
    if isinstance(value, str):
        return np.frombuffer(value.encode(), dtype=np.uint8)
    return np.asarray(value)


def _faults(stage: Stage, rule: str | None) -> Iterator[tuple[str, Fault]]:
    """Each fault that the stage may have, in words and as a function."""
    yield "it is right for the port's own result of the stage before, which is wrong; feed it with the pack's", _from_own(stage)
    if stage.by_rule:
        yield from ((f"matches rule `{name}`, not `{rule}`", _by_rule(stage, name)) for name in RULES if name != rule)


def _suspected(stage: Stage, ordered: Sequence[Tried], failing: set[int]) -> list[str]:
    """The suspects of the stage's function that explain every case: one, or several at once if the model is small."""
    adapted = _adapted(stage, ordered[0])
    suspects = suspects_of(adapted.name, ordered[0].rule)
    trials = [
        explain.Tried(None, partial(_agrees, adapted, tried), id(tried) not in failing, tried.came.size) for tried in ordered
    ]
    small = all(_is_small(tried.model) for tried in ordered)
    return [explain.words(faults) for faults in explain.explanations(trials, suspects, adapted.base, together=small)]


def _is_small(model: Model) -> bool:
    """Whether thousands of runs of it take no time to speak of."""
    return sum(array.size for array in model.weights.values()) < SMALL


def _agrees(adapted: "Adapted", tried: Tried, function: Callable[..., Any]) -> bool:
    return _explains(partial(adapted.call, function), tried, Tried.is_from_fault)


def _from_own(stage: Stage) -> Fault:
    """The stage is right, but was computed from the port's own wrong result of the one before."""

    def of(tried: Tried) -> Any:
        own = {name: tried.own[name] for name in stage.reads if name in tried.own}
        return stage.call({**tried.values, **own}, tried.model)

    return of


def _by_rule(stage: Stage, name: str) -> Fault:
    return lambda tried: stage.call({**tried.values, "rule": name}, tried.model)


@dataclass(frozen=True)
class Adapted:
    """How a stage is made of a function.

    Attributes
    ----------
    name : str
        The function's, by which its suspects are found.
    base : callable
        The function.
    call : callable
        (function, case) -> the stage's result by it.
    """

    name: str
    base: Callable[..., Any]
    call: Callable[[Callable[..., Any], Tried], Any]


def _called(stage: Stage, function: Callable[..., Any], tried: Tried) -> Any:
    """With the stage's own arguments, as a port is called: without a rule where it is the family's."""
    asked = None if tried.rule == tried.config.family.rule else tried.rule
    exact = stage.promise is not Promise.EQUAL and _is_small(tried.model)
    model = model_at(tried.model, "float64") if exact else tried.model
    return replace(stage, function=function).call({**tried.values, "rule": asked}, model)


def _numbered(function: Callable[..., Any], tried: Tried) -> Any:
    return function(tried.values["tgt_sizes"], tried.config.vision.num_patches_per_side, rule=tried.rule)


def _placed(function: Callable[..., Any], tried: Tried) -> Any:
    values, side = tried.values, tried.config.vision.num_patches_per_side
    return function(values["tgt_sizes"], side, rule=tried.rule, mask=values["patch_mask"])


def _adapted(stage: Stage, tried: Tried) -> Adapted:
    """The stage as its function; a family's own ids as a port's function of them."""
    if stage.name == "position_ids":
        return Adapted("position_ids", positions.family_ids(tried.config.family), _numbered)
    return _ADAPTED.get(stage.name) or Adapted(stage.function.__name__, stage.function, partial(_called, stage))


def _every_bucket(function: Callable[..., Any], tried: Tried) -> Any:
    """n after n; up to the first that is not what came, because there are half a million buckets."""
    side, found, start = int(tried.values["num_patches_per_side"]), [], 0
    for n in tried.values["num_patches"].tolist():
        found.append(function(n, side, rule=tried.rule))
        if not np.array_equal(found[-1], tried.came[start : start + n]):
            break
        start += n
    return np.concatenate(found)


def _text(function: Callable[..., Any], tried: Tried) -> Any:
    """By the grid that is given, or by that of the picture, whose slices then say how many tokens there are."""
    values, config = tried.values, tried.config
    number = int(values["image_id"]) if "image_id" in values else None
    if "grid" in values:
        return function(values["grid"].tolist(), number, config)
    return function(config.family.cut(values["picture"], config).grid, number, config, values["sliced_tgt_sizes"])


def _sliced(function: Callable[..., Any], tried: Tried) -> Any:
    strips, tgt_sizes = function(tried.values["picture"], config=tried.config)
    return tgt_sizes if tried.came.ndim == 2 else np.concatenate(strips, axis=-1)


_ADAPTED: Mapping[str, Adapted] = {
    "sliced_tgt_sizes": Adapted("slice_image", npembed.slice_image, _sliced),
    "sliced_strips": Adapted("slice_image", npembed.slice_image, _sliced),
    "masked_position_ids": Adapted("position_ids", npembed.position_ids, _placed),
    "bucket_coords": Adapted("bucket_coords", npembed.bucket_coords, _every_bucket),
    "text": Adapted("image_placeholder", npembed.image_placeholder, _text),
}
"""The stages that are not a public function's result as it stands."""
