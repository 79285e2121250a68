"""`npembed check`: the verdict on a port, its reports, and what is refused."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from npembed.conformance.probes import CHECKS
from tests.command_line import (
    Done,
    assert_json,
    assert_page,
    assert_refused,
    assert_refused_and_unchanged,
    bad,
    done_well,
    npembed,
    posix,
    python_m_npembed,
)
from tests.wrong_things import PORT

EXACT_PORT = (
    PORT
    + """
def bucket_coords(num_patches, num_patches_per_side=70, rule="arange"):
    import numpy as np
    if rule != "arange":
        import npembed
        return npembed.bucket_coords(num_patches, num_patches_per_side, rule)
    return np.arange(num_patches) * num_patches_per_side // num_patches
"""
)


def test_the_reference_agrees_with_itself() -> None:
    *lines, verdict = done_well(npembed("check", "npembed", "--examples", "2")).splitlines()
    assert [line.split()[:2] for line in lines] == [["pass", name] for name in CHECKS]
    assert verdict == f"npembed agrees with the reference: {len(CHECKS)} passed, 0 failed."


def test_what_a_port_lacks_is_not_provided_and_a_failure_only_where_it_is_required(here: Path) -> None:
    (here / "port.py").write_text(PORT)
    *lines, verdict = done_well(npembed("check", "port.py", "--examples", "1")).splitlines()
    assert [line.split() for line in lines if "boundaries" not in line] == [
        [name, "not", "provided"] for name in CHECKS if name != "boundaries"
    ]
    assert verdict == f"port.py agrees with the reference: 1 passed, 0 failed, {len(CHECKS) - 1} not provided."
    assert npembed("check", "port.py", "--examples", "1", "--require", "boundaries").code == 0
    done = npembed("check", "port.py", "--examples", "1", "--require", "embed", "--require", "encode")
    assert (done.code, done.err) == (1, "")
    failed = [line.split(maxsplit=2) for line in done.out.splitlines() if line.startswith("FAIL")]
    assert failed == [["FAIL", name, "not provided, but required"] for name in ("embed", "encode")]


def test_a_wrong_function_is_shown_with_its_smallest_input(here: Path) -> None:
    (here / "port.py").write_text(EXACT_PORT)
    done = npembed("check", "port.py", "--examples", "1")
    assert (done.code, done.err) == (1, "")
    assert re.search(r"^FAIL  bucket_coords +element \[5\] is 14, should be 13", done.out, flags=re.MULTILINE)
    assert "      smallest input: from port import bucket_coords; bucket_coords(25, 70)\n" in done.out
    assert re.search(r"^      likely cause: .*exact", done.out, flags=re.MULTILINE)
    assert done.out.endswith(f"port.py departs from the reference: 1 passed, 1 failed, {len(CHECKS) - 2} not provided.\n")


def test_a_port_that_leaves_in_the_middle_is_wrong(here: Path) -> None:
    """Its exit code 0 must not pass for a verdict."""
    (here / "port.py").write_text("def boundaries(*_):\n    raise SystemExit(0)\n")
    done = npembed("check", "port.py", "--examples", "1")
    assert (done.code, done.err) == (1, "")
    assert re.search(r"^FAIL  boundaries +raised SystemExit: 0$", done.out, flags=re.MULTILINE)


def test_a_port_in_the_current_folder_is_found_by_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "port_in_this_folder.py").write_text(PORT)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    assert npembed("check", "port_in_this_folder", "--examples", "1").code == 0


def test_the_seed_and_the_number_of_examples_are_handed_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: dict[str, object] = {}
    monkeypatch.setattr("npembed.conformance.port.check_port", lambda port, **options: handed.update(options) or [])
    monkeypatch.setattr("npembed.cli.check.report_on", lambda *_: None)
    words = ("--examples", "7", "--seed", "3", "--precision", "float16", "--require", "embed")
    assert npembed("check", "npembed", *words).code == 0
    given = {"stage": (), "rule": None, "family": None}
    assert handed == {"examples": 7, "seed": 3, "precision": "float16", "require": ["embed"], **given}
    assert npembed("check", "npembed").code == 0
    assert handed == {"examples": 100, "seed": 0, "precision": None, "require": (), **given}


# The report in files


def test_the_report_on_a_port_in_files(here: Path) -> None:
    (here / "port.py").write_text(EXACT_PORT)
    (here / "r.json").write_text("old")
    done = npembed("check", "port.py", "--examples", "1", "--json", "r.json", "--html", "r.html")
    assert (done.code, done.err) == (1, "")
    assert done.out.startswith("r.json replaces the earlier file\n")
    assert "r.html replaces" not in done.out
    verdict = done.out.splitlines()[-1]
    outcomes = assert_json(here / "r.json", "port.py", verdict, list(CHECKS), ["bucket_coords"])
    wrong = next(outcome for outcome in outcomes if outcome["status"] == "fail")
    assert wrong["call"] == "from port import bucket_coords; bucket_coords(25, 70)"
    assert all(f": {wrong[field]}" in done.out for field in ("call", "came", "expected", "cause"))
    assert_page(here / "r.html", list(CHECKS), verdict)
    assert sorted(path.name for path in here.iterdir() if path.is_file()) == ["port.py", "r.html", "r.json"]


@posix
def test_a_report_on_a_port_of_any_name(here: Path) -> None:
    name = os.fsdecode(b"<b>&\xff.py")
    try:
        (here / name).write_text(PORT)
    except OSError:
        pytest.skip("this file system has no such names")
    done = npembed("check", name, "--examples", "1", "--json", "r.json", "--html", "r.html")
    assert (done.code, done.err) == (0, "")
    assert json.loads((here / "r.json").read_text(encoding="utf-8"))["subject"] == name
    assert_page(here / "r.html", list(CHECKS), "<b>&\\udcff.py agrees with the reference")


# Bad input


BAD_PORTS = [
    bad("check", r"Missing argument 'MODULE'"),
    bad("check no_such.port", r"the port no_such\.port cannot be imported: ModuleNotFoundError"),
    bad("check none.py", r"the port none\.py cannot be imported: .*is not a file"),
    bad("check broken.py", r"the port broken\.py cannot be imported: SyntaxError"),
    bad("check raises.py", r"the port raises\.py cannot be imported: ZeroDivisionError: division by zero"),
    bad("check leaves.py", r"the port leaves\.py cannot be imported: SystemExit: 0"),
    bad("check nothing.py", rf"the port has none of the public functions {', '.join(CHECKS)}"),
    bad("check port.py --require nothing", rf"no public function is called nothing; there are {', '.join(CHECKS)}"),
    bad("check port.py --examples -1", r"Invalid value for '--examples'"),
    bad("check port.py --examples few", r"Invalid value for '--examples'"),
    bad("check port.py --seed -1", r"Invalid value for '--seed'"),
    bad("check port.py --precision int4", r"precision must be one of"),
    bad("check port.py --json none/report.json", r"the output's folder .*none does not exist"),
    bad("check port.py --json port.py", r"the output port\.py is an input$"),
    bad("check port --html folder/../port.py", r"the output folder/\.\./port\.py is the input .*port\.py$"),
    bad("check port.py --json /dev/null", r"the output /dev/null is no regular file$"),
    bad("check port.py --html folder", r"the output folder is a folder"),
    bad("check port.py --html", r"Option '--html' requires an argument"),
]


@pytest.mark.parametrize(("words", "message"), BAD_PORTS)
def test_bad_input_gets_one_line_and_changes_nothing(
    words: str, message: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused_and_unchanged(words.split(), message, site, monkeypatch)


def test_one_line_even_where_it_cannot_be_imported_whole(here: Path) -> None:
    ran = python_m_npembed("check", "no_such_port", folder=here)
    assert_refused(Done(ran.returncode, ran.stdout.decode(), ran.stderr.decode()), "the port no_such_port cannot be imported")
    assert list(here.iterdir()) == []
