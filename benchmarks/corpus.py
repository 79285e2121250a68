"""`python -m benchmarks.corpus`: pictures per second, where the time goes, and the peak memory for few and for many pictures.

python -m benchmarks.corpus                       # 200 and 2,000 pictures of 640×480, MiniCPM-V 2.6's embeddings
python -m benchmarks.corpus --counts 200 --photo  # pictures of 12 megapixels
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from npembed import Model, random_model, run
from npembed.corpus import Settings, Watcher, build
from npembed.corpus.settings import limited
from npembed.images import read_frames

PHOTO, SMALL = (4000, 3000), (640, 480)


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """So many different JPEGs of smooth noise, as photographs are."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        paths.append(folder / f"{number:05d}.jpg")
        coarse.resize(size, Image.Resampling.BICUBIC).save(paths[-1], quality=85)
    return paths


def peaks() -> tuple[float, float]:
    """Peak resident memory in MB of this process, and the most of any of its workers."""
    import psutil

    children = [child.pid for child in psutil.Process().children(recursive=True)]
    return _peak(os.getpid()), max((_peak(pid) for pid in children), default=0.0)


def _peak(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def corpus(paths: list[Path], model: Model, settings: Settings, workers: int) -> tuple[float, float]:
    """Seconds without the start of the workers, and the peak of a worker in MB."""
    found = {"start": 0.0, "peak": 0.0}

    def begin(pictures: int, dashboard: str) -> None:
        found["start"] = time.perf_counter()

    def done(pictures: int, failed: int) -> None:
        found["end"] = time.perf_counter()
        found["peak"] = max(found["peak"], peaks()[1])

    with tempfile.TemporaryDirectory(dir=paths[0].parent.parent) as out:
        build([str(paths[0].parent)], f"{out}/out", model, settings=settings, workers=workers, watch=Watcher(begin, done))
    return found["end"] - found["start"], found["peak"]


def alone(paths: list[Path], model: Model, until: str) -> dict[str, float]:
    """Seconds that one process takes for the same, by what it does."""
    spent = dict.fromkeys(("decode", "cut and resize", "product", "write"), 0.0)

    def timed(what: str, call: Callable[[], object]) -> object:
        start = time.perf_counter()
        result = call()
        spent[what] += time.perf_counter() - start
        return result

    with tempfile.TemporaryDirectory(dir=paths[0].parent.parent) as out:
        for path in paths:
            content = path.read_bytes()
            frames = read_frames(BytesIO(content), str(path))
            picture, _ = timed("decode", lambda frames=frames: next(frames))  # type: ignore[misc]
            slices = timed("cut and resize", lambda picture=picture: model.config.family.cut(picture, model.config))  # type: ignore[misc]
            result = timed("product", lambda own=slices: run(own.strips, own.tgt_sizes, model, until))  # type: ignore[misc]
            timed("write", lambda result=result: np.save(f"{out}/a.npy", result[until]))  # type: ignore[misc]
    return spent


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="*", default=[200, 2000])
    parser.add_argument("--photo", action="store_true")
    parser.add_argument("--max-slices", type=int)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    words = parser.parse_args()
    settings = Settings(dtype=words.dtype, max_slices=words.max_slices)
    plain = random_model()
    model = Model(limited(plain.config, words.max_slices), plain.weights)
    size = PHOTO if words.photo else SMALL
    with tempfile.TemporaryDirectory() as folder:
        for count in words.counts:
            pictures = Path(folder, str(count))
            pictures.mkdir()
            paths = write_pictures(pictures, count, size)
            seconds, peak = corpus(paths, model, settings, words.workers)
            print(
                f"{count} pictures of {size[0]}×{size[1]}, {words.workers} workers: {count / seconds:.1f} pictures/s, ", end=""
            )
            print(f"peak of a worker {peak:.0f} MB, of the run itself {peaks()[0]:.0f} MB", flush=True)
        few = paths[: min(100, len(paths))]
        spent = alone(few, model, "embeddings")
        total = sum(spent.values())
        print(f"one process, all its threads: {len(few) / total:.1f} pictures/s; ", end="")
        print(", ".join(f"{what} {100 * part / total:.0f} %" for what, part in spent.items()))


if __name__ == "__main__":
    main()
