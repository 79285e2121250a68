"""Many pictures from end to end, by the command: killed and gone on with, memory, a Dask cluster, near-duplicates found.

python -m tests.corpus_acceptance              # 2,000 pictures, the full size of MiniCPM-V 2.6: some minutes, 10 GB of disk
python -m tests.corpus_acceptance --count 300  # shorter

Exit code 0: all holds; 1: something does not, and the lines say what. It is no part of the tests: pytest does not collect it.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

from npembed import random_model
from npembed.corpus import build
from tests.corpora import BROKEN, broken_files

MOST_OF_ROWS: int = sys.modules[build.__module__].MOST_OF_ROWS  # type: ignore[attr-defined]
ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "tests/data/tiny-minicpmv"
KINDS = ("jpg", "jpg", "jpg", "jpg", "png", "webp", "jpg", "bmp", "tiff", "jpg")
PLANTED = 20
LARGE = 6 * MOST_OF_ROWS
"""Of so many one is of 12 megapixels: the last of its group, so that shard and picture are largest at the same time."""
KILLS = 6
LIMIT = 1500
"""MB beside the model, of all processes of a run together."""
EQUAL = {True: "equal", False: "differ from"}
HALVES = ["--max-slices", "1", "--dtype", "float16"]


class Report:
    """What was found, a line each; whether all of it is as it should be."""

    def __init__(self) -> None:
        self.holds = True

    def say(self, line: str, holds: bool = True) -> None:
        """One line."""
        self.holds &= holds
        print(line if holds else f"{line}: NOT AS IT SHOULD BE", flush=True)


def smooth(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Smooth noise, as photographs are."""
    coarse = rng.integers(0, 256, (int(rng.integers(3, 9)), int(rng.integers(3, 9)), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_folder(folder: Path, count: int) -> list[tuple[Path, Path]]:
    """So many pictures, broken ones and near-duplicates among them: the pairs of a picture and what is nearly the same."""
    rng = np.random.default_rng(0)
    pairs = []
    good = count - 2 * BROKEN - PLANTED
    every = good // PLANTED
    for number in range(good):
        large = number % LARGE == MOST_OF_ROWS - 1
        path = folder / f"{number // 500}" / f"picture {number:05d}.{'jpg' if large else KINDS[number // 10 % len(KINDS)]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = smooth(rng, (4000, 3000) if large else (1600, 1200) if number % 10 == 1 else (640, 480))
        picture.save(path)
        if number % every == 3 and len(pairs) < PLANTED:
            pairs.append((path, _nearly(picture, folder / f"like {number:05d}", len(pairs))))
    (folder / "broken").mkdir()
    for number, content in enumerate([*broken_files(rng), *broken_files(rng)]):
        (folder / "broken" / f"{number:02d}").write_bytes(content)
    (folder / "notes.txt").write_text("no picture")
    return pairs


def _nearly(picture: Image.Image, stem: Path, number: int) -> Path:
    """Smaller, or of low quality as a JPEG or a WebP. Of a large one always smaller: no other WebP takes so much memory."""
    kind = (".png", ".jpg", ".webp")[number % 3]
    if kind == ".png" or picture.width > 1600:
        picture = picture.resize((picture.width // 2, picture.height // 2))
    picture.save(stem.with_suffix(kind), quality=30)
    return stem.with_suffix(kind)


class Watched:
    """A run of the command, and the peak of memory of each of its processes."""

    def __init__(self, words: Sequence[str], out: Path) -> None:
        self.out, self.peaks = out, {"run": 0.0, "worker": 0.0, "all": 0.0}
        self._start, self._of = time.perf_counter(), {}
        command = [sys.executable, "-m", "npembed", "corpus", *words]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._self = psutil.Process(self._process.pid)

    def look(self) -> None:
        """The peaks until now, which the system keeps."""
        with suppress(psutil.Error):
            for one in (self._self, *self._self.children(recursive=True)):
                self._of[one.pid] = max(peak_of(one.pid), self._of.get(one.pid, 0.0))
        self.peaks["run"] = self._of.get(self._process.pid, 0.0)
        self.peaks["worker"] = max([0.0, *(peak for pid, peak in self._of.items() if pid != self._process.pid)])
        self.peaks["all"] = sum(self._of.values())

    def kill_after(self, groups: int) -> bool:
        """Kill the whole when so many groups are done; False if it ended before."""
        while self._process.poll() is None:
            if len(list(self.out.glob("rows/*.part"))) >= groups:
                children = self._self.children(recursive=True)
                self._process.kill()
                self._process.communicate()
                psutil.wait_procs(children, timeout=60)
                return True
            time.sleep(0.02)
        return False

    def end(self) -> tuple[int, str, float]:
        """Let it end: its exit code, what it said and the seconds it took."""
        while self._process.poll() is None:
            self.look()
            time.sleep(0.1)
        said = self._process.communicate()[0]
        return self._process.returncode, said, time.perf_counter() - self._start


def peak_of(pid: int) -> float:
    """The most memory that a process has had resident, in MB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


def digests(out: Path) -> dict[str, str]:
    """Of each shard."""
    found = {}
    for path in sorted(out.glob("part-*")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


@contextmanager
def own_cluster(folder: Path) -> Iterator[str]:
    """The address of a Dask scheduler with two workers, started as one starts them by hand."""
    told, address = folder / "scheduler.json", None
    begin = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    work = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    begun = [subprocess.Popen([*begin, "--scheduler-file", str(told)], **quiet)]  # type: ignore[call-overload]
    try:
        while address is None:
            time.sleep(0.1)
            with suppress(OSError, ValueError):
                address = json.loads(told.read_text(encoding="utf-8"))["address"]
        begun += [subprocess.Popen([*work, address, "--local-directory", str(folder)], **quiet) for _ in range(2)]  # type: ignore[call-overload]
        yield address
    finally:
        for one in reversed(begun):
            one.terminate()
            one.wait()


def beside(peaks: dict[str, float], model: float) -> str:
    """In words."""
    return (
        f"peak {peaks['worker']:.0f} MB of a worker, {peaks['run']:.0f} MB of the run, {peaks['all'] - model:.0f} MB of all "
        f"processes together beside the model of {model:.0f} MB"
    )


def check_memory(here: Path, count: int, report: Report) -> dict[str, str]:
    """All of them in one undisturbed run, and a tenth of them; the digests of the shards of all."""
    model = sum(array.nbytes for array in random_model().weights.values()) / 1e6
    pictures, tenth = here / "pictures", here / "tenth.list"
    every = sorted(pictures.rglob("picture *"), key=lambda path: path.stem)
    tenth.write_text("\n".join(map(str, every[: count // 10])), encoding="utf-8")  # the sizes and kinds come again and again
    run = Watched([str(pictures), str(here / "whole"), *HALVES], here / "whole")
    code, said, seconds = run.end()
    whole, last = digests(here / "whole"), said.splitlines()[-2]
    rows = pq.read_table(here / "whole/index.parquet")
    failed = rows["status"].to_pylist().count("failed")
    size = sum(path.stat().st_size for path in (here / "whole").glob("part-*")) / 1e9
    report.say(f"{count} pictures, one command: {seconds:.0f} s, {count / seconds:.1f} pictures/s, {size:.1f} GB: {last}")
    report.say(f"  exit code {code}, {len(rows)} rows, {failed} failed", (code, len(rows), failed) == (1, count, 2 * BROKEN))
    report.say(f"  {beside(run.peaks, model)}", run.peaks["all"] - model < LIMIT)
    shutil.rmtree(here / "whole")

    few = Watched([str(tenth), str(here / "tenth"), *HALVES], here / "tenth")
    _, _, seconds = few.end()
    ratio = run.peaks["worker"] / few.peaks["worker"]
    report.say(f"{count // 10} of them: {seconds:.0f} s, {beside(few.peaks, model)}")
    report.say(f"  a worker's peak for {count} over that for {count // 10}: {ratio:.3f}", 0.9 <= ratio <= 1.1)
    shutil.rmtree(here / "tenth")

    return whole


def check_kills(here: Path, whole: Mapping[str, str], report: Report) -> None:
    """Killed and gone on with."""
    pictures, killed, chosen, done = here / "pictures", 0, random.Random(0), 0
    for _ in range(KILLS):
        one = Watched([str(pictures), str(here / "killed"), *HALVES], here / "killed")
        killed += one.kill_after(done + chosen.randrange(1, max(2, len(whole) // (2 * KILLS))))
        done = len(list((here / "killed").glob("rows/*.part")))
    run = Watched([str(pictures), str(here / "killed"), *HALVES], here / "killed")
    _, said, _ = run.end()
    report.say(f"killed {killed} times, with {done} of {len(whole)} groups done at last, and gone on with:")
    same = digests(here / "killed") == whole
    report.say(f"  {said.splitlines()[-2]}")
    report.say(f"  its shards {EQUAL[same]} those of the undisturbed run, byte by byte", same and killed == KILLS)
    shutil.rmtree(here / "killed")


def check_cluster(here: Path, whole: Mapping[str, str], report: Report) -> None:
    """By `--scheduler`."""
    pictures = here / "pictures"
    with own_cluster(here) as address:
        words = [str(pictures), str(here / "cluster"), *HALVES, "--scheduler", address]
        run = Watched(words, here / "cluster")
        code, said, seconds = run.end()
    same = digests(here / "cluster") == whole
    report.say(f"--scheduler, two workers: {seconds:.0f} s: {said.splitlines()[-2]}", code == 1)
    report.say(f"  its shards {EQUAL[same]} those of the local run, byte by byte", same)
    shutil.rmtree(here / "cluster")


def check_search(here: Path, pairs: Sequence[tuple[Path, Path]], report: Report) -> None:
    """Each picture's near-duplicate is found by the command."""
    words = [str(here / "pictures"), str(here / "vectors"), "--weights", str(WEIGHTS), "--until", "hidden", "--max-slices", "1"]
    run = Watched([*words, "--vector", "mean", "--normalize"], here / "vectors")
    _, said, seconds = run.end()
    report.say(f"one vector a picture: {seconds:.0f} s: {said.splitlines()[-2]}")
    places = [place_of(here / "vectors", *pair) for pair in pairs]
    found = sum(0 < place <= 10 for place in places)
    report.say(
        f"  npembed corpus search: of {len(places)} near-duplicates {found} are among the ten nearest, {places.count(1)} first",
        found == len(places),
    )


def place_of(out: Path, picture: Path, nearly: Path) -> int:
    """Among the neighbours that the command shows, after the picture itself; 0 if it is not there."""
    command = [sys.executable, "-m", "npembed", "corpus", "search", str(out), str(picture), "-k", "11"]
    wide = os.environ | {"COLUMNS": "1000"}
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=wide).stdout
    shown = [line.split(maxsplit=1)[1].strip() for line in said.splitlines() if line.strip().startswith(("0.", "1."))]
    return next((place for place, path in enumerate(shown) if path == str(nearly)), 0)


def main() -> int:
    """Run all, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--part", choices=["search", "memory", "kills", "cluster"], action="append", help="all by default")
    words = parser.parse_args()
    parts = words.part or ["search", "memory", "kills", "cluster"]
    report = Report()
    with tempfile.TemporaryDirectory(prefix="npembed-acceptance-") as folder:
        here = Path(folder)
        pairs = write_folder(here / "pictures", words.count)
        if "search" in parts:
            check_search(here, pairs, report)
        whole = check_memory(here, words.count, report) if parts != ["search"] else {}
        if "kills" in parts:
            check_kills(here, whole, report)
        if "cluster" in parts:
            check_cluster(here, whole, report)
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
