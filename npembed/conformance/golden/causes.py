"""Why a stage departs: the known faults that give the port's answers in every case, not in one alone."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import npembed
from npembed.conformance.compare import compare
from npembed.family import Stage
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
    model : Model or None
        None where it is not in the pack.
    came, expected : array
    allowed : array or None
        The largest distance, element by element.
    places : bool (B, L) or None
        Those that count.
    own : mapping of str to array
        The port's other tensors of this case.
    """

    values: Mapping[str, Any]
    model: Model | None
    came: Array
    expected: Array
    allowed: Array | None
    places: Array | None
    own: Mapping[str, Array]

    @property
    def config(self) -> Any:
        """The model's."""
        return None if self.model is None else self.model.config

    @property
    def rule(self) -> str | None:
        """The position rule by which it is judged."""
        return self.values["rule"]  # type: ignore[no-any-return]

    def is_from(self, result: Array) -> bool:
        """Whether what came is that result, as far as the pack allows."""
        return compare(self.came, result, self.allowed, self.places) is None


Fault = Callable[[Tried], Any]
"""What a port with that fault gives."""


def cause(stage: Stage, failing: Sequence[Tried], passing: Sequence[Tried]) -> str | None:
    """The faults, in words, that explain what came in every case; None if none of the known ones does.

    The smallest failing case is tried first, because most faults are out by it.
    """
    failing = sorted(failing, key=lambda tried: tried.came.size)
    ordered = [*failing, *passing]
    found = [words for words, fault in _faults(stage, ordered[0].rule) if all(_explains(fault, tried) for tried in ordered)]
    return " or: ".join(found or _suspected(stage, failing, passing)) or None


def can_explain() -> bool:
    """Whether the known faults can be looked at, other rules and the port's own inputs apart."""
    return any(importlib.util.find_spec(module) is not None for module in ("npembed.conformance.suspects", "hypothesis"))


def _explains(fault: Fault, tried: Tried) -> bool:
    try:
        with np.errstate(all="ignore"):
            return tried.is_from(_as_expected(fault(tried)))
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


def _suspected(stage: Stage, failing: Sequence[Tried], passing: Sequence[Tried]) -> list[str]:
    """The suspects of the stage's function that explain every case: one, or two at once."""
    name = stage.function or getattr(stage.call, "__name__", "")
    adapted = _ADAPTED.get(stage.name) or Adapted(name, stage.call, partial(_called, stage))
    try:
        known, explain = (importlib.import_module(f"npembed.conformance.suspects{room}") for room in ("", ".explain"))
    except ModuleNotFoundError:
        return _probed(adapted, [*failing, *passing])
    suspects = [suspect for suspect in known.SUSPECTS.get(adapted.name, ()) if suspect.rule is None]  # rules are tried already
    trials = [explain.Tried(None, partial(_agrees, adapted, tried), tried in passing) for tried in (*failing, *passing)]
    return [explain.words(faults) for faults in explain.explanations(trials, suspects, adapted.base)]


def _probed(adapted: "Adapted", ordered: Sequence[Tried]) -> list[str]:
    """What the probes of a public function suspect, which need Hypothesis, but for other rules."""
    try:
        from npembed.conformance.probes import CHECKS
    except ImportError:
        return []
    suspects = CHECKS[adapted.name].suspects if adapted.name in CHECKS else ()
    return [
        suspect.words
        for suspect in suspects
        if "matches rule" not in suspect.words and all(_agrees(adapted, tried, suspect.function) for tried in ordered)
    ]


def _agrees(adapted: "Adapted", tried: Tried, function: Callable[..., Any]) -> bool:
    return _explains(partial(adapted.call, function), tried)


def _from_own(stage: Stage) -> Fault:
    """The stage is right, but was computed from the port's own wrong result of the one before."""

    def of(tried: Tried) -> Any:
        own = {name: tried.own[name] for name in stage.reads if name in tried.own}
        if all(compare(array, tried.values[name]) is None for name, array in own.items()):
            raise ValueError("nothing that it reads is the port's own")
        return stage.compute({**tried.values, **own}, tried.model)

    return of


def _by_rule(stage: Stage, name: str) -> Fault:
    return lambda tried: stage.compute({**tried.values, "rule": name}, tried.model)


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
    return replace(stage, call=function).compute({**tried.values, "rule": asked}, tried.model)


def _every_bucket(function: Callable[..., Any], tried: Tried) -> Any:
    """n after n; up to the first that is not what came, because there are half a million buckets."""
    side, found, start = int(tried.values["num_patches_per_side"]), [], 0
    for n in tried.values["num_patches"].tolist():
        found.append(function(n, side))
        if not np.array_equal(found[-1], tried.came[start : start + n]):
            break
        start += n
    return np.concatenate(found)


def _text(function: Callable[..., Any], tried: Tried) -> Any:
    return function(tried.values["grid"].tolist(), int(tried.values["image_id"]), tried.config)


def _sliced(function: Callable[..., Any], tried: Tried) -> Any:
    strips, tgt_sizes = function(tried.values["picture"], config=tried.config)
    return tgt_sizes if tried.came.ndim == 2 else np.concatenate(strips, axis=-1)


_ADAPTED: Mapping[str, Adapted] = {
    "sliced_tgt_sizes": Adapted("slice_image", npembed.slice_image, _sliced),
    "sliced_strips": Adapted("slice_image", npembed.slice_image, _sliced),
    "bucket_coords": Adapted("bucket_coords", npembed.bucket_coords, _every_bucket),
    "text": Adapted("image_placeholder", npembed.image_placeholder, _text),
}
"""The stages that are not a public function's result as it stands."""
