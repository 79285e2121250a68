"""Run the cases that are asked for, one after the other, and make a row of every number."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks import figures
from benchmarks.cases import BATCHES, make_batch
from benchmarks.contest import OURS, Contest
from benchmarks.embedders import embedding_contest
from benchmarks.others import encoder_contest, ids_contest, slicing_contest
from benchmarks.timing import Rounds, Schedule, quartiles, ratio, take_turns
from npembed import Model, random_model


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
    lower: float | None = None
    upper: float | None = None
    samples: Rounds = field(default_factory=list)


Contests = dict[str, Callable[[], Contest]]


def contests(model: Model, threads: int) -> Contests:
    """Name of the case -> what makes its contest."""
    batches: Contests = {
        name: lambda sizes=sizes: embedding_contest(make_batch(sizes), model, threads)  # type: ignore[misc]
        for name, sizes in BATCHES.items()
    }
    return batches | {
        "ids": lambda: ids_contest(cold=False),
        "ids-cold": lambda: ids_contest(cold=True),
        "slicing": slicing_contest,
        "encoder": encoder_contest,
    }


CASES = (*BATCHES, "ids", "ids-cold", "slicing", "encoder", "memory", "import")


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
    if "import" in cases:
        say("import")
        yield from _import(schedule.rounds)


def _rows(case: str, times: dict[str, Rounds]) -> Iterator[Row]:
    for name, rounds in times.items():
        lower, median, upper = quartiles(rounds)
        yield Row(case, name, median, "ms", None if name == OURS else ratio(times, name), lower, upper, rounds)


def _per_patch(per_patch: dict[str, float]) -> Iterator[Row]:
    """Microseconds per patch where the batch is one slice and where it is many."""
    if {"one", "many"} <= per_patch.keys():
        for name in ("one", "many"):
            yield Row("per-patch", name, per_patch[name], "µs")
        yield Row("per-patch", "many / one", per_patch["many"] / per_patch["one"], "")


def _memory(model: Model) -> Iterator[Row]:
    sizes = BATCHES["many"]
    strips = make_batch(sizes).strips
    once = figures.peak_memory(strips, sizes, model)
    twice = figures.peak_memory(strips * 2, sizes * 2, model)
    yield Row("memory", "many", once, "MB")
    yield Row("memory", "twice as many", twice, "MB")
    yield Row("memory", "twice / many", twice / once, "")


def _import(runs: int) -> Iterator[Row]:
    times, modules = figures.import_times(runs)
    lower, median, upper = quartiles([times])
    yield Row("import", "over numpy", median, "ms", None, lower, upper, [times])
    yield Row("import", "SciPy, Pillow", modules, "modules")
