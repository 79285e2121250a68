"""The groups of a run on a Dask cluster: one made for it on this machine, or one that is there already."""

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from npembed.corpus.settings import WHO
from npembed.corpus.sources import Item
from npembed.corpus.work import Job, compute_group, versions

SECONDS_TO_ANSWER = 10
RETRIES = 2


@contextmanager
def cluster(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """A Dask client.

    Parameters
    ----------
    workers : int, optional
        Processes on this machine, of one thread each; as many as it has cores by default.
    scheduler : str, optional
        The address of a scheduler, instead.

    Raises
    ------
    ValueError
        A scheduler that does not answer, or has no workers.
    ImportError
        Without the extra `corpus`.
    """
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise ImportError("a corpus needs Dask: pip install 'npembed[corpus]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said in one line of our own
    if scheduler is not None:
        with _answering(distributed, scheduler) as client:
            yield client
        return
    local = distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=None,
        dashboard_address=":0",
        silence_logs=logging.CRITICAL,
        preload=["npembed.corpus.quiet"],
    )
    with local, distributed.Client(local, set_as_default=False) as client:
        yield client


@contextmanager
def _answering(distributed: Any, scheduler: str) -> Iterator[Any]:
    try:
        client = distributed.Client(scheduler, timeout=SECONDS_TO_ANSWER, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{WHO}: the scheduler {scheduler} does not answer: {error}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=SECONDS_TO_ANSWER)
        except TimeoutError:
            raise ValueError(f"{WHO}: the scheduler {scheduler} has no workers") from None
        _refuse_versions(client)
        yield client


def _refuse_versions(client: Any) -> None:
    """An error if the workers there now lack npembed or have other versions; later ones are refused by their tasks."""
    mine = versions()
    try:
        theirs = client.run(versions)
    except Exception as error:  # a worker without npembed cannot even read the question
        raise ValueError(f"{WHO}: the workers cannot run npembed {mine['npembed']}: {error}") from None
    for address, found in theirs.items():
        for name in ("npembed", "numpy", "Pillow"):
            if found[name] != mine[name]:
                raise ValueError(f"{WHO}: the worker {address} has {name} {found[name]}, but here it is {mine[name]}")


def run_groups(
    client: Any, job: Job, groups: Mapping[int, Sequence[Item]], done: Callable[[Mapping[str, int]], None]
) -> dict[int, str]:
    """Compute the groups; those that were not finished, each with the reason, because their workers died again and again.

    Parameters
    ----------
    client : distributed.Client
    job : dict
    groups : dict of int to list of Item
    done : callable
        Called with what `compute_group` gives, after each.

    Raises
    ------
    ValueError
        What a task refuses, as storage that is full; a scheduler that is lost. What is finished stays.
    """
    distributed: Any = importlib.import_module("distributed")
    waiting = iter(groups.items())
    running = distributed.as_completed(loop=client.loop)
    numbers: dict[str, int] = {}
    unfinished: dict[int, str] = {}

    def submit(most: int) -> None:
        while len(numbers) < most and (following := next(waiting, None)) is not None:
            future = client.submit(compute_group, job, *following, pure=False, retries=RETRIES)
            numbers[future.key] = following[0]
            running.add(future)

    submit(_at_once(client))
    for future in running:
        number = numbers.pop(future.key)
        try:
            done(future.result())
        except distributed.KilledWorker:
            unfinished[number] = "its worker died again and again"
        except Exception as error:
            raise ValueError(_why(future, error)) from None
        submit(_at_once(client))
    return unfinished


def _at_once(client: Any) -> int:
    """How many groups are handed out: enough that no worker waits, not so many that the scheduler holds the whole list."""
    info = client.scheduler_info(n_workers=-1)
    threads: int = sum(worker["nthreads"] for worker in info["workers"].values())
    return max(2, 2 * threads)


def _why(future: Any, error: Exception) -> str:
    if future.status in ("cancelled", "lost"):
        return f"{WHO}: the scheduler is lost; what is finished stays, and the same command goes on from there"
    return str(error) or type(error).__name__
