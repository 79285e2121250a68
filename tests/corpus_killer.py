"""Loaded into each worker of a test's cluster: a picture that ends with certain bytes ends the worker."""

import os
import signal
from typing import Any

from npembed.corpus import work

compute_group = work.compute_group
END = b"the end of the process"


def dask_setup(worker: object) -> None:
    """As the worker starts."""
    frames_of = work.frames_of

    def deadly(content: bytes, *words: Any) -> Any:
        if content.endswith(END):
            os.kill(os.getpid(), signal.SIGKILL)
        return frames_of(content, *words)

    work.frames_of = deadly


def die_with_the_second_group(job: Any, group: int, items: Any) -> Any:
    """In place of `compute_group`."""
    if group == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute_group(job, group, items)
