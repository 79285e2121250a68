"""Every case in turn, as rows of figures: the contests, peak memory, and what importing npembed costs."""

import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import npembed
from benchmarks.cases import BATCHES, JPEG_SIZE, make_batch
from benchmarks.contest import OURS, PRODUCT, Contest, Rounds, Schedule, quartiles, ratio, take_turns
from benchmarks.embedding import EMBEDDERS, embedding_contest
from benchmarks.pipelines import pooled_contest, tokens_contest
from benchmarks.stages import encoder_contest, ids_contest, slicing_contest
from npembed import Model, random_model
from npembed.records.config import FamilyConfig
from npembed.records.family import Family

MEGABYTE = 1e6

IMPORT = """
import sys, time
import numpy
before = set(sys.modules)
start = time.perf_counter()
import npembed
print((time.perf_counter() - start) * 1e3)
print(sum(name.split(".")[0] in ("scipy", "PIL") for name in set(sys.modules) - before))
"""


def peak_memory(strips: Sequence[NDArray[Any]], sizes: Sequence[tuple[int, int]], model: Model) -> float:
    """MB at the peak of one `embed`, without its inputs, its result and the weights.

    tracemalloc counts what Python and NumPy allocate; the buffers of a BLAS are outside its sight. The model is a new one, so
    that what it computes once and keeps is counted too.
    """
    fresh = Model(model.config, dict(model.weights))
    tgt_sizes = np.array(sizes)
    return _peak(lambda: {"embeddings": npembed.embed(strips, tgt_sizes, fresh)})


def _peak(work: Callable[[], Mapping[str, NDArray[Any]]]) -> float:
    """MB at the peak of that work, beside what there was before and the arrays that it gives."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    arrays = work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (peak - before - sum(array.nbytes for array in arrays.values())) / MEGABYTE


def pipeline_memory(family: Family, config: FamilyConfig) -> float:
    """MB at the peak between a picture of 12 megapixels and the family's last stage, without weights and result.

    Widths, picture and slices are of full size; the tower has no more layers than it must, because one layer's memory is
    free again before the next. The picture itself is not counted.
    """
    needed = getattr(config, "insert_layer_id", -1) + 2  # one, or the window merger and what is on both its sides
    config = replace(config, vision=replace(config.vision, num_hidden_layers=needed))
    model = random_model(config, until=family.vision_stages[-1].name)
    pixels = np.random.default_rng(0).integers(0, 256, (*reversed(JPEG_SIZE), 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    del pixels
    return _peak(lambda: npembed.run(*npembed.slice_image(picture, config), model))


def import_times(runs: int) -> tuple[list[float], int]:
    """How long `import npembed` takes after `import numpy`, in ms; how many modules of SciPy and Pillow it brings.

    The modules are compiled beforehand, as they are when pip has installed them.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        outputs = []
        for _ in range(runs + 1):
            done = subprocess.run([sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True, check=True)
            outputs.append(done.stdout.split())
    return [float(milliseconds) for milliseconds, _ in outputs[1:]], int(outputs[0][1])


@dataclass(frozen=True)
class Row:
    """One number of the table.

    Attributes
    ----------
    case : str
    what : str
        A contestant, or a figure of the case.
    value : float
        The median, where it was measured more than once.
    unit : str
    ratio : float, optional
        Of a contestant: its time over npembed's, the median over the rounds.
    ceiling : float, optional
        Its time over the bare product's: the ratio, if npembed took no longer than that.
    lower, upper : float, optional
        The quartiles.
    samples : list of list of float
        Every call of every round.
    """

    case: str
    what: str
    value: float
    unit: str
    ratio: float | None = None
    ceiling: float | None = None
    lower: float | None = None
    upper: float | None = None
    samples: Rounds = field(default_factory=list)


EMBED_MANY = (OURS, "onnxruntime")
"""Who embeds `many`: each of the others takes a second or more per call there."""


def contests(model: Model, threads: int) -> dict[str, Callable[[], Contest]]:
    """Name of the case -> what makes its contest."""
    return {name: partial(_batch_contest, name, model, threads) for name in BATCHES} | {
        "ids": ids_contest,
        "slicing": slicing_contest,
        "encoder": encoder_contest,
        "siglip-pooled": pooled_contest,
        "minicpm-4.6-tokens": tokens_contest,
    }


def _batch_contest(name: str, model: Model, threads: int) -> Contest:
    names = EMBED_MANY if name == "many" else EMBEDDERS
    return embedding_contest(make_batch(BATCHES[name]), model, threads, names)


PIPELINES = ("siglip-pooled", "minicpm-4.6-tokens")

CASES = (*BATCHES, "ids", "slicing", "encoder", *PIPELINES, "memory", "family-memory", "import")

QUICK_CASES = tuple(case for case in CASES if case not in ("many", *PIPELINES, "family-memory"))
"""Each of the others takes longer than all of these."""


def measure(cases: Sequence[str], schedule: Schedule, threads: int, say: Callable[[str], None]) -> Iterator[Row]:
    """The rows of these cases. Every contest is checked before it is timed."""
    model = random_model()
    timed = {name: make for name, make in contests(model, threads).items() if name in cases}
    per_patch = {}
    for name, make in timed.items():
        say(f"{name}: do all contestants agree?")
        contest = make()
        contest.agree()
        say(f"{name}: {', '.join(contestant.name for contestant in contest.contestants)}")
        times = take_turns(contest.contestants, schedule)
        yield from _rows(name, times)
        if name in BATCHES:
            per_patch[name] = quartiles(times[OURS])[1] * 1e3 / sum(h * w for h, w in BATCHES[name])
    yield from _per_patch(per_patch)
    if "memory" in cases:
        say("memory")
        yield from _memory(model)
    if "family-memory" in cases:
        for key, family in npembed.FAMILIES.items():
            say(f"family-memory: {key}")
            yield Row("family-memory", key, max(pipeline_memory(family, config) for config in _largest(family)), "MB")
    if "import" in cases:
        say("import")
        yield from _import(schedule.rounds)


def _rows(case: str, times: dict[str, Rounds]) -> Iterator[Row]:
    for name, rounds in times.items():
        lower, median, upper = quartiles(rounds)
        to_ours = None if name == OURS else ratio(times, name)
        to_floor = None if PRODUCT not in times or name in (OURS, PRODUCT) else ratio(times, name, PRODUCT)
        yield Row(case, name, median, "ms", to_ours, to_floor, lower, upper, rounds)


def _per_patch(per_patch: dict[str, float]) -> Iterator[Row]:
    """Microseconds per patch where the batch is one slice and where it is many."""
    if {"one", "many"} <= per_patch.keys():
        for name in ("one", "many"):
            yield Row("per-patch", name, per_patch[name], "µs")
        yield Row("per-patch", "many / one", per_patch["many"] / per_patch["one"], "")


def _memory(model: Model) -> Iterator[Row]:
    sizes = BATCHES["many"]
    strips = make_batch(sizes).strips
    once = peak_memory(strips, sizes, model)
    twice = peak_memory(strips * 2, sizes * 2, model)
    yield Row("memory", "many", once, "MB")
    yield Row("memory", "twice as many", twice, "MB")
    yield Row("memory", "twice / many", twice / once, "")


def _largest(family: Family) -> list[FamilyConfig]:
    """The preset with the widest tower, and the one with the most patches to a slice."""
    presets = family.presets().values()
    widest = max(presets, key=lambda config: config.vision.hidden_size)
    most = max(presets, key=lambda config: config.vision.image_size / config.vision.patch_size)
    return [widest] if widest is most else [widest, most]


def _import(runs: int) -> Iterator[Row]:
    times, modules = import_times(runs)
    lower, median, upper = quartiles([times])
    yield Row("import", "over numpy", median, "ms", lower=lower, upper=upper, samples=[times])
    yield Row("import", "SciPy, Pillow", modules, "modules")
