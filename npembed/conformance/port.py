"""Checking a Python port: its functions against the reference, each with the smallest input on which it departs."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from npembed import FAMILIES, MINICPM_V_2_6
from npembed.conformance.bounds import check_precision
from npembed.conformance.golden.answered import public_name
from npembed.conformance.isolation import IsolatedPort
from npembed.conformance.outcome import Outcome, Status
from npembed.conformance.probes import CHECKS, FunctionCheck, family_checks
from npembed.conformance.trial import Trial
from npembed.steps.positions.rules import get_rule
from npembed.support.messages import raised

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


def checks_of(family: str | None) -> Mapping[str, FunctionCheck]:
    """What is checked: every public function, or with a family's key the functions of its path."""
    return CHECKS if family is None else family_checks(family)


def check_port(
    port: Any,
    *,
    stage: Iterable[str] = (),
    require: Iterable[str] = (),
    rule: str | None = None,
    family: str | None = None,
    examples: int = EXAMPLES,
    seed: int = 0,
    precision: str | None = None,
) -> list[Outcome]:
    """Check every function of a port that bears a public name.

    Parameters
    ----------
    port : module, object or IsolatedPort
        With functions under the names of the public ones, in their argument order. `Model` is the reference's and is handed
        to them. Results are array-likes, or tensors that have `detach`, `cpu` and `float`, as torch's have; the type of a
        tensor decides by which bounds it is judged. An attribute `PRECISION` names the float type that the port computes in,
        where the results' dtype does not say.
    stage : iterable of str
        The functions to look at, by their own names or their stages'; without any, all.
    require : iterable of str
        Names that must be there: a missing one is a failure, not "not provided".
    rule : str, optional
        A name in `RULES`: the port's position ids, and what depends on them, are judged by this rule.
    family : str, optional
        A key in `FAMILIES`: the functions of that family's path are checked, with small models of it.
    examples : int
        Drawn inputs per function, beside the fixed ones.
    seed : int
        Of the drawn inputs.
    precision : {"float32", "float64", "float16", "bfloat16", "int8"}, optional
        Instead of the port's own `PRECISION`.

    Returns
    -------
    list of Outcome
        One per public function.

    Raises
    ------
    ValueError
        An unknown name, rule, family or precision; a port with none of the functions.

    Examples
    --------
    >>> import npembed
    >>> [outcome.status.value for outcome in check_port(npembed, examples=1)][:2]
    ['pass', 'pass']
    """
    checks = checks_of(family)
    looked_at, required = named(stage, checks, family), set(named(require, checks, family))
    names = [name for name in checks if name in required or name in (looked_at or checks)]
    if not required and not any(callable(getattr(port, checks[name].attribute, None)) for name in names):
        raise ValueError(f"check: the port has none of the public functions {', '.join(names)}")
    options: dict[str, Any] = {"require": required, "examples": examples, "seed": seed, "precision": precision}
    return [check_function(port, name, rule=rule, family=family, **options) for name in names]


def named(names: Iterable[str], checks: Mapping[str, FunctionCheck], family: str | None) -> list[str]:
    """The functions that these names, their own or their stages', stand for, or an error that lists those there are."""
    stages = MINICPM_V_2_6.family.stages if family is None else FAMILIES[family].stages
    own = {stage.name: public_name(stage) for stage in stages} | {name: name for name in checks}
    functions = {name: own.get(name, name) for name in names}
    unknown = sorted(name for name, function in functions.items() if function not in checks)
    if unknown:
        raise ValueError(f"check: no public function is called {', '.join(unknown)}; there are {', '.join(checks)}")
    return list(functions.values())


def check_function(
    port: Any,
    name: str,
    *,
    require: Iterable[str] = (),
    rule: str | None = None,
    family: str | None = None,
    examples: int = EXAMPLES,
    seed: int = 0,
    precision: str | None = None,
) -> Outcome:
    """Check one function of a port; the arguments are those of `check_port`."""
    if isinstance(port, IsolatedPort):
        options = {"rule": rule, "family": family, "examples": examples, "seed": seed, "precision": precision}
        return port.check(name, {"require": sorted(require), **options})
    stated = precision or getattr(port, "PRECISION", None)
    if stated is not None:
        check_precision(stated)
    if rule is not None:
        get_rule(rule, "check")
    check = checks_of(family)[name]
    return _check(port, check, name in set(require), examples, seed, stated, rule)


def _check(
    port: Any, check: FunctionCheck, required: bool, examples: int, number: int, stated: str | None, rule: str | None
) -> Outcome:
    function = getattr(port, check.attribute, None)
    if not (callable(function) and _takes(function, check)):
        return Outcome(check.name, Status.FAIL if required else Status.ABSENT, "not provided" + ", but required" * required)
    try:
        reference = _by_rule(check, rule)
        return Trial(function, check, stated, reference, _module_of(port), rule).outcome(examples, number)
    except ImportError as error:
        if not _is_ours(error):
            raise
        return Outcome(check.name, Status.FAIL if required else Status.ABSENT, f"not checked: {error}")
    except _NoSuchPart as nothing:
        return Outcome(check.name, Status.ABSENT, f"not checked: {nothing}")


def _takes(function: Callable[..., Any], check: FunctionCheck) -> bool:
    """Whether the port's function has the arguments of a check that goes beyond the function's own."""
    if not check.of:
        return True
    try:
        inspect.signature(function).bind(*check.calls[0].args, **check.calls[0].kwargs)
    except TypeError:
        return False
    except ValueError:  # a built-in one says nothing of its arguments
        return True
    return True


class _NoSuchPart(Exception):  # noqa: N818  # it carries a reason
    """A rule has no boundaries or no coordinates."""


def _by_rule(check: FunctionCheck, rule: str | None) -> Callable[..., Any]:
    """The reference, under the rule if it takes one."""
    if rule is None or not check.by_rule:
        return check.reference
    part = {"boundaries": "boundaries", "fractional_coords": "coords"}.get(check.name, "name")
    if getattr(get_rule(rule, "check"), part) is None:
        raise _NoSuchPart(f"the rule {rule!r} has no {part}")
    return partial(check.reference, rule=rule)


def _module_of(port: Any) -> str:
    """The name that the port is imported by; "" for an object."""
    name = getattr(port, "__name__", "")
    return name if isinstance(name, str) else ""


def _is_ours(error: ImportError) -> bool:
    """Whether the reference itself lacks an extra, say Pillow."""
    return "npembed[" in str(error)
