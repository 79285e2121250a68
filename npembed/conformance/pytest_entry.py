"""One line in a port's own test file gives one test per function.

test_port = npembed.conformance.port_tests("my_port")
"""

from collections.abc import Callable
from typing import Any

from npembed.conformance.isolation import IsolatedPort
from npembed.conformance.outcome import Status
from npembed.conformance.port import check_function, checks_of, load_port, named
from npembed.conformance.report import as_text


def port_tests(port: Any, *, timeout: float | None = None, **options: Any) -> Callable[[str], None]:
    """A parametrised pytest test: one per public function, skipped where the port does not provide it.

    Parameters
    ----------
    port : module, object or str
        As `check_port` takes it, or a module's name or file.
    timeout : float, optional
        Seconds that one call may take; the port, which must then be given by its name, runs in a process of its own. Without
        it, in this one.
    options
        `stage`, `require`, `rule`, `family`, `examples`, `seed`, `precision`, as `check_port` takes them.

    Returns
    -------
    callable
        To be bound to a name that pytest collects: `test_port = port_tests("my_port")`.

    Raises
    ------
    ImportError
        Without the extra `testing`.
    ValueError
        An unknown name, rule, family or precision.
    """
    try:
        import pytest
    except ImportError:
        raise ImportError("port_tests needs pytest: pip install 'npembed[testing]'") from None
    if timeout is not None and not isinstance(port, str):
        raise TypeError("port_tests: with a timeout, port must be a module's name or file")
    subject = port
    if isinstance(port, str):
        subject = load_port(port) if timeout is None else IsolatedPort(port, timeout=timeout)
    family = options.get("family")
    checks = checks_of(family)
    looked_at, required = (named(options.pop(option, ()), checks, family) for option in ("stage", "require"))
    names = [name for name in checks if name in required or name in (looked_at or checks)]

    @pytest.mark.parametrize("function", names)
    def test_port(function: str) -> None:
        outcome = check_function(subject, function, require=required, **options)
        if outcome.status is Status.ABSENT:
            pytest.skip(outcome.summary)
        verdict = "the port was not judged" if outcome.status is Status.UNJUDGED else "the port departs from the reference"
        assert outcome.status is Status.PASS, as_text([outcome], verdict)

    return test_port
