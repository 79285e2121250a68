"""What a check of a public function is made of: inputs, the distance that is allowed, and the faults to suspect."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

import npembed
from npembed.conformance.bounds import HALF_TYPES
from npembed.conformance.compare import Departure
from npembed.conformance.filling import edited as edited
from npembed.conformance.filling import fill as fill
from npembed.conformance.filling import model_at as model_at
from npembed.conformance.filling import sizes_of as sizes_of
from npembed.conformance.suspects import Suspect, suspects_of
from npembed.records.model import Model
from npembed.support.typing import Array


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call.

    Attributes
    ----------
    args : tuple
    kwargs : dict
    refused : bool
        Whether there is no right result: a port must raise, whatever it raises.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    refused: bool = False

    def of(self, function: Callable[..., Any]) -> Any:
        """What the function gives for them."""
        return function(*self.args, **self.kwargs)


def call(*args: Any, **kwargs: Any) -> Call:
    """A `Call` of these arguments."""
    return Call(args, kwargs)


def refused(*args: Any, **kwargs: Any) -> Call:
    """A `Call` that has no right result."""
    return Call(args, kwargs, refused=True)


Allowed = Callable[[Call, str], Any]


@dataclass(frozen=True)
class FunctionCheck:
    """How one public function of a port is checked.

    Attributes
    ----------
    name : str
    sweep : callable
        Gives the first inputs, smallest first, so that the first failure among them is the smallest.
    cases : callable
        Gives the strategy for more.
    function : callable, optional
        The reference; by default npembed's function of that name.
    allowed : callable, optional
        (call, precision) -> the largest distance from the float64 reference. Without it the results must be equal.
    places : callable, optional
        call -> bool (B, L), the places that count.
    examine : callable, optional
        (call, result) -> Departure or None, for a function whose result is not determined by its arguments.
    hint : callable, optional
        (call, float type of the result, departure) -> what the place of the difference suggests, where no suspect explains it.
    suits : callable
        (call, precision) -> whether that input says anything at that precision.
    by_rule : bool
        Whether the function takes a position rule.
    rule : str or None
        By which it goes where none is asked for; None where it follows no rule.
    signed : bool
        Whether, in half precision, all inputs together are looked at for errors that point the way of a known fault.
    of : str
        The name of the port's function, where it is not the check's own: one function may have several checks.
    """

    name: str
    sweep: Callable[[], Iterable[Call]]
    cases: Callable[[], st.SearchStrategy[Call]]
    function: Callable[..., Any] | None = None
    allowed: Allowed | None = None
    places: Callable[[Call], Array] | None = None
    examine: Callable[[Call, Any], Departure | None] | None = None
    hint: Callable[[Call, str, Departure], list[str]] | None = None
    suits: Callable[[Call, str], bool] = field(default=lambda call, precision: True)
    by_rule: bool = False
    rule: str | None = "arange"
    signed: bool = False
    of: str = ""

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The fixed inputs; the same ones every time, so that what is known of one is computed once."""
        return tuple(self.sweep())

    @property
    def reference(self) -> Callable[..., Any]:
        """The right function."""
        return self.function or getattr(npembed, self.attribute)

    @property
    def suspects(self) -> tuple[Suspect, ...]:
        """The faults of this function that have been seen."""
        return self.suspects_under(None)

    def suspects_under(self, rule: str | None) -> tuple[Suspect, ...]:
        """The same, where the port has declared a rule."""
        return suspects_of(self.attribute, rule or self.rule)

    @property
    def attribute(self) -> str:
        """The name that the port's function has."""
        return self.of or self.name

    def expected(self, call: Call, function: Callable[..., Any] | None = None) -> Any:
        """The reference's result, or that of another function in its stead; in float64 where distances are allowed."""
        if self.allowed is None:
            return copied(call).of(function or self.reference)
        return _exact(function or self.reference, call)

    def allowed_at(self, call: Call, precision: str) -> Any:
        """The largest distance at that precision; None where the results must be equal."""
        return None if self.allowed is None else _allowed(self.allowed, call, precision)


@lru_cache(maxsize=4096)
def _exact(function: Callable[..., Any], call: Call) -> Any:
    """What the function gives in float64; not to be changed."""
    return in_float64(call).of(function)


@lru_cache(maxsize=4096)
def _allowed(allowed: Allowed, call: Call, precision: str) -> Any:
    """Computed once for each input, however many faults are tried on it."""
    return allowed(call, precision)


def at_dtype(value: Any, dtype: str) -> Any:
    """An argument with its floats in another type."""
    if isinstance(value, Model):
        return model_at(value, dtype)
    if isinstance(value, list):
        return [at_dtype(element, dtype) for element in value]
    return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def in_float64(call: Call) -> Call:
    """The call with every float in float64."""
    arguments = {name: at_dtype(value, "float64") for name, value in call.kwargs.items()}
    return Call(tuple(at_dtype(value, "float64") for value in call.args), arguments, call.refused)


def half_sums(call: Call, dtype: str, departure: Departure) -> list[str]:
    """A half-precision result that is just out of its bound points at the sum's own precision."""
    near = departure.worst is not None and departure.worst < 1000
    return ["the products are summed in the half type; sum them in float32"] if near and dtype in HALF_TYPES else []


def copied(call: Call) -> Call:
    """The call with arrays of its own; a model's are read-only and stay."""
    arguments = {name: _copied(value) for name, value in call.kwargs.items()}
    return Call(tuple(map(_copied, call.args)), arguments, call.refused)


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [_copied(element) for element in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal."""
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return bool(one == other)
