"""Set up in each worker process on this machine: Ctrl-C is for the run, which then ends its workers; warnings say nothing."""

import signal
import warnings


def dask_setup(worker: object) -> None:
    """Leave Ctrl-C to the run. Dask calls this, in the worker's main thread, as the worker starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # Pillow's, of a damaged picture: the screen has the run's one line
