"""`npembed corpus` in a process that stops itself at a moment: `python tests/corpus_stopped.py MOMENT SIGNAL WHOM WORDS...`.

The moment is a function, by its module and name, whose first call sends the signal first; or `worker`, a worker's own start.
WHOM is `group`, as a terminal does it, or `process`, as `kill` does.
"""

import importlib
import os
import signal
import sys
from typing import Any

from npembed.__main__ import main
from npembed.corpus import engine

STOP, NUMBER, WHOM = "NPEMBED_TEST_STOP", "NPEMBED_TEST_SIGNAL", "NPEMBED_TEST_WHOM"


def stop() -> None:
    """Send the signal, once whoever sends it."""
    try:
        os.rmdir(os.environ[STOP])
    except FileNotFoundError:
        return
    leader = os.getpgid(0)
    send = os.killpg if os.environ[WHOM] == "group" else os.kill
    send(leader, int(os.environ[NUMBER]))


def dask_setup(worker: object) -> None:
    """As a worker starts."""
    stop()


def at(moment: str) -> None:
    """Let the first call of that function send the signal first."""
    module, _, name = moment.partition(":")
    holder: Any = importlib.import_module(module)
    *above, name = name.split(".")
    for each in above:
        holder = getattr(holder, each)
    function = getattr(holder, name)

    def stopping(*args: Any, **words: Any) -> Any:
        stop()
        return function(*args, **words)

    setattr(holder, name, stopping)


if __name__ == "__main__":
    moment, number, whom, *words = sys.argv[1:]
    os.environ |= {NUMBER: str(int(signal.Signals[number])), WHOM: whom}
    os.mkdir(os.environ[STOP])
    sys.argv = ["npembed", *words]
    if moment == "worker":
        engine.PRELOAD = [*engine.PRELOAD, "tests.corpus_stopped"]
    else:
        at(moment)
    main()
