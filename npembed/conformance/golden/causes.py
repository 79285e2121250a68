"""Why a stage departs: the known faults that give the port's answers in every case, not in one alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from npembed.conformance.compare import compare
from npembed.family import Stage
from npembed.model import Model
from npembed.positions import RULES, position_ids
from npembed.typing import Array


@dataclass(frozen=True)
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

    def is_from(self, result: Array) -> bool:
        """Whether what came is that result, as far as the pack allows."""
        return compare(self.came, result, self.allowed, self.places) is None


Fault = Callable[[Tried], Any]
"""What a port with that fault gives."""


def cause(stage: Stage, failing: Sequence[Tried], passing: Sequence[Tried]) -> str | None:
    """The faults, in words, that explain what came in every case; None if none of the known ones does.

    The smallest failing case is tried first, because most faults are out by it.
    """
    ordered = [*sorted(failing, key=lambda tried: tried.came.size), *passing]
    found = [
        words for words, fault in _faults(stage, ordered[0].values["rule"]) if all(_explains(fault, tried) for tried in ordered)
    ]
    return " or: ".join(found) or None


def can_draw() -> bool:
    """Whether the faults that the probes know can be looked at, which needs Hypothesis."""
    try:
        import npembed.conformance.probes  # noqa: F401
    except ImportError:
        return False
    return True


def _explains(fault: Fault, tried: Tried) -> bool:
    try:
        return tried.is_from(_as_expected(fault(tried)))
    except Exception:  # a faulty function may well fail
        return False


def _as_expected(value: Any) -> Array:
    """As a pack has a result: text as bytes, strips end to end."""
    if isinstance(value, str):
        return np.frombuffer(value.encode(), dtype=np.uint8)
    return np.asarray(value)


def _faults(stage: Stage, rule: str | None) -> Iterator[tuple[str, Fault]]:
    """Each fault that the stage may have, in words and as a function."""
    yield from _own_inputs(stage)
    if stage.by_rule:
        yield from _other_rules(stage, rule)
    if can_draw():
        yield from _suspects(stage)


def _own_inputs(stage: Stage) -> Iterator[tuple[str, Fault]]:
    """The stage is right, but was computed from the port's own wrong result of the one before."""

    def from_own(tried: Tried) -> Any:
        own = {name: tried.own[name] for name in stage.reads if name in tried.own}
        if all(compare(array, tried.values[name]) is None for name, array in own.items()):
            raise ValueError("nothing that it reads is the port's own")
        return stage.compute({**tried.values, **own}, tried.model)

    if stage.reads:
        yield "it is right for the port's own result of the stage before, which is wrong; feed it with the pack's", from_own


def _other_rules(stage: Stage, rule: str | None) -> Iterator[tuple[str, Fault]]:
    def by(name: str) -> Fault:
        return lambda tried: stage.compute({**tried.values, "rule": name}, tried.model)

    for name in RULES:
        if name != rule:
            yield f"matches rule `{name}`, not `{rule}`", by(name)


def _suspects(stage: Stage) -> Iterator[tuple[str, Fault]]:
    """What the probes of the public function suspect."""
    from npembed.conformance.probes import CHECKS

    name, adapted = _PUBLIC.get(stage.name, (stage.function, _call_of(stage)))
    if name in CHECKS:
        for suspect in CHECKS[name].suspects:
            if "matches rule" not in suspect.words:  # those are tried already, under the pack's own rule
                yield suspect.words, partial(adapted, suspect.function)


Adapted = Callable[[Callable[..., Any], Tried], Any]
"""(public function with a fault, case) -> the stage's result with that fault."""


def _call_of(stage: Stage) -> Adapted:
    """With the stage's own arguments, but for the rule."""

    def of(function: Callable[..., Any], tried: Tried) -> Any:
        arguments = stage.arguments(tried.values, tried.model)
        return function(*(arguments[:-1] if stage.by_rule else arguments))

    return of


def _ids(function: Callable[..., Any], tried: Tried) -> Any:
    """For a family whose ids are those of the public function."""
    arguments = tried.values["tgt_sizes"], tried.config.vision.num_patches_per_side
    if not np.array_equal(position_ids(*arguments), tried.expected):
        raise ValueError("the family numbers its patches in another way")
    return function(*arguments)


def _every_bucket(function: Callable[..., Any], tried: Tried) -> Any:
    side = int(tried.values["num_patches_per_side"])
    return np.concatenate([function(n, side) for n in tried.values["num_patches"].tolist()])


def _text(function: Callable[..., Any], tried: Tried) -> Any:
    return function(tried.values["grid"].tolist(), int(tried.values["image_id"]), tried.config)


_PUBLIC: Mapping[str, tuple[str, Adapted]] = {
    "sliced_tgt_sizes": (
        "slice_image",
        lambda function, tried: function(tried.values["picture"], config=tried.config)[1],
    ),
    "sliced_strips": (
        "slice_image",
        lambda function, tried: np.concatenate(function(tried.values["picture"], config=tried.config)[0], axis=-1),
    ),
    "position_ids": ("position_ids", _ids),
    "bucket_coords": ("bucket_coords", _every_bucket),
    "text": ("image_placeholder", _text),
}
"""The stages that are no public function's result as it stands: the function, and how the result is made from it."""
