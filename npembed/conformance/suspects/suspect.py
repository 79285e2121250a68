"""What a suspect is, a fault that has been seen, and what faults are made of. Nothing here needs Hypothesis."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial, reduce, update_wrapper
from typing import Any

from npembed.records.model import Model
from npembed.support.typing import Array

Function = Callable[..., Any]
Fault = Callable[[Function], Function]
"""A function -> the function with the fault. Two faults at once are one after the other."""


@dataclass(frozen=True, eq=False)
class Suspect:
    """A fault that has been seen, as data.

    Attributes
    ----------
    kind : str
        What is wrong, in words.
    fault : callable
        Makes a function with the fault of a right one.
    effect : str
        What it does to the result, where the kind does not say it.
    shipped : str
        Who released it, where that is known.
    rule : str or None
        Of a position rule, its name: such a suspect is a declared difference, not a mistake.
    """

    kind: str
    fault: Fault
    effect: str = ""
    shipped: str = ""
    rule: str | None = None

    @property
    def in_full(self) -> str:
        """The kind, its effect, and who released it."""
        kind = f"{self.kind}: {self.effect}" if self.effect else self.kind
        return f"{kind} (as {self.shipped})" if self.shipped else kind


def combined(suspects: Sequence[Suspect], base: Function) -> Function:
    """The function with all these faults, the first innermost; its signature is the right function's."""
    return reduce(lambda function, suspect: update_wrapper(partial(suspect.fault(function)), function), suspects, base)


def part(name: str, change: Fault) -> Fault:
    """The fault of another function in the model's arithmetic; `change` makes it of the one there."""
    return changed_model(lambda model: model.with_ops(model.ops.changed(**{name: change(getattr(model.ops, name))})))


def method(name: str, change: Fault) -> Fault:
    """The fault of another method of the model's family; `change` makes it of the one there, if the family has one."""

    return changed_model(lambda model: replace(model, config=config_with(model.config, name, change)))


def config_with(config: Any, name: str, change: Callable[[Any], Any]) -> Any:
    """The config of a family with another method, or attribute, made of the one there; as it is if the family has none."""
    own = getattr(config.family, name, None)
    return config if own is None else replace(config, family=config.family.changed(**{name: change(own)}))


def changed_model(change: Callable[[Model], Model], place: int = 2) -> Fault:
    """The fault of another model in the argument of that place."""
    changed = lru_cache(maxsize=8)(change)

    def fault(function: Function) -> Function:
        def faulty(*args: Any, **kwargs: Any) -> Any:
            return function(*args[:place], changed(args[place]), *args[place + 1 :], **kwargs)

        return faulty

    return fault


def changed_result(change: Callable[..., Any]) -> Fault:
    """The fault of a changed result: change(result, *args)."""

    def fault(function: Function) -> Function:
        return lambda *args, **kwargs: change(function(*args, **kwargs), *args)

    return fault


def changed_arrays(change: Callable[[Array], Array], *endings: str) -> Fault:
    """The fault of changed arrays: those of the model whose names end so."""
    return changed_model(lambda model: with_arrays(model, change, endings))


def with_arrays(model: Model, change: Callable[[Array], Array], endings: Collection[str]) -> Model:
    """The model with the arrays changed whose names end so."""
    changed = {name: change(array) for name, array in model.weights.items() if name.endswith(tuple(endings))}
    return replace(model, weights=model.weights | {name: array.astype(model.dtype) for name, array in changed.items()})


def with_config(model: Model, **changes: Any) -> Model:
    """The model with other fields in its config."""
    config: Any = model.config
    return replace(model, config=replace(config, **changes))


def with_vision(model: Model, **changes: Any) -> Model:
    """The model with other fields in its vision config."""
    return with_config(model, vision=replace(model.config.vision, **changes))


def with_family(model: Model, **changes: Any) -> Model:
    """The model of a family with other attributes or methods."""
    return with_config(model, family=model.config.family.changed(**changes))
