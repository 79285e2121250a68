"""The groups of a run on a Dask cluster: one made for it on this machine, or one that is there already."""

import asyncio
import importlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from multiprocessing import resource_tracker
from typing import Any

from npembed.corpus.settings import WHO
from npembed.corpus.sources import Item
from npembed.corpus.work import MUST_AGREE, Job, compute_group, let_go, own_folder, try_picture, versions
from npembed.support import stops

SECONDS_TO_ANSWER = 10
RETRIES = 2
SECONDS_TO_LOOK = 5
"""Between looks at whether there are workers at all, while none is finished."""
SECONDS_WITHOUT_WORKERS = 300
"""A cluster may be without workers so long, as one is that starts them when there is work."""
LOOPBACK = "127.0.0.1"
PRELOAD = ["npembed.corpus.quiet"]
"""Modules that a worker on this machine loads as it starts."""
FOR_WORKERS = "distributed.nanny.pre-spawn-environ"
"""Dask's setting of what the environment of a worker is before it begins."""
KEEPS_MEMORY = {
    f"{FOR_WORKERS}.{name}": value
    for name, value in (("MALLOC_TRIM_THRESHOLD_", 2**26), ("MALLOC_MMAP_THRESHOLD_", 2**25), ("MALLOC_ARENA_MAX", 1))
}
"""Dask has glibc give memory back from 64 KiB on: a worker then asks for each array's pages anew, a quarter slower. And glibc
keeps an arena for each thread, in heaps of 64 MB that large arrays leave gaps in: with them a peak is up to 45 MB higher."""
UNWATCHED = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "500ms"}
"""Dask notes a hundred times a second which line its workers are at, and fifty times how fast their loop turns, for pages of
the dashboard: 4 % of their time."""
NEVER_GIVEN_UP = {"distributed.deploy.lost-worker-timeout": "365 days"}
"""A process that dies is started anew. Dask looks that long afterwards whether it is there, and if it has just died again,
never starts it any more: with the usual 15 s, a few deadly pictures would end all workers."""
KILLER = "its worker process died again and again"
GOES_ON = "what is finished stays, and the same command goes on from there"


def check_extras(scheduler: str | None, dashboard: bool) -> None:
    """An error, before the work, that says which extra is missing.

    Raises
    ------
    ImportError
    """
    needed = {"distributed": "corpus"}
    needed |= {"cryptography": "corpus"} if scheduler is None else {}
    needed |= {"bokeh": "dashboard"} if dashboard else {}
    for module, extra in needed.items():
        try:
            importlib.import_module(module)
        except ImportError:
            what = "Dask's dashboard" if extra == "dashboard" else "a corpus"
            name = "Dask" if module == "distributed" else module
            raise ImportError(f"{what} needs {name}: pip install 'npembed[{extra}]'") from None


@contextmanager
def cluster(workers: int | None, scheduler: str | None, dashboard: bool = False) -> Iterator[tuple[Any, str]]:
    """A Dask client, and the address of the dashboard; "" without one.

    Parameters
    ----------
    workers : int, optional
        Processes on this machine, of one thread each; as many as it has cores by default.
    scheduler : str, optional
        The address of a scheduler, instead.
    dashboard : bool
        Whether its own scheduler has Dask's pages, which every user of this machine can look at.

    Raises
    ------
    ValueError
        A scheduler that does not answer, or has no workers; a folder for temporary files that somebody else can write to.
    ImportError
        Without the extra `corpus`, or `dashboard`.
    """
    check_extras(scheduler, dashboard)
    distributed: Any = importlib.import_module("distributed")
    _hush()
    if scheduler is not None:
        with _answering(distributed, scheduler) as client:
            try:
                yield client, ""
            finally:
                with suppress(Exception):  # workers, or the whole cluster, may be gone
                    client.run(let_go, on_error="ignore")
        return
    dask: Any = importlib.import_module("dask")
    own = KEEPS_MEMORY | UNWATCHED | NEVER_GIVEN_UP | {"temporary-directory": str(own_folder())}
    with (
        dask.config.set(own),
        _own_environment(dask.config.get(FOR_WORKERS)),
        stops.held_back(),  # what Dask begins or ends can be stopped nowhere in between
        _local(distributed, workers, dashboard) as local,
        distributed.Client(local, set_as_default=False) as client,
        stops.let_through(),
    ):
        yield client, local.dashboard_link if dashboard else ""


def _local(distributed: Any, workers: int | None, dashboard: bool) -> Any:
    """A cluster on this machine that only this run can reach: whoever can talk to a scheduler or a worker can have it run code.

    All of it talks by TLS on loopback, with keys that are made anew and that nobody else has. Each process has a server of
    pages as well, which asks for no key: it is closed, but for the dashboard.
    """
    options: dict[str, Any] = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": True,
        "memory_limit": None,
        "preload": PRELOAD,
    }
    options |= {"host": LOOPBACK, "security": distributed.Security.temporary()}
    options |= {"dashboard_address": f"{LOOPBACK}:0", "scheduler_kwargs": {"dashboard": dashboard}}
    try:
        with _interrupt_blocked():
            local = distributed.LocalCluster(**options, silence_logs=logging.CRITICAL)
    except RuntimeError as error:
        raise ValueError(f"{WHO}: the workers cannot be started: {error}") from None
    if not dashboard:
        local.sync(_close_pages, local.scheduler)
    return local


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal: no thread or process that is started within gets it; the run ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # whoever starts it lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _close_pages(server: Any) -> None:
    server.http_server.stop()


@contextmanager
def _own_environment(names: Iterable[str]) -> Iterator[None]:
    """Dask puts what is meant for its workers into this process's environment, leaves it there, and what is there wins.

    So what an earlier cluster left about memory is taken out first, and all is as it was afterwards.
    """
    names = {*names, "PYTHONHASHSEED"}
    before = {name: os.environ.get(name) for name in names}
    for name in names:
        if name.startswith("MALLOC_"):
            os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _hush() -> None:
    """Let Dask say nothing on the screen: what matters is said in one line of our own. Some of its loggers have own levels."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("distributed."):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _answering(distributed: Any, scheduler: str) -> Iterator[Any]:
    with _no_answer_in_words(scheduler):
        asyncio.run(asyncio.wait_for(_asked(distributed, scheduler), SECONDS_TO_ANSWER))
    with stops.held_back():
        with _no_answer_in_words(scheduler):
            client = distributed.Client(scheduler, timeout=SECONDS_TO_ANSWER, set_as_default=False)
        with client, stops.let_through():
            try:
                client.wait_for_workers(1, timeout=SECONDS_TO_ANSWER)
            except TimeoutError:
                raise ValueError(f"{WHO}: the scheduler {scheduler} has no workers") from None
            _refuse_versions(client)
            yield client


@contextmanager
def _no_answer_in_words(scheduler: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what is there need not be a scheduler
        why = " ".join(str(error).split()) or f"no word in {SECONDS_TO_ANSWER} s"
        raise ValueError(f"{WHO}: the scheduler {scheduler} does not answer: {why}") from None


async def _asked(distributed: Any, scheduler: str) -> Any:
    """Who it is. A client that never got an answer would wait again when it is closed, and complain."""
    words = distributed.Security().get_connection_args("client")
    async with distributed.rpc(scheduler, timeout=SECONDS_TO_ANSWER, connection_args=words) as there:
        return await there.identity()


def _refuse_versions(client: Any) -> None:
    """An error if the workers there now lack npembed or have other versions; later ones are refused by their tasks."""
    mine = versions()
    try:
        theirs = client.run(versions)
    except Exception as error:  # a worker without npembed cannot even read the question
        raise ValueError(f"{WHO}: the workers cannot run npembed {mine['npembed']}: {error}") from None
    for address, found in theirs.items():
        for name in MUST_AGREE:
            if found[name] != mine[name]:
                raise ValueError(f"{WHO}: the worker {address} has {name} {found[name]}, but here it is {mine[name]}")


def run_groups(
    client: Any, job: Job, groups: Mapping[int, Sequence[Item]], done: Callable[[Mapping[str, int]], None]
) -> dict[int, str]:
    """Compute the groups; those that were not finished, each with the reason.

    A group whose workers die again and again is given up. When the others are done, its pictures are tried one by one; it is
    computed again with those marked as failed that end their worker.

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
        What a task refuses, as storage that is full; a scheduler that is lost; a cluster whose workers are all gone and stay
        so. What is finished stays.
    """

    def computed(groups: Iterable[tuple[int, Sequence[Item]]]) -> Iterator[int]:
        """The numbers of those that were given up."""
        for number, counts in _results(client, ((n, compute_group, (job, n, items)) for n, items in groups)):
            if counts is None:
                yield number
            else:
                done(counts)

    given_up = list(computed(groups.items()))
    marked = ((number, _without_killers(client, job, groups[number])) for number in given_up)
    return {number: "its worker died again and again" for one in marked for number in computed([one])}


def _without_killers(client: Any, job: Job, items: Sequence[Item]) -> list[Item]:
    """The pictures, those that end their worker marked as failed. One at a time, so that none is blamed for another."""
    lives = {
        number: found is not None
        for number, item in enumerate(items)
        for _, found in _results(client, [(number, try_picture, (job, item))])
    }
    return [item if lives[number] else replace(item, error=KILLER) for number, item in enumerate(items)]


def _results(client: Any, calls: Iterable[tuple[int, Callable[..., Any], tuple[Any, ...]]]) -> Iterator[tuple[int, Any]]:
    """Each call's number with its result, as they come; with None if its workers died again and again."""
    waiting = iter(calls)
    running: dict[Any, int] = {}
    while True:
        for number, function, words in islice(waiting, max(0, _at_once(client) - len(running))):
            running[client.submit(function, *words, pure=False, retries=RETRIES)] = number
        if not running:
            return
        for future in _finished(client, list(running)):
            yield running.pop(future), _result(future)


def _finished(client: Any, running: Sequence[Any]) -> Iterable[Any]:
    """Those of the futures that are no longer pending: at least one.

    Raises
    ------
    ValueError
        The cluster has had no worker for `SECONDS_WITHOUT_WORKERS`.
    """
    distributed: Any = importlib.import_module("distributed")
    lost_at: float | None = None
    while True:
        with client.as_current(), suppress(TimeoutError, CancelledError):
            distributed.wait(running, timeout=SECONDS_TO_LOOK, return_when="FIRST_COMPLETED")
        if found := [future for future in running if future.status != "pending"]:
            return found
        lost_at = None if _threads(client) else lost_at or time.monotonic()
        if lost_at is not None and time.monotonic() - lost_at >= SECONDS_WITHOUT_WORKERS:
            raise ValueError(f"{WHO}: the cluster has lost all its workers; {GOES_ON}")


def _result(future: Any) -> Any:
    """What a call gave; None if its workers died again and again."""
    distributed: Any = importlib.import_module("distributed")
    try:
        return future.result()
    except distributed.KilledWorker:
        return None
    except Exception as error:
        if future.status in ("cancelled", "lost"):
            raise ValueError(f"{WHO}: the scheduler is lost; {GOES_ON}") from None
        raise ValueError(str(error) or type(error).__name__) from None


def _at_once(client: Any) -> int:
    """How many groups are handed out: enough that no worker waits, not so many that the scheduler holds the whole list."""
    return max(2, 2 * _threads(client))


def _threads(client: Any) -> int:
    info = client.scheduler_info(n_workers=-1)
    return sum(worker["nthreads"] for worker in info["workers"].values())
