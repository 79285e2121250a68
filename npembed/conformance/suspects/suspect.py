"""What a suspect is, a fault that has been seen, and what faults are made of. Nothing here needs Hypothesis."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, reduce
from typing import Any

from npembed.conformance.pieces import with_pieces
from npembed.model import Model
from npembed.typing import Array

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
    base : callable
        The right function.
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
    base: Function
    fault: Fault
    effect: str = ""
    shipped: str = ""
    rule: str | None = None

    @property
    def words(self) -> str:
        """The kind, by which reports name it."""
        return self.kind

    @property
    def in_full(self) -> str:
        """The kind, its effect, and who released it."""
        kind = f"{self.kind}: {self.effect}" if self.effect else self.kind
        return f"{kind} (as {self.shipped})" if self.shipped else kind

    @cached_property
    def function(self) -> Function:
        """The reference with the fault."""
        return self.fault(self.base)


def combined(suspects: Sequence[Suspect], base: Function) -> Function:
    """The function with all these faults, the first innermost."""
    return reduce(lambda function, suspect: suspect.fault(function), suspects, base)


def piece(name: str, change: Fault) -> Fault:
    """The fault of another piece in the place of `module.name`; `change` makes it of the piece."""

    def fault(function: Function) -> Function:
        def faulty(*args: Any, **kwargs: Any) -> Any:
            with with_pieces({name: change}):
                return function(*args, **kwargs)

        return faulty

    return fault


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
    return Model(model.config, model.weights | {name: array.astype(model.dtype) for name, array in changed.items()})


def with_config(model: Model, **changes: Any) -> Model:
    """The model with other fields in its config."""
    config: Any = model.config
    return Model(replace(config, **changes), model.weights)


def with_vision(model: Model, **changes: Any) -> Model:
    """The model with other fields in its vision config."""
    return with_config(model, vision=replace(model.config.vision, **changes))


def with_family(model: Model, **changes: Any) -> Model:
    """The model of a family with other attributes or methods."""
    return with_config(model, family=model.config.family.changed(**changes))
