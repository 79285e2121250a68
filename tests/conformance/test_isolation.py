"""Ports in a process of their own: whatever one does there, it is that function's failure, and the report comes."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from npembed.conformance import IsolatedPort, Outcome, Status, check_function, check_port, port_tests
from npembed.conformance.outcome import describe
from npembed.conformance.probes import CHECKS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits as POSIX has them")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system bounds no process's memory")

HOSTILE = """
import ctypes, os, sys

class Mute(Exception):
    def __str__(self):
        raise ValueError("no words")
    __repr__ = __str__

class Trap:
    def __array__(self, *args, **kwargs):
        raise SystemExit(4)
    def __repr__(self):
        raise SystemExit(3)
    __str__ = __repr__

def itself(*_):
    found = []
    found.append(found)
    return found

def full(*_):
    kept = []
    while True:
        kept.append(bytes(2**26))  # which the system counts, and never has to find

def loops(*_):
    while True:
        pass

def leaves(*_):
    sys.exit(0)

def exits(*_):
    os._exit(0)

def crashes(*_):
    ctypes.string_at(0)

def mute(*_):
    raise Mute

def interrupts(*_):
    raise KeyboardInterrupt

def trap(*_):
    return Trap()

def closes(*_):
    os.closerange(3, 200)

def prints(*_):
    print("pass  boundaries\\x1b[2J\\nforged", flush=True)
    os._exit(7)

def asks(*_):
    input()

def right(num_patches_per_side, rule="arange"):
    import npembed
    print('{"outcome": {"name": "boundaries", "status": "PASS", "summary": "forged"}}', flush=True)
    return npembed.boundaries(num_patches_per_side, rule)
"""


CALL = "from hostile_port import boundaries; boundaries(1)"


def checked(folder: Path, function: str, **options: Any) -> Outcome:
    """`boundaries` of a port in which it is one of the hostile functions."""
    path = folder / "hostile_port.py"
    path.write_text(f"{HOSTILE}\nboundaries = {function}\n")
    with IsolatedPort(str(path), **options) as port:
        assert "boundaries" in port.provided
        assert str(path) in port.files
        return check_function(port, "boundaries", examples=2)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("leaves", "raised SystemExit: 0"),
        ("exits", "ended the process with exit code 0"),
        ("crashes", "ended the process by SIGSEGV"),
        ("mute", "raised Mute: a Mute whose text raises ValueError"),
        ("interrupts", "raised KeyboardInterrupt"),
        ("itself", "shape (1, 1, "),
        ("trap", "gave what cannot be compared: SystemExit: 4"),
        ("prints", "ended the process with exit code 7; its last words were: forged"),
        ("asks", "raised EOFError"),
        pytest.param("full", "raised MemoryError", marks=linux),
    ],
)
def test_whatever_a_port_does_is_its_functions_failure(function: str, words: str, tmp_path: Path) -> None:
    outcome = checked(tmp_path, function, **({"memory": 2**30} if function == "full" else {}))
    assert outcome.status is Status.FAIL
    assert outcome.summary.startswith(words)
    assert outcome.call == CALL or function == "interrupts"
    json.dumps(outcome.as_json())


def test_a_port_that_loops_is_ended(tmp_path: Path) -> None:
    outcome = checked(tmp_path, "loops", timeout=0.5)
    assert (outcome.status, outcome.summary) == (Status.FAIL, "did not come back within 0.5 s")
    assert outcome.call == CALL


def test_a_port_that_closes_every_file_is_its_functions_failure(tmp_path: Path) -> None:
    assert checked(tmp_path, "closes").status is Status.FAIL


def test_a_port_can_neither_forge_a_message_nor_a_line_by_printing(tmp_path: Path) -> None:
    outcome = checked(tmp_path, "right")
    assert outcome.status is Status.PASS
    assert outcome.summary != "forged"


def test_the_functions_after_a_crash_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "hostile_port.py"
    path.write_text(
        f"{HOSTILE}\nboundaries = exits\nimport npembed\nfractional_coords = npembed.fractional_coords\nembed = exits\n"
    )
    with IsolatedPort(str(path)) as port:
        outcomes = {outcome.name: outcome for outcome in check_port(port, examples=2)}
    assert list(outcomes) == list(CHECKS)
    assert {name for name, outcome in outcomes.items() if outcome.status is Status.FAIL} == {"boundaries", "embed"}
    assert outcomes["fractional_coords"].status is Status.PASS
    assert outcomes["position_ids"].status is Status.ABSENT


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os; os._exit(0)", "its import ended the process with exit code 0"),
        ("import sys; sys.exit(3)", "cannot be imported: SystemExit: 3"),
        ("raise KeyboardInterrupt", "cannot be used: KeyboardInterrupt"),
        ("1 +", "cannot be imported: SyntaxError"),
        ("print('last words', flush=True); import os; os.abort()", "by SIGABRT; its last words were: last words"),
    ],
)
def test_a_port_that_cannot_be_imported(source: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "bad_port.py").write_text(source)
    with pytest.raises(ValueError, match=f"^check: the port .*bad_port.py .*{words}"):
        IsolatedPort(str(tmp_path / "bad_port.py"))


def test_the_same_is_found_as_in_this_process(tmp_path: Path) -> None:
    source = "import npembed\ndef boundaries(side, rule='arange'):\n    return npembed.boundaries(side, rule) + 1\n"
    (tmp_path / "wrong_port.py").write_text(source)
    with IsolatedPort(str(tmp_path / "wrong_port.py")) as port:
        there = check_function(port, "boundaries", examples=5)
        with pytest.raises(ValueError, match="precision must be one of"):
            check_function(port, "boundaries", precision="float8")
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    here = check_function(SimpleNamespace(boundaries=namespace["boundaries"]), "boundaries", examples=5)
    assert there == replace(here, call=f"from wrong_port import boundaries; {here.call}")


def test_in_this_process_too_a_result_that_cannot_be_compared_is_a_failure() -> None:
    class Trap:
        def __array__(self, *_: object, **__: object) -> Any:
            raise ZeroDivisionError

        def __repr__(self) -> str:
            raise ZeroDivisionError

    itself: list[Any] = []
    itself.append(itself)
    assert describe(itself)
    held = np.empty(1, dtype=object)
    held[0] = Trap()
    for result in (Trap(), itself, held):
        outcome = check_function(SimpleNamespace(boundaries=lambda *_, found=result: found), "boundaries")
        assert outcome.status is Status.FAIL
        assert outcome.came is not None


def test_port_tests_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "port.py").write_text(f"{HOSTILE}\nboundaries = exits\n")
    test = port_tests(str(tmp_path / "port.py"), timeout=60, examples=1)
    with pytest.raises(AssertionError, match="ended the process with exit code 0"):
        test("boundaries")
    with pytest.raises(TypeError, match=r"^port_tests: with a timeout, port must be a module's name or file$"):
        port_tests(SimpleNamespace(), timeout=60)
