"""Kills and signals: the old or the new is always there, whole; nothing is left lying; a stop is one line and its code."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from npembed.conformance.golden import pack, write_pack
from npembed.support import atomic as beside
from npembed.support import output_files as files
from npembed.support import stops
from npembed.support.output_files import replacing
from npembed.support.stops import Stopped

fcntl = pytest.importorskip("fcntl")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
ROOT = Path(__file__).parents[2]
SIGNALS = [pytest.param(signal.SIGINT, 130, id="SIGINT"), pytest.param(signal.SIGTERM, 143, id="SIGTERM")]


def environment(*first: Path) -> dict[str, str]:
    """One thread, and this source of npembed."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, [*first, ROOT])),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


# SIGKILL


@pytest.mark.parametrize(
    ("case", "least"),
    [("pack-empty", 30), ("pack-none", 30), ("file-earlier", 6), ("file-none", 6), ("together-", 4)],
)
def test_killed_at_any_file_operation_the_old_or_the_new_is_whole(case: str, least: int, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="needs the extra image")  # the child that is killed imports it
    ran = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "tests" / "kills.py", case, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    found = json.loads(ran.stdout)
    assert found["wrong"] == []
    assert found["tried"] >= least


# A stop at every step


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of one file."""
    monkeypatch.setattr(pack, "write_contents", lambda folder, *_: (folder / "manifest.json").touch())


@pytest.fixture
def handlers() -> Iterator[None]:
    """The test's own handlers are back when it is over."""
    before = {number: signal.getsignal(number) for number in stops.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stops._State.first = None


HERE = {module.__file__ or "" for module in (beside, files, pack, stops)}


def stopped_at(place: int, action: Callable[[], None], names: set[str], number: int = signal.SIGTERM) -> bool:
    """Whether a signal at that step, by single instructions of Python in the package's own code, came before the end."""
    seen = 0

    def step(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if event == "opcode":
            seen += 1
            if seen == place:
                sys.settrace(None)
                signal.raise_signal(number)
        return step

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename in names or frame.f_code.co_filename.endswith("contextlib.py"):
            frame.f_trace_opcodes = True
            return step
        return None

    before = sys.gettrace()
    stops.unwind()
    sys.settrace(enter)
    try:
        action()
    except Stopped:
        pass
    finally:
        sys.settrace(before)
    return seen >= place


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("old", ["old", None])
def test_a_stop_at_any_step_of_a_write_leaves_old_or_new_and_no_litter(old: str | None, tmp_path: Path) -> None:
    target = tmp_path / "a.json"

    def action() -> None:
        with replacing(target) as beside:
            beside.write_text("new")

    seen, place = set(), 1
    while True:
        target.unlink(missing_ok=True)
        if old is not None:
            target.write_text(old)
        came = stopped_at(place, action, HERE)
        found = target.read_text() if target.exists() else None
        seen.add(found)
        assert found in (old, "new")
        assert set(os.listdir(tmp_path)) <= {"a.json"}, place
        if not came:
            break
        place += 1
    assert seen == {old, "new"}
    assert place > 200


@pytest.mark.usefixtures("handlers", "no_work")
@pytest.mark.parametrize("empty", [True, False])
def test_a_stop_at_any_step_of_golden_write_leaves_a_whole_pack_or_none_and_no_litter(empty: bool, tmp_path: Path) -> None:
    target, written, place = tmp_path / "pack", 0, 1
    while True:
        shutil.rmtree(target, ignore_errors=True)
        if empty:
            target.mkdir()
        came = stopped_at(place, lambda: write_pack(target), HERE)
        assert set(os.listdir(tmp_path)) <= {"pack"}, place
        if not came:
            break
        written += target.is_dir() and any(target.iterdir())
        place += 3
    assert 0 < written < place / 3
    assert place > 200


@pytest.mark.usefixtures("handlers")
def test_a_second_stop_does_not_disturb_the_first(tmp_path: Path) -> None:
    stops.unwind()
    with pytest.raises(Stopped), replacing(tmp_path / "a.json") as beside:  # noqa: PT012
        beside.write_text("half")
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
    assert os.listdir(tmp_path) == []
    assert stops.code() == 143


@pytest.mark.usefixtures("handlers")
def test_a_stop_that_had_to_wait_comes_when_the_block_ends() -> None:
    stops.unwind()
    done = []
    with pytest.raises(Stopped), stops.held_back():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append("within")
        with pytest.raises(Stopped), stops.let_through():
            done.append("never")
        raise Stopped
    assert done == ["within"]


@pytest.mark.usefixtures("handlers")
def test_another_thread_holds_no_stop_back() -> None:
    """Python runs handlers in the main thread, so another thread's file needs no waiting, and may not end this one's."""
    stops.unwind()

    theirs = stops.held_back()
    with ThreadPoolExecutor(1) as other:
        with stops.held_back():
            other.submit(theirs.__enter__).result()
        other.submit(theirs.__exit__, None, None, None).result()
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for install in (stops.leave_at_once, stops.unwind, lambda: stops.leave_with(0)):
        install()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


# Signals to a process. Each says where it is on its output and then waits on its input, which is closed after the signal was
# sent: one that did not stop would go on, and end otherwise.


WAITS = "import sys; print('begun', flush=True); sys.stdin.read()\n"


def stop(command: list[Any], number: int, folder: Path, *first: Path) -> tuple[int, str, str]:
    """The exit code and what was printed after the signal."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *command], text=True, cwd=folder, env=environment(*first), **pipes) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "begun\n":
            assert line, process.communicate()
        process.send_signal(number)
        out, err = process.communicate()
    return process.returncode, out, err


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_stop_is_one_line_and_its_code_and_changes_nothing(number: int, code: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "begun")  # opening it waits for the other side
    os.mkfifo(tmp_path / "never")
    (tmp_path / "slow.py").write_text("def boundaries(*_):\n    open('begun', 'w').close()\n    open('never').read()\n")
    (tmp_path / "r.json").write_text("old")
    command = [sys.executable, "-m", "npembed", "check", "slow.py", "--json", "r.json"]
    with subprocess.Popen(command, text=True, cwd=tmp_path, env=environment(), stdout=-1, stderr=-1) as process:
        (tmp_path / "begun").open().close()
        process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (code, "", "npembed: stopped\n")
    assert (tmp_path / "r.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["r.json", "slow.py"]


GOLDEN = f"""
from npembed.__main__ import main
from npembed.conformance.golden import contents
real = contents._write_case
def wait(*args, **options):
    {WAITS}
    return real(*args, **options)
contents._write_case = wait
main()
"""


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_stop_of_golden_write_leaves_nothing(number: int, code: int, tmp_path: Path) -> None:
    assert stop(["-c", GOLDEN, "golden", "write", "pack"], number, tmp_path) == (code, "", "npembed: stopped\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("start", ["module", "script"])
def test_a_stop_in_start_up_is_no_traceback(number: int, code: int, start: str, tmp_path: Path) -> None:
    """From the first line of the command line on, while it imports the rest."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "typer.py").write_text(WAITS)
    (tmp_path / "npembed").write_text("from npembed.__main__ import main\nmain()\n")
    command = ["-m", "npembed", "rules"] if start == "module" else [tmp_path / "npembed", "rules"]
    assert stop(command, number, ROOT, tmp_path / "slow") == (code, "", "npembed: stopped\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "how", ["import atexit\natexit.register(wait)\n", "import threading\nthreading.Thread(target=wait).start()\n"]
)
def test_a_stop_at_exit_leaves_with_the_code_that_was_settled(number: int, how: str, tmp_path: Path) -> None:
    """Where something is left to wait for. A thread waits until the main one has nothing more to do."""
    wait = f"def wait():\n    import threading\n    threading.main_thread().join()\n    {WAITS}"
    if "atexit" in how:
        wait = f"def wait():\n    {WAITS}"
    command = "import sys\nfrom npembed.__main__ import main\nsys.argv[1:] = ['rules', '--up-to', '2']\nmain()\n"
    code, out, err = stop(["-c", wait + how + command], number, tmp_path)
    assert (code, out, err) == (0, "", "")


def test_a_program_that_imports_npembed_keeps_its_handlers(tmp_path: Path) -> None:
    code = "import signal, npembed; print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT).__name__)"
    ran = subprocess.run(
        [sys.executable, "-c", code, "-m", "npembed"], capture_output=True, text=True, check=True, env=environment()
    )
    assert ran.stdout == "0 default_int_handler\n"


def test_no_module_changes_a_handler_when_it_is_imported(tmp_path: Path) -> None:
    code = (
        "import importlib, pkgutil, signal, npembed\n"
        "for module in pkgutil.walk_packages(npembed.__path__, 'npembed.'):\n"
        "    importlib.import_module(module.name)\n"
        "    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, module.name\n"
        "    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, module.name\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment(), cwd=tmp_path
    )
    assert (ran.returncode, ran.stderr) == (0, "")


# What is swept


HOLDS = f"""
import sys
from pathlib import Path
from npembed.support.output_files import replacing
with replacing(Path(sys.argv[1])) as beside:
    beside.write_text("half")
    {WAITS}
    beside.write_text("whole")
"""


def litter(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".npembed-")]


def test_what_a_live_process_writes_is_not_swept_and_what_a_killed_one_left_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, tmp_path / "theirs.json"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen(command, env=environment(), **pipes) as lives,
        subprocess.Popen(command, env=environment(), **pipes) as dies,
    ):
        for process in (lives, dies):
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
        assert len(litter(tmp_path)) == 2
        dies.kill()
        dies.wait()
        with replacing(tmp_path / "ours.json") as path:
            path.write_text("ours")
        assert len(litter(tmp_path)) == 1, "the live one's"
        lives.communicate()
    assert lives.returncode == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"ours.json": "ours", "theirs.json": "whole"}


def left(folder: Path, suffix: str = "") -> Path:
    """A name of npembed's that no process holds."""
    token = secrets.token_hex(4)
    return folder / f".npembed-{token}{beside._mark(token)}{suffix}"


def test_only_what_is_npembeds_own_is_swept(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    (tmp_path / ".npembed-0123456789abcdef.json").write_text("no name that npembed gives")
    left(tmp_path, ".json").symlink_to("kept.txt")
    os.mkfifo(left(tmp_path, ".fifo"))
    (left(tmp_path) / "notes").mkdir(parents=True)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    left(tmp_path, ".npz").write_text("half")
    beside.sweep(tmp_path)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_where_nothing_can_be_locked_nothing_is_swept_and_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoLocks:
        LOCK_EX, LOCK_NB = 2, 4

        @staticmethod
        def flock(*_: object) -> None:
            raise OSError(95, "Operation not supported")

    for locks in (NoLocks, None):
        monkeypatch.setattr(beside, "fcntl", locks)
        (stays := left(tmp_path, ".json")).write_text("may be another's")
        with replacing(tmp_path / "a.json") as path:
            path.write_text("new")
        assert stays.exists()
        stays.unlink()
        assert os.listdir(tmp_path) == ["a.json"]


def test_a_name_that_another_process_swept_before_it_was_locked_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, swept = beside._hold, []

    def hold(path: Path, lock: int) -> bool:
        if not swept:
            swept.append(path)
            beside.sweep(tmp_path)
        return real(path, lock)

    monkeypatch.setattr(beside, "_hold", hold)
    with replacing(tmp_path / "a.json") as path:
        assert path != swept[0]
        path.write_text("new")
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_name_that_another_process_is_sweeping_is_given_up(tmp_path: Path) -> None:
    (path := left(tmp_path)).touch()
    with path.open("r+") as sweeper, path.open("r+") as writer:
        fcntl.flock(sweeper, fcntl.LOCK_EX)
        assert not beside._hold(path, writer.fileno())
        fcntl.flock(sweeper, fcntl.LOCK_UN)
        assert beside._hold(path, writer.fileno())
