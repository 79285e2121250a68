"""Runs that are killed: the whole, a worker, the scheduler. What they are gone on with is, byte by byte, as if undisturbed."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.corpora import BROKEN, write_pictures

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
GOOD = 100


class Run:
    """One run of the driver."""

    begun: "list[Run]" = []  # noqa: RUF012  # of the test that runs

    def __init__(self, pictures: Path, out: Path, scheduler: str = "1") -> None:
        words = [sys.executable, "-m", "tests.corpus_driver", str(pictures), str(out), scheduler]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.begun.append(self)
        self.process = subprocess.Popen(words, text=True, cwd=Path(__file__).parents[1], **pipes)  # type: ignore[call-overload]

    def said(self) -> str:
        """The next line; "" at the end."""
        line: str = self.process.stdout.readline().strip()
        return line

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def until(self, word: str) -> str:
        """Let it go on until it says that word first, and no further; what it said."""
        while (line := self.said()) and not line.startswith(word):
            self.go_on()
        return line

    def kill(self) -> None:
        """The run and, as its pipes to them break, its workers."""
        children = self.children()
        self.process.kill()
        self.process.communicate()
        for child in children:
            child.wait()

    def children(self) -> "list[psutil.Process]":
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def worker(self) -> "psutil.Process":
        """A live worker process."""
        while True:  # one that has just been killed may be listed still, and has no command line any more
            for child in self.children():
                with suppress(psutil.NoSuchProcess):
                    if "spawn_main" in " ".join(child.cmdline()):
                        return child

    def end(self) -> int:
        """Let it end; its exit code."""
        self.go_on()
        self.until("never said")
        _, self.errors = self.process.communicate()
        return int(self.process.returncode)


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """A test that fails leaves no run behind."""
    yield
    for run in Run.begun:
        run.process.kill()
        run.process.communicate()
    Run.begun.clear()


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*"))}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), GOOD)


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    run = Run(pictures, out)
    assert run.until("end") == f"end {GOOD + BROKEN} {BROKEN} 0"
    assert (run.end(), run.errors) == (0, "")
    return shards(out)


def test_a_run_killed_ten_times_ends_as_an_undisturbed_one(
    pictures: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    chosen = random.Random(0)
    for _ in range(10):
        run = Run(pictures, tmp_path / "out")
        line = run.said()
        for _ in range(chosen.randrange(3)):
            if line.startswith(("begin", "done")):
                run.go_on()
                line = run.said()
        run.kill()
        finished = shards(tmp_path / "out")
        assert finished.items() <= undisturbed.items()
    run = Run(pictures, tmp_path / "out")
    assert run.until("end") == f"end {GOOD + BROKEN} {BROKEN} 0"
    assert (run.end(), run.errors) == (0, "")
    assert shards(tmp_path / "out") == undisturbed
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors") == [
        ".lock",
        "index.parquet",
        "list.jsonl",
        "manifest.json",
        "rows",
    ]


def test_while_one_run_writes_a_second_is_refused_and_a_killed_one_leaves_no_lock(pictures: Path, tmp_path: Path) -> None:
    first = Run(pictures, tmp_path / "out")
    assert first.said().startswith("begin")
    second = Run(pictures, tmp_path / "out")
    assert second.said().startswith("refused corpus: another run is writing to ")
    assert second.end() == 2
    first.kill()
    third = Run(pictures, tmp_path / "out")
    assert third.said().startswith("begin")
    third.kill()


def test_a_killed_worker_is_made_up_for(pictures: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    run = Run(pictures, tmp_path / "out", "2")
    for _ in range(2):
        run.until("done")
        run.worker().kill()
        run.go_on()
    assert run.until("end") == f"end {GOOD + BROKEN} {BROKEN} 0"
    assert run.end() == 0
    assert shards(tmp_path / "out") == undisturbed


@contextmanager
def own_cluster(folder: Path) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """A scheduler and two workers as processes of their own: its address, and the scheduler."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": Path(__file__).parents[1]}
    code = (
        "import asyncio, sys\n"
        "from distributed import Scheduler\n"
        "async def main():\n"
        "    async with Scheduler(host='127.0.0.1', port=0, dashboard_address=':0') as scheduler:\n"
        "        print(scheduler.address, flush=True)\n"
        "        await scheduler.finished()\n"
        "asyncio.run(main())\n"
    )
    scheduler = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert scheduler.stdout is not None
    address = scheduler.stdout.readline().decode().strip()
    words = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
    one_thread = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    workers = [
        subprocess.Popen([*words, "--no-nanny", "--local-directory", str(folder)], env=one_thread, **quiet)  # type: ignore[call-overload]
        for _ in range(2)
    ]
    try:
        yield address, scheduler
    finally:
        for process in (*workers, scheduler):
            process.send_signal(signal.SIGKILL)
            process.communicate()


def test_a_scheduler_that_is_killed_is_one_line_and_what_is_finished_stays(
    pictures: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with own_cluster(tmp_path) as (address, scheduler):
        run = Run(pictures, tmp_path / "out", address)
        assert run.until("done")
        scheduler.kill()
        scheduler.wait()
        run.go_on()
        assert run.until("refused") == (
            "refused corpus: the scheduler is lost; what is finished stays, and the same command goes on from there"
        )
        assert run.end() == 2
    finished = shards(tmp_path / "out")
    assert finished
    assert finished.items() <= undisturbed.items()
    with own_cluster(tmp_path) as (address, _):
        run = Run(pictures, tmp_path / "out", address)
        assert run.until("end") == f"end {GOOD + BROKEN} {BROKEN} 0"
        run.end()
    assert shards(tmp_path / "out") == undisturbed
