"""A case of a golden pack, and what a port's files give for it: a port in files is read."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

import npembed
from npembed.conformance.bounds import UNIT_ROUNDOFF
from npembed.conformance.compare import compare
from npembed.conformance.filling import model_at
from npembed.conformance.golden.answers import Answer, answer_of
from npembed.conformance.golden.contents import GIVEN
from npembed.conformance.golden.flat import read_flat
from npembed.conformance.golden.pack import Pack
from npembed.conformance.outcome import SEPARATOR
from npembed.conformance.suspects import positions
from npembed.conformance.tried import Tried
from npembed.records.family import Promise, Stage
from npembed.records.model import Model
from npembed.support.output_files import load_tensors
from npembed.support.typing import Array
from npembed.weights import read_config

Function = Callable[..., Any]


class AnsweredCase:
    """One case: the pack's tensors and the port's.

    Parameters
    ----------
    pack : Pack
    entry : mapping
        The manifest's, of the case.
    folder : path
        With the port's files.
    rule : str, optional
        By which it is judged, in place of the pack's.
    given : Model, optional
        The model of a pack of given weights, which are not in it.
    """

    def __init__(
        self, pack: Pack, entry: Mapping[str, Any], folder: Path, rule: str | None = None, given: Model | None = None
    ) -> None:
        self.pack, self.entry, self.given = pack, entry, given
        self.name, self.rule = entry["name"], rule or pack.manifest["rule"]
        self.file = folder / entry["expected"]
        self.stages = [stage["stage"] for stage in entry["stages"]]
        self.got = _port_answers(self.file)

    @cached_property
    def answers(self) -> dict[str, Answer]:
        """The right answers by the names of their stages."""
        return {answer.stage.name: answer for answer in self.pack.answers(self.entry)}

    @cached_property
    def values(self) -> dict[str, Any]:
        """What any stage of the case reads: the pack's own tensors, and the rule."""
        answers = {name: answer.value for name, answer in self.answers.items()}
        return answers | self.pack.tensors(self.entry["input"]) | {"rule": self.rule}

    @cached_property
    def model(self) -> Model:
        """The case's; that of a pack of given weights without arrays, unless they are given again."""
        where = self.entry["model"]
        if where != GIVEN:
            return _model(self.pack.folder / where, self.pack.manifest["digest"])
        return self.given or Model(read_config(self.pack.folder / where), {})

    def outcome_name(self, stage: str) -> str:
        """The name of the outcome of one of its stages."""
        return f"{self.name}{SEPARATOR}{stage}"

    def tried(self, stage: str, precision: str | None) -> Tried | None:
        """What the port gave for a stage, beside the right answer by the rule that is asked for; None where it gave nothing."""
        if self.got is None or stage not in self.got:
            return None
        came, answer = self.got[stage], self.answers[stage]
        if self.rule != self.pack.manifest["rule"] and answer.stage.by_rule:
            answer = answer_of(answer.stage, self.values, self.model)
        at = max({precision or "float32", str(came.dtype)} & set(UNIT_ROUNDOFF), key=UNIT_ROUNDOFF.__getitem__)
        distant = answer.stage.promise is Promise.DISTANCE
        _, call = self.as_function(answer.stage)
        return Tried(
            given=self,
            args=tuple(answer.stage.arguments(self.values, self.model)) if distant else (),
            gives=lambda function: as_packed(call(function, self, came)),
            expected=answer.value,
            allowed=answer.allowed,
            says=answer.says,
            places=answer.places,
            came=came,
            precision=at,
            departure=compare(came, answer.value, answer.allowed(at), answer.places),
            size=came.size,
        )

    def as_function(self, stage: Stage) -> "tuple[Function, Callable[[Function, AnsweredCase, Array], Any]]":
        """The function of which the stage is made, and how: (function, case, what came) -> the stage's result by it."""
        name = public_name(stage)
        base = getattr(npembed, name) if stage.name in _PUBLIC else stage.function
        if stage.name == "position_ids":  # the family's own, as a function that a port has
            base = positions.family_ids(self.model.config.family)
        return base, _CALLS.get(name, partial(_called, stage))


LARGE_MODEL = 10_000_000
"""Numbers of a model from which on faults are tried by themselves alone, and in its own float type."""


def is_small(model: Model) -> bool:
    """Whether thousands of runs of it take no time to speak of."""
    return sum(array.size for array in model.weights.values()) < LARGE_MODEL


def as_packed(value: Any) -> Array:
    """As a pack has a result: text as bytes."""
    return np.frombuffer(value.encode(), dtype=np.uint8) if isinstance(value, str) else np.asarray(value)


def _called(stage: Stage, function: Function, case: AnsweredCase, _: Array) -> Any:
    """With the stage's own arguments, as a port is called: without a rule where it is the family's."""
    model, asked = case.model, None if case.rule == case.model.config.family.rule else case.rule
    if stage.promise is not Promise.EQUAL and is_small(model):
        model = model_at(model, "float64")
    return replace(stage, function=function).call({**case.values, "rule": asked}, model)


def _numbered(function: Function, case: AnsweredCase, _: Array) -> Any:
    side = case.model.config.vision.num_patches_per_side
    masked = {"mask": case.values["patch_mask"]} if "patch_mask" in case.values else {}
    return function(case.values["tgt_sizes"], side, rule=case.rule, **masked)


def _every_bucket(function: Function, case: AnsweredCase, came: Array) -> Any:
    """n after n; up to the first that is not what came, because there are half a million buckets."""
    side, found, start = int(case.values["num_patches_per_side"]), [], 0
    for n in case.values["num_patches"].tolist():
        found.append(function(n, side, rule=case.rule))
        if not np.array_equal(found[-1], came[start : start + n]):
            break
        start += n
    return np.concatenate(found)


def _text(function: Function, case: AnsweredCase, _: Array) -> Any:
    """By the grid that is given, or by that of the picture, whose slices then say how many tokens there are."""
    values, config = case.values, case.model.config
    number = int(values["image_id"]) if "image_id" in values else None
    if "grid" in values:
        return function(values["grid"].tolist(), number, config)
    return function(config.family.cut(values["picture"], config).grid, number, config, values["sliced_tgt_sizes"])


def _sliced(function: Function, case: AnsweredCase, came: Array) -> Any:
    strips, tgt_sizes = function(case.values["picture"], config=case.model.config)
    return tgt_sizes if came.ndim == 2 else np.concatenate(strips, axis=-1)


_CALLS = {"slice_image": _sliced, "position_ids": _numbered, "bucket_coords": _every_bucket, "image_placeholder": _text}

_PUBLIC = {"sliced_tgt_sizes": "slice_image", "sliced_strips": "slice_image", "text": "image_placeholder"}
_PUBLIC |= {"position_ids": "position_ids", "masked_position_ids": "position_ids", "bucket_coords": "bucket_coords"}
"""The stages that are not a public function's result as it stands: the function of each."""


def public_name(stage: Stage) -> str:
    """The name of the function that gives a stage, by which a port may provide it."""
    return _PUBLIC.get(stage.name, stage.function.__name__)


@lru_cache(maxsize=8)
def _model(folder: Path, _: str) -> Model:
    """The model in that folder, of the pack with that digest; with the arrays that only a faulty port reads."""
    return Model(read_config(folder), load_tensors(folder / "model.safetensors"))


def _port_answers(file: Path) -> dict[str, Array] | None:
    """The port's tensors for one case, in whichever form it wrote them; None if there is no file."""
    paths = [path for ending in (".safetensors", ".npz", ".txt") if (path := file.with_suffix(ending)).is_file()]
    safe = [path for path in paths if path.suffix != ".txt"]
    if len(safe) > 1:
        raise ValueError(f"golden check: {file.parent} answers {file.stem} twice: {safe[0].name} and {safe[1].name}")
    if safe:
        return load_tensors(safe[0])
    return read_flat(file.with_suffix("")) if paths else None
