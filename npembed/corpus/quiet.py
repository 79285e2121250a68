"""Set up in each worker process on this machine: no server of pages; Ctrl-C is for the run, which then ends its workers.

Nothing of a worker's reaches the screen, which has the run's own lines.
"""

import os
import signal
import warnings
from typing import Any


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the run. Dask calls this, in the worker's main thread, as the worker starts."""
    worker.http_server.stop()  # it asks for no key
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # Pillow's, of a damaged picture
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # to which libtiff and others write straight
    os.close(nowhere)
