"""The harness of mutated inputs: a short run of it; and each kind of fault, which it must catch."""

import datetime
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npembed.support.messages import shown
from tests.fuzz.mutations import mutated_bytes, mutated_json

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and limits as Linux keeps them")
ROOT = Path(__file__).parents[1]
STRANGERS = ("stranger", "packed", "served")
"""Kinds of input that somebody else has made."""


def fuzz(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "tests.fuzz", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_three_hundred_mutated_inputs_are_taken_or_refused_properly(tmp_path: Path) -> None:
    ran = fuzz("--seed", 20, "--count", 300, "--folder", tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"seed 20: 300 cases \(.*\): \d+ with exit code 0", ran.stdout)
    assert ran.stdout.endswith("\n0 faults\n")


def test_corpora_archives_and_servers_of_strangers_are_taken_or_refused_properly(tmp_path: Path) -> None:
    ran = fuzz("--seed", 20, "--count", 24, "--kinds", *STRANGERS, "--folder", tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"24 cases \(\d+ packed, \d+ served, \d+ stranger\)", ran.stdout)


@pytest.mark.slow
def test_five_thousand_of_today_are_taken_or_refused_properly(tmp_path: Path) -> None:
    """What is found is kept; a line says how it is run again, by its seed and number."""
    seed = datetime.date.today().toordinal()
    ran = fuzz("--seed", seed, "--count", 5000, "--kinds", *STRANGERS, "--folder", tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_kills_leave_old_or_new(tmp_path: Path) -> None:
    ran = fuzz("--kills", 5, "--folder", tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.endswith("\n0 faults\n")


# What it must catch


FAULTY = """
import os, resource, socket, sys, time
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
from pathlib import Path
from tests.fuzz import runner
from tests.fuzz.cases import Case
from tests.fuzz.originals import Originals

def raises():
    raise RuntimeError("a bug")

def loops():
    resource.setrlimit(resource.RLIMIT_CPU, (1, 2))
    while True:
        pass

def fills():
    kept = bytearray(b"x") * (400 * 2**20)
    return 0

def crashes():
    os.abort()

def says(text, code=2, stream=None):
    print(text, file=stream or sys.stderr)
    return code

def changes():
    Path("input").write_text("changed")
    return 0

def litters():
    Path(".npembed-0123456789abcdef").write_text("left")
    return 0

def asks(ask):
    try:
        ask()
    except OSError:
        return 0

def deletes():
    Path(sys.argv[1], "gone").unlink(missing_ok=True)
    return 0

ACTS = {
    "right": lambda: says("npembed: no such thing"),
    "done": lambda: 0,
    "raises": raises, "loops": loops, "fills": fills, "crashes": crashes, "changes": changes, "litters": litters,
    "exits": lambda: 3,
    "silent": lambda: 2,
    "two lines": lambda: says("npembed: one\\ntwo"),
    "long": lambda: says("npembed: " + "x" * 600),
    "escape": lambda: says("npembed: \\x1b[2J"),
    "out": lambda: says("\\u202e", 0, sys.stdout),
    "complains": lambda: says("a library's line", 0),
    "half": lambda: says("npembed: x\\nTraceback (most recent call last):\\n"),
    "opens": lambda: 0 * len(Path("link").read_text()),
    "writes": lambda: 0 * Path(sys.argv[1], "outside").write_text("x"),
    "deletes": deletes,
    "asks": lambda: asks(lambda: socket.create_connection(("127.0.0.1", 1))),
    "asks for a name": lambda: asks(lambda: socket.getaddrinfo("localhost", 1)),
    "mkdir and own": lambda: 0 * len(Path("own").mkdir() or Path("input").read_text()),
}
runner.MOST_MEMORY = 200 * 2**20
for name, act in ACTS.items():
    def make(rng, folder, originals):
        (folder / "input").write_text("as it was")
        (folder / "secret").write_text("secret")
        (folder / "link").symlink_to("secret")
        return Case([name], act, secrets=("secret",))
    [ended] = runner.run([0], 0, Path(sys.argv[1]) / name, None, {make: 1}, jobs=1, clean=60 * 2**20)
    print(f"{name}: {ended.fault}")
"""

CAUGHT = {
    "right": "None",
    "done": "None",
    "raises": "exit code 70: .*RuntimeError: a bug",
    "loops": "ended by SIGXCPU",
    "fills": r"0\.\d+ GB over a clean run",
    "crashes": "ended by SIGABRT",
    "changes": "exit code 70: .*input was changed by",
    "litters": "exit code 70: .*left lying",
    "exits": "exit code 3: ",
    "silent": "no refusal of one line: ''",
    "two lines": "no refusal of one line: ",
    "long": "no refusal of one line: ",
    "escape": r"prints '\\x1b'",
    "out": r"prints '\\u202e'",
    "complains": "exit code 0, but says ",
    "half": "a traceback",
    "opens": "exit code 70: .*it opens .*/in/secret, and 0 more",
    "writes": "exit code 70: .*it writes .*/outside, and 0 more",
    "deletes": "exit code 70: .*it alters .*/gone'",
    "asks": r"exit code 70: .*it asks 127\.0\.0\.1, and",
    "asks for a name": "exit code 70: .*it asks localhost, and 0 more",
    "mkdir and own": "None",
}


@pytest.fixture(scope="module")
def caught(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the runner says of each kind of fault, in a process without threads."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty.py").write_text(FAULTY)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, folder / "faulty.py", folder], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    return ran.stdout


HONEST = """
import os, sys
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
from dataclasses import replace
from pathlib import Path
from tests.fuzz import corpora, originals, runner, servers

corpora.CHANGES, servers.FAULTS, servers.SHARES = (lambda rng, folder: None,), (None,), (0,)
folder = Path(sys.argv[1])
made = originals.make(folder / "originals")
made = replace(made, corpora=made.corpora[:1])
for make in (corpora.stranger, servers.served):
    for ended in runner.run(range(15), 20, folder / make.__name__, made, {make: 1}, jobs=1, clean=2**40):
        print(make.__name__, ended.code, ended.fault, ended.words)
"""


def test_corpora_and_servers_that_are_as_they_should_be_are_taken(tmp_path: Path) -> None:
    """So that what is refused is refused for what was done to it. One of the pictures is none."""
    ran = subprocess.run([sys.executable, "-c", HONEST, tmp_path], capture_output=True, text=True, check=True, cwd=ROOT)
    assert len(re.findall("^(?:stranger [01]|served 0) None ", ran.stdout, re.MULTILINE)) == 30, ran.stdout


@pytest.mark.parametrize("name", CAUGHT)
def test_each_kind_of_fault_is_caught(name: str, caught: str) -> None:
    assert re.search(rf"^{name}: {CAUGHT[name]}", caught, re.MULTILINE | re.DOTALL), caught


def test_a_seed_says_all() -> None:
    def drawn(make: Callable[[random.Random], Any]) -> list[Any]:
        return [make(random.Random(seed)) for seed in range(200)]

    value = {"a": [1, 2.5, {"b": None}], "c": "text", "d": {"e": True}}
    for make in (lambda rng: mutated_json(rng, value), lambda rng: mutated_bytes(rng, bytes(range(256)), b"other")):
        assert drawn(make) == drawn(make)
        assert len(set(drawn(make))) > 150
    assert value == {"a": [1, 2.5, {"b": None}], "c": "text", "d": {"e": True}}


def test_most_mutated_json_is_still_json() -> None:
    kept = 0
    for seed in range(300):
        try:
            json.loads(mutated_json(random.Random(seed), {"a": [1, 2.5, {"b": None}], "c": "text"}))
        except (ValueError, RecursionError):
            continue
        kept += 1
    assert 150 < kept < 300


# Text from outside


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ×é", "plain ×é"),
        ("a\nb\r\n  c\td", "a b c d"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("\u2028pass  boundaries", " pass  boundaries"),
        ("\udcff\x9b2J", r"\udcff\x9b2J"),
        ("  kept", "  kept"),
    ],
)
def test_text_from_outside_is_one_printable_line(text: str, expected: str) -> None:
    assert shown(text) == expected


@pytest.mark.parametrize("length", [1, 499, 500, 501, 5000, 10**6])
@pytest.mark.parametrize("letter", ["x", "\x1b", "\n"])
def test_text_from_outside_is_bounded(length: int, letter: str) -> None:
    line = shown("begin" + letter * length + "end")
    assert len(line) <= 500
    assert line.isprintable()
    assert line.startswith("begin")
    assert line.endswith("end")
