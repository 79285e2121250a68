"""`python -m benchmarks.corpus`: pictures per second of a corpus, of transformers, of one `npembed embed`; and where time goes.

python -m benchmarks.corpus                    # a fifth of the pictures: some minutes
python -m benchmarks.corpus --share 1          # 200 photos of 12 megapixels and 500 pictures of 640×480
python -m benchmarks.corpus --case photos --case small --model siglip

Exit code 0: measured, whatever came out; 1: the contestants do not compute the same.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from threadpoolctl import threadpool_limits
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

import npembed
from benchmarks.contest import DisagreementError
from benchmarks.embedding import minicpm_4_6_module
from benchmarks.machine import cores
from benchmarks.pipelines import TOLERANCE, load_module
from npembed import Model
from npembed.corpus import Settings, Watcher, build
from npembed.corpus.vectors import compute, frames_of
from npembed.support.output_files import save_tensors

CASES = {"photos": (200, (4000, 3000)), "small": (500, (640, 480))}
"""How many pictures of which width and height."""
BATCH = 8
FEW = 20
"""Pictures that are enough to see what one process does."""

Contestant = Callable[[Sequence[Path]], Any]


@dataclass(frozen=True)
class Peer:
    """A model of npembed, and transformers' way from files to the same.

    Attributes
    ----------
    model : Model
    settings : Settings
    theirs : callable
        Files -> an array, a row for each picture or for each patch.
    same : bool
        Whether the two compute the same numbers. MiniCPM-V 2.6 is not in transformers; its nearest relative there, 4.6, cuts
        pictures into slices whose sides are multiples of other numbers.
    """

    model: Model
    settings: Settings
    theirs: Contestant
    same: bool


def siglip() -> Peer:
    """SigLIP base (224): one vector for a picture."""
    family = npembed.FAMILIES["siglip"]
    model = npembed.random_model(family.presets()["SigLIP base (224)"], until="pooled")
    module, processor = SiglipVisionModel(SiglipVisionConfig()), SiglipImageProcessorPil()
    load_module(module, model, family.prefix)

    def theirs(paths: Sequence[Path]) -> Any:
        with torch.inference_mode():
            return module(**processor(_opened(paths), return_tensors="pt")).pooler_output.numpy()

    return Peer(model, Settings(until="pooled"), theirs, same=True)


def minicpm() -> Peer:
    """MiniCPM-V 2.6: the embeddings of every patch of every slice."""
    model = npembed.random_model()
    module, processor = minicpm_4_6_module(model), MiniCPMV4_6ImageProcessorPil()

    def theirs(paths: Sequence[Path]) -> Any:
        with torch.inference_mode():
            pixels = processor(_opened(paths), return_tensors="pt")
            return module(pixels["pixel_values"], target_sizes=pixels["target_sizes"]).numpy()

    return Peer(model, Settings(), theirs, same=False)


MODELS: dict[str, Callable[[], Peer]] = {"siglip": siglip, "minicpm-v-2.6": minicpm}


def _opened(paths: Sequence[Path]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(path.read_bytes())) for path in paths]


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """So many different JPEGs of smooth noise, as photographs are."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        paths.append(folder / f"{number:05d}.jpg")
        coarse.resize(size, Image.Resampling.BICUBIC).save(paths[-1], quality=85)
    return paths


@dataclass
class Timed:
    """Of one run of a corpus: seconds until the workers were there, and from then until the last group was done."""

    started: float = 0.0
    computed: float = 0.0


def corpus(paths: Sequence[Path], peer: Peer, workers: int) -> Timed:
    """A corpus of all of them, with so many workers."""
    found, start = Timed(), time.perf_counter()

    def begin(pictures: int, dashboard: str) -> None:
        found.started = time.perf_counter() - start

    def done(pictures: int, failed: int) -> None:
        found.computed = time.perf_counter() - start - found.started

    with tempfile.TemporaryDirectory(dir=paths[0].parent.parent) as out:
        words = {"settings": peer.settings, "workers": workers, "watch": Watcher(begin, done)}
        build([str(paths[0].parent)], f"{out}/out", peer.model, **words)
    return found


def in_batches(paths: Sequence[Path], theirs: Contestant) -> float:
    """Seconds that transformers takes with all cores; its results are dropped, not written."""
    torch.set_num_threads(cores())
    start = time.perf_counter()
    for first in range(0, len(paths), BATCH):
        theirs(paths[first : first + BATCH])
    return time.perf_counter() - start


def write_weights(folder: Path, model: Model) -> Path:
    """A checkpoint's folder of that model."""
    folder.mkdir()
    config, preprocessor = model.config.family.as_json(model.config)
    (folder / "config.json").write_text(json.dumps(config), encoding="ascii")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="ascii")
    save_tensors(folder / "model.safetensors", model.weights, {})
    return folder


def one_process(paths: Sequence[Path], peer: Peer, weights: Path) -> float:
    """Seconds for those pictures that `npembed embed` with one thread takes beside what it takes for one picture."""

    def seconds(count: int) -> float:
        out = weights.parent / "embed.safetensors"
        words = ["--weights", str(weights), "--until", peer.settings.until, "-o", str(out)]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "npembed", "embed", *map(str, paths[:count]), *words],
            env=os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1"),
            check=True,
            capture_output=True,
        )
        taken = time.perf_counter() - start
        out.unlink()
        return taken

    return (seconds(len(paths)) - seconds(1)) * len(paths) / (len(paths) - 1)


def bare(paths: Sequence[Path], peer: Peer) -> dict[str, float]:
    """Seconds by what is done, in a bare loop with one thread, which writes every result into the same file."""
    model, settings, spent = peer.model, peer.settings, dict.fromkeys(("read", "decode", "resize", "product", "write"), 0.0)
    with tempfile.TemporaryDirectory(dir=paths[0].parent.parent) as out, threadpool_limits(1):
        for path in paths:
            at = [time.perf_counter()]
            content = path.read_bytes()
            sha256(content).hexdigest()
            at.append(time.perf_counter())
            picture, _ = next(frames_of(content, "it", settings))
            at.append(time.perf_counter())
            slices = model.config.family.cut(picture, model.config)
            at.append(time.perf_counter())
            result = npembed.run(slices.strips, slices.tgt_sizes, model, settings.until)[settings.until]
            at.append(time.perf_counter())
            np.save(f"{out}/a.npy", result.astype(settings.dtype or result.dtype, copy=False))
            at.append(time.perf_counter())
            for what, begun, ended in zip(spent, at, at[1:], strict=False):
                spent[what] += ended - begun
    return spent


def check(path: Path, peer: Peer) -> None:
    """Whether both give the same of one picture.

    Raises
    ------
    DisagreementError
    """
    with next(frames_of(path.read_bytes(), "it", peer.settings))[0] as picture:
        slices = peer.model.config.family.cut(picture, peer.model.config)
    [packed] = compute([slices], peer.model, peer.settings)
    ours = np.concatenate(packed.parts)
    theirs = peer.theirs([path])
    if not peer.same:
        print(f"  patches of a picture: {len(ours)}; transformers: {theirs.shape[1]}")
    elif (distance := np.abs(ours - theirs).max()) > TOLERANCE * np.abs(theirs).max():
        raise DisagreementError(f"{distance:.2g} from transformers, whose largest value is {np.abs(theirs).max():.2g}")


def measure(paths: Sequence[Path], peer: Peer, weights: Path) -> None:
    """Print what comes out for these pictures. What the corpus is compared with is timed before it and after it."""
    check(paths[0], peer)
    few, half = paths[:FEW], len(paths) // 2
    in_batches(few[:BATCH], peer.theirs)  # its first touches
    theirs = in_batches(paths[:half], peer.theirs)
    process, loop = one_process(few, peer, weights), bare(few, peer)
    made = corpus(paths, peer, cores())
    for what, seconds in bare(few, peer).items():
        loop[what] += seconds
    process += one_process(few, peer, weights)
    theirs += in_batches(paths[half:], peer.theirs)
    ours, whole = len(paths) / made.computed, sum(loop.values())
    others = len(paths) / theirs, 2 * len(few) / process, 2 * len(few) / whole
    shares = ", ".join(f"{what} {100 * part / whole:.0f} %" for what, part in loop.items())
    print(f"  npembed corpus, {cores()} workers: {ours:.2f} pictures/s (after {made.started:.1f} s to start)")
    print(f"  transformers, batches of {BATCH}, {cores()} threads: {others[0]:.2f} pictures/s")
    print(f"  one npembed embed, one thread: {others[1]:.2f} pictures/s")
    print(f"  a bare loop, one thread: {others[2]:.2f} pictures/s: {shares}")
    print(f"  the corpus over transformers: {ours / others[0]:.2f}, target at least 1.3")
    print(f"  the corpus over one npembed embed and the number of cores: {ours / others[1] / cores():.2f}, target at least 0.9")
    print(f"  the corpus over the bare loop and the number of cores: {ours / others[2] / cores():.2f}", flush=True)


def main() -> int:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.2, help="of the pictures of each case")
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--model", choices=list(MODELS), action="append")
    words = parser.parse_args()
    peers = {name: MODELS[name]() for name in words.model or MODELS}
    with tempfile.TemporaryDirectory() as folder:
        weights = {name: write_weights(Path(folder, name), peer.model) for name, peer in peers.items()}
        for case in words.case or CASES:
            count, size = CASES[case]
            paths = write_pictures(Path(folder, case), max(BATCH, round(count * words.share)), size)
            for name, peer in peers.items():
                print(f"{name}, {len(paths)} pictures of {size[0]}×{size[1]}")
                try:
                    measure(paths, peer, weights[name])
                except DisagreementError as error:
                    print(f"benchmarks.corpus: {name}: {error}", file=sys.stderr)
                    return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
