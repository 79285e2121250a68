"""`python -m benchmarks.pauses`: how long after each contestant's call the matrix product is still slower than it should be.

Other libraries' threads do not sleep at once when their work is done; they spin for a while, in case more comes. Whoever runs
next shares the cores with them.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import threadpoolctl
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.cases import BATCHES, make_batch
from benchmarks.contest import PRODUCT, Contestant, time_call
from benchmarks.embedding import embedding_contest
from npembed import random_model

PAUSES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Seconds."""

CALLS = 15


def after(run: Callable[[], Any], product: Contestant, pause: float) -> float:
    """Median milliseconds of the product, so long after a call of something else."""
    times = []
    for _ in range(CALLS):
        run()
        time.sleep(pause)
        times.append(time_call(product))
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    threads = machine.default_threads()
    torch.set_num_threads(threads)
    shown = Table(title="milliseconds of the matrix product", box=box.MARKDOWN)
    for head in ("after", *(f"{pause * 1e3:g} ms" for pause in PAUSES)):
        shown.add_column(head, justify="right")
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        contestants = embedding_contest(make_batch(BATCHES["one"]), random_model(), threads).contestants
        product = next(contestant for contestant in contestants if contestant.name == PRODUCT)
        for contestant in contestants:
            shown.add_row(contestant.name, *(f"{after(contestant.run, product, pause):.2f}" for pause in PAUSES))
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
