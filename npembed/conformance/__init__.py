"""The conformance kit: where does a port depart from the reference, and at which smallest input?

Checking a Python port: `check_port`, `port_tests`. A port in any language: the golden packs of `write_pack`, `read_pack` and
`check_outputs`. For tests of one's own: `strategies` and the error bounds of `bounds`.
"""

from npembed.conformance import bounds, strategies
from npembed.conformance.compare import Departure, compare
from npembed.conformance.golden import Pack, check_outputs, first_departing, read_pack, write_pack
from npembed.conformance.isolation import IsolatedPort
from npembed.conformance.outcome import Outcome, Status, failed
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
