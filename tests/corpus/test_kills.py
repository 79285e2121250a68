"""Runs that are killed: the whole, a worker, the scheduler. What they are gone on with is, byte by byte, as if undisturbed.

And what kills: a picture that ends every worker that computes it.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from distributed import Client
from PIL import Image

from npembed.corpus import engine
from tests import corpus_driver, corpus_killer
from tests.command_line import npembed
from tests.corpora import BROKEN, write_pictures
from tests.corpus_driver import unprotected

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
GOOD = 100
ALL = f"end {GOOD + BROKEN} {BROKEN} 0"


class Run:
    """One run of the driver, in a process of its own.

    Parameters
    ----------
    where : str
        The address of a scheduler, or how many workers of its own.
    """

    begun: "list[Run]" = []  # noqa: RUF012  # of the test that runs

    def __init__(self, pictures: Path, out: Path, where: str) -> None:
        self._errors = out.with_name(f"{out.name} errors")
        self._words, theirs = corpus_driver.CONTEXT.Pipe()
        words = (theirs, str(self._errors), str(pictures), str(out), where)
        self.process = corpus_driver.CONTEXT.Process(target=corpus_driver.drive, args=words)
        self.process.start()
        theirs.close()
        self.begun.append(self)

    def said(self) -> str:
        """What it says next; "" at the end."""
        try:
            return str(self._words.recv())
        except (EOFError, ConnectionResetError):
            return ""

    def go_on(self) -> None:
        self._words.send("")

    def until(self, word: str) -> str:
        """Let it go on until it says that word first, and no further; what it said."""
        while (line := self.said()) and not line.startswith(word):
            self.go_on()
        return line

    def kill(self) -> None:
        """The run and, as its pipes to them break, its workers."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.join()
        for child in children:
            child.wait()

    def end(self) -> tuple[int, str]:
        """Let it end; its exit code, and what it wrote to the error stream."""
        self.go_on()
        self.until("never said")
        self.process.join()
        return int(self.process.exitcode), self._errors.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """A test that fails leaves no run behind."""
    yield
    for run in Run.begun:
        run.process.kill()
        run.process.join()
    Run.begun.clear()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes, over tcp on loopback, as a run starts them; one that is killed is started anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "PRELOAD", [*engine.PRELOAD, corpus_killer.__name__])
        with unprotected(2) as client:
            yield client.cluster


@pytest.fixture
def there(cluster: Any) -> str:
    """Its address."""
    return str(cluster.scheduler_address)


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*"))}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), GOOD)


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """By a worker of its own."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run = Run(pictures, out, "1")
    assert run.until("end") == ALL
    assert run.end() == (0, "")
    return shards(out)


def test_a_run_killed_ten_times_ends_as_an_undisturbed_one(
    pictures: Path, undisturbed: dict[str, bytes], tmp_path: Path, there: str
) -> None:
    """Once with its own worker, which ends with it."""
    chosen = random.Random(0)
    for number in range(10):
        run = Run(pictures, tmp_path / "out", "1" if number == 4 else there)
        for _ in range(chosen.randrange(3)):
            assert run.said().startswith(("begin", "done"))
            run.go_on()
        assert run.said().startswith(("begin", "done")), "it is killed in the middle"
        run.kill()
        assert shards(tmp_path / "out").items() <= undisturbed.items()
    run = Run(pictures, tmp_path / "out", there)
    assert run.until("end") == ALL
    assert run.end() == (0, "")
    assert shards(tmp_path / "out") == undisturbed
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors") == [
        ".lock",
        "README.md",
        "index.parquet",
        "list.jsonl",
        "manifest.json",
        "rows",
    ]


def test_while_one_run_writes_a_second_is_refused_and_a_killed_one_leaves_no_lock(
    pictures: Path, tmp_path: Path, there: str
) -> None:
    first = Run(pictures, tmp_path / "out", there)
    assert first.said().startswith("begin")
    second = Run(pictures, tmp_path / "out", there)
    assert second.said().startswith("refused corpus: another run is writing to ")
    assert second.end()[0] == 2
    first.kill()
    third = Run(pictures, tmp_path / "out", there)
    assert third.said().startswith("begin")
    third.kill()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="glibc's settings, seen where Linux shows them")
def test_a_worker_has_one_heap_that_it_keeps(there: str) -> None:
    """As the environment told glibc before the worker began: a heap for each thread made its peak another one in each run."""
    with Client(there, set_as_default=False) as client:
        began = client.run(lambda: Path("/proc/self/environ").read_bytes())  # what it began with, not what was put there later
    assert len(began) == 2
    for environment in began.values():
        found = dict(line.decode().split("=", 1) for line in environment.split(b"\0") if line.startswith(b"MALLOC_"))
        assert found["MALLOC_ARENA_MAX"] == "1"
        assert all(int(found[f"MALLOC_{name}_THRESHOLD_"]) >= 2**25 for name in ("TRIM", "MMAP"))


def test_a_cluster_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")  # as a cluster of Dask's own leaves it
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    before = dict(os.environ)
    with engine._own_environment(["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "OMP_NUM_THREADS"]):
        assert os.environ.keys().isdisjoint({"MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"})
        os.environ.update(MALLOC_TRIM_THRESHOLD_="1", MALLOC_ARENA_MAX="1", OMP_NUM_THREADS="9", PYTHONHASHSEED="6640")
    assert dict(os.environ) == before


def test_a_killed_worker_is_made_up_for(
    pictures: Path, undisturbed: dict[str, bytes], tmp_path: Path, there: str, cluster: Any
) -> None:
    run = Run(pictures, tmp_path / "out", there)
    assert run.said().startswith("begin")
    for worker in list(cluster.workers.values()):
        run.go_on()
        assert run.said().startswith("done")
        psutil.Process(worker.pid).kill()
    run.go_on()
    assert run.until("end") == ALL
    assert run.end() == (0, "")
    assert shards(tmp_path / "out") == undisturbed


@contextmanager
def own_cluster(folder: Path) -> Iterator[tuple[str, Any]]:
    """A scheduler and a worker as processes of their own: its address, and the scheduler."""
    context = corpus_driver.CONTEXT
    words, theirs = context.Pipe()
    scheduler = context.Process(target=corpus_driver.serve_scheduler, args=(theirs,))
    scheduler.start()
    address = words.recv()
    worker = context.Process(target=corpus_driver.serve_worker, args=(address, str(folder)))
    worker.start()
    try:
        yield address, scheduler
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.join()


def test_a_scheduler_that_is_killed_is_one_line_and_what_is_finished_stays(
    pictures: Path, undisturbed: dict[str, bytes], tmp_path: Path, there: str
) -> None:
    with own_cluster(tmp_path) as (address, scheduler):
        run = Run(pictures, tmp_path / "out", address)
        assert run.until("done")
        scheduler.kill()
        scheduler.join()
        run.go_on()
        assert run.until("refused") == (
            "refused corpus: the scheduler is lost; what is finished stays, and the same command goes on from there"
        )
        assert run.end()[0] == 2
    finished = shards(tmp_path / "out")
    assert finished
    assert finished.items() <= undisturbed.items()
    run = Run(pictures, tmp_path / "out", there)
    assert run.until("end") == ALL
    run.end()
    assert shards(tmp_path / "out") == undisturbed


def test_a_picture_that_ends_its_workers_is_a_failed_row(
    data: Path, tmp_path: Path, there: str, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(18):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number:02d}.png")
    with (tmp_path / "17.png").open("ab") as file:
        file.write(corpus_killer.END)
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)  # which would otherwise take three more workers
    words = ("corpus", tmp_path / "*.png", tmp_path / "out", "--weights", data / "tiny-minicpmv", "--scheduler", there)
    done = npembed(*words)
    assert (done.code, done.err) == (1, "")
    assert "\n17 of 18 pictures are in " in done.out
    assert "; 1 failed:\n" in done.out
    rows = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    assert [row["error"] for row in rows] == [None] * 17 + ["its worker process died again and again"]
    (tmp_path / "17.png").write_bytes((tmp_path / "16.png").read_bytes())
    again = npembed(*words, "--update")
    assert again.code == 0
    assert "\n16 were there already; " in again.out


def test_a_group_whose_pictures_are_not_to_blame_is_given_up_in_one_line(
    data: Path, tmp_path: Path, there: str, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the storage ends the process that writes a shard, and not that which computes a picture."""
    for number in range(18):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number:02d}.png")
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    monkeypatch.setattr("npembed.corpus.engine.compute_group", corpus_killer.die_with_the_second_group)
    words = ("corpus", tmp_path / "*.png", tmp_path / "out", "--weights", data / "tiny-minicpmv", "--scheduler", there)
    done = npembed(*words)
    assert (done.code, done.err) == (1, "")
    assert done.out.splitlines()[-1] == (
        "Group 1 was not finished: its worker died again and again; the same command tries it again"
    )
    assert pq.read_table(tmp_path / "out/index.parquet").num_rows == 16
    monkeypatch.undo()
    assert npembed(*words).code == 0
    assert pq.read_table(tmp_path / "out/index.parquet").num_rows == 18
