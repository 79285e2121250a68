"""A run that a test can stop at a moment it chooses, in a process of its own; and a scheduler and a worker in theirs.

The processes are forked from one that has imported everything (`CONTEXT`), so that a start takes no time.
"""

import asyncio
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest
from distributed import Scheduler, Security, Worker, rpc
from distributed.comm import CommClosedError
from threadpoolctl import threadpool_limits

from npembed import FAMILIES, Model, random_model
from npembed.corpus import Settings, Watcher, build, engine
from npembed.corpus import build as build_function

CONTEXT: Any = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def small_model() -> Model:
    """Of sizes so small that a picture takes no time."""
    family = FAMILIES["minicpm-v-2.6"]
    return random_model(family.small(), until="tokens")


def drive(words: Connection, errors: str, pictures: str, out: str, where: str) -> None:
    """Begin, say so, and after each group wait to be told to go on.

    Parameters
    ----------
    words : Connection
        To the test.
    errors : str
        The file that the error stream goes to.
    pictures, out : str
    where : str
        The address of a scheduler, or how many workers of its own.
    """
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    engine.SECONDS_TO_ANSWER = 3  # so that a test does not wait long for a scheduler that was killed
    sys.modules[build_function.__module__].MOST_OF_ROWS = 2  # type: ignore[attr-defined]  # so that there are many groups

    def tell(*said: object) -> None:
        words.send(" ".join(map(str, said)))
        words.recv()

    options: dict[str, Any] = {"scheduler": where} if "://" in where else {"workers": int(where)}
    watch = Watcher(lambda pictures, dashboard: tell("begin", pictures), lambda pictures, failed: tell("done", pictures))
    try:
        summary = build([pictures], out, small_model(), "small", Settings(until="tokens"), watch=watch, **options)
    except ValueError as error:
        tell("refused", error)
        sys.exit(2)
    tell("end", summary.pictures, summary.failed, len(summary.unfinished))


@contextmanager
def unprotected(workers: int) -> Iterator[Any]:
    """A client of workers as a run starts them, but which other processes reach without keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Security, "temporary", Security)
        with engine.cluster(workers, None) as (client, _):
            yield client


def knock(words: Connection, addresses: list[str], security: Security, user: int | None, seconds: float) -> None:
    """Whether each address says who it is, within those seconds, if it is asked with those keys, by that user."""
    prepared = security.get_connection_args("client")

    async def asked(address: str) -> bool:
        try:
            async with rpc(address, timeout=seconds, connection_args=prepared) as there:
                await there.identity()
        except (OSError, CommClosedError):
            return False
        return True

    async def all_asked() -> list[bool]:
        return await asyncio.gather(*map(asked, addresses))

    if user is not None:  # all is imported by now: another user may not be able to read where
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    words.send(asyncio.run(all_asked()))


def serve_scheduler(words: Connection) -> None:
    """A scheduler until it is killed; it says its address."""

    async def serve() -> None:
        async with Scheduler(host="127.0.0.1", port=0, dashboard_address=":0") as scheduler:
            words.send(scheduler.address)
            await scheduler.finished()

    asyncio.run(serve())


def serve_worker(address: str, folder: str) -> None:
    """A worker of that scheduler until it is killed; one thread multiplies matrices, as Dask arranges for its own."""

    async def serve() -> None:
        async with Worker(address, nthreads=1, local_directory=folder, dashboard=False) as worker:
            await worker.finished()

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its complaints that the scheduler is gone
    with threadpool_limits(1):
        asyncio.run(serve())
