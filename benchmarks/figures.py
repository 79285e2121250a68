"""What is no contest: peak memory, and what importing npembed costs."""

import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import npembed
from npembed import Model

MEGABYTE = 1e6

IMPORT = """
import sys, time
import numpy
before = set(sys.modules)
start = time.perf_counter()
import npembed
print((time.perf_counter() - start) * 1e3)
print(sum(name.split(".")[0] in ("scipy", "PIL") for name in set(sys.modules) - before))
"""


def peak_memory(strips: Sequence[NDArray[Any]], sizes: Sequence[tuple[int, int]], model: Model) -> float:
    """MB at the peak of one `embed`, without its inputs, its result and the weights.

    tracemalloc counts what Python and NumPy allocate; the buffers of a BLAS are outside its sight. The model is a new one, so
    that what it computes once and keeps is counted too.
    """
    fresh = Model(model.config, dict(model.weights))
    tgt_sizes = np.array(sizes)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    result = npembed.embed(strips, tgt_sizes, fresh)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (peak - before - result.nbytes) / MEGABYTE


def import_times(runs: int) -> tuple[list[float], int]:
    """How long `import npembed` takes after `import numpy`, in ms; how many modules of SciPy and Pillow it brings.

    The modules are compiled beforehand, as they are when pip has installed them.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        outputs = []
        for _ in range(runs + 1):
            done = subprocess.run([sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True, check=True)
            outputs.append(done.stdout.split())
    return [float(milliseconds) for milliseconds, _ in outputs[1:]], int(outputs[0][1])
