"""What a contest is: contestants that compute the same thing, a check that they do, and how they take turns."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

OURS = "npembed"
"""The contestant that every ratio is taken to."""

PRODUCT = "product"
"""The floor: nothing but the matrix products that nobody can leave out, by np.matmul in float32."""


class DisagreementError(Exception):
    """Two contestants do not compute the same thing, so their times mean nothing."""


@dataclass(frozen=True)
class Contestant:
    """One way to compute a case.

    Attributes
    ----------
    name : str
    run : callable
        What is timed. Modules, sessions and inputs are made before, once.
    before : callable, optional
        Called before each call of `run`, outside the timing.
    """

    name: str
    run: Callable[[], Any]
    before: Callable[[], None] | None = None


@dataclass(frozen=True)
class Contest:
    """A case's contestants, npembed among them, and how a result is checked.

    Attributes
    ----------
    contestants : sequence of Contestant
    check : callable
        (name of the contestant, its result) -> None, or a `DisagreementError`.
    """

    contestants: Sequence[Contestant]
    check: Callable[[str, Any], None]

    def agree(self) -> None:
        """Run every contestant once and check what it gives."""
        for contestant in self.contestants:
            if contestant.before:
                contestant.before()
            self.check(contestant.name, contestant.run())


Rounds = list[list[float]]
"""Milliseconds: one list per round, one number per call."""


@dataclass(frozen=True)
class Schedule:
    """How often each contestant is called, and how long it is quiet before its turn.

    Attributes
    ----------
    rounds : int
    calls : int
        Per contestant and round.
    pause : float
        Seconds. Threads of other libraries wait busily after a call and slow whoever comes next; `python -m benchmarks.pauses`
        measures for how long.
    """

    rounds: int
    calls: int
    pause: float = 0.1


FULL = Schedule(rounds=9, calls=3)
QUICK = Schedule(rounds=2, calls=1, pause=0.03)


def take_turns(contestants: Sequence[Contestant], schedule: Schedule) -> dict[str, Rounds]:
    """Name -> the times of each of its calls. Every other round goes backwards, so that none always follows the same one."""
    times: dict[str, Rounds] = {contestant.name: [] for contestant in contestants}
    with _no_collector():
        for number in range(schedule.rounds):
            for contestant in contestants if number % 2 == 0 else reversed(contestants):
                time.sleep(schedule.pause)
                times[contestant.name].append([time_call(contestant) for _ in range(schedule.calls)])
    return times


def time_call(contestant: Contestant) -> float:
    """Milliseconds of one call. What it returns is freed after the clock has stopped."""
    if contestant.before:
        contestant.before()
    start = time.perf_counter()
    result = contestant.run()
    elapsed = time.perf_counter() - start
    del result
    return elapsed * 1e3


@contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def quartiles(rounds: Rounds) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile of all calls."""
    calls = [milliseconds for each in rounds for milliseconds in each]
    if len(calls) == 1:
        return calls[0], calls[0], calls[0]
    lower, median, upper = statistics.quantiles(calls, n=4, method="inclusive")
    return lower, median, upper


def ratio(times: Mapping[str, Rounds], name: str, to: str = OURS) -> float:
    """The median over the rounds of one contestant's median over another's: above 1, the other is faster."""
    rounds = zip(times[name], times[to], strict=True)
    return statistics.median(statistics.median(theirs) / statistics.median(ours) for theirs, ours in rounds)
