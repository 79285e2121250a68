"""The conformance kit: where does a port depart from the reference, and at which smallest input?

Checking a Python port: `check_port`, `port_tests`. A port in any language: the golden packs of `write_pack`, `read_pack` and
`check_outputs`. For tests of one's own: `strategies` and the error bounds of `bounds`.

What draws inputs needs Hypothesis and is imported when it is asked for; packs are written and checked without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from npembed.conformance import bounds
from npembed.conformance.compare import Departure, compare
from npembed.conformance.golden import Pack, check_outputs, first_departing, read_pack, write_pack
from npembed.conformance.isolation import IsolatedPort
from npembed.conformance.outcome import Outcome, Status, failed

if TYPE_CHECKING:
    from npembed.conformance import strategies
    from npembed.conformance.port import check_function, check_port, load_port
    from npembed.conformance.pytest_entry import port_tests

__all__ = [
    "Departure",
    "IsolatedPort",
    "Outcome",
    "Pack",
    "Status",
    "bounds",
    "check_function",
    "check_outputs",
    "check_port",
    "compare",
    "failed",
    "first_departing",
    "load_port",
    "port_tests",
    "read_pack",
    "strategies",
    "write_pack",
]

_DRAWING = {"check_function": "port", "check_port": "port", "load_port": "port", "port_tests": "pytest_entry"}
"""The names that need Hypothesis, and the module that each is in."""


def __getattr__(name: str) -> Any:
    """A name that needs Hypothesis, from its module."""
    if name == "strategies":
        return importlib.import_module(f"{__name__}.strategies")
    if name not in _DRAWING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_DRAWING[name]}"), name)
