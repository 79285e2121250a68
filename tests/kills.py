"""Children that die at a chosen file operation, or that write at the same time; run as a script, in a process without threads.

`python tests/kills.py CASE FOLDER` prints what went wrong as JSON, and how many places were tried.
"""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import npembed
from npembed.conformance.golden import cases, contents, pack
from npembed.support.output_files import replacing

OPERATIONS = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.listdir",
    "os.scandir",
    "fcntl.flock",
    "shutil.rmtree",
}


def shorten_the_pack() -> None:
    """To one case, whose answers are computed once; in this process alone, so not where a test only imports the module."""
    cases.CASES = cases.CASES[:1]
    model = cases.own_model(cases.BASE, npembed.MINICPM_V_2_6.family)
    stages = model.config.family.stages
    answers = list(contents.case_answers(contents.case_inputs(cases.CASES[0], model, stages), model, stages))
    contents.case_answers = lambda *_: answers


def in_a_child(action: Callable[[], None], dies_at: int = 0) -> int:
    """How it ended: minus the signal, or its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    places = count(1)

    def hook(event: str, _: Any) -> None:
        if event in OPERATIONS and next(places) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        action()
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def every_place(action: Callable[[], None], before: Callable[[], None]) -> Iterator[int]:
    """After a child has died there: each file operation of an action in turn."""
    for place in count(1):
        before()
        code = in_a_child(action, place)
        yield place
        if code == 0:
            return
        assert code == -signal.SIGKILL, code


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def kill_pack(folder: Path, start: str) -> Iterator[str]:
    """What is wrong after a `golden write` that died at an operation, into an empty folder or where none is."""
    target = folder / "in" / "pack"

    def before() -> None:
        shutil.rmtree(folder / "in", ignore_errors=True)
        (folder / "in").mkdir()
        if start == "empty":
            target.mkdir()

    for place in every_place(lambda: pack.write_pack(target), before):
        if target.is_dir() and any(target.iterdir()):
            pack.read_pack(target)
        else:
            pack.write_pack(target)
        left = [name for name in listing(folder / "in") if name != "pack"]
        if any(not name.startswith(".npembed-") for name in left) or len(left) > 1:
            yield f"{place}: {left}"
    if left:
        yield f"left by a run that was not killed: {left}"
    yield str(place)


def kill_file(folder: Path, start: str) -> Iterator[str]:
    """What is wrong after a write of one file that died, over an earlier file or nothing."""
    target = folder / "in" / "a.json"

    def before() -> None:
        shutil.rmtree(folder / "in", ignore_errors=True)
        (folder / "in").mkdir()
        if start == "earlier":
            target.write_text("old")

    def action() -> None:
        with replacing(target) as beside:
            beside.write_text("new")

    for place in every_place(action, before):
        found = target.read_text() if target.exists() else None
        if found not in ("new", "old" if start == "earlier" else None):
            yield f"{place}: {found}"
        with replacing(folder / "in" / "next.json") as beside:
            beside.write_text("next")
        if set(listing(folder / "in")) - {"a.json", "next.json"}:
            yield f"{place}: {listing(folder / 'in')}"
    yield str(place)


@contextmanager
def running(actions: list[Callable[[], None]]) -> Iterator[list[int]]:
    """Actions in children at the same time; their exit codes when the block ends."""
    codes: list[int] = []
    children = []
    for action in actions:
        child = os.fork()
        if not child:
            try:
                action()
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
            os._exit(0)
        children.append(child)
    yield codes
    codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def at_once(folder: Path, start: str) -> Iterator[str]:
    """What is wrong when four processes write packs into one folder: one does, and the others say why they do not."""
    target = folder / "in" / "pack"

    def write() -> None:
        try:
            pack.write_pack(target)
        except ValueError as error:
            if not re.search("pack (exists and is no empty folder|cannot be written)", str(error)):
                raise

    with running([write] * 4) as codes:
        pass
    if codes != [0] * 4:
        yield f"codes: {codes}"
    pack.read_pack(target)
    if listing(target.parent) != ["pack"]:
        yield f"left: {listing(target.parent)}"
    yield "4"


if __name__ == "__main__":
    shorten_the_pack()
    which, start = sys.argv[1].split("-")
    *wrong, tried = {"pack": kill_pack, "file": kill_file, "together": at_once}[which](Path(sys.argv[2]), start)
    print(json.dumps({"wrong": wrong, "tried": int(tried)}))
