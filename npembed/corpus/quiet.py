"""Set up in each worker process on this machine: Ctrl-C is for the run, which then ends its workers."""

import signal


def dask_setup(worker: object) -> None:
    """Leave Ctrl-C to the run. Dask calls this, in the worker's main thread, as the worker starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
