"""Checking a Python port: its functions against the reference, each with the smallest input on which it departs."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException

from npembed.conformance.bounds import UNIT_ROUNDOFF, check_precision
from npembed.conformance.compare import Departure
from npembed.conformance.isolation import IsolatedPort
from npembed.conformance.outcome import Outcome, Status, describe
from npembed.conformance.probes import CHECKS, Call, FunctionCheck, Suspect
from npembed.conformance.probes.probe import copied, dtype_of, same
from npembed.words import raised

EXAMPLES = 100
"""Drawn inputs per function, beside the fixed ones."""


def load_port(name: str) -> ModuleType:
    """The port's module, by its dotted name or by its file.

    Raises
    ------
    ValueError
        No such module or file, or one that fails as it is imported.
    """
    try:
        if name.endswith(".py"):
            path = Path(name)
            if not path.is_file():
                raise ValueError(f"{name} is not a file")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
        if "" not in sys.path:
            sys.path.insert(0, "")  # as `python -m` does: a port in the current folder is found
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a port may raise anything as it is imported, or leave
        raise ValueError(f"check: the port {name} cannot be imported: {raised(error)}") from None


def check_port(
    port: Any, *, require: Iterable[str] = (), examples: int = EXAMPLES, seed: int = 0, precision: str | None = None
) -> list[Outcome]:
    """Check every function of a port that bears a public name.

    Parameters
    ----------
    port : module, object or IsolatedPort
        With functions under the names of the public ones, in their argument order. `Model` is the reference's and is handed
        to them. An attribute `PRECISION` names the float type that it computes in, where the results' dtype does not say.
    require : iterable of str
        Names that must be there: a missing one is a failure, not "not provided".
    examples : int
        Drawn inputs per function, beside the fixed ones.
    seed : int
        Of the drawn inputs.
    precision : {"float32", "float64", "float16", "bfloat16"}, optional
        Instead of the port's own `PRECISION`.

    Returns
    -------
    list of Outcome
        One per public function.

    Raises
    ------
    ValueError
        An unknown name or precision; a port with none of the functions.

    Examples
    --------
    >>> import npembed
    >>> [outcome.status.value for outcome in check_port(npembed, examples=1)][:2]
    ['pass', 'pass']
    """
    required = set(require)
    unknown = sorted(required - set(CHECKS))
    if unknown:
        raise ValueError(f"check: no public function is called {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    if not required and not any(callable(getattr(port, name, None)) for name in CHECKS):
        raise ValueError(f"check: the port has none of the public functions {', '.join(CHECKS)}")
    options: dict[str, Any] = {"require": required, "examples": examples, "seed": seed, "precision": precision}
    return [check_function(port, name, **options) for name in CHECKS]


def check_function(
    port: Any,
    name: str,
    *,
    require: Iterable[str] = (),
    examples: int = EXAMPLES,
    seed: int = 0,
    precision: str | None = None,
) -> Outcome:
    """Check one function of a port; the arguments are those of `check_port`."""
    if isinstance(port, IsolatedPort):
        options = {"require": sorted(require), "examples": examples, "seed": seed, "precision": precision}
        return port.check(name, options)
    stated = precision or getattr(port, "PRECISION", None)
    if stated is not None:
        check_precision(stated)
    return _check(port, CHECKS[name], name in set(require), examples, seed, stated)


def _check(port: Any, check: FunctionCheck, required: bool, examples: int, number: int, stated: str | None) -> Outcome:
    function = getattr(port, check.name, None)
    if not callable(function):
        return Outcome(check.name, Status.FAIL if required else Status.ABSENT, "not provided" + ", but required" * required)
    trial = _Trial(function, check, stated)
    try:
        if trial.sweep() and examples:
            trial.draw(examples, number)
        if trial.failure is not None:
            return trial.outcome()
    except ImportError as error:
        if not _is_ours(error):
            raise
        return Outcome(check.name, Status.FAIL if required else Status.ABSENT, f"not checked: {error}")
    return Outcome(check.name, Status.PASS, f"{trial.count} inputs")


def _is_ours(error: ImportError) -> bool:
    """Whether the reference itself lacks an extra, say Pillow."""
    return "npembed[" in str(error)


class _Wrong(Exception):  # noqa: N818  # no error of ours: it carries a finding through Hypothesis
    """An input on which the port departs."""


class _Trial:
    """One function of a port on one input after the other, and the last on which it departed."""

    def __init__(self, function: Callable[..., Any], check: FunctionCheck, stated: str | None) -> None:
        self.function, self.check, self.stated = function, check, stated
        self.count = 0
        self.failure: tuple[Call, Any, Departure] | None = None

    def sweep(self) -> bool:
        """The fixed inputs, smallest first, up to the first failure; whether there was none."""
        return not any(self._departs(call) for call in self.check.sweep())

    def draw(self, examples: int, number: int) -> None:
        """Drawn inputs; a failing one is shrunk, so that the smallest is the last that is kept."""

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(self.check.cases())
        def check(call: Call) -> None:
            if self._departs(call):
                raise _Wrong

        try:
            check()
        except (_Wrong, HypothesisException):
            if self.failure is None:
                raise

    def _departs(self, call: Call) -> bool:
        """Whether the port departs on this input; if so it is kept."""
        self.count += 1
        handed = copied(call)
        result: Any = None
        departure: Departure | None
        try:
            result = handed.of(self.function)
        except (Exception, SystemExit) as error:  # whatever a port raises is its failure, and so is leaving
            departure = Departure(f"raised {raised(error)}")
        else:
            departure = self._compared(call, result) or _changed(call, handed)
        if departure is not None:
            self.failure = (call, result, departure)
        return departure is not None

    def _compared(self, call: Call, result: Any) -> Departure | None:
        """How the result departs; one that cannot be compared, a list that holds itself say, does."""
        try:
            return self.check.departure(call, result, self._precision(call, result))
        except ImportError:
            raise
        except (Exception, SystemExit) as error:
            return Departure(f"gave what cannot be compared: {raised(error)}")

    def _precision(self, call: Call, result: Any) -> str:
        """The coarsest of the inputs' float type, the result's, and the one that the port states."""
        found = {dtype_of(argument) for argument in (*call.args, result)} & set(UNIT_ROUNDOFF)
        return max(found | ({self.stated} if self.stated else set()) or {"float32"}, key=UNIT_ROUNDOFF.__getitem__)

    def outcome(self) -> Outcome:
        """The failure, with its likely cause."""
        assert self.failure is not None
        call, result, departure = self.failure
        words = ", ".join([*map(describe, call.args), *(f"{name}={describe(value)}" for name, value in call.kwargs.items())])
        return Outcome(
            self.check.name,
            Status.FAIL,
            departure.what,
            call=f"{self.check.name}({words})",
            came=None if result is None else describe(result),
            expected=None if self.check.examine else describe(self.check.expected(call)),
            cause=self._cause(call, result, departure),
            worst=departure.worst,
        )

    def _cause(self, call: Call, result: Any, departure: Departure) -> str | None:
        """The known faults that explain the failure and every fixed input, or else the failure alone, or else a hint."""
        if result is None:
            return None
        here = [suspect for suspect in self.check.suspects if self._explains(suspect, call, result)]
        everywhere = [suspect for suspect in here if self._explains_all(suspect)]
        words = [suspect.words for suspect in everywhere or here]
        hints = [] if self.check.hint is None or words else self.check.hint(call, result, departure)
        return " or: ".join([*words, *hints]) or None

    def _explains(self, suspect: Suspect, call: Call, result: Any) -> bool:
        """Whether the port's result is what a function with that fault gives."""
        try:
            return self.check.departure(call, result, self._precision(call, result), suspect.function) is None
        except (Exception, SystemExit):  # a faulty function may well fail
            return False

    def _explains_all(self, suspect: Suspect) -> bool:
        for call in self.check.sweep():
            try:
                result = copied(call).of(self.function)
            except (Exception, SystemExit):
                return False
            if not self._explains(suspect, call, result):
                return False
        return True


def _changed(call: Call, handed: Call) -> Departure | None:
    """Which argument is no longer what it was, if one is."""
    for index, (before, after) in enumerate(zip(call.args, handed.args, strict=True)):
        if not same(before, after):
            return Departure(f"changed its argument {index}")
    return None
