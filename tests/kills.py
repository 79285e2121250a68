"""Children that die at a chosen file operation, or that write at the same time; run as a script, in a process without threads.

`python tests/kills.py CASE FOLDER` prints what went wrong as JSON, and how many places were tried.
"""

import json
import os
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
from npembed.files import replacing
from npembed.manifest import foreign

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
    "tests.exchange",
}
OLD, NEW = "0.0.1", "0.0.2"


def exchange(one: Path, other: Path) -> None:
    """The package's own, with a place to die before it and after: Python does not report it."""
    sys.audit("tests.exchange")
    real_exchange(one, other)
    sys.audit("tests.exchange")


real_exchange = pack.exchange


def shorten_the_pack() -> None:
    """To one case, whose answers are computed once; in this process alone, so not where a test only imports the module."""
    pack.exchange = exchange
    cases.CASES = cases.CASES[:1]
    model = cases.own_model(cases.BASE, npembed.MINICPM_V_2_6.family)
    stages = model.config.family.stages
    answers = list(contents.case_answers(contents.case_inputs(cases.CASES[0], model, stages), model, stages))
    contents.case_answers = lambda *_: answers


def write(folder: Path, version: str) -> None:
    npembed.__version__ = version
    pack.write_pack(folder)


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
    """What is wrong after a `golden write` that died at an operation, over an earlier pack, an empty folder or none."""
    target, kept = folder / "in" / "pack", folder / "kept"
    write(kept, OLD)

    def before() -> None:
        shutil.rmtree(folder / "in", ignore_errors=True)
        (folder / "in").mkdir()
        if start == "earlier":
            shutil.copytree(kept, target)
        elif start == "empty":
            target.mkdir()

    versions = set()
    for place in every_place(lambda: write(target, NEW), before):
        if start == "earlier" or (target.is_dir() and any(target.iterdir())):
            versions.add(pack.read_pack(target).manifest["npembed"])
            if foreign(target):
                yield f"{place}: {foreign(target)}"
        if place % 5:
            with replacing(folder / "in" / "next.json") as beside:
                beside.write_text("next")
        else:
            write(target, NEW)
            (folder / "in" / "next.json").touch()
        if listing(folder / "in") not in (["next.json", "pack"], ["next.json"]):
            yield f"{place}: {listing(folder / 'in')}"
    if versions != ({OLD, NEW} if start == "earlier" else {NEW}):
        yield f"seen: {versions}"
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
    """What is wrong when four processes write packs into one folder, and two read there."""
    target = folder / "in" / "pack"
    target.parent.mkdir()
    write(target, OLD)

    def write_often(version: str) -> Callable[[], None]:
        def often() -> None:
            for _ in range(6):
                write(target, version)

        return often

    def read_often() -> None:
        for _ in range(100):
            pack.read_pack(target)

    with running([*(write_often(f"{OLD}.{i}") for i in range(4)), read_often, read_often]) as codes:
        pass
    if codes != [0] * 6:
        yield f"codes: {codes}"
    pack.read_pack(target)
    if listing(target.parent) != ["pack"]:
        yield f"left: {listing(target.parent)}"
    yield "6"


if __name__ == "__main__":
    shorten_the_pack()
    which, start = sys.argv[1].split("-")
    *wrong, tried = {"pack": kill_pack, "file": kill_file, "together": at_once}[which](Path(sys.argv[2]), start)
    print(json.dumps({"wrong": wrong, "tried": int(tried)}))
