"""What goes wrong around a corpus: full storage, clusters without workers, other versions, damaged sources."""

import io
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from npembed import Model
from npembed.corpus import Settings, Watcher, build, engine, place
from tests.command_line import Done, assert_refused, npembed
from tests.corpus_driver import small_model, unprotected

WANTED = Settings(until="tokens", shard_mb=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A scheduler and one worker in this process, so that a test can break what the worker calls."""
    from distributed import LocalCluster

    with (
        threadpool_limits(1),
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0", silence_logs=60) as cluster,
    ):
        yield cluster


@pytest.fixture
def there(cluster: Any) -> str:
    """Its address."""
    return str(cluster.scheduler_address)


@pytest.fixture(scope="module")
def small() -> Model:
    return small_model()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three groups of them."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def weights(data: Path) -> Path:
    return data / "tiny-minicpmv"


def wait_for(cluster: Any) -> None:
    """Until the worker has ended what it does for a run that is over."""
    from distributed import Client

    with Client(cluster.scheduler_address, set_as_default=False) as client:
        client.submit(int, pure=False).result()


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*"))}


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory, small: Model, cluster: Any) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    build([str(pictures)], str(out), small, settings=WANTED, scheduler=cluster.scheduler_address)
    return shards(out)


# Full storage


@pytest.mark.parametrize(
    ("suffix", "allowed", "finished"), [(".safetensors", 0, 0), (".safetensors", 2, 1), (".part", 1, 1), (".parquet", 0, 3)]
)
def test_storage_that_is_full_in_the_middle_is_one_line_and_what_is_finished_stays(
    suffix: str,
    allowed: int,
    finished: int,
    pictures: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    small: Model,
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the model, a shard, a group's rows and the index are written."""
    written = 0

    def full(path: Path) -> None:
        nonlocal written
        written += path.suffix == suffix
        if path.suffix == suffix and written > allowed:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(place, "_to_disk", full)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"^corpus: .* cannot be written: No space left on device$"):
        build([str(pictures)], str(out), small, settings=WANTED, scheduler=cluster.scheduler_address)
    wait_for(cluster)
    assert shards(out).items() <= undisturbed.items()
    assert len(list(out.glob("rows/*"))) == finished
    assert not (out / "scratch").exists()
    monkeypatch.undo()
    again = build([str(pictures)], str(out), small, settings=WANTED, scheduler=cluster.scheduler_address)
    assert (again.pictures, again.failed, again.kept) == (40, 0, min(40, 16 * finished))
    assert shards(out) == undisturbed


@contextmanager
def small_storage(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system of that size on the folder."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "npembed-test", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this process may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_file_system_that_is_full_is_one_line_and_one_that_was_enlarged_is_gone_on_with(
    pictures: Path, tmp_path: Path, weights: Path, cluster: Any
) -> None:
    out = tmp_path / "out"
    words = ("corpus", pictures, out, "--weights", weights, "--shard-size", 1, "--scheduler", cluster.scheduler_address)
    with small_storage(out, 5000):
        refused = npembed(*words)
        wait_for(cluster)
        assert_refused(refused, r"corpus: .*part-\d+.*\.safetensors cannot be written: No space left on device")
        before, finished = shards(out), len(list((out / "rows").iterdir()))  # a picture fills a shard, so a group has one
        assert finished
        subprocess.run(["mount", "-o", "remount,size=20000k", str(out)], check=True)
        done = npembed(*words)
        assert (done.code, done.err) == (0, "")
        assert f"\n{finished} were there already" in done.out
        assert before.items() <= shards(out).items()


# Clusters


def test_a_cluster_that_loses_its_workers_is_one_line(
    pictures: Path, tmp_path: Path, small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(engine, "SECONDS_TO_LOOK", 0.01)
    monkeypatch.setattr(engine, "SECONDS_WITHOUT_WORKERS", 0.01)
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0", silence_logs=60) as cluster:

        def lose(count: int, dashboard: str) -> None:
            cluster.sync(cluster.scheduler.retire_workers, close_workers=True)

        with pytest.raises(ValueError, match="the cluster has lost all its workers; what is finished stays, and the same"):
            build([str(pictures)], str(tmp_path / "out"), small, scheduler=cluster.scheduler_address, watch=Watcher(begin=lose))


def test_a_scheduler_without_workers_is_one_line(
    pictures: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(engine, "SECONDS_TO_ANSWER", 0.5)
    with LocalCluster(n_workers=0, processes=False, dashboard_address=":0", silence_logs=60) as cluster:
        words = ("--weights", weights, "--scheduler", cluster.scheduler_address)
        assert_refused(npembed("corpus", pictures, tmp_path / "out", *words), "the scheduler .* has no workers")


def test_a_scheduler_that_does_not_answer_is_one_line(
    pictures: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.SECONDS_TO_ANSWER == 10
    monkeypatch.setattr(engine, "SECONDS_TO_ANSWER", 0.5)
    words = ("--weights", weights, "--scheduler", "tcp://127.0.0.1:1")
    done = npembed("corpus", pictures, tmp_path / "out", *words)
    assert_refused(done, r"the scheduler tcp://127\.0\.0\.1:1 does not answer")


@pytest.mark.parametrize("name", ["npembed", "numpy", "Pillow"])
def test_workers_of_another_version_are_refused_before_the_work(
    pictures: Path, tmp_path: Path, small: Model, there: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    theirs = engine.versions()
    asked = iter([theirs | {name: "0.1"}, theirs])
    monkeypatch.setattr(engine, "versions", lambda: next(asked))
    message = rf"corpus: the worker \S+ has {name} {theirs[name]}, but here it is 0\.1"
    with pytest.raises(ValueError, match=message):
        build([str(pictures)], str(tmp_path / "out"), small, scheduler=there)
    assert not shards(tmp_path / "out")


def test_a_worker_of_another_version_that_comes_later_is_refused(
    pictures: Path, tmp_path: Path, weights: Path, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[build.__module__], "versions", lambda: engine.versions() | {"numpy": "0.1"})
    done = npembed("corpus", pictures, tmp_path / "out", "--weights", weights, "--scheduler", there)
    assert_refused(done, r"a worker has numpy \S+, but the run was started with 0\.1")


def test_workers_without_npembed_are_refused(pictures: Path, tmp_path: Path, weights: Path) -> None:
    """They cannot even read the question; here they lack a module that is in this process alone."""
    module = types.ModuleType("only_here")
    exec("def versions():\n    return {'npembed': '9'}", module.__dict__)
    with unprotected(1) as client, pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "only_here", module)
        patch.setattr(engine, "versions", module.versions)
        words = ("--weights", weights, "--scheduler", client.cluster.scheduler_address)
        done = npembed("corpus", pictures, tmp_path / "out", *words)
        assert_refused(done, "the workers cannot run npembed 9: .*No module named 'only_here'")


# Sources


def test_of_a_tar_that_ends_too_soon_what_is_whole_is_computed(tmp_path: Path, weights: Path, there: str) -> None:
    held = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(held, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("1.png", "2.png"):
            info = tarfile.TarInfo(name)
            info.size = len(held.getvalue())
            archive.addfile(info, io.BytesIO(held.getvalue()))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 1536 + len(held.getvalue())])
    done = npembed("corpus", tmp_path / "a.tar", tmp_path / "out", "--weights", weights, "--scheduler", there)
    assert (done.code, done.err) == (1, "")
    assert "a.tar ends too soon; 2 files begin in it\n1 of 2 pictures are in " in done.out
    rows = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert rows[1]["error"].startswith("the archive ends after ")


def test_paths_that_are_given_again_are_counted(pictures: Path, tmp_path: Path, weights: Path, there: str) -> None:
    again = [pictures / "00.png", pictures / "00.png"]
    done = npembed("corpus", pictures, *again, tmp_path / "out", "--weights", weights, "--scheduler", there)
    assert done.code == 0
    assert "40 pictures are in " in done.out
    assert "\n2 paths given again" in done.out


def looping(folder: Path) -> Path:
    (folder / "deep").mkdir()
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "gone.png").symlink_to(folder / "nothing")
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    return folder


def test_links_that_loop_or_lead_nowhere_are_said_and_the_others_are_computed(
    tmp_path: Path, weights: Path, there: str
) -> None:
    (tmp_path / "p").mkdir()
    done = npembed("corpus", looping(tmp_path / "p"), tmp_path / "out", "--weights", weights, "--scheduler", there)
    assert (done.code, done.err) == (1, "")
    assert "deep/up leads back to a folder that holds it; it was not followed\n1 of 2 pictures are in " in done.out
    rows = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    assert [row["error"] for row in rows] == [None, "it cannot be read: No such file or directory"]


def test_a_name_that_is_no_utf_8_is_shown_and_found(tmp_path: Path, weights: Path, there: str) -> None:
    name = str(tmp_path / "\udcff.png")
    try:
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(name)
    except OSError:
        pytest.skip("this file system has no such names")
    words = ("--weights", weights, "--vector", "mean", "--until", "hidden", "--scheduler", there)
    out = str(tmp_path / "\udcfe")
    done = npembed("corpus", name, out, *words)
    assert (done.code, done.err) == (0, "")
    assert f"1 picture is in {tmp_path}/\\udcfe\n" in done.out
    found: Done = npembed("corpus", "search", out, name)
    assert (found.code, found.err) == (0, "")
    assert "1.0000" in found.out


def test_of_a_file_with_a_broken_page_those_before_it_are_rows(tmp_path: Path, weights: Path, there: str) -> None:
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (40, 40 + n, 3), dtype=np.uint8)) for n in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:2])
    frames[0].save(tmp_path / "b.tiff", save_all=True, append_images=frames[1:])
    whole = (tmp_path / "b.tiff").read_bytes()
    (tmp_path / "b.tiff").write_bytes(whole[: len(whole) * 4 // 5])
    words = ("--weights", weights, "--pages", "all", "--scheduler", there)
    done = npembed("corpus", tmp_path, tmp_path / "out", *words)
    assert (done.code, done.err) == (1, "")
    rows = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    found = [(Path(row["path"]).name, row["frame"], row["status"]) for row in rows]
    assert found[:4] == [("a.gif", 0, "ok"), ("a.gif", 1, "ok"), ("b.tiff", 0, "ok"), ("b.tiff", 1, "ok")]
    assert found[4:] == [("b.tiff", 2, "failed")]


@pytest.mark.parametrize(
    "name", ["distributed", "distributed.client", "distributed.gc", "distributed.worker", "distributed.nanny"]
)
def test_dask_says_nothing_on_the_screen(name: str, there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever level Dask's own settings give its loggers."""
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "level", logging.WARNING)
    assert logger.isEnabledFor(logging.ERROR)
    with engine.cluster(None, there):
        assert not logger.isEnabledFor(logging.ERROR)


@pytest.mark.skipif(sys.platform == "win32", reason="sparse files as POSIX has them")
def test_what_claims_to_be_huge_is_a_failed_row_and_the_others_are_computed(tmp_path: Path, weights: Path, there: str) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    good = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(good)
    with (tmp_path / "b.png").open("ab") as file:
        file.truncate(6 * 2**30)
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c.png", good)
    held = (tmp_path / "c.zip").read_bytes()
    (tmp_path / "c.zip").write_bytes(held.replace(len(good).to_bytes(4, "little"), (2**31).to_bytes(4, "little")))
    claims = tarfile.TarInfo("d.png")
    claims.size = 2**40
    (tmp_path / "d.tar").write_bytes(claims.tobuf() + good)
    sources = [tmp_path / name for name in ("a.png", "b.png", "c.zip", "d.tar")]
    done = npembed("corpus", *sources, tmp_path / "out", "--weights", weights, "--scheduler", there)
    assert (done.code, done.err) == (1, "")
    errors = [row["error"] for row in pq.read_table(tmp_path / "out/index.parquet").to_pylist()]
    sizes = ("6,442,450,944", "2,147,483,648", "1,099,511,627,776")
    assert errors == [None, *(f"it has {size} bytes; at most 1,073,741,824 are read" for size in sizes)]


# OUT that goes away


def unwritable(*_: object, **__: object) -> None:
    raise OSError(30, "Read-only file system")


@pytest.mark.parametrize("groups", [0, 1, 3])
@pytest.mark.parametrize("fault", ["removed", "read-only"])
def test_a_folder_that_goes_away_meanwhile_is_one_line(
    groups: int, fault: str, pictures: Path, tmp_path: Path, small: Model, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first group, after it, and after the last one."""
    out, done = tmp_path / "out", []

    def spoil(*_: object) -> None:
        if len(done) == groups and fault == "removed":
            while out.exists():  # the worker may write in between
                shutil.rmtree(out, ignore_errors=True)
        elif len(done) == groups:
            for name in ("open", "unlink", "mkdir", "replace"):
                monkeypatch.setattr(os, name, unwritable)
        done.append(1)

    watch = Watcher(spoil, spoil)
    with pytest.raises(ValueError, match=r"^corpus: [^\n]*(No such file or directory|Read-only file system|is gone)[^\n]*$"):
        build([str(pictures)], str(out), small, settings=WANTED, scheduler=cluster.scheduler_address, watch=watch)
    monkeypatch.undo()
    wait_for(cluster)
    assert out.exists() == (fault == "read-only"), "what was taken away is not made again"
    again = build([str(pictures)], str(out), small, settings=WANTED, scheduler=cluster.scheduler_address)
    assert (again.pictures, again.failed) == (40, 0)


def test_a_folder_that_cannot_be_written_to_is_one_line(
    pictures: Path, tmp_path: Path, small: Model, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(place.os, "open", unwritable)
    with pytest.raises(ValueError, match=r"^corpus: \S+/out cannot be written to: Read-only file system$"):
        build([str(pictures)], str(tmp_path / "out"), small, settings=WANTED, scheduler=there)
